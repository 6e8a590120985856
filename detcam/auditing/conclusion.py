"""Completes a case with its evidence and the result of its verification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detcam.auditing.case import EVIDENCE_LOCATIONS, AuditCase, CaseMaps, CasePart, EvidenceLocation
from detcam.auditing.sentences import MIN_OUTSIDE_SHARE, OUTSIDE_LOCATIONS, case_sentence
from detcam.auditing.verification.evidence import location_shares
from detcam.auditing.verification.hypothesis import VerificationResult
from detcam.auditing.verification.input_mapping import InputMapping
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.verdict import remaining_score
from detcam.utils.opencv import cv2

MIN_PART_HEAT = 0.5
"""Minimum of the largest heat in a part that the error needs, relative to the drop of the score without it."""
MAX_PART_HEAT = 0.9
"""Maximum of the largest heat in such a part, relative to that in the evidence."""


@dataclass(frozen=True)
class ExplainedError:
    """An error with its explanation.

    Attributes:
        case: the case.
        maps: heatmap and regions; None if the error could not be explained.
        features: (D,) float32, the network's features averaged over the evidence; None if there are none.
    """

    case: AuditCase
    maps: CaseMaps | None
    features: np.ndarray | None


def conclude(
    case: AuditCase,
    method: str,
    proposal: Proposal,
    regions: Mapping[EvidenceLocation, Tensor],
    mapping: InputMapping,
    levels: Sequence[Tensor],
    verified: VerificationResult | None,
) -> ExplainedError:
    """Complete a case with its evidence and, if it was verified, with the result.

    The heatmap of confirmed evidence is the map of the proposal in the evidence and in the other parts that the error
    needs, times the distance to their border. It is scaled to the relative drop of the score without the evidence. A
    part that the map does not show is raised to half the drop without it; a part with a larger maximum than the
    evidence is lowered. Other heatmaps of detections are scaled as a whole.

    Args:
        case: the case without evidence.
        method: name of the heatmap method.
        proposal: the map that the evidence comes from.
        regions: (H, W) bool by location.
        mapping: between the image and the network's input.
        levels: activations of the target layers, each (C, h, w).
        verified: the result; None for a case that is not verified.
    """
    heatmap = mapping.map_to_image(proposal.heatmap)
    heatmap = heatmap / heatmap.amax().clamp(min=1e-12)
    evidence = needed = heatmap >= 0.5
    control = None
    if verified is not None:
        evidence, needed = mapping.to_image(verified.evidence), mapping.to_image(verified.needed)
        control = None if verified.control is None else mapping.to_image(verified.control)
        case = _with_verdict(case, verified, regions, mapping)
        effect = _relative_gain(case) if case.type == "missed" else _relative_drop(case)
        if case.confirmed:
            unscaled, heatmap = heatmap, _heat_in(heatmap, evidence, effect)
            strongest = (unscaled * evidence).amax().clamp(min=1e-12)
            for part in (part for part in verified.parts if part.needed):
                drop = 1.0 if case.type == "missed" else _drop(case, part.score)
                region = mapping.to_image(part.region) & ~evidence
                shown = float((unscaled * region).amax() / strongest) * effect
                maximum = min(max(shown, MIN_PART_HEAT * drop), MAX_PART_HEAT * effect)
                heatmap = heatmap.maximum(_heat_in(unscaled, region, maximum))
        else:
            heatmap = heatmap * effect
    strength = heatmap * evidence
    if not bool(strength.amax() > 0):
        strength = evidence.float()
    shares = location_shares(strength, regions)
    if verified is not None and _reaches_inside(shares, regions, mapping, verified.evidence):
        shares = location_shares(evidence.float(), regions)
    location: EvidenceLocation = max(EVIDENCE_LOCATIONS, key=shares.__getitem__)
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    case = replace(
        case,
        method=method,
        proposal=proposal.name,
        evidence_shares=shares,
        evidence_location=location,
        evidence_fraction=float(evidence.float().mean()),
        peak_xy=(column, row),
    )
    maps = CaseMaps(
        (heatmap.clamp(0, 1) * 255).round().to(torch.uint8).numpy(),
        evidence.numpy(),
        needed.numpy(),
        None if control is None else control.numpy(),
    )
    features = mapping.pool(levels, mapping.to_input(strength))
    return ExplainedError(replace(case, sentence=case_sentence(case)), maps, features)


def _reaches_inside(
    shares: Mapping[EvidenceLocation, float],
    regions: Mapping[EvidenceLocation, Tensor],
    mapping: InputMapping,
    removed: Tensor,
) -> bool:
    """Whether evidence that seems to lie outside the box and the object was removed with a part of them.

    The heatmap is faint at the border of a region, so that the shares of its strength hardly tell.
    """
    if sum(shares[location] for location in OUTSIDE_LOCATIONS) < MIN_OUTSIDE_SHARE:
        return False
    outside = torch.stack([regions[location] for location in OUTSIDE_LOCATIONS]).any(0)
    inside = mapping.to_input((~outside).float()) > 0.5
    return int((removed & inside).sum()) > (1 - MIN_OUTSIDE_SHARE) * int(removed.sum())


def _with_verdict(
    case: AuditCase, verified: VerificationResult, regions: Mapping[EvidenceLocation, Tensor], mapping: InputMapping
) -> AuditCase:
    parts = []
    for part in verified.parts:
        region = mapping.to_image(part.region)
        shares = location_shares(region.float(), regions)
        location: EvidenceLocation = max(EVIDENCE_LOCATIONS, key=shares.__getitem__)
        parts.append(CasePart(float(region.float().mean()), location, part.score, part.needed))
    verified_case = replace(case, trials=verified.trials, verdict=verified.verdict.grade)
    is_removed = verified.ends and not verified_case.needs_context
    return replace(
        case,
        trials=verified.trials,
        parts=tuple(parts),
        verdict=verified.verdict.grade,
        effect=verified.verdict.effect,
        compared_controls=verified.verdict.compared_controls,
        # The stated rates were measured for detections.
        error_rate=math.nan if case.type == "missed" else verified.verdict.error_rate,
        reason=verified.verdict.reason,
        minimal_region_fraction=float(verified.evidence.float().mean()) if is_removed else None,
        forward_passes=case.forward_passes + verified.forward_passes,
    )


def _relative_gain(case: AuditCase) -> float:
    """The gain of a missed object's score without the evidence, relative to that score, in [0, 1]; 1 if confirmed."""
    without = [trial.score for trial in case.trials if trial.intervention == "without evidence"]
    if case.confirmed or not without:
        return 1.0
    return min(max(1 - case.score / max(min(without), 1e-9), 0.0), 1.0)


def _relative_drop(case: AuditCase) -> float:
    """The drop of the score without the evidence, relative to the score, in [0, 1]: that of the fill with less."""
    without = [remaining_score(trial) for trial in case.trials if trial.intervention == "without evidence"]
    return _drop(case, max(without)) if without else 1.0


def _drop(case: AuditCase, score: float) -> float:
    """The drop to a score, relative to the score of the case, in [0, 1]."""
    return min(max(1 - score / max(case.score, 1e-9), 0.0), 1.0)


def _heat_in(heatmap: Tensor, region: Tensor, maximum: float) -> Tensor:
    """The heatmap (H, W) in a region times the distance to the region's border, scaled to a maximum.

    Without the distance, the maximum may be that of something else, which the region only touches. The heatmap counts
    as uniform if it is 0 there.
    """
    heat = heatmap * region
    heat = heat if bool(heat.amax() > 0) else region.float()
    heat = heat * torch.from_numpy(cv2.distanceTransform(region.numpy().astype(np.uint8), cv2.DIST_L2, 3))
    return heat / heat.amax().clamp(min=1e-12) * maximum
