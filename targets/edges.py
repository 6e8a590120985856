"""A target for the place of a box: what pushes its edges to where they are."""

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
    r"""How far a box's edges are pushed, each in its own direction.

    .. math:: y = \sum_{e \in \{x_1, y_1, x_2, y_2\}} d_e \, e

    in image pixels; with :math:`d_e` the direction in which an edge is wrong, positive saliency is what pushes the
    edges off, and negative saliency what holds them at the object.

    Attributes:
        directions: -1, 0 or 1 for x1, y1, x2, y2.
    """

    quantity = "edges"

    directions: tuple[float, float, float, float] = (-1.0, -1.0, 1.0, 1.0)

    @classmethod
    def off(
        cls, target: DetectionTarget, truth_xyxy: tuple[float, float, float, float], *, tolerance: float = 0.1
    ) -> EdgesTarget:
        """The edges of a detection that are off a true object by more than a share of the object's side.

        Where none is off by so much, the one that is off most.

        Args:
            target: the detection.
            truth_xyxy: the true object's box, original image pixels.
            tolerance: share of the object's width, or height.
        """
        x1, y1, x2, y2 = truth_xyxy
        sides = (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
        errors = [(a - b) / max(side, 1e-6) for a, b, side in zip(target.box_xyxy, truth_xyxy, sides, strict=True)]
        least = min(tolerance, max(abs(error) for error in errors))
        found = [(error > 0) - (error < 0) if abs(error) >= least else 0 for error in errors]
        return cls(target.box_xyxy, target.label, target.source, tuple(map(float, found)))  # type: ignore[arg-type]

    @property
    def edges(self) -> list[str]:
        """The edges that are asked about: left, top, right, bottom."""
        return [name for name, direction in zip(EDGES, self.directions, strict=True) if direction]

    @property
    def words(self) -> str:
        """The edges in words: ``left edge``, ``left and top edges``, ``edges`` for all."""
        if len(self.edges) == len(EDGES):
            return "edges"
        return f"{' and '.join(self.edges)} edge{'s' if len(self.edges) > 1 else ''}"

    def hflip(self, width: int) -> EdgesTarget:
        mirrored = super().hflip(width)
        left, top, right, bottom = self.directions
        return EdgesTarget(mirrored.box_xyxy, self.label, mirrored.source, (-right, top, -left, bottom))

    def describe(self, names: Mapping[int, str]) -> str:
        return f"{self.words} of {class_name(names, self.label)}"

    @property
    def reads(self) -> frozenset[CandidateField]:
        return frozenset({"boxes_xyxy"})

    def value(self, candidates: Candidates, row: int) -> Tensor:
        boxes = candidates.boxes_xyxy[row]
        return (boxes * torch.tensor(self.directions, dtype=boxes.dtype, device=boxes.device)).sum()
