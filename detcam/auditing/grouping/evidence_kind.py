"""The kind of evidence that an error rests on: the first level of the hierarchy of causes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.case import AuditCase, Box, EvidenceForm, EvidenceKind
from detcam.auditing.sentences import MIN_SHARE, is_inside, is_outside, outside_share
from detcam.data.images import as_float

BORDER_WIDTH = 0.03
"""Width of the border of an image, relative to its sides."""
MIN_BORDER_SHARE = 0.5
"""Minimum share of the evidence in that border."""
MAX_MARK_FRACTION = 0.01
"""Maximum fraction of the image that a mark covers."""
MIN_MARK_SEPARATION = 0.5
"""Minimum separation of a mark's colors from those around it."""
OUTSIDE_KINDS: tuple[EvidenceKind, ...] = ("surroundings", "mark", "image border", "object and surroundings")
"""Kinds that differ only in size and position of the evidence."""
MAX_WORKING_SIDE = 512
"""Maximum longer side, in pixels, at which colors are compared."""


def describe_evidence(image: Tensor, evidence: Tensor) -> dict[str, Any]:
    """Describe an evidence region by its bounding box and form.

    Args:
        image: (3, H, W), float32 in [0, 1] or uint8.
        evidence: (H, W) bool.

    Returns:
        The fields ``evidence_box_xyxy`` and ``evidence_form`` of a case; empty if the region is.
    """
    rows, columns = evidence.any(1).nonzero()[:, 0], evidence.any(0).nonzero()[:, 0]
    if not len(rows):
        return {}
    box: Box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
    return {"evidence_box_xyxy": box, "evidence_form": _form(image, evidence)}


def _form(image: Tensor, evidence: Tensor) -> EvidenceForm:
    if border_share(evidence) >= MIN_BORDER_SHARE:
        return "border"
    is_small = float(evidence.float().mean()) <= MAX_MARK_FRACTION
    return "mark" if is_small and color_separation(image, evidence) >= MIN_MARK_SEPARATION else "area"


def border_share(evidence: Tensor) -> float:
    """Share of a region (H, W) bool, not empty, that lies in the border of its image, in [0, 1]."""
    height, width = evidence.shape
    rows, columns = max(round(BORDER_WIDTH * height), 1), max(round(BORDER_WIDTH * width), 1)
    inner = evidence[rows : height - rows, columns : width - columns]
    return 1 - float(inner.sum()) / float(evidence.sum())


def color_separation(image: Tensor, evidence: Tensor) -> float:
    r"""Compute how well color separates a region from the ring around it, which has about the region's area.

    .. math:: s = \frac{\text{variance between region and ring}}{\text{variance of both together}}

    summed over the color channels: 1 if each has one color and the two differ, 0 if their means are equal.

    Args:
        image: (3, H, W), float32 or uint8.
        evidence: (H, W) bool, not empty.
    """
    factor = min(1.0, MAX_WORKING_SIDE / max(evidence.shape))
    size = [max(round(side * factor), 1) for side in evidence.shape]
    # One channel at a time, as images in 8 bits are large.
    small = torch.cat([F.interpolate(as_float(channel)[None, None], size, mode="area")[0] for channel in image]).cpu()
    inside = F.interpolate(evidence[None, None].float(), size, mode="area")[0, 0] > 0.5
    if not bool(inside.any()):
        return 0.0
    width = max(2, round(0.25 * float(inside.sum()) ** 0.5))
    ring = _grown(inside, width) & ~_grown(inside, 1)  # blurred edges belong to neither
    if not bool(ring.any()):
        return 0.0
    colors, around = small[:, inside].double().numpy(), small[:, ring].double().numpy()
    both = np.concatenate([colors, around], axis=1)
    mean = both.mean(1)
    between = (
        sum(each.shape[1] * float(((each.mean(1) - mean) ** 2).sum()) for each in (colors, around)) / both.shape[1]
    )
    total = float(both.var(1).sum())
    return between / total if total > 1e-8 else 0.0


def _grown(region: Tensor, margin: int) -> Tensor:
    """A region (h, w) bool with the pixels around it, in a square window."""
    rows = F.max_pool2d(region[None, None].float(), (2 * margin + 1, 1), 1, (margin, 0))
    return F.max_pool2d(rows, (1, 2 * margin + 1), 1, (0, margin))[0, 0] > 0


def flips_class(case: AuditCase) -> bool:
    """Whether the object is detected with another class without the evidence, with every fill."""
    without = [trial for trial in case.trials if trial.intervention == "without evidence"]
    return bool(without) and all(trial.outcome == "class flipped" for trial in without)


def evidence_kind(case: AuditCase) -> EvidenceKind | None:
    """The kind of evidence of a case; None if it is not explained.

    Evidence that is not confirmed has no kind, except that a background error whose detection is typical of its class
    is an unlabeled object.
    """
    if not case.method:
        return None
    if case.background_type == "missing annotation":
        return "unlabeled object"
    if not case.confirmed:
        return "not confirmed"
    if case.needs_context:
        return "absent context"
    is_background = case.type == "background"
    if is_background and case.evidence_location == "ground truth":
        return "another object"
    is_confusion = case.type in ("classification", "both")
    flips = is_confusion and flips_class(case)
    # Without parts of the object, any detection of it ends; this does not say that they make its class wrong.
    if is_confusion and not flips and outside_share(case) < MIN_SHARE:
        return "object itself"
    if is_inside(case):
        return "look-alike" if is_background else "part of the object"
    if not is_outside(case) and not (flips and outside_share(case) >= MIN_SHARE):
        return "object and surroundings"
    if case.evidence_location == "same class" or case.evidence_object:
        return "another object"
    if case.evidence_form == "border":
        return "image border"
    return "mark" if case.evidence_form == "mark" else "surroundings"
