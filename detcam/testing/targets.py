"""The contract of a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.detections import Detections
from detcam.methods.hires_cam import HiResCAM
from detcam.results import value_of
from detcam.targets import with_quantity
from detcam.testing.methods import default_targets
from detcam.testing.models import random_images
from detcam.testing.state import ModelState, require


def check_target(target: Target | str, adapter: Adapter, images: Sequence[Tensor] | None = None) -> None:
    """Check that a target keeps its contract.

    It returns one finite number for each image, the same at every call; the number depends on the target layers; a
    gradient method explains it; the model is left as it was. Where the target has ``hflip``, flipping it twice gives
    the same number.

    Args:
        target: a callable from one image's output to a scalar; or the name of a registered quantity, which is checked
            for the best finding in each image.
        adapter: the model whose outputs the target reads.
        images: images (3, H, W) in [0, 1]; None takes two random ones.

    Raises:
        AssertionError: the target breaks a rule; the message says which.

    Example:
        >>> from detcam.targets import ClassifierOutputTarget
        >>> from detcam.testing import check_target, tiny_classifier
        >>> check_target(ClassifierOutputTarget(1), tiny_classifier())
    """
    images = random_images() if images is None else list(images)
    if isinstance(target, str):
        for image, findings in zip(images, default_targets(adapter, images), strict=True):
            plain = adapter.targets_of(findings) if isinstance(findings, Detections) else list(findings)
            require(bool(plain), "the model finds nothing in an image; pass images=")
            check_target(with_quantity(plain[0], target), adapter, [image])
        return
    require(callable(target), f"expected a callable from one image's output to a scalar; got {type(target).__name__}")
    state = ModelState(adapter.model)
    values = _values(target, adapter, images)
    require(all(torch.isfinite(torch.tensor(values))), f"the target gives {values}; expected finite numbers")
    require(_values(target, adapter, images) == values, "the target gives another value at a second call")
    if hasattr(target, "hflip"):
        width = images[0].shape[-1]
        twice = target.hflip(width).hflip(width)
        difference = abs(_values(twice, adapter, images[:1])[0] - values[0])
        require(difference <= 1e-4 * (1 + abs(values[0])), "flipping the target twice changes its value")
    results = HiResCAM(adapter).explain(list(images), [[target] for _ in images])
    for image, result, value in zip(images, results, values, strict=True):
        shape = tuple(result.heatmaps.shape)
        require(shape == (1, *image.shape[-2:]), f"expected a heatmap of the image's size; got {shape}")
        score = float(result.scores[0])
        require(abs(score - value) <= 1e-4 * (1 + abs(value)), f"a method reports {score:.4g}, the target {value:.4g}")
    state.check()


def _values(target: Target, adapter: Adapter, images: Sequence[Tensor]) -> list[float]:
    """The target's value on each image."""
    values = []
    for image in images:
        with torch.no_grad():
            batch = adapter.prepare([image])
            outputs = adapter.outputs(adapter.forward(batch), batch)
            values.append(value_of(adapter.score(outputs, [[target]])[0][0]))
    return values
