"""How much trust the detections of an audit without annotations deserve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from detcam.adapters.base import Adapter
from detcam.auditing.background_type import MAX_COMPARED, BackgroundClassifier, DetectionKey
from detcam.auditing.case import AuditCase
from detcam.auditing.grouping.evidence_kind import flips_class
from detcam.auditing.sentences import is_inside, is_outside
from detcam.auditing.triage.probes import own_class, own_content, probing_adapter, score_stability, self_typicality
from detcam.utils.batching import group_by

SIGNALS = ("score", "stability", "typicality")
"""Signals whose mean is the trust before contradictions lower it. ``score``: the detection's; ``stability``: share of
the score that remains in slightly changed images; ``typicality``: share of the class's confident detections that
resemble the class less."""
CONTRADICTIONS = ("own content", "inside")
"""Signals that are low if evidence and box contradict each other. ``own content``: share of the score that remains when
all around the box is filled, unless the evidence is confirmed inside: so large a fill ends correct detections too;
``inside``: what confirmed evidence outside the box leaves of the score."""
NEUTRAL_TYPICALITY = 0.5
"""Typicality of a detection of a class with too few detections to compare: the mean of a uniform distribution."""


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
            stabilities = score_stability(probing, pixels, boxes, labels, scores)
            classes = own_class(probing, pixels, boxes, labels, scores, self.classifier.score_threshold)
            for key, stability, remaining in zip(keys, stabilities, classes, strict=True):
                signals[key] = {"score": cases[key].score, "stability": stability, **evidence_signals(cases[key])}
                signals[key]["own class"] = min(remaining, signals[key].get("own class", 1.0))
            tested = [row for row, key in enumerate(keys) if not is_inside(cases[key])]
            if tested:
                of_tested = [labels[row] for row in tested], [scores[row] for row in tested]
                for row, share in zip(tested, own_content(probing, pixels, boxes[tested], *of_tested), strict=True):
                    signals[keys[row]]["own content"] = share
        for key, value in typicalities(self.classifier, cases).items():
            if math.isfinite(value):
                signals[key]["typicality"] = value
        return {
            key: replace(case, trust=trust(signals[key]), trust_signals=signals[key]) for key, case in cases.items()
        }


def typicalities(
    classifier: BackgroundClassifier, cases: Mapping[DetectionKey, AuditCase]
) -> dict[DetectionKey, float]:
    """Compare each explained detection with the others of its class, explained or not: `self_typicality`."""
    labels = {key: case.label for key, case in cases.items()}
    scores = {key: case.score for key, case in cases.items()}
    for image, keys in group_by(classifier.planned_keys(), lambda key: key[0]).items():
        detections = classifier.detections[image]
        for key in keys:
            labels[key], scores[key] = int(detections.labels[key[1]]), float(detections.scores[key[1]])
    result: dict[DetectionKey, float] = {}
    for of_class in group_by(labels, labels.__getitem__).values():
        others = _sample([key for key in of_class if key not in cases])
        by_image = group_by([*filter(cases.__contains__, of_class), *others], lambda key: key[0])
        features = classifier.features({image: [key[1] for key in keys] for image, keys in by_image.items()})
        result |= self_typicality(features, scores)
    return {key: value for key, value in result.items() if key in cases}


def _sample(keys: Sequence[DetectionKey]) -> list[DetectionKey]:
    """At most `MAX_COMPARED` of some detections, at random."""
    order = np.random.default_rng(0).permutation(len(keys))[:MAX_COMPARED]
    return [keys[index] for index in order.tolist()]


def trust(signals: Mapping[str, float]) -> float:
    """Combine signals: their mean, lowered by contradictions as far as the detection is not typical of its class.

    A detector that has learned that boats have wakes finds correct boats by their wakes as well, so evidence outside
    the box alone does not make a detection wrong. It does if the object is of another class without it: typicality does
    not excuse that.

    Args:
        signals: `SIGNALS`, `CONTRADICTIONS` and ``own class`` by name, those that are known. ``own class``: what
            confirmed evidence outside the box, or a ring around the box, leaves of the score, if the object has another
            class without it.

    Returns:
        In [0, 1].
    """
    known = {"typicality": NEUTRAL_TYPICALITY, **signals}
    mean = float(np.mean([known[name] for name in SIGNALS]))
    contradiction = 1 - min(known[name] for name in CONTRADICTIONS if name in known)
    return mean * min(1 - contradiction * (1 - known["typicality"]), known.get("own class", 1.0))


def evidence_signals(case: AuditCase) -> dict[str, float]:
    """The signals ``inside`` and, if the object has another class without the evidence, ``own class``."""
    if not is_outside(case) or not math.isfinite(case.effect):
        return {"inside": 1.0}
    inside = 1 - max(case.effect, 0.0)
    return {"inside": inside, "own class": inside} if flips_class(case) else {"inside": inside}


def least_trusted_first(cases: Sequence[AuditCase]) -> list[AuditCase]:
    """Sort the cases with a trust by increasing trust, then by decreasing score."""
    return sorted((case for case in cases if math.isfinite(case.trust)), key=lambda case: (case.trust, -case.score))
