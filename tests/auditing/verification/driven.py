"""Investigations with given answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.interventions import Investigation

T = TypeVar("T")


def drive(investigation: Investigation[T], outcome: Callable[[Tensor, int], bool]) -> tuple[T, int]:
    """Answer the requests of an investigation; `outcome` says whether the error ends. Returns result and requests."""
    answers: list[Trial] | None = None
    count = 0
    while True:
        try:
            requests = investigation.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value, count
        count += len(requests)
        answers = [
            Trial(each.intervention, str(each.fill), *((0.1, "vanished") if ends else (0.9, "unchanged")))  # type: ignore[arg-type]
            for each in requests
            for ends in [outcome(each.region, each.fill)]
        ]


def disc(row: int, column: int, radius: float = 6) -> Tensor:
    rows, columns = torch.arange(100)[:, None], torch.arange(100)[None]
    return (rows - row).square() + (columns - column).square() <= radius**2
