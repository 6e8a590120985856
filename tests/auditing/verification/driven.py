"""Investigations with given answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.interventions import Investigation, Removal

T = TypeVar("T")


def answered(investigation: Investigation[T], answer: Callable[[Removal], Trial]) -> tuple[T, list[Removal]]:
    """Answer each request of an investigation; returns its result and the requests."""
    answers: list[Trial] | None = None
    asked: list[Removal] = []
    while True:
        try:
            requests = investigation.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value, asked
        asked += requests
        answers = [answer(each) for each in requests]


def drive(investigation: Investigation[T], outcome: Callable[[Tensor, int], bool]) -> tuple[T, int]:
    """Answer the requests of an investigation; `outcome` says whether the error ends. Returns result and requests."""

    def answer(request: Removal) -> Trial:
        ends = outcome(request.region, request.fill)
        return Trial(request.intervention, str(request.fill), *((0.1, "vanished") if ends else (0.9, "unchanged")))  # type: ignore[arg-type]

    result, asked = answered(investigation, answer)
    return result, len(asked)


def disc(row: int, column: int, radius: float = 6) -> Tensor:
    rows, columns = torch.arange(100)[:, None], torch.arange(100)[None]
    return (rows - row).square() + (columns - column).square() <= radius**2
