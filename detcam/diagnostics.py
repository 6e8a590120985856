"""Checks of maps, and warnings about them, once per call each: limited reach, empty maps, convergence, sampling.

A map with NaN or infinity, or of another shape, is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detcam.outputs import Target, as_target
from detcam.utils.console import plural
from detcam.utils.warnings import warn

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter
    from detcam.cam import BaseCAM
    from detcam.results import ImageHeatmaps


MAX_CONVERGENCE_DELTA = 0.2
"""Convergence delta above which a map is reported."""
MIN_SAMPLING_AGREEMENT = 0.2
"""Agreement of the maps of two halves of the samples below which a map is reported; 0 is the value of chance."""
MIN_OUTSIDE_REACH = 0.5
"""Minimum fraction of the image outside the box within reach; limited reach is reported below it."""

MAX_NAMED_TARGETS = 3
"""Number of targets that an error names."""


class ReachWarning(UserWarning):
    """The gradient at the target layer does not reach most of the image outside the box."""


class EmptyMapWarning(UserWarning):
    """A map is empty: the gradient is zero everywhere, or no evidence is positive."""


class ConvergenceWarning(UserWarning):
    """The convergence delta is large: a map's sum differs from the score difference that it approximates."""


class SamplingWarning(UserWarning):
    """Two halves of the random samples give maps that do not agree: the map may show chance."""


class ClassAgnosticWarning(UserWarning):
    """The method gives the same map for every target of an image."""


def check_saliency(cam: BaseCAM, saliency: Tensor, activations: Tensor) -> Tensor:
    """Return the result of a method's `saliency`, which must be (n, h, w) for activations (n, C, h, w).

    Raises:
        ValueError: it is no tensor, or has another shape.
    """
    expected = (len(activations), *activations.shape[-2:])
    if not isinstance(saliency, Tensor) or tuple(saliency.shape) != expected:
        got = tuple(saliency.shape) if isinstance(saliency, Tensor) else type(saliency).__name__
        raise ValueError(
            f"expected {type(cam).__name__}.saliency to give a tensor (n, h, w) of shape {expected}; got {got}. "
            "weights gives (n, C), contributions (n, C, h, w), saliency (n, h, w)"
        )
    return saliency


def check_maps_finite(
    cam: BaseCAM, maps: Sequence[Sequence[Tensor]], targets: Sequence[Sequence[Target]], images: Sequence[int]
) -> None:
    """Check the raw maps of one pass for NaN and infinity.

    Args:
        cam: the method.
        maps: per level, per image, (N_i, h, w) raw saliency.
        targets: per image, the N_i targets.
        images: the images' indices in the call.

    Raises:
        RuntimeError: a map holds NaN or infinity; the message names the method, the targets and a remedy.
    """
    wrong = []
    for row, index in enumerate(images):
        if not all(bool(torch.isfinite(level[row]).all()) for level in maps):
            finite = torch.stack([torch.isfinite(level[row]).flatten(1).all(1) for level in maps]).all(0)
            names = [as_target(target).describe(cam.adapter.names) for target in targets[row]]
            wrong += [f"{name} in image {index + 1}" for name, ok in zip(names, finite.tolist(), strict=True) if not ok]
    if wrong:
        listed = "; ".join(wrong[:MAX_NAMED_TARGETS]) + ("; ..." if len(wrong) > MAX_NAMED_TARGETS else "")
        total = plural(sum(map(len, targets)), "target")
        raise RuntimeError(
            f"{type(cam).__name__} returned NaN or infinity in the map of {len(wrong)} of {total} ({listed}). Check "
            "its formula for a division by zero, a root or a logarithm, or use float32 instead of half precision"
        )


