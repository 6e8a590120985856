"""`detcam.explain`: from a model and images to explanations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter, adapt
from detcam.adapters.base import ModelLike
from detcam.adapters.black_box import gradient_obstacle
from detcam.adapters.volumes import is_volume
from detcam.cam import BaseCAM
from detcam.data.images import expand_paths, is_single
from detcam.detections import Detections, LabelsLike, label_index
from detcam.explanation.result import Explanation, Explanations
from detcam.explanation.volumes import VolumeExplanation, montage
from detcam.inputs import Images, Targets, displayable_images
from detcam.layers import LayersLike
from detcam.methods.spec import parse_method
from detcam.outputs import Target, as_target
from detcam.results import ImageHeatmaps
from detcam.targets import with_quantity
from detcam.utils.device import on_device
from detcam.visualize.convert import ImageArray

DEFAULT_SCORE_THRESHOLD = 0.3
"""Minimum score of a box that is explained by default."""
DEFAULT_MAX_BOXES = 10
"""Number of boxes per image that are explained by default, best first."""
DEFAULT_BOX_METHOD = "odam"
"""Default method for boxes. GradCAM weights channels by spatial means, which discard the position of a box."""

MethodLike: TypeAlias = str | Callable[[Adapter], BaseCAM]
"""A method's name, its class, or a function from an adapter to a method."""


def explain(
    model: ModelLike,
    images: Images,
    method: MethodLike = "auto",
    targets: Targets = None,
    *,
    target_layers: LayersLike = None,
    score_threshold: float | None = None,
    top_k: int | None = None,
    labels: LabelsLike | None = None,
    quantity: str = "score",
    against: int | str | None = None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    **adapter_options: Any,
) -> Explanations:
    """Explain a model's predictions in images.

    There is one forward pass per batch of images and one heatmap per prediction.

    Args:
        model: a detector, segmentation network or classifier of a supported family, or an adapter.
        images: one image or a list of images of any size (see `detcam.data.images.ImageLike`); or a normalized
            (B, C, H, W) tensor, or volumes (B, C, D, H, W). For a network of several inputs a tuple of them;
            ``input_key=1`` explains the second.
        method: ``"auto"``, which is ODAM for boxes and GradCAM for masks and classes, and D-RISE and RISE for models
            without gradients (ONNX files, functions, int8); a name in `detcam.methods.METHODS`, with settings after a
            colon (``"drise:passes=1000"``); a method's class; or a function from an adapter to a method, such as
            ``partial(DRISE, passes=1000)``.
        targets: targets as in the call of a method. None explains the model's predictions, which the next five
            arguments select.
        target_layers: modules or dotted names; None takes the family's default.
        score_threshold: minimum score in [0, 1]; None takes 0.3 for boxes and 0 for classes and regions.
        top_k: maximum number of predictions per image, best first. None takes ten boxes, all regions, and of a
            classifier the top class or all of `labels`.
        labels: class names or indices, one or several. A classifier is explained for them whatever their rank.
        quantity: the output to explain: ``"score"``, ``"logit"``, ``"objectness"``, ``"x1"``, ``"y1"``, ``"x2"``,
            ``"y2"``, ``"width"``, ``"height"`` or ``"edges"`` of a box, ``"mask"`` of an instance, or a name registered
            by `detcam.targets.register_target`.
        against: class name or index: explain the difference to this class (*why a dog rather than a cat?*).
        aug_smooth: average the heatmaps of six views of the image.
        eigen_smooth: take the first principal component over the channels instead of their sum.
        batch_size: images per forward pass; None keeps the method's own number.
        device: where the model runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"``, which is CUDA if
            available; the model is moved back afterwards. None leaves the model where it is.
        progress: whether to show a progress bar on stderr.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `names` and `image_size`.

    Returns:
        One `Explanation` per image.

    Raises:
        TypeError: an argument has the wrong type, or the adapter has no such option.
        ValueError: an argument has a wrong value.
        RuntimeError: a target layer did not run, or the score does not depend on it.

    Example:
        >>> import detcam, numpy as np
        >>> from torchvision.models import mobilenet_v3_small
        >>> image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        >>> explanations = detcam.explain(mobilenet_v3_small().eval(), image, "hirescam", top_k=2, image_size=64)
        >>> explanations[0].heatmaps.shape
        (2, 48, 64)
    """
    if adapter_options.keys() & {"box", "boxes"}:
        raise TypeError(
            "explain has no argument for boxes: a box of yours is a target, for example "
            "targets=[[detcam.targets.BoxTarget((x1, y1, x2, y2), label)]], one list per image"
        )
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    if score_threshold is not None:
        adapter = adapter.with_score_threshold(score_threshold)
    selection = {"score_threshold": score_threshold, "top_k": top_k, "labels": labels, "against": against}
    given = [name for name, value in selection.items() if value is not None] + ["quantity"] * (quantity != "score")
    if targets is not None and given:
        raise ValueError(f"{', '.join(given)}: these select the model's predictions; leave them out with targets=")
    images = expand_paths(images) if adapter.input_key is None else images
    explained = images if adapter.input_key is None else adapter.take_input(images, {})[0]
    tensors, paths = _read_images(adapter, explained)
    with on_device(adapter.model, device):
        cam = make_cam(adapter, method)
        if batch_size is not None:
            cam.batch_size = batch_size
        results = cam.explain(
            _loaded(images, explained, tensors),
            targets,
            choose=partial(select_targets, adapter, quantity=quantity, **selection),  # type: ignore[arg-type]
            aug_smooth=aug_smooth,
            eigen_smooth=eigen_smooth,
            progress=progress,
        )
        words = [
            ()
            if tensors is None or result.detections is None
            else tuple(adapter.words(tensors[row], result.detections))
            for row, result in enumerate(results)
        ]
    shown = _displayed_input(adapter, explained) if tensors is None else [adapter.display(image) for image in tensors]
    is_plain = quantity == "score" and against is None
    smoothing = tuple(name for name, used in (("aug_smooth", aug_smooth), ("eigen_smooth", eigen_smooth)) if used)
    return Explanations(
        replace(_explanation(cam, result, image, path, number, smoothing, is_plain), words=of_image)
        for number, (result, image, path, of_image) in enumerate(zip(results, shown, paths, words, strict=True), 1)
    )


