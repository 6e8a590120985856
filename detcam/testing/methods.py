"""The contract of a CAM method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM
from detcam.detections import Detections
from detcam.methods.spec import parse_method
from detcam.results import ImageHeatmaps
from detcam.targets import SimilarityToConceptTarget
from detcam.testing.models import default_adapters, random_images
from detcam.testing.state import ModelState, require

TOLERANCE = 1e-4

TargetsPerImage: TypeAlias = "Sequence[Detections | list[Target]]"
"""One `Detections`, or one list of targets, per image."""


class _Interrupted(Exception):
    """Raised half-way through a call on purpose."""


def check_method(
    method: str | Callable[[Adapter], BaseCAM],
    adapter: Adapter | None = None,
    images: Sequence[Tensor] | None = None,
    targets: TargetsPerImage | None = None,
) -> None:
    """Check that a CAM method keeps its contract.

    The heatmaps have the images' sizes, are finite, lie in [0, 1] and are normalized or empty; the scores are those
    that the model reports; neither the other images of a call nor their order change a heatmap; an image without
    targets is a normal case; the model is left as it was, also where a target or a layer raises an error half-way.

    Args:
        method: the name of a registered method, with settings after a colon if there are any; the method's class; or a
            function from an adapter to the method.
        adapter: the model to explain; None takes a tiny network for each task in ``method.tasks``.
        images: two images (3, H, W) in [0, 1] or more; None takes random ones of different sizes.
        targets: per image, what to explain; None explains the model's predictions.

    Raises:
        AssertionError: the method breaks a rule; the message says which.

    Example:
        >>> from detcam import BaseCAM
        >>> class ActivationNorm(BaseCAM):
        ...     name = "activationnorm"
        ...     def saliency(self, activations, gradients):
        ...         return activations.square().sum(1)
        >>> check_method(ActivationNorm)
    """
    method = parse_method(method) if isinstance(method, str) else method
    if adapter is None:
        tasks = getattr(getattr(method, "func", method), "tasks", BaseCAM.tasks)
        for tiny in default_adapters(tasks):
            check_method(method, tiny, images, targets)
        return
    images = random_images() if images is None else list(images)
    targets = default_targets(adapter, images) if targets is None else targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cam = method(adapter)
        check_name(type(cam))
        check_heatmaps(cam, images, targets)
        check_batch_independence(cam, images, targets)
        check_without_targets(cam, images, targets)
        check_interruption(cam, images, targets)


def default_targets(adapter: Adapter, images: Sequence[Tensor]) -> TargetsPerImage:
    """Up to two findings per image; for an embedding, similarity to a random concept."""
    if adapter.task == "embedding":
        with torch.no_grad():
            size = adapter.outputs(adapter.forward(batch := adapter.prepare([images[0]])), batch)[0].numel()
        concept = torch.randn(size, generator=torch.Generator().manual_seed(2))
        return [[SimilarityToConceptTarget(concept)] for _ in images]
    return [detections.filter(top_k=2) for detections in adapter.predict(images)]


def check_name(method: type[BaseCAM]) -> None:
    """Check that the class names and describes itself."""
    for attribute in ("name", "paper", "cost", "use"):
        value = getattr(method, attribute, None)
        require(isinstance(value, str), f"{method.__name__}.{attribute} must be a str; got {value!r}")
    require(method.name == method.name.lower() and bool(method.name), f"{method.__name__}.name must be lower case")
    unknown = method.tasks - BaseCAM.tasks
    require(not unknown, f"{method.__name__}.tasks has {', '.join(sorted(unknown))}, which no adapter does")


def check_heatmaps(cam: BaseCAM, images: Sequence[Tensor], targets: TargetsPerImage) -> None:
    """Check shape, dtype, range and normalization of the heatmaps, the scores, and that the model is left alone."""
    model, adapter = cam.model, cam.adapter
    first = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    gradient = None if first is None else first.grad
    if first is not None:
        first.grad = torch.ones_like(first)
    state = ModelState(model)
    try:
        results = cam.explain(list(images), list(targets))
        state.check()
    finally:
        if first is not None:
            first.grad = gradient
    require(len(results) == len(images), f"expected one result per image, {len(images)}; got {len(results)}")
    require(sum(len(row) for row in targets) > 0, "the model finds nothing in these images; pass targets=")
    for image, row, result in zip(images, targets, results, strict=True):
        maps = torch.as_tensor(result.heatmaps)
        expected = (len(row), *image.shape[-2:])
        require(tuple(maps.shape) == expected, f"expected heatmaps of shape {expected}; got {tuple(maps.shape)}")
        require(maps.dtype == torch.float32, f"expected float32 heatmaps; got {maps.dtype}")
        require(bool(torch.isfinite(maps).all()), "a heatmap holds NaN or infinity")
        if not len(row):
            continue
        low, high = float(maps.min()), float(maps.max())
        require(low >= 0 and high <= 1, f"expected heatmaps in [0, 1]; got {low:.3g} to {high:.3g}")
        peaks = maps.flatten(1).amax(1)
        require(bool(((peaks > 0.999) | (peaks == 0)).all()), "a heatmap is neither normalized to 1 nor empty")
        if adapter.task == "detection" and isinstance(row, Detections):
            wrong = float((torch.as_tensor(result.scores) - row.scores).abs().max())
            require(wrong <= TOLERANCE, f"a target's score differs by {wrong:.3g} from the score that was reported")
    peak = max(float(torch.as_tensor(result.heatmaps).max()) for result in results if len(result.heatmaps))
    require(peak > 0.999, "all heatmaps are empty")


def check_batch_independence(cam: BaseCAM, images: Sequence[Tensor], targets: TargetsPerImage) -> None:
    """Check that an image's heatmaps depend neither on the other images of the call nor on their order."""
    rows = list(targets)
    together = cam.explain(list(images), rows)
    for image, row, result in zip(images, rows, together, strict=True):
        _require_same(cam.explain([image], [row])[0], result, "an image's heatmaps change when it is explained alone")
    swapped = cam.explain(list(images)[::-1], rows[::-1])[::-1]
    for before, after in zip(together, swapped, strict=True):
        _require_same(before, after, "the heatmaps change with the order of the images")


