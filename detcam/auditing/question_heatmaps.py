"""Heatmaps and proposals of evidence for the questions of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detcam.auditing.error_targets import ErrorQuestion
from detcam.auditing.verification.input_mapping import InputMapping
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.cam import BaseCAM
from detcam.targets import BoxTarget


def compute_heatmaps(
    cam: BaseCAM, images: Sequence[Tensor], questions: Sequence[Sequence[ErrorQuestion]]
) -> list[list[Tensor | RuntimeError]]:
    """Compute the heatmap of every target of the questions of each image.

    If a batch fails, its targets are explained one by one, so that one target does not affect the others.

    Returns:
        Per image, a heatmap (H, W) for each target in `ErrorQuestion.all_targets`, or the error.
    """
    targets = [[target for question in row for target in question.all_targets] for row in questions]
    if not any(targets):
        return [[] for _ in targets]
    try:
        return [list(torch.as_tensor(result.heatmaps)) for result in cam.explain(list(images), targets)]
    except RuntimeError as error:
        if sum(len(row) for row in targets) == 1:
            return [[error] * len(row) for row in targets]
        return [
            [_single_heatmap(cam, image, target) for target in row] for image, row in zip(images, targets, strict=True)
        ]


def _single_heatmap(cam: BaseCAM, image: Tensor, target: Any) -> Tensor | RuntimeError:
    try:
        return torch.as_tensor(cam.explain([image], [[target]])[0].heatmaps[0])
    except RuntimeError as error:
        return error


def propose_by_gradients(
    questions: Sequence[ErrorQuestion],
    propose: Callable[[Sequence[Any], Callable[[], Tensor] | None], Proposals | RuntimeError],
    segments: Callable[[], Tensor],
    suppressing: Mapping[int, BoxTarget],
) -> tuple[list[Proposals | RuntimeError], dict[int, Tensor]]:
    """Propose evidence for the questions of an image by the gradients of one pass.

    Args:
        questions: the questions.
        propose: `gradient_proposals` of the pass, a function of the targets of a question and the segments.
        segments: makes the labels (h, w) int64 of segments of the image.
        suppressing: by index of the question, the detection that suppresses a missed object and is asked about instead.

    Returns:
        Per question, the proposals or the error; and by index of the question, the map of its reference.
    """
    proposals: list[Proposals | RuntimeError] = []
    references: dict[int, Tensor] = {}
    for number, question in enumerate(questions):
        # Of a suppressing detection and of a reference, only the first maps are used.
        if number in suppressing:
            proposals.append(propose((suppressing[number],), None))
        else:
            proposals.append(propose(question.targets, segments))
        if question.reference is not None:
            first = propose((question.reference,), None)
            if not isinstance(first, RuntimeError):
                references[number] = first.maps[0].heatmap
    return proposals, references


def propose_by_method(
    questions: Sequence[ErrorQuestion], heatmaps: Sequence[Tensor | RuntimeError], name: str, mapping: InputMapping
) -> tuple[list[Proposals | RuntimeError], dict[int, Tensor]]:
    """Propose evidence for the questions of an image by the heatmaps of a method.

    Args:
        questions: the questions.
        heatmaps: those of `compute_heatmaps` for the image.
        name: the method's name.
        mapping: between the image and the network's input.

    Returns:
        As for `propose_by_gradients`.
    """
    proposals: list[Proposals | RuntimeError] = []
    references: dict[int, Tensor] = {}
    for number, (heatmap, reference) in enumerate(_join_heatmaps(questions, heatmaps)):
        if isinstance(heatmap, RuntimeError):
            proposals.append(heatmap)
        else:
            proposals.append(Proposals([Proposal(name, mapping.to_input(heatmap))]))
        if reference is not None:
            references[number] = mapping.to_input(reference)
    return proposals, references


def _join_heatmaps(
    questions: Sequence[ErrorQuestion], maps: Sequence[Tensor | RuntimeError]
) -> list[tuple[Tensor | RuntimeError, Tensor | None]]:
    """Per question, the mean heatmap of its targets, or the error, and the heatmap of its reference."""
    remaining = iter(maps)
    joined: list[tuple[Tensor | RuntimeError, Tensor | None]] = []
    for question in questions:
        of_targets = [next(remaining) for _ in question.targets]
        valid = [each for each in of_targets if isinstance(each, Tensor)]
        failed = [each for each in of_targets if isinstance(each, RuntimeError)]
        heatmap = torch.stack(valid).mean(0) if valid else failed[0]
        if isinstance(heatmap, Tensor) and not bool(heatmap.amax() > 0):
            heatmap = RuntimeError("it is zero everywhere, no pixel supports the target")
        reference = None if question.reference is None else next(remaining)
        joined.append((heatmap, reference if isinstance(reference, Tensor) else None))
    return joined
