"""What a map cannot show: limited reach, empty maps, class-agnostic methods. Said once per call, as warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detcam.geometry import Geometry
from detcam.utils.warnings import warn

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter
    from detcam.cam import BaseCAM, ImageHeatmaps


LARGEST_ERROR = 0.2
"""Relative error of a map's sum above which it is called incomplete."""


class ReachWarning(UserWarning):
    """The gradient at the target layer cannot reach most of the picture outside the box."""


class EmptyMapWarning(UserWarning):
    """A map is empty: the gradient is zero everywhere, or nothing speaks for the target."""


class CompletenessWarning(UserWarning):
    """A map's sum is far from what the score owes to the picture."""


class ClassAgnosticWarning(UserWarning):
    """The method gives the same map for every target of an image."""


@dataclass(frozen=True)
class Reach:
    """From where on the picture the gradient at the target layer could come.

    Attributes:
        fraction: share of the picture, in [0, 1], that can influence the map.
        box_xyxy: bounding box of that share, original image pixels; all zero where nothing can.
    """

    fraction: float
    box_xyxy: tuple[float, float, float, float]

    @classmethod
    def measure(cls, supports: Sequence[Tensor], geometry: Geometry) -> Reach:
        """Measure the support of one target's gradient.

        Args:
            supports: per level, (h, w) bool over the network's input, True where any channel's gradient is not 0.
            geometry: where the image lies on that input.
        """
        fraction, corners = 0.0, []
        for support in supports:
            rows, columns = geometry.valid_cells((support.shape[-2], support.shape[-1]))
            inside = support[rows, columns]
            hit = torch.nonzero(inside)
            if not len(hit):
                continue
            fraction = max(fraction, float(inside.float().mean()))
            top, left = hit.amin(0).tolist()
            bottom, right = hit.amax(0).tolist()
            cell_h = geometry.input_size_hw[0] / support.shape[-2]
            cell_w = geometry.input_size_hw[1] / support.shape[-1]
            corners.append(
                [
                    (columns.start + left) * cell_w,
                    (rows.start + top) * cell_h,
                    (columns.start + right + 1) * cell_w,
                    (rows.start + bottom + 1) * cell_h,
                ]
            )
        if not corners:
            return cls(0.0, (0.0, 0.0, 0.0, 0.0))
        boxes = torch.tensor(corners)
        box = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        x1, y1, x2, y2 = geometry.clip(geometry.boxes_to_image(box)).tolist()
        return cls(fraction, (x1, y1, x2, y2))

    def sees_outside(self, box_xyxy: Sequence[float], image_size_hw: tuple[int, int]) -> float:
        """Share of the picture outside a box, in [0, 1], that the support's bounding box covers."""
        height, width = image_size_hw
        x1, y1, x2, y2 = box_xyxy
        rx1, ry1, rx2, ry2 = self.box_xyxy
        reach = max(0.0, rx2 - rx1) * max(0.0, ry2 - ry1)
        shared = max(0.0, min(x2, rx2) - max(x1, rx1)) * max(0.0, min(y2, ry2) - max(y1, ry1))
        box = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
        outside = width * height - box
        return 1.0 if outside <= 0 else (reach - shared) / outside


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
            f"the gradient of {dead} of {total} targets is zero everywhere at {layers}: their maps are empty. The "
            "score is saturated (quantity='logit' helps), underflows in half precision, or the layer has no part in it",
            EmptyMapWarning,
        )
    empty = sum(int((r.heatmaps.flatten(1).amax(1) == 0).sum()) for r in results if len(r.targets)) - dead
    if empty > 0:
        warn(
            f"{empty} of {total} maps are empty at {layers}: nothing there speaks for the target, or the map is "
            "constant",
            EmptyMapWarning,
        )
    if not cam.reaches_all:
        _warn_about_reach(results, layers)
    _warn_about_completeness(results, adapter.layer_names)


def _warn_about_reach(results: Sequence[ImageHeatmaps], layers: str) -> None:
    short = []
    for result in results:
        for target, reach in zip(result.targets, result.reach or (), strict=bool(result.reach)):
            box = getattr(target, "box_xyxy", None)
            if box is not None and 0 < reach.fraction and reach.sees_outside(box, result.geometry.image_size_hw) < 0.5:
                short.append(reach.fraction)
    if short:
        low, high = min(short), max(short)
        span = f"{low:.0%}" if high - low < 0.01 else f"{low:.0%} to {high:.0%}"
        warn(
            f"at {layers} the gradients of {len(short)} targets reach only {span} of the picture: evidence elsewhere "
            "cannot show, so do not read the map as 'the evidence is in the box'. An earlier target layer (with "
            "HiResCAM or LayerCAM) sees further",
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
            f"the maps of {int(off.any(1).sum())} of {len(errors)} targets sum to something else than what their "
            f"score owes to the picture: off by up to {amount} at {layers}. More steps help",
            CompletenessWarning,
        )
