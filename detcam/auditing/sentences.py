"""Summaries of cases and groups in one line each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from detcam.auditing.case import LIGHT_FILLS, AuditCase, EvidenceLocation, Outcome
from detcam.utils.console import plural

LOCATION_PHRASES: dict[EvidenceLocation, str] = {
    "predicted box": "in the predicted box",
    "ground truth": "on the ground-truth object",
    "same class": "on another {name}",
    "ring": "in the ring around the box",
    "scene": "elsewhere in the scene",
}
"""Location of the evidence in words; ``{name}`` is the predicted class."""
OUTSIDE_LOCATIONS: tuple[EvidenceLocation, ...] = ("same class", "ring", "scene")
"""Locations outside both the box and the ground-truth object concerned."""


UNMATCHED = " without a matching annotation"
"""What the sentence of a background error says after the class, unless there are no annotations."""
OTHER_CLASS = ", with another class without its surroundings"
"""What the sentence of a detection says after the class if what surrounds the object makes its class."""
ENDINGS: Mapping[Outcome, tuple[str, str]] = {
    "vanished": ("vanishes", "vanish"),
    "moved": ("moves", "move"),
    "class flipped": ("changes class", "change class"),
}
"""What becomes of one detection, and of several, without the evidence, in words."""
MIN_OUTSIDE_SHARE = 0.99
"""Minimum share of the evidence outside the box and the object, from which the cause is said to lie there."""
MIN_SHARE = 0.9
"""Minimum share of the evidence on one side of the box's border, from which its location is said to be that side."""
MIN_SUFFICIENT_SCORE = 0.75
"""Minimum score without each of several parts, relative to the score, from which any of them is said to suffice."""


def outside_share(case: AuditCase) -> float:
    """Share of the evidence outside the box and the ground-truth object concerned, in [0, 1]."""
    shares = case.evidence_shares or {}
    return sum(shares.get(location, 0.0) for location in OUTSIDE_LOCATIONS)


def is_outside(case: AuditCase) -> bool:
    """Whether the evidence is confirmed, and lies outside the box and the ground-truth object concerned.

    The evidence is then a region outside alone, without which the error ends. No region inside is known to end it.
    """
    return case.confirmed and outside_share(case) >= MIN_OUTSIDE_SHARE and not _is_needed_inside(case)


def is_inside(case: AuditCase) -> bool:
    """Whether the evidence is confirmed, and lies in the box or on the ground-truth object concerned."""
    return case.confirmed and outside_share(case) <= 1 - MIN_SHARE


def rests_on_light(case: AuditCase) -> bool:
    """Whether the evidence is confirmed, and only its light was changed."""
    without = [trial.fill in LIGHT_FILLS for trial in case.trials if trial.intervention == "without evidence"]
    return case.confirmed and bool(without) and all(without)


def has_other_class(case: AuditCase) -> bool:
    """Whether an object is detected with another class without its surroundings, in an audit without annotations."""
    return (case.trust_signals or {}).get("own class", 1.0) < 0.5


def without_annotations(case: AuditCase) -> str:
    """The sentence of a detection in an audit without annotations: no annotation is missing there."""
    return case.sentence.replace(UNMATCHED, OTHER_CLASS if has_other_class(case) else "")


def what_ends(case: AuditCase) -> str:
    """What ends without the confirmed evidence: the detection, or its error where it stays with another box or mask."""
    outcomes = {trial.outcome for trial in case.trials if trial.intervention == "without evidence"}
    return "detection" if outcomes <= {"vanished"} else "error"


def endings(cases: Sequence[AuditCase]) -> str:
    """What becomes of detections without their evidence, in words: ``vanish or change class``."""
    outcomes = {trial.outcome for case in cases for trial in case.trials if trial.intervention == "without evidence"}
    return " or ".join(words[len(cases) > 1] for outcome, words in ENDINGS.items() if outcome in outcomes)


def further_regions_needed(case: AuditCase) -> int:
    """Number of regions besides the evidence each of which ends the error alone."""
    return sum(part.needed for part in case.parts)


def sufficient_parts(case: AuditCase) -> int:
    """Number of parts of the evidence any of which suffices, so that the error ends without all of them only; or 0.

    The detection keeps its score without each of them alone: where one costs it much, the others do not replace it.
    """
    if len(case.parts) < 2 or further_regions_needed(case):
        return 0
    return len(case.parts) if min(part.score for part in case.parts) >= MIN_SUFFICIENT_SCORE * case.score else 0


