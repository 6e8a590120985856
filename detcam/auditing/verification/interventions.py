"""Runs the detector on perturbed versions of an image: regions are filled, and the detection is looked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.base import Batch
from detcam.auditing.case import PERSISTING, Box, Intervention, Outcome, Trial
from detcam.perturbation.base import ImageArea, ImageScorer
from detcam.perturbation.fills import Fill
from detcam.utils.batching import batches, group_by
from detcam.utils.components import extent, overlap_exceeds

T = TypeVar("T")
MIN_REPEATED_IOU = 0.85
"""Minimum IoU of two regions of which the second one is not tried if the error persists without the first."""


@dataclass(frozen=True)
class Removal:
    """A perturbed image to try.

    Attributes:
        intervention: what is filled.
        region: (h, w) bool, the filled region, over the area of the network's input that the image covers.
        fill: index of the fill.
        kept: (h, w) bool, pixels that stay as they are, but whose colors the fill does not continue into the region;
            None if there are none.
    """

    intervention: Intervention
    region: Tensor
    fill: int = 0
    kept: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """(h, w) bool, the pixels that the fill does not read."""
        return self.region if self.kept is None else self.region | self.kept


Investigation: TypeAlias = Generator[list[Removal], list[Trial], T]
"""A procedure that yields requests, receives their trials, and returns its result."""


def asking(
    investigation: Investigation[T], ask: Callable[[list[Removal]], Investigation[list[Trial]]]
) -> Investigation[T]:
    """An investigation each of whose lists of requests is answered by another one, `ask`, which may change it."""
    answer: list[Trial] | None = None
    while True:
        try:
            # A generator starts with None, and then receives the trials that it asked for.
            requests = investigation.send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = yield from ask(requests)


def remembering(investigation: Investigation[T]) -> Investigation[T]:
    """An investigation whose repeated requests are answered with the first trial, without another pass.

    A region that is nearly the same as one without which the error persists counts as repeated: nobody asks whether a
    few pixels decide.
    """
    known: dict[tuple[bytes, int], Trial] = {}
    persisting: list[Removal] = []

    def ask(requests: list[Removal]) -> Investigation[list[Trial]]:
        keys = [_key(_repeated(request, persisting) or request) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        if new:
            trials = yield list(new.values())
            known.update(zip(new, trials, strict=True))
            persisting.extend(
                request for key, request in new.items() if known[key].outcome in PERSISTING and _is_attempt(request)
            )
        return [
            replace(known[key], intervention=request.intervention) for key, request in zip(keys, requests, strict=True)
        ]

    return asking(investigation, ask)


def keeping(investigation: Investigation[T], kept: Tensor) -> Investigation[T]:
    """An investigation that never removes some pixels (h, w) bool, nor continues their colors beside them."""

    def ask(requests: list[Removal]) -> Investigation[list[Trial]]:
        return (yield [replace(request, region=request.region & ~kept, kept=kept) for request in requests])

    return asking(investigation, ask)


def sparing(investigation: Investigation[T], spared: Tensor) -> Investigation[T]:
    """An investigation whose evidence is removed without some pixels (h, w) bool; controls are not changed."""

    def ask(requests: list[Removal]) -> Investigation[list[Trial]]:
        return (
            yield [
                replace(request, region=request.region & ~spared) if _is_attempt(request) else request
                for request in requests
            ]
        )

    return asking(investigation, ask)


def _key(request: Removal) -> tuple[bytes, int]:
    return np.packbits(request.region.numpy()).tobytes(), request.fill


def _is_attempt(request: Removal) -> bool:
    """Whether a request looks for evidence, and is no control."""
    return request.intervention == "without evidence"


def _repeated(request: Removal, persisting: Sequence[Removal]) -> Removal | None:
    """The request for nearly the same region and the same fill among those without which the error persists."""
    if not _is_attempt(request):
        return None
    region = request.region.numpy()
    for other in persisting:
        if other.fill == request.fill and overlap_exceeds(region, other.region.numpy(), MIN_REPEATED_IOU):
            return other
    return None


class Criterion(Protocol):
    """Decides the outcome of a perturbed image."""

    def evaluate(self, output: Any) -> tuple[float, Outcome]:
        """Score in [0, 1] and outcome for the output of a perturbed image."""
        ...


class DetectionCriterion(Criterion, Protocol):
    """Decides the outcome of a perturbed image for the error of a detection."""

    @property
    def score_threshold(self) -> float:
        """Minimum score at which the error persists, in [0, 1]."""
        ...

    @property
    def first_xyxy(self) -> Box | None:
        """Box of the correct detection of an object with two detections, which has to remain; else None."""
        ...

    @property
    def lost_reason(self) -> str:
        """Why a region confirms nothing without which the object is lost, in words."""
        ...


class Interventions:
    """The perturbed versions of one image.

    Args:
        scorer: the image, prepared for the model; must be used within `detcam.trace.guarded`.
        fills: replacements of removed pixels.
    """

    def __init__(self, scorer: ImageScorer, fills: Sequence[Fill]) -> None:
        self.scorer = scorer
        self.area = ImageArea(scorer)
        self.fills = tuple(fills)
        self._bound = [fill.for_image(self.area.image) for fill in self.fills]

    def add_fills(self, fills: Sequence[Fill]) -> int:
        """Add fills, and return the index of the first one."""
        self.fills += tuple(fills)
        self._bound += [fill.for_image(self.area.image) for fill in fills]
        return len(self.fills) - len(fills)

    @property
    def pass_key(self) -> Hashable:
        """Perturbed images with equal keys may share a forward pass."""
        batch = self.scorer.batch
        alone = id(self) if batch.extra_inputs or batch.model_kwargs else None
        return tuple(batch.inputs.shape), self.scorer.adapter.group_key(self.scorer.geometry.image_size_hw), alone

    def perturbed(self, requests: Sequence[Removal]) -> Tensor:
        """The network inputs (K, C, H, W) of perturbed images, in the memory format of their pass."""
        image = self.scorer.image_in_memory_format
        inputs = torch.cat([image] * len(requests))
        area = inputs[:, :, self.area.rows, self.area.columns]
        for number, fill in enumerate(self._bound):
            rows = [row for row, request in enumerate(requests) if request.fill == number]
            if rows:
                filled = fill(torch.stack([requests[row].hidden for row in rows]).to(inputs.device)).to(inputs.dtype)
                for row, each in zip(rows, filled, strict=True):
                    region = requests[row].region
                    rows_of, columns_of = extent(region.numpy())
                    if requests[row].kept is not None:
                        each = torch.where(region.to(each.device), each, area[row])
                    area[row, :, rows_of, columns_of] = each[:, rows_of, columns_of]
        return inputs


@dataclass(frozen=True)
class _Request:
    """A perturbed image to try, of one of several images, and the criterion of its outcome."""

    image: Interventions
    removal: Removal
    criterion: Criterion

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the bounding box of the filled region."""
        rows, columns = extent(self.removal.region.numpy())
        return rows.stop - rows.start, columns.stop - columns.start


