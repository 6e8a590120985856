"""The surroundings of a box, which are removed as a whole: a fill must not paint them again from what borders them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.evidence import RING_WIDTH, box_region
from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.interventions import Investigation, Removal, T
from detcam.auditing.verification.proposals import Proposal
from detcam.perturbation.fills import Fill, MeanFill, RingFill

SURROUNDINGS_FILLS: tuple[Fill, ...] = (RingFill(), MeanFill())
"""Fills of surroundings. Linear imputation continues the colors of what is left of them at the edge of the box."""
SURROUNDINGS_NAME = "surroundings of the box"
SURROUNDINGS_LIMIT = "the surroundings were filled with single colors only"
"""What limits the grade of a verdict on them."""


def propose_surroundings(hypothesis: Hypothesis) -> tuple[Proposal, Tensor]:
    """The ring around the box, without the object that the error concerns.

    Returns:
        A proposal, whose map has the values of the first map of the hypothesis; and the ring, (h, w) bool.
    """
    rows, columns = torch.nonzero(hypothesis.box, as_tuple=True)
    if not len(rows):
        return Proposal(SURROUNDINGS_NAME, hypothesis.box.float()), hypothesis.box
    top, bottom, left, right = rows[0].item(), rows[-1].item() + 1, columns.min().item(), columns.max().item() + 1
    dy, dx = RING_WIDTH * (bottom - top), RING_WIDTH * (right - left)
    size_hw = (hypothesis.box.shape[0], hypothesis.box.shape[1])
    around = box_region((left - dx, top - dy, right + dx, bottom + dy), size_hw)
    ring = around & ~hypothesis.inside
    heatmap = ring.float()
    if hypothesis.proposals.maps:
        first = hypothesis.proposals.maps[0].heatmap
        heatmap = heatmap * (0.1 + first / first.amax().clamp(min=1e-12))
    return Proposal(SURROUNDINGS_NAME, heatmap), ring


def with_later_fills(investigation: Investigation[T], first: int) -> Generator[list[Removal], list[Trial], T]:
    """An investigation whose fills are those from the index `first` on."""
    answer: list[Trial] | None = None
    while True:
        try:
            # A generator starts with None, and then receives the trials that it asked for.
            requests = investigation.send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = yield [replace(request, fill=first + request.fill) for request in requests]
