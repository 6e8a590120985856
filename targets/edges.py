"""A target for the position of a box: a signed sum of the coordinates of its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.detections import class_name
from detcam.outputs import CandidateField, Candidates, DetectionTarget

EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class EdgesTarget(DetectionTarget):
    r"""The displacement of a box's edges, each in a given direction.

    .. math:: y = \sum_{e \in \{x_1, y_1, x_2, y_2\}} d_e \, e

    in image pixels. If :math:`d_e` is the direction of an edge's error, positive saliency marks evidence that moves
    the edges away from the object, and negative saliency evidence that keeps them at it.

    Attributes:
        directions: -1, 0 or 1 for x1, y1, x2, y2.
    """

    quantity = "edges"

    directions: tuple[float, float, float, float] = (-1.0, -1.0, 1.0, 1.0)

    @classmethod
    def displaced(
        cls, target: DetectionTarget, ground_truth_xyxy: tuple[float, float, float, float], *, tolerance: float = 0.1
    ) -> EdgesTarget:
        """Return a target for the edges of a detection that deviate from the ground truth.

        If no edge deviates by more than the tolerance, the edge with the largest error is taken.

        Args:
            target: the detection.
            ground_truth_xyxy: the object's box, original image pixels.
            tolerance: maximum error that is ignored, a fraction of the object's width or height.
        """
        x1, y1, x2, y2 = ground_truth_xyxy
        sides = (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
        errors = [
            (a - b) / max(side, 1e-6) for a, b, side in zip(target.box_xyxy, ground_truth_xyxy, sides, strict=True)
        ]
        threshold = min(tolerance, max(abs(error) for error in errors))
        signs = [float((error > 0) - (error < 0)) if abs(error) >= threshold else 0.0 for error in errors]
        return cls(target.box_xyxy, target.label, target.source, tuple(signs))  # type: ignore[arg-type]

    @property
    def edges(self) -> list[str]:
        """The names of the edges with a direction: left, top, right, bottom."""
        return [name for name, direction in zip(EDGES, self.directions, strict=True) if direction]

    @property
    def edges_text(self) -> str:
        """The edges as text: ``left edge``, ``left, top and right edges``, ``edges`` for all."""
        if len(self.edges) == len(EDGES):
            return "edges"
        if len(self.edges) == 1:
            return f"{self.edges[0]} edge"
        return f"{', '.join(self.edges[:-1])} and {self.edges[-1]} edges"

    def hflip(self, width: int) -> EdgesTarget:
        mirrored = super().hflip(width)
        left, top, right, bottom = self.directions
        return EdgesTarget(mirrored.box_xyxy, self.label, mirrored.source, (-right, top, -left, bottom))

    def describe(self, names: Mapping[int, str]) -> str:
        return f"{self.edges_text} of {class_name(names, self.label)}"

    @property
    def reads(self) -> frozenset[CandidateField]:
        return frozenset({"boxes_xyxy"})

    def value(self, candidates: Candidates, row: int) -> Tensor:
        boxes = candidates.boxes_xyxy[row]
        return (boxes * torch.tensor(self.directions, dtype=boxes.dtype, device=boxes.device)).sum()
