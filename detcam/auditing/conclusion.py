"""Completes a case with its evidence and the result of its verification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detcam.auditing.case import EVIDENCE_LOCATIONS, AuditCase, CaseMaps, CasePart, EvidenceLocation
from detcam.auditing.sentences import case_sentence
from detcam.auditing.verification.evidence import location_shares
from detcam.auditing.verification.hypothesis import VerificationResult
from detcam.auditing.verification.input_mapping import InputMapping
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.verdict import remaining_score


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

    The heatmap of confirmed evidence is the proposal's map in the evidence and the other parts that the error needs.
    The heatmap of a verified detection is scaled to the relative drop of the score without the evidence.

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
        if case.confirmed and bool((heatmap * needed).amax() > 0):
            heatmap = heatmap * needed
            heatmap = heatmap / heatmap.amax()
        heatmap = heatmap * (_relative_gain(case) if case.type == "missed" else _relative_drop(case))
    strength = heatmap * evidence
    if not bool(strength.amax() > 0):
        strength = evidence.float()
    shares = location_shares(strength, regions)
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


def _with_verdict(
    case: AuditCase, verified: VerificationResult, regions: Mapping[EvidenceLocation, Tensor], mapping: InputMapping
) -> AuditCase:
    parts = []
    for part in verified.parts:
        region = mapping.to_image(part.region)
        shares = location_shares(region.float(), regions)
        location: EvidenceLocation = max(EVIDENCE_LOCATIONS, key=shares.__getitem__)
        parts.append(CasePart(float(region.float().mean()), location, part.score, part.needed))
    return replace(
        case,
        trials=verified.trials,
        parts=tuple(parts),
        verdict=verified.verdict.grade,
        effect=verified.verdict.effect,
        # The stated rates were measured for detections.
        error_rate=math.nan if case.type == "missed" else verified.verdict.error_rate,
        reason=verified.verdict.reason,
        minimal_region_fraction=float(verified.evidence.float().mean()) if verified.ends else None,
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
    return min(max(1 - max(without) / max(case.score, 1e-9), 0.0), 1.0) if without else 1.0
