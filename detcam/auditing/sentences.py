"""Cases and groups in one line each."""

from __future__ import annotations

from collections.abc import Sequence

from detcam.auditing.case import AuditCase, EvidenceLocation

WHERE: dict[EvidenceLocation, str] = {
    "predicted box": "in the predicted box",
    "ground truth": "on the true object",
    "same class": "on another {name}",
    "ring": "just around the box",
    "scene": "elsewhere in the scene",
}
"""Where evidence lies, in words."""
BEYOND: tuple[EvidenceLocation, ...] = ("same class", "ring", "scene")
"""Places that are neither in the detection's box nor on the true object that it is about."""


def plural(count: int, word: str) -> str:
    """A count and its word; names that end in s are plural already, as far as anyone can tell."""
    return f"{count} {word}" if count == 1 or word.endswith("s") else f"{count} {word}s"


def outside(case: AuditCase) -> float:
    """Share of a case's evidence that lies outside its box and outside the true object concerned, in [0, 1]."""
    found = case.evidence_shares or {}
    return sum(found.get(place, 0.0) for place in BEYOND)


def rests_outside(case: AuditCase) -> bool:
    """Whether at least half of a case's evidence lies there."""
    return outside(case) >= 0.5


def case_sentence(case: AuditCase) -> str:
    """What a case comes to, in one line: what is wrong, where its evidence lies, whether that is the cause."""
    return "; ".join(part for part in (_what(case), _where(case), _really(case)) if part)


def group_sentence(cases: Sequence[AuditCase], delta_ap: float) -> str:
    """What a group comes to: how many, where they fired, and what they cost."""
    first = cases[0]
    confirmed = sum(case.verdict == "confirmed" for case in cases)
    count = plural(len(cases), first.name)
    price = f"{delta_ap:.3f} AP"
    if first.type == "missed":
        stages = {case.failure_stage for case in cases if case.failure_stage}
        return f"{count} missed{': ' + ', '.join(sorted(stages)) if stages else ''}; {price}"
    wrong = {
        "background": _background(first, len(cases)),
        "classification": f"found on a {_true_names(cases)}",
        "localization": "with a box in the wrong place",
        "both": f"near a {_true_names(cases)}, misplaced",
        "duplicate": "found a second time",
    }[first.type]
    place = "" if first.evidence_location is None else f", evidence {_place_words(first.evidence_location, cases)}"
    return f"{count} {wrong}{place}; {confirmed} of {len(cases)} confirmed; {price}"


def _background(first: AuditCase, count: int) -> str:
    """What detections of nothing are, after their name."""
    one = count == 1
    return {
        None: "fired on nothing",
        "context": "made up from its surroundings" if one else "made up from their surroundings",
        "look-alike": "fired on a look-alike" if one else "fired on look-alikes",
        "missing annotation": "that may be an object nobody labelled" if one else "that may be objects nobody labelled",
    }[first.background_type]


def _place_words(place: EvidenceLocation, cases: Sequence[AuditCase]) -> str:
    """Where evidence lies, in words; a detection of nothing has no object of its own, only one that it touches."""
    if place == "ground truth" and cases[0].type == "background":
        return f"on a {_true_names(cases)} that it touches"
    return WHERE[place].format(name=cases[0].name)


def _true_names(cases: Sequence[AuditCase]) -> str:
    return " or ".join(sorted({case.ground_truth.name for case in cases if case.ground_truth is not None}))


def _what(case: AuditCase) -> str:
    true = "object" if case.ground_truth is None else case.ground_truth.name
    if case.type == "missed":
        return f"missed {case.name}" + (f": {case.failure_stage}" if case.failure_stage else "")
    return {
        "background": f"{case.name} where nothing of it is labelled{_nature(case)}",
        "classification": f"{case.name} on a {true}",
        "localization": f"{case.name} whose box overlaps its object by {_iou(case)} only",
        "both": f"{case.name} that overlaps a {true} by {_iou(case)}",
        "duplicate": f"second {case.name} on one object"
        + (f", resting on {case.evidence_comparison}" if case.evidence_comparison else ""),
    }[case.type]


def _nature(case: AuditCase) -> str:
    """What a detection of nothing is, in careful words."""
    compared = f"{case.typicality:.0%} of the right ones look less like it".replace("%", " %")
    return {
        None: "",
        "context": ", made up from its surroundings",
        "look-alike": f": a look-alike, or an unusual {case.name} ({compared})",
        "missing annotation": f": may be an unlabelled {case.name} ({compared})",
    }[case.background_type]


def _iou(case: AuditCase) -> str:
    return "0 %" if case.ground_truth is None else f"{case.ground_truth.iou:.0%}".replace("%", " %")


def _where(case: AuditCase) -> str:
    if case.evidence_shares is None:
        return ""
    beyond = outside(case)
    if rests_outside(case):
        return f"{beyond:.0%}".replace("%", " %") + f" of the evidence lies outside the box, {_most(case)}"
    return f"{1 - beyond:.0%}".replace("%", " %") + " of the evidence lies in the box"


def _most(case: AuditCase) -> str:
    found = case.evidence_shares or {}
    place = max(BEYOND, key=lambda each: found.get(each, 0.0))
    return f"most of it {_place_words(place, [case])}"


def _really(case: AuditCase) -> str:
    if case.verdict == "confirmed":
        return f"confirmed: {case.reason}"
    return f"not confirmed: {case.reason}" if case.verdict == "unconfirmed" else case.reason
