"""How much trust the detections of an audit without annotations deserve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from detcam.adapters.base import Adapter
from detcam.auditing.background_type import BackgroundClassifier, DetectionKey
from detcam.auditing.case import AuditCase
from detcam.auditing.sentences import is_inside, is_outside
from detcam.auditing.triage.probes import own_content, probing_adapter, score_stability, self_typicality
from detcam.utils.batching import group_by

SIGNALS = ("score", "stability", "typicality")
"""Signals whose mean is the trust before contradictions lower it. ``score``: the detection's; ``stability``: share of
the score that remains in slightly changed images; ``typicality``: share of the class's confident detections that
resemble the class less."""
CONTRADICTIONS = ("own content", "inside")
"""Signals that are low if evidence and box contradict each other. ``own content``: share of the score that remains when
all around the box is filled, unless the evidence is confirmed inside: so large a fill ends correct detections too;
``inside``: what confirmed evidence outside the box leaves of the score."""


@dataclass(frozen=True)
class TrustEstimator:
    """Estimates the trust that explained detections deserve.

    Args:
        adapter: the detector.
        classifier: computes features of detections.
    """

    adapter: Adapter
    classifier: BackgroundClassifier

    def estimate(self, cases: Mapping[DetectionKey, AuditCase]) -> dict[DetectionKey, AuditCase]:
        """Add trust and its signals to the cases.

        Args:
            cases: explained cases by image index and detection index.
        """
        probing = probing_adapter(self.adapter.without_layers())
        signals: dict[DetectionKey, dict[str, float]] = {}
        for image, keys in group_by(cases, lambda key: key[0]).items():
            pixels = self.adapter.reader.read(self.classifier.annotations[image].path)
            boxes = torch.tensor([cases[key].box_xyxy for key in keys])
            labels, scores = [cases[key].label for key in keys], [cases[key].score for key in keys]
            for key, stability in zip(keys, score_stability(probing, pixels, boxes, labels, scores), strict=True):
                inside = 1 - _outside_effect(cases[key])
                signals[key] = {"score": cases[key].score, "stability": stability, "inside": inside}
            tested = [row for row, key in enumerate(keys) if not is_inside(cases[key])]
            if tested:
                of_tested = [labels[row] for row in tested], [scores[row] for row in tested]
                for row, share in zip(tested, own_content(probing, pixels, boxes[tested], *of_tested), strict=True):
                    signals[keys[row]]["own content"] = share
        for key, value in self._typicalities(cases).items():
            if math.isfinite(value):
                signals[key]["typicality"] = value
        return {
            key: replace(case, trust=trust(signals[key]), trust_signals=signals[key]) for key, case in cases.items()
        }

    def _typicalities(self, cases: Mapping[DetectionKey, AuditCase]) -> dict[DetectionKey, float]:
        by_image = group_by(cases, lambda key: key[0])
        features = self.classifier.features({image: [key[1] for key in keys] for image, keys in by_image.items()})
        result: dict[DetectionKey, float] = {}
        for keys in group_by(features, lambda key: cases[key].label).values():
            result |= self_typicality({key: features[key] for key in keys}, {key: cases[key].score for key in keys})
        return result


def trust(signals: Mapping[str, float]) -> float:
    """Combine signals: their mean, lowered by contradictions as far as the detection is not typical of its class.

    A detector that has learned that boats have wakes finds correct boats by their wakes as well, so evidence outside
    the box alone does not make a detection wrong.

    Args:
        signals: `SIGNALS` and `CONTRADICTIONS` by name, those that are known.

    Returns:
        In [0, 1].
    """
    mean = float(np.mean([signals[name] for name in SIGNALS if name in signals]))
    contradiction = 1 - min(signals[name] for name in CONTRADICTIONS if name in signals)
    return mean * (1 - contradiction * (1 - signals.get("typicality", 0.0)))


def _outside_effect(case: AuditCase) -> float:
    """Effect of confirmed evidence outside the box; 0 if there is none."""
    return max(case.effect, 0.0) if is_outside(case) and math.isfinite(case.effect) else 0.0


def least_trusted_first(cases: Sequence[AuditCase]) -> list[AuditCase]:
    """Sort the cases with a trust by increasing trust, then by decreasing score."""
    return sorted((case for case in cases if math.isfinite(case.trust)), key=lambda case: (case.trust, -case.score))
