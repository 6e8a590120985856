"""Localisation: is the heat where the true object is?

None of these asks the model: they compare a heatmap with what people drew. They judge explanations of *right*
detections. For a false positive they have no meaning, or the opposite one: a perfect explanation of a detection that
its context caused is hot outside the box and scores zero, and a map that merely outlines the box scores best.
Faithfulness (deletion, insertion) can be asked of both.

Heat below 0 counts as 0. Heatmaps of nothing true, constant ones and those with NaN have the value NaN; means leave
them out. Heat on crowd regions of the object's class is left out, see `TargetRegions`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from detcam.metrics.base import Explainer, Metric, Need, warn_about_skipped
from detcam.metrics.target_regions import Shape, TargetRegions, bounding_box, read_regions
from detcam.utils.opencv import cv2

NAN = float("nan")


class Localization(Metric):
    """A metric that compares each heatmap with the true object it explains.

    Args:
        shape: ``"mask"`` compares with the region as it is given, ``"box"`` with the box around it.
    """

    tasks: ClassVar[tuple[str, ...]] = ("class", "box", "mask")
    needs: ClassVar[frozenset[Need]] = frozenset({"truth"})
    higher_is_better: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, shape: Shape = "mask") -> None:
        if shape not in ("mask", "box"):
            raise ValueError(f'expected shape "mask" or "box"; got {shape!r}')
        self.shape = shape

    def measure(
        self,
        adapter: Any,
        images: Any,
        targets: Any,
        heatmaps: Any,
        *,
        truth: Sequence[Tensor | TargetRegions] | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        """The value of each heatmap.

        Args:
            adapter: not asked; may be None, as may images, targets and method.
            images: not asked.
            targets: not asked.
            heatmaps: per image (N_i, H_i, W_i) in its pixels, or what ``cam.explain`` gave.
            truth: per image (N_i, H_i, W_i) bool, the true object that each heatmap explains (all False where there
                is none); or `TargetRegions`, which also know the other objects and crowds.
            method: not asked.

        Returns:
            (N,) float64, N = sum of N_i in the order of the images; NaN where there is no value.

        Raises:
            TypeError, ValueError: truth is missing, or something is not as described.
        """
        regions, maps = read_regions(truth, heatmaps)
        values = [
            self._judge(heat.double(), own, others, ignored & ~own)
            for region, own_maps in zip(regions, maps, strict=True)
            for heat, own, others, ignored in zip(own_maps, region.own, region.others, region.ignored, strict=True)
        ]
        return warn_about_skipped(self.name, torch.tensor(values, dtype=torch.float64))

    def _judge(self, heat: Tensor, own: Tensor, others: Tensor, ignored: Tensor) -> float:
        keep = ~ignored
        if not own.any() or heat.isnan().any():
            return NAN
        heat = heat.clamp(min=0)
        if heat[keep].min() == heat[keep].max():
            return NAN
        if self.shape == "box":
            left, top, right, bottom = bounding_box(own)
            own = torch.zeros_like(own)
            own[top:bottom, left:right] = True
        return self.value(heat, own, others & keep, keep | own)

    @abstractmethod
    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        """One heatmap's value.

        Args:
            heat: (H, W) float64, >= 0, not constant.
            own: (H, W) bool, the true object, not empty.
            others: (H, W) bool, the other objects.
            keep: (H, W) bool, pixels that count; all of `own` are.
        """


class PointingGame(Localization):
    """Whether the hottest pixel lies on the object: 1 if it is at most `tolerance` pixels away, else 0.

    Of several hottest pixels, the share that hits. In [0, 1], higher is better. Undefined for false positives: their
    explanation may rightly point elsewhere. Zhang et al., *Top-down Neural Attention by Excitation Backprop*, ECCV
    2016, https://arxiv.org/abs/1608.00507.

    Args:
        tolerance: pixels by which the hottest pixel may miss; the paper takes 15, in images of about 500 pixels and
            for whole classes. Evaluations of detectors mostly take 0.
        shape: as in `Localization`.
    """

    name = "pointing_game"
    paper = (
        "Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, IJCV 2018, "
        "https://arxiv.org/abs/1608.00507"
    )

    def __init__(self, tolerance: float = 0.0, shape: Shape = "mask") -> None:
        super().__init__(shape)
        if not tolerance >= 0:
            raise ValueError(f"expected a tolerance in pixels, 0 or more; got {tolerance}")
        self.tolerance = tolerance

    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        hottest = keep & (heat == heat[keep].max())
        if self.tolerance:
            outside = (~own).numpy().astype(np.uint8)
            distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            own = torch.from_numpy(distance) <= self.tolerance
        return float(own[hottest].double().mean())


class EnergyPointingGame(Localization):
    r"""The share of the heat that lies on the object: :math:`\sum_{p \in object} H_p / \sum_p H_p`.

    In [0, 1], higher is better; a uniform map has the object's share of the image. ``shape="box"`` is the paper's
    form, ``"mask"`` the stricter one. Inverted for false positives: an explanation by context scores low because it is
    right. Wang et al., *Score-CAM*, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279.
    """

    name = "energy_pointing_game"
    paper = "Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279"

    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        return float(heat[own].sum() / heat[keep].sum())


class HeatmapIoU(Localization):
    r"""Overlap of the hot region with the object at the best threshold: :math:`\max_t IoU(\{H \ge t\}, object)`.

    Every value of the map is tried as threshold, so none has to be chosen. In [0, 1], higher is better, 1 where some
    threshold cuts out the object exactly; never below the object's share of the image, which the lowest threshold
    reaches. (ODAM's visual explanation accuracy averages over heatmaps first and then takes the best of nine
    thresholds.) Inverted for false positives, as are all overlaps with a box that should not be there. After Zhao and
    Chan, *ODAM*, ICLR 2023, https://arxiv.org/abs/2304.06354.
    """

    name = "heatmap_iou"
    paper = "Zhao & Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"

    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        values, order = heat[keep].sort(descending=True)
        inside = own[keep][order].double().cumsum(0)
        hot = torch.arange(1, len(values) + 1, dtype=torch.float64)
        overlap = inside / (own.sum() + hot - inside)
        whole = torch.cat([values[1:] < values[:-1], torch.tensor([True])])  # equal values are cut together
        return float(overlap[whole].max())


class ObjectDiscrimination(Localization):
    r"""ODAM's object discrimination index: the share of the heat on objects that lies on the *other* ones.

    .. math:: ODI = \frac{\sum_{p \in others} H_p}{\sum_{p \in others \cup object} H_p}

    Pixels that the object shares with another count as the other's, as in the authors' evaluation. In [0, 1], lower is
    better. NaN where the image has no other object (the authors count 0) or no heat lies on objects. Which objects
    are others (all, or those of the same class) is said in `ground_truth_regions`. Undefined for false positives: they
    are of no object. Zhao and Chan, *ODAM*, ICLR 2023, https://arxiv.org/abs/2304.06354.
    """

    name = "object_discrimination"
    paper = "Zhao & Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"
    higher_is_better = False

    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        total = float(heat[own | others].sum())
        return float(heat[others].sum()) / total if total > 0 and others.any() else NAN


class Compactness(Localization):
    r"""ODAM's compactness: how far the heat spreads from its hottest pixel, in half diagonals of the object's box.

    .. math:: \sqrt{\frac{\sum_p H_p \, \|p - p^*\|^2}{\tfrac14 (w^2 + h^2) \sum_p H_p}}, \quad p^* = \arg\max_p H_p

    In [0, inf), lower is better (more compact), 0 where all heat is in one pixel; of several hottest pixels the first
    is taken. It says nothing about place: a sharp map beside the object is compact too. Undefined for false positives,
    whose box is no measure of anything true. Zhao and Chan, *ODAM*, ICLR 2023, https://arxiv.org/abs/2304.06354.
    """

    name = "compactness"
    paper = "Zhao & Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"
    higher_is_better = False
    range = (0.0, float("inf"))

    def value(self, heat: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> float:
        left, top, right, bottom = bounding_box(own)
        heat = heat * keep
        row, column = divmod(int(heat.flatten().argmax()), heat.shape[1])
        down = (torch.arange(heat.shape[0], dtype=torch.float64) - row)[:, None] ** 2
        across = (torch.arange(heat.shape[1], dtype=torch.float64) - column) ** 2
        scale = ((right - left) ** 2 + (bottom - top) ** 2) / 4
        return float(((heat * (down + across)).sum() / (scale * heat.sum())).sqrt())
