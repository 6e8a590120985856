"""Where the heat of a map lies: in the box, in the wake beside it, or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcam.demo.train import WakeVerdict
from detcam.explanation.explain import Explanation
from detcam.utils.opencv import cv2

MARGIN = 4  # pixels around a wake that still count as wake: one cell of the target layer


@dataclass(frozen=True)
class Evidence:
    """Where the heat of one map lies.

    Attributes:
        box: share of the map's heat inside the detected box, in [0, 1].
        wake: share within a few pixels of the wake and outside the box.
        hottest: where the map is greatest: ``box``, ``wake`` or ``elsewhere``.
        reach: share of the image that can influence the map, in [0, 1].
    """

    box: float
    wake: float
    hottest: str
    reach: float

    @property
    def elsewhere(self) -> float:
        """The remaining share, in [0, 1]."""
        return 1 - self.box - self.wake

    @classmethod
    def of(cls, explanation: Explanation, index: int, wake: np.ndarray) -> Evidence:
        """Add up one detection's heatmap (H, W) in and around its box and a wake's mask (H, W) bool."""
        heat = explanation.heatmaps[index].numpy()
        in_box = np.zeros(heat.shape, bool)
        x1, y1, x2, y2 = (round(value) for value in explanation.box_xyxy(index) or (0, 0, 0, 0))
        in_box[max(y1, 0) : y2, max(x1, 0) : x2] = True
        in_wake = around(wake) & ~in_box
        total = max(float(heat.sum()), 1e-12)
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        hottest = "box" if in_box[peak] else "wake" if in_wake[peak] else "elsewhere"
        reach = explanation.reach[index].fraction if explanation.reach else 1.0
        return cls(float(heat[in_box].sum()) / total, float(heat[in_wake].sum()) / total, hottest, reach)


@dataclass(frozen=True)
class FalseAlarm:
    """A boat that is not there.

    Attributes:
        seed: the scene.
        index: which of the scene's detections.
        score: what the detector gives it, in [0, 1].
        wake: name of the boatless wake beside it.
        evidence: where the heat lies, from a layer that sees the context.
        last_layer: where it lies at the last layer.
        verdict: what the detector says when the scene is drawn again without the wake, and without a gull.
    """

    seed: int
    index: int
    score: float
    wake: str
    evidence: Evidence
    last_layer: Evidence
    verdict: WakeVerdict


def around(wake: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool with the pixels within MARGIN of it."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * MARGIN + 1,) * 2)
    return np.asarray(cv2.dilate(wake.astype(np.uint8), disc), bool)