def check_without_targets(cam: BaseCAM, images: Sequence[Tensor], targets: TargetsPerImage) -> None:
    """Check that an image without targets gives no heatmaps and no error."""
    image, row = images[0], targets[0]
    nothing: Detections | list[Target] = row[[]] if isinstance(row, Detections) else []
    maps = cam.explain([image], [nothing])[0].heatmaps
    expected = (0, *image.shape[-2:])
    require(tuple(maps.shape) == expected, f"expected heatmaps of shape {expected}; got {tuple(maps.shape)}")


def check_interruption(cam: BaseCAM, images: Sequence[Tensor], targets: TargetsPerImage) -> None:
    """Check that an error in a target, or in a layer, is passed on and leaves the model as it was."""
    state = ModelState(cam.model)

    def failing_target(output: object) -> Tensor:
        raise _Interrupted

    _require_interrupted(lambda: cam.explain(list(images), [[failing_target] for _ in images]), "a target")
    state.check()
    layers = [module for module in cam.model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    if not layers:
        return
    layer = layers[min(1, len(layers) - 1)]  # the first may be replaced by a method that fuses normalization

    def failing_forward(*inputs: object, **kwargs: object) -> Tensor:
        raise _Interrupted

    layer.forward = failing_forward  # type: ignore[method-assign]
    try:
        _require_interrupted(lambda: cam.explain(list(images), list(targets)), "a layer")
    finally:
        del layer.forward
    state.check()


def _require_interrupted(call: Callable[[], object], source: str) -> None:
    try:
        call()
    except _Interrupted:
        return
    raise AssertionError(f"an error that {source} raised was not passed on to the caller")


def _require_same(one: ImageHeatmaps, other: ImageHeatmaps, message: str) -> None:
    first, second = torch.as_tensor(one.heatmaps), torch.as_tensor(other.heatmaps)
    difference = float((first - second).abs().max()) if first.numel() else 0.0
    require(difference <= TOLERANCE, f"{message} (by up to {difference:.3g})")
