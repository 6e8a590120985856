"""From images to heatmaps in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from detcam.adapters import Adapter, adapt
from detcam.adapters.base import Target
from detcam.cam import BaseCAM
from detcam.data.images import is_single, load_image, load_images, to_uint8
from detcam.detections import Detections, LabelsLike, label_index
from detcam.explanation.result import Explanation, Explanations
from detcam.inputs import displayable_images
from detcam.methods.spec import method_from
from detcam.outputs import as_target
from detcam.results import ImageHeatmaps
from detcam.targets import with_quantity
from detcam.utils.console import track
from detcam.visualize.convert import ImageArray

SCORE_THRESHOLD = 0.3
"""Least score of a box that is explained unless the user says otherwise."""
MOST_BOXES = 10
"""Boxes per image that are explained unless the user says otherwise, best first."""

BOX_METHOD = "odam"
"""What explains boxes unless the user says otherwise: GradCAM's weights are spatial means, which lose a box's place."""

Method = str | Callable[[Adapter], BaseCAM]
"""A method's name, its class, or anything that makes one from an adapter."""


def explain(
    model: Adapter | nn.Module | Any,
    images: Any,
    method: Method = "auto",
    targets: Any = None,
    *,
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    score_threshold: float | None = None,
    top_k: int | None = None,
    labels: LabelsLike | None = None,
    quantity: str = "score",
    against: int | str | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    **adapter_options: Any,
) -> Explanations:
    """Explain what a model finds in images: one forward pass per batch, one heatmap per finding.

    Args:
        model: a detector, segmentation network or classifier of a supported family, or an adapter.
        images: one image or a list of them (see `detcam.data.images.ImageLike`), sizes free; or an already normalised
            (B, C, H, W) tensor for a plain module.
        method: ``auto``, which is ODAM for boxes and GradCAM for masks and classes; a name in
            `detcam.methods.METHODS`, with settings if need be (``drise:passes=1000``); a method's class, or
            ``partial(DRISE, ...)``.
        targets: as in a method's call; None explains what the model finds, as the next five arguments choose.
        target_layers: modules or dotted names; None takes the family's default.
        score_threshold: least score in [0, 1]; None takes 0.3 for boxes and none for classes and regions.
        top_k: at most so many findings per image, best first; None takes ten boxes, every region, and of a
            classifier the top class, or all of `labels`, or all that reach `score_threshold`.
        labels: class names or indices to explain, one or several; of a classifier, whatever their rank.
        quantity: what of a box to explain: ``score``, ``logit``, ``objectness``, ``x1``, ``y1``, ``x2``, ``y2``,
            ``width``, ``height``, ``edges``, ``mask`` (the instance's mask), or a name given to
            `detcam.targets.register_target`.
        against: class name or index: explain the difference of the two classes (*why a dog rather than a cat?*).
        aug_smooth: mean over six views of the image.
        eigen_smooth: first principal component over the channels instead of their sum.
        batch_size: images per forward pass.
        progress: whether to show a progress bar on stderr.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `names`, `image_size`.

    Raises:
        TypeError, ValueError: an argument is not as expected.
        RuntimeError: a target layer never ran, or the score does not depend on it.
    """
    reshape = adapter_options.pop("reshape_transform", None)
    if isinstance(model, Adapter) and adapter_options:
        given = ", ".join(sorted(adapter_options))
        raise TypeError(f"{given}: give these where the adapter is made, adapt(model, ...); it is ready already")
    adapter = adapt(model, target_layers=target_layers, reshape_transform=reshape, **adapter_options)
    cam = make_cam(adapter, method)
    if batch_size is not None:
        if batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1; got {batch_size}")
        cam.batch_size = batch_size
    choosing = {"score_threshold": score_threshold, "top_k": top_k, "labels": labels, "against": against}
    given = ", ".join(name for name, value in choosing.items() if value is not None)
    if targets is not None and (given or quantity != "score"):
        raise ValueError(f"{given or 'quantity'} chooses among the model's findings; with targets= there is no choice")
    image_list, paths = _read(adapter, images)
    results = cam.explain(
        images if image_list is None else image_list[0] if is_single(images) else image_list,
        targets,
        choose=partial(choose, adapter, quantity=quantity, **choosing),  # type: ignore[arg-type]
        aug_smooth=aug_smooth,
        eigen_smooth=eigen_smooth,
        progress=partial(track, description=cam.name) if progress else None,
    )
    shown = (
        _displayable(adapter, ready_input(images)) if image_list is None else [to_uint8(image) for image in image_list]
    )
    plain = quantity == "score" and against is None
    smoothing = tuple(name for name, used in (("aug_smooth", aug_smooth), ("eigen_smooth", eigen_smooth)) if used)
    return Explanations(
        _explanation(cam, result, image, path, number, smoothing, plain)
        for number, (result, image, path) in enumerate(zip(results, shown, paths, strict=True), 1)
    )


