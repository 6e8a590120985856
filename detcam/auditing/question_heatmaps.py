"""Heatmaps of a method for the questions of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detcam.auditing.error_targets import ErrorQuestion
from detcam.cam import BaseCAM


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


def join_heatmaps(
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
