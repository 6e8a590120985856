"""Warnings about maps: limited reach, empty maps, incomplete maps, class-agnostic methods; once per call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from detcam.outputs import as_target
from detcam.utils.console import plural
from detcam.utils.warnings import warn

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter
    from detcam.cam import BaseCAM
    from detcam.results import ImageHeatmaps


MAX_COMPLETENESS_ERROR = 0.2
"""Relative error of a map's sum above which the map is reported as incomplete."""
MIN_OUTSIDE_REACH = 0.5
"""Fraction of the image outside the box below which limited reach is reported."""


class ReachWarning(UserWarning):
    """The gradient at the target layer does not reach most of the image outside the box."""


class EmptyMapWarning(UserWarning):
    """A map is empty: the gradient is zero everywhere, or no evidence is positive."""


class CompletenessWarning(UserWarning):
    """The sum of a map differs from the score difference that it should add up to."""


class ClassAgnosticWarning(UserWarning):
    """The method gives the same map for every target of an image."""


def warn_about_maps(cam: BaseCAM, results: Sequence[ImageHeatmaps], adapter: Adapter) -> None:
    """Warn once per call about what the maps cannot show.

    Args:
        cam: The method.
        results: The explanations of all images of the call.
        adapter: The model's adapter, which names the target layers.
    """
    layers = ", ".join(adapter.layer_names) or "the input"
    if not cam.class_discriminative and any(len(result.targets) > 1 for result in results):
        warn(
            f"{type(cam).__name__} ignores the target: all targets of an image get the same map. Use a gradient "
            "method such as GradCAM or ODAM to tell them apart",
            ClassAgnosticWarning,
        )
    total = plural(sum(len(result.targets) for result in results), "target")
    dead = sum(1 for r in results for reach in r.reach or () if reach.fraction == 0)
    if dead:
        warn(
            f"the gradient of {dead} of {total} is zero everywhere at {layers}: the map is empty. The score is "
            "saturated (quantity='logit' helps), underflows in half precision, or does not depend on the layer",
            EmptyMapWarning,
        )
    empty = sum(int((r.heatmaps.max(axis=(1, 2)) == 0).sum()) for r in results if len(r.targets)) - dead
    if empty > 0:
        warn(
            f"the maps of {empty} of {total} are empty at {layers}: no evidence there is positive, or the map is "
            "constant",
            EmptyMapWarning,
        )
    if not cam.reaches_all:
        _warn_about_reach(results, layers)
    _warn_about_completeness(results, adapter.layer_names)


def _warn_about_reach(results: Sequence[ImageHeatmaps], layers: str) -> None:
    fractions = []
    for result in results:
        size = result.geometry.image_size_hw
        for target, reach in zip(result.targets, result.reach or (), strict=bool(result.reach)):
            box = as_target(target).box_xyxy
            if box is not None and 0 < reach.fraction and reach.sees_outside(box, size) < MIN_OUTSIDE_REACH:
                fractions.append(reach.fraction)
    if fractions:
        low, high = min(fractions), max(fractions)
        span = f"{low:.0%}" if high - low < 0.01 else f"{low:.0%} to {high:.0%}"
        warn(
            f"the gradient at {layers} reaches only {span} of the image for {plural(len(fractions), 'target')}: "
            "evidence elsewhere cannot appear, so do not read the map as 'the evidence is in the box'. An earlier "
            "target layer (with HiResCAM or LayerCAM) reaches further",
            ReachWarning,
        )


def _warn_about_completeness(results: Sequence[ImageHeatmaps], layer_names: Sequence[str]) -> None:
    measured = [result.completeness for result in results if result.completeness is not None and len(result.targets)]
    if not measured:
        return
    errors = torch.cat(measured)
    exceeds = errors > MAX_COMPLETENESS_ERROR
    if exceeds.any():
        layers = ", ".join(name for name, column in zip(layer_names, exceeds.T, strict=True) if column.any())
        worst = float(errors.max())
        amount = f"{worst:.0%}" if worst < 2 else f"a factor of {worst:.0f}"
        warn(
            f"the maps of {int(exceeds.any(1).sum())} of {plural(len(errors), 'target')} do not add up to the score "
            f"difference between the image and the baseline: the error is up to {amount} at {layers}. More steps help",
            CompletenessWarning,
        )