def _is_needed_inside(case: AuditCase) -> bool:
    """Whether a part inside the box or on the object ends the error alone."""
    return any(part.needed and part.location not in OUTSIDE_LOCATIONS for part in case.parts)


def case_sentence(case: AuditCase) -> str:
    """Summarize a case: error, location of the evidence, result of the verification."""
    return "; ".join(part for part in (_error(case), _evidence(case), _verification(case)) if part)


def group_sentence(cases: Sequence[AuditCase], delta_ap: float) -> str:
    """Summarize a group: number and type of errors, location of the evidence, confirmed cases, cost.

    Args:
        cases: the cases of the group.
        delta_ap: increase of average precision when all of them are corrected; NaN where it is undefined, in which case
            the sentence gives the highest score instead.
    """
    first, count = cases[0], len(cases)
    highest = f"{'score' if count == 1 else 'highest score'} {max(case.score for case in cases):.2f}"
    cost = f"delta AP {delta_ap:.3f}" if math.isfinite(delta_ap) else highest
    if first.type == "missed":
        stages = sorted({case.failure_stage for case in cases if case.failure_stage})
        suffix = f" ({', '.join(stages)})" if stages else ""
        where = _shared_location(cases)
        location = f", appearing when the region {where} is removed" if where else ""
        if any(case.needs_context for case in cases):
            location = ", found in the surroundings of found objects"
        objects = plural(count, "missed object")
        return f"{first.name}: {objects}{suffix}{location}; {_confirmed(cases)}; {cost}"
    errors = {
        "background": plural(count, "detection" if math.isfinite(first.trust) else "background error"),
        "classification": f"{plural(count, 'detection')} on {_object_names(cases)}",
        "localization": plural(count, "localization error"),
        "both": f"{plural(count, 'error')} of class and location on {_object_names(cases)}",
        "duplicate": plural(count, "duplicate"),
    }[first.type]
    background_type = f" ({first.background_type})" if first.background_type else ""
    where = _shared_location(cases)
    form = {"mark": " (a mark)", "image border": " (along the border of the image)"}.get(first.evidence_kind or "", "")
    location = f", evidence {where}{form}" if where else ""
    return f"{first.name}: {errors}{background_type}{location}; {_confirmed(cases)}; {cost}"