def run_investigations(
    investigations: Sequence[tuple[Interventions, Investigation[T], Criterion]],
) -> list[tuple[T, int]]:
    """Run investigations of several images to their end, side by side, so that their images share forward passes.

    Args:
        investigations: the image, the procedure, and the criterion of its trials.

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
                requests[index] = investigations[index][1].send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                results[index] = stop.value
        pairs = [
            _Request(investigations[index][0], removal, investigations[index][2])
            for index, row in requests.items()
            for removal in row
        ]
        trials = iter(_try(pairs))
        answers = {index: [next(trials) for _ in row] for index, row in requests.items()}
        for index, row in requests.items():
            counts[index] += len(row)
    return [(results[index], count) for index, count in enumerate(counts)]


def _try(requests: Sequence[_Request]) -> list[Trial]:
    """The trials of perturbed images, in batches."""
    outcomes: dict[int, tuple[float, Outcome]] = {}
    for members in group_by(range(len(requests)), lambda index: requests[index].image.pass_key).values():
        size = requests[members[0]].image.scorer.images_per_pass
        # Windows of the early layers are of like size then, and share passes.
        members.sort(key=lambda index: requests[index].extent)
        for chosen in batches(members, size):
            outcomes.update(zip(chosen, _outcomes([requests[index] for index in chosen]), strict=True))
    return [
        Trial(request.removal.intervention, request.image.fills[request.removal.fill].name, *outcomes[index])
        for index, request in enumerate(requests)
    ]


def _outcomes(requests: Sequence[_Request]) -> list[tuple[float, Outcome]]:
    """The outcomes of perturbed images that share a forward pass."""
    outcomes: list[tuple[float, Outcome]] = []
    scorer = requests[0].image.scorer

    def evaluate(raw: Any, batch: Batch) -> Tensor:
        outputs = scorer.adapter.outputs(raw, batch)
        pending = requests[len(outcomes) : len(outcomes) + len(outputs)]
        outcomes.extend(each.criterion.evaluate(output) for each, output in zip(pending, outputs, strict=True))
        return torch.zeros(len(outputs), 1)

    inputs = [
        image.perturbed([each.removal for each in of_image])
        for image, of_image in groupby(requests, lambda each: each.image)
    ]
    scorer.score(torch.cat(inputs), evaluate, [each.image.scorer for each in requests])
    return outcomes
