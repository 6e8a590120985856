"""A detector output with given candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.detections import Detections
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import BoxTarget


class FixedOutput(DetectorOutput):
    """A detector output with given candidates: that of the target, and all others."""

    def __init__(self, own: tuple[Sequence[float], Sequence[float]], others: Sequence[tuple]) -> None:  # type: ignore[type-arg]
        self.own, self.others = own, others

    def candidates(self, targets: Sequence[BoxTarget]) -> Candidates:  # type: ignore[override]
        scores = torch.tensor([self.own[1]])
        return Candidates(torch.tensor([self.own[0]]), scores, scores.logit(), None)

    def detections(self) -> Detections:
        raise NotImplementedError

    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor([box for box, _ in self.others]).reshape(-1, 4),
            torch.tensor([scores for _, scores in self.others]).reshape(-1, 2),
        )


BOX, NEAR, FAR = (0.0, 0.0, 10.0, 10.0), (6.0, 0.0, 16.0, 10.0), (50.0, 50.0, 60.0, 60.0)
