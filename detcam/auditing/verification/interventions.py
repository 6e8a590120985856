"""Runs the detector on perturbed versions of an image: regions are filled, and the detection is looked for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.auditing.case import Intervention, Outcome, Trial
from detcam.outputs import DetectorOutput
from detcam.perturbation.base import ImageArea, ImageScorer
from detcam.perturbation.fills import Fill
from detcam.utils.batching import batch_slices

T = TypeVar("T")


@dataclass(frozen=True)
class Removal:
    """A perturbed image to try.

    Attributes:
        intervention: what is filled.
        region: (h, w) bool, the filled region, over the area of the network's input that the image covers.
        fill: index of the fill.
    """

    intervention: Intervention
    region: Tensor
    fill: int = 0


Investigation: TypeAlias = Generator[list[Removal], list[Trial], T]
"""A procedure that yields requests, receives their trials, and returns its result."""


class Criterion(Protocol):
    """Decides the outcome of a perturbed image."""

    def evaluate(self, output: DetectorOutput) -> tuple[float, Outcome]:
        """Score in [0, 1] and outcome for the output of a perturbed image."""
        ...


class Interventions:
    """Runs investigations of one image side by side, so that their perturbed images share forward passes.

    Args:
        scorer: the image, prepared for the model; must be used within `detcam.trace.guarded`.
        fills: replacements of removed pixels.
    """

    def __init__(self, scorer: ImageScorer, fills: Sequence[Fill]) -> None:
        self.scorer = scorer
        self.area = ImageArea(scorer)
        self.fills = tuple(fills)
        self._bound = [fill.for_image(self.area.image) for fill in self.fills]

    def run(self, investigations: Sequence[Investigation[T]], criteria: Sequence[Criterion]) -> list[tuple[T, int]]:
        """Run investigations to their end.

        Args:
            investigations: the procedures.
            criteria: the criterion of each.

        Returns:
            For each, its result and the number of perturbed images that it tried.
        """
        results: dict[int, T] = {}
        counts = [0] * len(investigations)
        answers: dict[int, list[Trial] | None] = dict.fromkeys(range(len(investigations)))
        while answers:
            requests: dict[int, list[Removal]] = {}
            for index, answer in answers.items():
                try:
                    # A generator starts with None, and then receives the trials that it asked for.
                    requests[index] = investigations[index].send(answer)  # type: ignore[arg-type]
                except StopIteration as stop:
                    results[index] = stop.value
            pairs = [(request, criteria[index]) for index, row in requests.items() for request in row]
            trials = iter(self._try([request for request, _ in pairs], [criterion for _, criterion in pairs]))
            answers = {index: [next(trials) for _ in row] for index, row in requests.items()}
            for index, row in requests.items():
                counts[index] += len(row)
        return [(results[index], count) for index, count in enumerate(counts)]

    def _try(self, requests: Sequence[Removal], criteria: Sequence[Criterion]) -> list[Trial]:
        """The trials of perturbed images, in batches."""
        outcomes: list[tuple[float, Outcome]] = []
        for part in batch_slices(len(requests), self.scorer.images_per_pass) if requests else ():

            def evaluate(raw: Any, batch: Batch, part: slice = part) -> Tensor:
                outputs = self.scorer.adapter.outputs(raw, batch)
                outcomes.extend(
                    criterion.evaluate(output) for criterion, output in zip(criteria[part], outputs, strict=True)
                )
                return torch.zeros(len(outputs), 1)

            self.scorer.score(self._perturbed(requests[part]), evaluate)
        return [
            Trial(request.intervention, self.fills[request.fill].name, *outcome)
            for request, outcome in zip(requests, outcomes, strict=True)
        ]

    def _perturbed(self, requests: Sequence[Removal]) -> Tensor:
        """The network inputs (K, C, H, W) of perturbed images."""
        inputs = self.scorer.batch.inputs.repeat(len(requests), 1, 1, 1)
        for number, fill in enumerate(self._bound):
            rows = [row for row, request in enumerate(requests) if request.fill == number]
            if rows:
                removed = torch.stack([requests[row].region for row in rows]).to(inputs.device)
                inputs[rows, :, self.area.rows, self.area.columns] = fill(removed).to(inputs.dtype)
        return inputs