def warn_about_maps(cam: BaseCAM, results: Sequence[ImageHeatmaps], adapter: Adapter) -> None:
    """Warn about the limits of the maps of a call.

    Args:
        cam: the method.
        results: the explanations of all images of the call.
        adapter: the model's adapter, which names the target layers.
    """
    layers = ", ".join(adapter.layer_names) or "the input"
    if not cam.class_discriminative and any(len(result.targets) > 1 for result in results):
        warn(
            f"{type(cam).__name__} ignores the target: all targets of an image get the same map. Use a gradient "
            "method such as GradCAM or ODAM for a map per target",
            ClassAgnosticWarning,
        )
    total = plural(sum(len(result.targets) for result in results), "target")
    zero_gradients = sum(1 for r in results for reach in r.reach or () if reach.fraction == 0)
    if zero_gradients:
        warn(
            f"the gradient of {zero_gradients} of {total} is zero everywhere at {layers}: the map is empty. The layer "
            "has no part in the score (as one pyramid level in boxes of another), or the score is saturated "
            "(quantity='logit' helps) or underflows in half precision",
            EmptyMapWarning,
        )
    empty = sum(result.count_empty() for result in results) - zero_gradients
    if empty > 0:
        warn(
            f"the maps of {empty} of {total} are empty at {layers}: no evidence there is positive, or the map is "
            "constant",
            EmptyMapWarning,
        )
    if not cam.covers_receptive_field:
        _warn_about_reach(results, layers)
    _warn_about_convergence(results, adapter.layer_names)
    warn_about_sampling(results)


def _warn_about_reach(results: Sequence[ImageHeatmaps], layers: str) -> None:
    fractions = []
    for result in results:
        size = result.geometry.image_size_hw
        for target, reach in zip(result.targets, result.reach or (), strict=bool(result.reach)):
            box = as_target(target).box_xyxy
            if box is not None and 0 < reach.fraction and reach.fraction_outside(box, size) < MIN_OUTSIDE_REACH:
                fractions.append(reach.fraction)
    if fractions:
        low, high = min(fractions), max(fractions)
        span = f"{high:.1%}" if high - low < 0.01 else f"{low:.0%} to {high:.0%}"
        warn(
            f"the gradient at {layers} reaches only {span} of the image for {plural(len(fractions), 'target')}: "
            "evidence elsewhere cannot appear on the map. The method reachcam chooses layers that reach further",
            ReachWarning,
        )


def _warn_about_convergence(results: Sequence[ImageHeatmaps], layer_names: Sequence[str]) -> None:
    measured = [r.convergence_delta for r in results if r.convergence_delta is not None and len(r.targets)]
    if not measured:
        return
    deltas = torch.cat(measured)
    exceeds = deltas > MAX_CONVERGENCE_DELTA
    if exceeds.any():
        layers = ", ".join(name for name, column in zip(layer_names, exceeds.T, strict=True) if column.any())
        largest = float(deltas.max())
        amount = f"{largest:.0%}" if largest < 2 else f"a factor of {largest:.0f}"
        warn(
            f"the maps of {int(exceeds.any(1).sum())} of {plural(len(deltas), 'target')} do not add up to the score "
            f"difference between the image and the baseline: the convergence delta is up to {amount} at {layers}. "
            "More steps help",
            ConvergenceWarning,
        )


def warn_about_sampling(results: Sequence[ImageHeatmaps]) -> None:
    """Warn about maps that random samples do not determine.

    Args:
        results: the explanations of all images of the call.
    """
    measured = [value for r in results if r.sampling is not None for value in r.sampling.agreement or ()]
    low = [value for value in measured if value < MIN_SAMPLING_AGREEMENT]
    if low:
        passes = max(r.sampling.passes for r in results if r.sampling is not None)
        warn(
            f"the maps of {len(low)} of {plural(len(measured), 'target')} may show chance: after "
            f"{plural(passes, 'pass')} two halves of the masks agree by {min(low):.2f}, where 1 is agreement. "
            "Too few masked images still show the target to the model: fewer cells per side (`grid`), a higher "
            "`probability` or more `passes` help",
            SamplingWarning,
        )