def _confirmed(cases: Sequence[AuditCase]) -> str:
    """How many cases have confirmed evidence."""
    count = sum(case.confirmed for case in cases)
    return f"{count} of {len(cases)} confirmed" if count else "no evidence confirmed"


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: ``42 %``."""
    return f"{share:.{digits}%}".replace("%", " %")


def _error(case: AuditCase) -> str:
    true_name = "object" if case.ground_truth is None else case.ground_truth.name
    if case.ground_truth is not None and not case.ground_truth.is_known:
        true_name = f"{true_name}, which the model does not know"
    of_mask = case.ground_truth is not None and case.ground_truth.iou_type == "segm"
    iou = f"an IoU of {0.0 if case.ground_truth is None else case.ground_truth.iou:.2f}"
    iou += " of its mask" if of_mask else ""
    if case.type == "missed":
        return f"{case.name} missed{_stage(case)}"
    comparison = f" that rests on {case.evidence_comparison}" if case.evidence_comparison else ""
    return {
        "background": f"{case.name}{UNMATCHED}{_background_type(case)}",
        "classification": f"{case.name} on an object of class {true_name}",
        "localization": f"{case.name} with {iou} with its object",
        "both": f"{case.name} with {iou} with an object of class {true_name}",
        "duplicate": f"duplicate {case.name}{comparison}",
    }[case.type]


def _stage(case: AuditCase) -> str:
    """The stage that loses a missed object, in words."""
    stage = {
        "": "",
        "no candidate": "no candidate forms there",
        "below threshold": f"scored low (best score {case.score:.2f})",
        "suppressed": f"its candidate (score {case.score:.2f}) is suppressed by another detection",
        "another class": f"scored as another class (best score of its own class {case.score:.2f})",
    }.get(case.failure_stage, case.failure_stage)
    return f": {stage}" if stage else ""


def _background_type(case: AuditCase) -> str:
    typicality = f"{percent(case.typicality)} of the correct detections are less typical of the class"
    return {
        None: "",
        "context": " (context)",
        "look-alike": f", look-alike or unusual object: {typicality}",
        "missing annotation": f", possibly a missing annotation: {typicality}",
    }[case.background_type]


def _evidence(case: AuditCase) -> str:
    if case.evidence_shares is None or not case.confirmed:
        is_tried = case.type == "missed" and bool(case.trials)
        return "no region's removal makes it appear" if is_tried and not _appears(case) else ""
    digits = 1 if case.evidence_fraction >= 0.001 else 2
    fraction = f"{percent(case.evidence_fraction, digits)} of the image"
    if case.needs_context:
        donors, controls = (_found_with(case, kind) for kind in ("transplant", "transplant control"))
        return (
            f"it is found in the surroundings of found objects ({donors}; {controls} controls): they are what it lacks"
        )
    if case.type == "missed":
        where = _location(case.evidence_location or "scene", [case])
        also = f"{_on_object(case)}," if _on_object(case) else ""
        return f"it appears when the region {where}{also} is removed ({fraction})"
    size = f"the evidence ({fraction})"
    outside = outside_share(case)
    if is_inside(case):
        on_object = case.evidence_shares.get("ground truth", 0.0) > 0.5
        on_its_own = "on the object" if case.type != "background" else _location("ground truth", [case])
        where = f"lies {on_its_own}" if on_object else f"lies in the box{_on_object(case)}"
    elif outside >= MIN_OUTSIDE_SHARE:
        main = max(OUTSIDE_LOCATIONS, key=lambda location: (case.evidence_shares or {}).get(location, 0.0))
        where = f"lies outside the box, most of it {_location(main, [case])}{_on_object(case)}"
    else:
        where = f"lies on both sides of the box's border ({percent(outside)} outside)"
    where += ": its light or color, not its details" if rests_on_light(case) else ""
    needed, joint = further_regions_needed(case), sufficient_parts(case)
    further = f"; {plural(needed, 'further region')} needed as well" if needed else ""
    if joint:
        further = f"; either of its {joint} parts suffices" if joint == 2 else f"; any of its {joint} parts suffices"
        further += f": the {what_ends(case)} persists without one of them, and ends without all"
    return f"{size} {where}{further}"


def _found_with(case: AuditCase, intervention: str) -> str:
    """In how many perturbed images of a kind a missed object is found: ``3 of 3``."""
    outcomes = [trial.outcome for trial in case.trials if trial.intervention == intervention]
    return f"{outcomes.count('appeared')} of {len(outcomes)}"


def _on_object(case: AuditCase) -> str:
    """The other object that the evidence lies on, unless its location says so."""
    is_said = case.evidence_location == "same class" or not case.evidence_object
    return "" if is_said else f", on an object of class {case.evidence_object}"


def _appears(case: AuditCase) -> bool:
    """Whether a missed object is found without the region that was tried, with every fill."""
    without = [trial for trial in case.trials if trial.intervention == "without evidence"]
    return bool(without) and all(trial.outcome == "appeared" for trial in without)


def _verification(case: AuditCase) -> str:
    grade = f"{case.verdict}ly confirmed" if case.confirmed else case.verdict
    return f"{grade}: {case.reason}" if case.verdict != "not tested" else case.reason


def _shared_location(cases: Sequence[AuditCase]) -> str:
    """The most frequent location of confirmed evidence in words; empty if none is confirmed."""
    located = Counter(case.evidence_location for case in cases if case.confirmed and case.evidence_location)
    if not located:
        return ""
    if cases[0].evidence_kind == "another object" and cases[0].evidence_object:
        return f"on an object of class {cases[0].evidence_object}"
    return _location(located.most_common(1)[0][0], cases)


def _location(location: EvidenceLocation, cases: Sequence[AuditCase]) -> str:
    """The location of the evidence in words; the object that a background error overlaps is not its own."""
    if location == "ground truth" and cases[0].type == "background":
        return f"on an overlapping {_object_names(cases)}"
    return LOCATION_PHRASES[location].format(name=cases[0].name)


def _object_names(cases: Sequence[AuditCase]) -> str:
    return " or ".join(sorted({case.ground_truth.name for case in cases if case.ground_truth is not None}))
