"""What a map cannot show: limited reach, empty maps, class-agnostic methods. Said once per call, as warnings."""

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


LARGEST_ERROR = 0.2
"""Relative error of a map's sum above which it is called incomplete."""


class ReachWarning(UserWarning):
    """The gradient at the target layer cannot reach most of the image outside the box."""


class EmptyMapWarning(UserWarning):
    """A map is empty: the gradient is zero everywhere, or nothing speaks for the target."""


class CompletenessWarning(UserWarning):
    """A map's sum is far from what the score owes to the image."""


class ClassAgnosticWarning(UserWarning):
    """The method gives the same map for every target of an image."""


def warn_about_maps(cam: BaseCAM, results: Sequence[ImageHeatmaps], adapter: Adapter) -> None:
    """Say once per call what the maps cannot show."""
    layers = ", ".join(adapter.layer_names) or "the input"
    if not cam.class_discriminative and any(len(result.targets) > 1 for result in results):
        warn(
            f"{type(cam).__name__} ignores the target: all targets of an image get the same map. Use a gradient "
            "method such as GradCAM or ODAM to tell them apart",
            ClassAgnosticWarning,
        )
    total = sum(len(result.targets) for result in results)
    dead = sum(1 for r in results for reach in r.reach or () if reach.fraction == 0)
    if dead:
        warn(
            f"the gradient of {dead} of {plural(total, 'target')} is zero everywhere at {layers}: the maps are "
            "empty. The score is saturated (quantity='logit' helps), underflows in half precision, or the layer has no "
            "part in it",
            EmptyMapWarning,
        )
    empty = sum(int((r.heatmaps.max(axis=(1, 2)) == 0).sum()) for r in results if len(r.targets)) - dead
    if empty > 0:
        warn(
            f"{empty} of {plural(total, 'map')} {'is' if total == 1 else 'are'} empty at {layers}: nothing there "
            "speaks for the target, or the map is constant",
            EmptyMapWarning,
        )
    if not cam.reaches_all:
        _warn_about_reach(results, layers)
    _warn_about_completeness(results, adapter.layer_names)


def _warn_about_reach(results: Sequence[ImageHeatmaps], layers: str) -> None:
    short = []
    for result in results:
        for target, reach in zip(result.targets, result.reach or (), strict=bool(result.reach)):
            box = as_target(target).box_xyxy
            if box is not None and 0 < reach.fraction and reach.sees_outside(box, result.geometry.image_size_hw) < 0.5:
                short.append(reach.fraction)
    if short:
        low, high = min(short), max(short)
        span = f"{low:.0%}" if high - low < 0.01 else f"{low:.0%} to {high:.0%}"
        warn(
            f"at {layers} the gradients of {plural(len(short), 'target')} reach only {span} of the image: "
            "evidence elsewhere cannot show, so do not read the map as 'the evidence is in the box'. An earlier target "
            "layer (with HiResCAM or LayerCAM) sees further",
            ReachWarning,
        )


def _warn_about_completeness(results: Sequence[ImageHeatmaps], layer_names: Sequence[str]) -> None:
    found = [result.completeness for result in results if result.completeness is not None and len(result.targets)]
    if not found:
        return
    errors = torch.cat(found)
    off = errors > LARGEST_ERROR
    if off.any():
        layers = ", ".join(name for name, column in zip(layer_names, off.T, strict=True) if column.any())
        worst = float(errors.max())
        amount = f"{worst:.0%}" if worst < 2 else f"{worst:.0f} times what is owed"
        warn(
            f"the maps of {int(off.any(1).sum())} of {plural(len(errors), 'target')} sum to something else than what "
            f"their score owes to the image: off by up to {amount} at {layers}. More steps help",
            CompletenessWarning,
        )
