"""Detections of a scene compared with its labels, and the distribution of the heat of their maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from detcam.demo.train import MIN_GHOST_IOU, WakeCertification, certify_wake
from detcam.detections import Detections
from detcam.explanation.result import Explanation
from detcam.synthetic.harbor import BOAT_LABEL, HarborScene
from detcam.utils.opencv import cv2

MIN_IOU = 0.5
WAKE_MARGIN = 4  # pixels around a wake that count as wake: half a cell of the target layer
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HeatDistribution:
    """Where the heat of one map lies.

    Attributes:
        box: fraction of the heat inside the detected box, in [0, 1].
        wake: fraction within WAKE_MARGIN pixels of the wake and outside the box.
        peak: location of the maximum: ``box``, ``wake`` or ``elsewhere``.
        reach: fraction of the image that can influence the map, in [0, 1].
    """

    box: float
    wake: float
    peak: str
    reach: float

    @property
    def elsewhere(self) -> float:
        """The remaining fraction, in [0, 1]."""
        return 1 - self.box - self.wake


@dataclass(frozen=True)
class DemoFalsePositive:
    """A detected boat that does not exist, beside a wake.

    Attributes:
        seed: seed of the scene.
        index: index of the detection.
        score: score of the detection, in [0, 1].
        wake: name of the wake without a boat.
        early_layer: heat of a map from layers that see the context.
        last_layer: heat of a map from the last layer.
        certification: result of drawing the scene again without the wake, and without a gull.
    """

    seed: int
    index: int
    score: float
    wake: str
    early_layer: HeatDistribution
    last_layer: HeatDistribution
    certification: WakeCertification


@dataclass(frozen=True)
class SceneResult:
    """Detections and explanations of one scene.

    Attributes:
        scene: the scene.
        detections: detections in it.
        correct: for each detection, whether it matches a label.
        early_layer: explanation from layers that see the context.
        last_layer: explanation from the last layer.
        false_positives: those of the incorrect detections that are beside a wake without a boat.
    """

    scene: HarborScene
    detections: Detections
    correct: tuple[bool, ...]
    early_layer: Explanation
    last_layer: Explanation
    false_positives: tuple[DemoFalsePositive, ...]


def analyze_scene(
    detector: FasterRCNN, scene: HarborScene, detections: Detections, early_layer: Explanation, last_layer: Explanation
) -> SceneResult:
    """Find the false positives of a scene, measure their heat and certify their cause."""
    correct = match_labels(detections, scene)
    false_positives = []
    for index in (index for index, is_correct in enumerate(correct) if not is_correct):
        is_boat = int(detections.labels[index]) == BOAT_LABEL
        wake = _nearest_ghost(detections.boxes_xyxy[index], scene) if is_boat else None
        if wake is None:
            continue
        mask = scene.object(wake).mask
        false_positives.append(
            DemoFalsePositive(
                seed=scene.seed,
                index=index,
                score=float(detections.scores[index]),
                wake=wake,
                early_layer=measure_heat(early_layer, index, mask),
                last_layer=measure_heat(last_layer, index, mask),
                certification=certify_wake(detector, scene, wake),
            )
        )
    return SceneResult(scene, detections, correct, early_layer, last_layer, tuple(false_positives))


def match_labels(detections: Detections, scene: HarborScene) -> tuple[bool, ...]:
    """Return for each detection, best first, whether it is the first to match a labeled object at IoU 0.5."""
    overlap = box_iou(detections.boxes_xyxy, torch.from_numpy(scene.boxes_xyxy))
    same_class = detections.labels[:, None] == torch.from_numpy(scene.labels)[None]
    overlap = torch.where(same_class, overlap, torch.zeros(()))
    correct = []
    for row in overlap:
        best = int(row.argmax()) if len(row) else -1
        correct.append(best >= 0 and float(row[best]) >= MIN_IOU)
        if correct[-1]:
            overlap[:, best] = 0  # a second box on the same object is a false positive
    return tuple(correct)


def _nearest_ghost(box: Tensor, scene: HarborScene) -> str | None:
    """Return the wake without a boat whose ghost box overlaps a detected box best, or None."""
    if not scene.ghost_boxes_xyxy:
        return None
    names, ghosts = zip(*scene.ghost_boxes_xyxy.items(), strict=True)
    overlap, index = box_iou(box[None], torch.from_numpy(np.stack(ghosts)))[0].max(0)
    return names[int(index)] if float(overlap) >= MIN_GHOST_IOU else None


def measure_heat(explanation: Explanation, index: int, wake: BoolArray) -> HeatDistribution:
    """Measure where the heat of one detection's map lies.

    Args:
        explanation: explanation of the image.
        index: index of the detection.
        wake: (H, W) bool, mask of the wake.
    """
    heat = np.asarray(explanation.heatmaps[index])
    in_box = np.zeros(heat.shape, bool)
    x1, y1, x2, y2 = (round(value) for value in explanation.box_xyxy(index) or (0, 0, 0, 0))
    in_box[max(y1, 0) : y2, max(x1, 0) : x2] = True
    in_wake = dilate(wake) & ~in_box
    total = max(float(heat.sum()), 1e-12)
    maximum = np.unravel_index(int(heat.argmax()), heat.shape)
    peak = "box" if in_box[maximum] else "wake" if in_wake[maximum] else "elsewhere"
    reach = explanation.reach[index].fraction if explanation.reach else 1.0
    return HeatDistribution(float(heat[in_box].sum()) / total, float(heat[in_wake].sum()) / total, peak, reach)


def dilate(mask: BoolArray, margin: int = WAKE_MARGIN) -> BoolArray:
    """Return the (H, W) bool mask of the pixels within `margin` pixels of a mask."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc), bool)