def make_cam(adapter: Adapter, method: Method) -> BaseCAM:
    """The method, ready for an adapter.

    Raises:
        TypeError, ValueError: not a method.
    """
    if method == "auto":
        method = BOX_METHOD if adapter.task == "detection" else "gradcam"
    maker = method_from(method) if isinstance(method, str) else method
    cam = maker(adapter) if callable(maker) and not isinstance(maker, nn.Module) else None
    if not isinstance(cam, BaseCAM):
        raise TypeError(f"expected a method's name, its class, or a function from an adapter to one; got {method!r}")
    return cam


def choose(
    adapter: Adapter,
    found: Detections,
    output: Any,
    *,
    score_threshold: float | None = None,
    top_k: int | None = None,
    labels: LabelsLike | None = None,
    quantity: str = "score",
    against: int | str | None = None,
) -> tuple[Detections, list[Target]]:
    """Of one image's findings those that are explained, and a target for each; arguments as in `explain`."""
    if adapter.task == "detection":
        score_threshold = SCORE_THRESHOLD if score_threshold is None else score_threshold
        top_k = MOST_BOXES if top_k is None else top_k
    kept = adapter.select(found, output, score_threshold=score_threshold, top_k=top_k, labels=labels)
    other = None if against is None else label_index(adapter.names, against)
    return kept, [with_quantity(target, quantity, other) for target in adapter.targets_of(kept)]


def _explanation(
    cam: BaseCAM,
    result: ImageHeatmaps,
    image: ImageArray,
    path: Path | None,
    number: int,
    smoothing: tuple[str, ...],
    plain: bool,
) -> Explanation:
    adapter, found = cam.adapter, result.detections
    captions = tuple(
        found.caption(index)
        if plain and found is not None
        else f"{as_target(target).describe(adapter.names)} {float(result.scores[index]):.3g}"
        for index, target in enumerate(result.targets)
    )
    return Explanation(
        image=image,
        name=f"image-{number}" if path is None else path.name,
        path=path,
        targets=result.targets,
        captions=captions,
        heatmaps=result.heatmaps,
        saliency=result.saliency,
        scores=result.scores,
        reach=result.reach,
        sampling=result.sampling,
        detections=found,
        names=adapter.names,
        method=cam.name,
        layers=tuple(adapter.layer_names),
        smoothing=smoothing,
        model=type(adapter.model).__name__,
        family=adapter.family,
    )


def _read(adapter: Adapter, images: Any) -> tuple[list[Tensor] | None, list[Path | None]]:
    """Images as tensors, None for a network's ready input; and their files."""
    ready = ready_input(images)
    if ready is not None:
        return None, [None] * len(ready)
    items = [images] if is_single(images) else list(images)
    image_list = [load_image(images)] if is_single(images) else load_images(images)
    return image_list, [Path(item) if isinstance(item, (str, Path)) else None for item in items]


def ready_input(images: Any) -> Tensor | None:
    """The network's own (B, C, H, W) input, alone or first of several inputs; None where images were given."""
    first = images[0] if isinstance(images, tuple) and images else images
    return first if isinstance(first, Tensor) and first.ndim == 4 else None


def _displayable(adapter: Adapter, inputs: Tensor | None) -> list[ImageArray]:
    """A network's ready input as images to draw on."""
    if inputs is None:
        return []
    images = displayable_images(adapter, inputs)
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return [np.ascontiguousarray(to_uint8(image)) for image in images]


__all__ = ["Explanation", "Explanations", "explain"]
