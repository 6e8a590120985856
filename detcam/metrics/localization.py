"""Localization metrics: compare a heatmap with the annotated region of the object that it explains.

These metrics do not use the model. They evaluate explanations of *correct* detections. For a false positive they are
undefined or inverted: a perfect explanation of a detection that its context causes is hot outside the box and scores
0, and a heatmap that merely outlines the box scores best. Faithfulness metrics (deletion, insertion) suit both.

Negative heat counts as 0. The value is NaN for a heatmap without an annotated object, for a constant one and for one
with NaN. Heat on crowd regions of the object's class is not counted, see `TargetRegions`.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from detcam.geometry import mask_to_box
from detcam.metrics.base import Metric
from detcam.metrics.metric_input import MetricImage
from detcam.metrics.target_regions import Shape
from detcam.utils.opencv import cv2

NAN = float("nan")
ODAM_PAPER = "Zhao & Chan, ODAM, ICLR 2023, https://arxiv.org/abs/2304.06354"


class LocalizationMetric(Metric, abstract=True):
    """Base class of metrics that compare a heatmap with an annotated object.

    Args:
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
    """

    tasks = ("class", "box", "mask")
    needs = frozenset({"truth"})
    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, shape: Shape = "mask") -> None:
        if shape not in ("mask", "box"):
            raise ValueError(f'expected shape "mask" or "box"; got {shape!r}')
        self.shape = shape

    def value(self, image: MetricImage) -> Tensor:
        regions = image.truth
        rows = zip(image.heatmaps.double(), regions.objects, regions.other_objects, regions.ignored, strict=True)
        return torch.tensor([self._compare(*row) for row in rows], dtype=torch.float64)

    def _compare(self, heatmap: Tensor, target: Tensor, others: Tensor, ignored: Tensor) -> float:
        counted = ~ignored | target
        if not target.any():
            return NAN
        heatmap = heatmap.clamp(min=0)
        if heatmap[counted].min() == heatmap[counted].max():
            return NAN
        if self.shape == "box":
            left, top, right, bottom = map(int, mask_to_box(target))
            target = torch.zeros_like(target)
            target[top:bottom, left:right] = True
        return self.compare(heatmap, target, others & counted, counted | target)

    @abstractmethod
    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        """The value of one heatmap.

        Args:
            heatmap: (H, W) float64, >= 0, not constant.
            target: (H, W) bool, the annotated object, not empty.
            others: (H, W) bool, the other objects.
            counted: (H, W) bool, the pixels that count; includes all of `target`.
        """


class PointingGame(LocalizationMetric):
    """Whether the maximum of the heatmap is at most `tolerance` pixels away from the object: 1 or 0.

    With several maxima, the fraction of them that hits. In [0, 1], higher is better. Undefined for false positives,
    whose explanation can be correct and lie elsewhere. Zhang et al., *Top-down Neural Attention by Excitation
    Backprop*, ECCV 2016, https://arxiv.org/abs/1608.00507.

    Args:
        tolerance: largest distance of a hit, pixels; the paper takes 15, for images of about 500 pixels and whole
            classes. Evaluations of detectors mostly take 0.
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
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

    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        maxima = counted & (heatmap == heatmap[counted].max())
        if self.tolerance:
            outside = (~target).numpy().astype(np.uint8)
            distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            target = torch.from_numpy(distance) <= self.tolerance
        return float(target[maxima].double().mean())


class EnergyPointingGame(LocalizationMetric):
    r"""Fraction of the heat on the object: :math:`\sum_{p \in object} H_p / \sum_p H_p`.

    In [0, 1], higher is better; the value of a uniform heatmap is the object's fraction of the image. ``shape="box"``
    is the form of the paper, ``"mask"`` is stricter. Inverted for false positives: a correct explanation by context
    scores low. Wang et al., *Score-CAM*, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279.

    Args:
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
    """

    name = "energy_pointing_game"
    paper = "Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279"

    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        return float(heatmap[target].sum() / heatmap[counted].sum())


class HeatmapIoU(LocalizationMetric):
    r"""IoU of the thresholded heatmap and the object at the best threshold: :math:`\max_t IoU(\{H \ge t\}, object)`.

    Every value of the heatmap is tried as threshold. In [0, 1], higher is better, 1 where some threshold selects
    exactly the object; never below the object's fraction of the image, which the lowest threshold reaches. (ODAM's
    visual explanation accuracy averages over heatmaps before it takes the best of nine thresholds.) Inverted for
    false positives. After Zhao and Chan, *ODAM*, ICLR 2023, https://arxiv.org/abs/2304.06354.

    Args:
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
    """

    name = "heatmap_iou"
    paper = ODAM_PAPER

    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        values, order = heatmap[counted].sort(descending=True)
        intersection = target[counted][order].double().cumsum(0)
        selected = torch.arange(1, len(values) + 1, dtype=torch.float64)
        ious = intersection / (target.sum() + selected - intersection)
        last_of_equals = torch.cat([values[1:] < values[:-1], torch.tensor([True])])
        return float(ious[last_of_equals].max())


class ObjectDiscrimination(LocalizationMetric):
    r"""ODAM's object discrimination index: the fraction of the heat on objects that lies on *other* objects.

    .. math:: ODI = \frac{\sum_{p \in others} H_p}{\sum_{p \in others \cup object} H_p}

    Pixels that the object shares with another one count as the other's, as in the authors' code. In [0, 1], lower is
    better. NaN where the image has no other object (the authors count 0) or no heat lies on objects.
    `ground_truth_regions` selects the other objects: all, or those of the same class. Undefined for false positives,
    which have no object. Zhao and Chan, *ODAM*, ICLR 2023, https://arxiv.org/abs/2304.06354.

    Args:
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
    """

    name = "object_discrimination"
    paper = ODAM_PAPER
    higher_is_better = False

    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        total = float(heatmap[target | others].sum())
        return float(heatmap[others].sum()) / total if total > 0 and others.any() else NAN


class Compactness(LocalizationMetric):
    r"""ODAM's compactness: spread of the heat around its maximum, in half diagonals of the object's box.

    .. math:: \sqrt{\frac{\sum_p H_p \, \|p - p^*\|^2}{\tfrac14 (w^2 + h^2) \sum_p H_p}}, \quad p^* = \arg\max_p H_p

    In [0, inf), lower is better (more compact), 0 where all heat is in one pixel; of several maxima the first is
    taken. The value does not depend on the location: a sharp heatmap beside the object is compact too. Undefined for
    false positives, whose box has no annotated size. Zhao and Chan, *ODAM*, ICLR 2023,
    https://arxiv.org/abs/2304.06354.

    Args:
        shape: ``"mask"`` compares with the annotated region, ``"box"`` with the box around it.
    """

    name = "compactness"
    paper = ODAM_PAPER
    higher_is_better = False
    range = (0.0, float("inf"))

    def compare(self, heatmap: Tensor, target: Tensor, others: Tensor, counted: Tensor) -> float:
        left, top, right, bottom = mask_to_box(target)
        heatmap = heatmap * counted
        row, column = divmod(int(heatmap.flatten().argmax()), heatmap.shape[1])
        vertical = (torch.arange(heatmap.shape[0], dtype=torch.float64) - row)[:, None] ** 2
        horizontal = (torch.arange(heatmap.shape[1], dtype=torch.float64) - column) ** 2
        scale = ((right - left) ** 2 + (bottom - top) ** 2) / 4
        return float(((heatmap * (vertical + horizontal)).sum() / (scale * heatmap.sum())).sqrt())