def make_cam(adapter: Adapter, method: MethodLike) -> BaseCAM:
    """Make a method for an adapter.

    Args:
        adapter: the model.
        method: as in `explain`.

    Raises:
        TypeError: `method` is not a name, a class, or a function from an adapter to a method.
        ValueError: no method has that name, or it has no such setting.
    """
    if method == "auto":
        is_box = adapter.task == "detection"
        if gradient_obstacle(adapter.model) is None:
            method = DEFAULT_BOX_METHOD if is_box else "gradcam"
        else:
            method = "drise" if is_box else "rise"
    constructor = parse_method(method) if isinstance(method, str) else method
    cam = constructor(adapter) if callable(constructor) and not isinstance(constructor, nn.Module) else None
    if not isinstance(cam, BaseCAM):
        raise TypeError(f"expected a method's name, its class, or a function from an adapter to one; got {method!r}")
    return cam


def select_targets(
    adapter: Adapter,
    detections: Detections,
    output: object,
    *,
    score_threshold: float | None = None,
    top_k: int | None = None,
    labels: LabelsLike | None = None,
    quantity: str = "score",
    against: int | str | None = None,
) -> tuple[Detections, list[Target]]:
    """Select predictions of one image and make a target for each.

    Args:
        adapter: the model.
        detections: all predictions in the image.
        output: the model's output for the image, of the family's own type.
        score_threshold: as in `explain`, like the other arguments.
        top_k: maximum number of predictions.
        labels: class names or indices.
        quantity: the output to explain.
        against: class name or index to compare with.

    Returns:
        The selected predictions, best first, and their targets.
    """
    if adapter.task == "detection":
        score_threshold = DEFAULT_SCORE_THRESHOLD if score_threshold is None else score_threshold
        top_k = DEFAULT_MAX_BOXES if top_k is None else top_k
    selected = adapter.select(detections, output, score_threshold=score_threshold, top_k=top_k, labels=labels)
    other = None if against is None else label_index(adapter.names, against)
    return selected, [with_quantity(target, quantity, other) for target in adapter.targets_of(selected)]


def _explanation(
    cam: BaseCAM,
    result: ImageHeatmaps,
    image: ImageArray,
    path: Path | None,
    number: int,
    smoothing: tuple[str, ...],
    is_plain: bool,
) -> Explanation:
    adapter, detections = cam.adapter, result.detections
    captions = tuple(
        detections.caption(index)
        if is_plain and detections is not None
        else f"{as_target(target).describe(adapter.names)} {float(result.scores[index]):.3g}"
        for index, target in enumerate(result.targets)
    )
    drawn: dict[str, Any] = {"image": image} if image.ndim == 3 else {"image": montage(image), "slices": image}
    return (Explanation if image.ndim == 3 else VolumeExplanation)(
        **drawn,
        name=f"image-{number}" if path is None else path.name,
        path=path,
        targets=result.targets,
        captions=captions,
        maps=result.maps,
        saliency=result.saliency,
        scores=result.scores,
        reach=result.reach,
        sampling=result.sampling,
        detections=detections,
        names=adapter.names,
        method=cam.name,
        layers=tuple(adapter.layer_names),
        smoothing=smoothing,
        model=type(adapter.model).__name__,
        family=adapter.family,
    )


def _read_images(adapter: Adapter, images: Images) -> tuple[list[Tensor] | None, list[Path | None]]:
    """Load images, and return their files; return None as the images for a network's input."""
    inputs = _network_input(images)
    if inputs is not None:
        return None, [None] * len(inputs)
    items: list[Any] = [images] if is_single(images) else list(images)  # type: ignore[arg-type]
    tensors = adapter.reader.read_all(images, keep_bytes=adapter.takes_bytes)
    return tensors, [Path(item) if isinstance(item, (str, Path)) else None for item in items]


def _loaded(images: Images, explained: Images, tensors: list[Tensor] | None) -> Images:
    """Return the inputs of a call, with the images that were read in place of their files."""
    if tensors is None or explained is not images:
        return images
    return tensors[0] if is_single(images) else tensors


def _network_input(images: Images) -> Tensor | None:
    """Return a network's (B, C, H, W) or (B, C, D, H, W) input, alone or the first of several; None for images."""
    first = images[0] if isinstance(images, tuple) and images else images
    return first if isinstance(first, Tensor) and first.ndim in (4, 5) else None


def _displayed_input(adapter: Adapter, images: Images) -> list[ImageArray]:
    """Convert a network's input to images for drawing, and volumes to their slices (D, H, W, 3)."""
    inputs = _network_input(images)
    if inputs is None:
        return []
    shown = displayable_images(adapter, inputs)
    if is_volume(inputs):
        return [np.stack([adapter.display(volume[:, row]) for row in range(volume.shape[1])]) for volume in shown]
    return [adapter.display(image) for image in shown]


__all__ = ["Explanation", "Explanations", "explain"]
