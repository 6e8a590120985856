"""The verdict on an explanation: the effect of its evidence, compared with that of controls, in grades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detcam.auditing.case import Grade, Intervention, Trial
from detcam.utils.console import plural
from detcam.utils.proportions import interval_center

MIN_STRONG_EFFECT = 0.5
"""Minimum effect of a strong verdict."""
MIN_WEAK_EFFECT = 0.25
"""Minimum effect of a weak verdict."""
MAX_STRONG_FRACTION = 0.1
"""Maximum fraction of the image that the evidence of a strong verdict covers."""
MIN_TRANSPLANT_CONTROLS = 3
"""Minimum number of controls of a strong verdict on transplanted surroundings."""
CONTROL_PLACES: Mapping[Intervention, str] = {
    "random control": "a random region",
    "box control": "another part of the box",
    "near control": "another region beside the box",
}
"""Where the controls of a detection lie, in words."""
WRONG_REGIONS = 446
"""Number of wrong regions that were verified, on drawn scenes with certified causes and on photographs, of scores near
the threshold too; see docs/auditing.md."""
WRONG_CONFIRMED: Mapping[Grade, int] = {"strong": 0, "weak": 5}
"""How many of them get a grade."""
ERROR_RATES: Mapping[Grade, float] = {
    grade: interval_center(count, WRONG_REGIONS) for grade, count in WRONG_CONFIRMED.items()
}
"""Rate of wrong regions that get a grade: the center of its 95 % interval."""


@dataclass(frozen=True)
class Verdict:
    """A verdict on the evidence for a detection.

    Attributes:
        grade: ``"strong"``, ``"weak"``, ``"not confirmed"`` or ``"not tested"``.
        effect: the score that the evidence costs beyond the costliest control, relative to the score, in [-1, 1]; NaN
            without controls.
        reason: the reason in words.
        compared_controls: number of controls that the effect compares.
    """

    grade: Grade
    effect: float
    reason: str
    compared_controls: int = 0

    @property
    def error_rate(self) -> float:
        """The measured share of wrong regions that get this grade; NaN if it confirms nothing."""
        return ERROR_RATES.get(self.grade, math.nan)


def decide_verdict(
    score: float,
    trials: Sequence[Trial],
    evidence_fraction: float,
    *,
    parts_needed: int = 0,
    limits: Sequence[str] = (),
    lost_reason: str = "the object is lost with it",
    is_outside: bool = False,
) -> Verdict:
    r"""Decide whether trials confirm a region as the cause of a detection.

    .. math:: e = \frac{\min_c s_c - \max_f s_f}{s}

    is the effect, with s the score of the detection, :math:`s_f` its score without the evidence, by fill, and
    :math:`s_c` its score without a control region of the same size. A detection that has moved scores 0.

    Args:
        score: the detection's score in the unperturbed image.
        trials: the trials of the evidence and its controls.
        evidence_fraction: fraction of the image that the evidence covers.
        parts_needed: number of other regions in the box that end the detection as well; they are no controls.
        limits: what else limits the grade.
        lost_reason: why a region confirms nothing without which the object is lost, in words.
        is_outside: whether controls and other regions lie around the box instead of in it.
    """
    without = [trial for trial in trials if trial.intervention == "without evidence"]
    if not without:
        return Verdict("not tested", math.nan, "no region was removed")
    if any(trial.outcome == "object lost" for trial in without):
        return Verdict("not confirmed", math.nan, lost_reason)
    persisting = [trial for trial in without if trial.outcome == "unchanged"]
    if persisting:
        lowest = min(trial.score for trial in without)
        return Verdict(
            "not confirmed",
            math.nan,
            f"persists without the evidence (score {persisting[0].score:.2f}, {persisting[0].fill} fill)"
            + ("; removing it costs next to nothing" if lowest > 0.9 * score else ""),
        )
    controls = [trial for trial in trials if trial.intervention in CONTROL_PLACES]
    if not controls:
        return Verdict("not confirmed", math.nan, "no control: the image has no other region of the evidence's size")
    highest = max(remaining_score(trial) for trial in without)
    lowest_control = min(controls, key=remaining_score)
    effect = min(max((remaining_score(lowest_control) - highest) / max(score, 1e-9), -1.0), 1.0)
    outcomes = " or ".join(dict.fromkeys(trial.outcome for trial in without))
    if effect < MIN_WEAK_EFFECT:
        where = CONTROL_PLACES[lowest_control.intervention]
        return Verdict(
            "not confirmed",
            effect,
            f"{where} of the same size costs nearly as much (score {highest:.2f} without the evidence, "
            f"{remaining_score(lowest_control):.2f} without the control)",
            len(controls),
        )
    further = [*limits]
    if all(trial.intervention == "random control" for trial in controls):
        none_beside = "there is no other region of the evidence's size beside the box"
        further.append(none_beside if is_outside else "the box has no other region of the evidence's size")
    if parts_needed:
        others = "other regions beside the box" if is_outside else "other parts of the box"
        further.append(f"{others} are needed as well")
    compared = plural(len(controls), "control")
    reason = f"{outcomes} without the evidence; effect {effect:.2f} over {compared} of the same size"
    return _confirmed(effect, evidence_fraction, reason, further, len(controls))


def decide_appearance(
    score: float, score_threshold: float, trials: Sequence[Trial], evidence_fraction: float
) -> Verdict:
    r"""Decide whether trials confirm a region as the reason why an object is missed.

    .. math:: e = \frac{\min_f s_f - \max(s, \max_c s_c)}{t}

    is the effect, limited to [-1, 1], with t the score threshold, s the score of the object, :math:`s_f` its score
    without the region, by fill, and :math:`s_c` its score without a control region of the same size.

    Args:
        score: the object's score in the unperturbed image.
        score_threshold: minimum score of a detection.
        trials: the trials of the region and its controls.
        evidence_fraction: fraction of the image that the region covers.
    """
    without = [trial for trial in trials if trial.intervention == "without evidence"]
    lowest = min(without, key=lambda trial: trial.score)
    if any(trial.outcome == "absent" for trial in without):
        reason = _change_text(score, f"at most {lowest.score:.2f} with every fill without the best region")
        if lowest.score >= score_threshold:
            reason += ", where another detection suppresses its candidate"
        return Verdict("not confirmed", math.nan, reason)
    controls = [trial for trial in trials if trial.intervention in ("random control", "near control")]
    if not controls:
        return Verdict("not confirmed", math.nan, "no control: the image has no other region of that size")
    highest = max(controls, key=lambda trial: trial.score)
    effect = max(min((lowest.score - max(score, highest.score)) / score_threshold, 1.0), -1.0)
    if any(trial.outcome == "appeared" for trial in controls) or effect < MIN_WEAK_EFFECT:
        where = "a random region" if highest.intervention == "random control" else "another region beside the object"
        return Verdict(
            "not confirmed",
            effect,
            f"without {where} of the same size the score is {highest.score:.2f}, without the region {lowest.score:.2f}",
            len(controls),
        )
    reason = _change_text(score, f"{lowest.score:.2f} without the region")
    reason += f"; effect {effect:.2f} over {plural(len(controls), 'control')}"
    has_near_control = any(trial.intervention == "near control" for trial in controls)
    further = [] if has_near_control else ["no other region of that size is beside the object"]
    return _confirmed(effect, evidence_fraction, reason, further, len(controls))


def decide_transplant(score: float, score_threshold: float, trials: Sequence[Trial], ring_fraction: float) -> Verdict:
    r"""Decide whether trials confirm that a missed object lacks the surroundings in which others are found.

    .. math:: e = \frac{\min_d s_d - \max(s, \max_c s_c)}{t}

    is the effect, limited to [-1, 1], with t the score threshold, s the score of the object, :math:`s_d` its score in
    the surroundings of a found object, and :math:`s_c` in those of a control.

    Args:
        score: the object's score in the unperturbed image.
        score_threshold: minimum score of a detection.
        trials: the transplants, with which the object is found, and the controls, at least one of each.
        ring_fraction: fraction of the image that the transplanted ring covers.
    """
    donors = [trial for trial in trials if trial.intervention == "transplant"]
    controls = [trial for trial in trials if trial.intervention == "transplant control"]
    lowest, highest = min(trial.score for trial in donors), max(trial.score for trial in controls)
    effect = max(min((lowest - max(score, highest)) / score_threshold, 1.0), -1.0)
    reason = f"found in the surroundings of found objects (score {lowest:.2f})"
    if any(trial.outcome == "appeared" for trial in controls):
        return Verdict("not confirmed", effect, f"{reason}, but in others as well ({highest:.2f})", len(controls))
    if effect < MIN_WEAK_EFFECT:
        reason += f", which changes little ({_change_text(score, f'at most {highest:.2f} in others')})"
        return Verdict("not confirmed", effect, reason, len(controls))
    reason = _change_text(score, f"{lowest:.2f} in the surroundings of found objects")
    reason += f"; effect {effect:.2f} over {plural(len(controls), 'control')}"
    further = [] if len(controls) >= MIN_TRANSPLANT_CONTROLS else ["there are few controls"]
    return _confirmed(effect, ring_fraction, reason, further, len(controls))


def _confirmed(
    effect: float, evidence_fraction: float, reason: str, further_limits: Sequence[str], compared: int
) -> Verdict:
    """The verdict on confirmed evidence: strong, or weak with the limits in its reason."""
    limits = [*further_limits]
    if evidence_fraction >= MAX_STRONG_FRACTION:
        limits.insert(0, "the evidence covers a tenth of the image or more")
    if effect < MIN_STRONG_EFFECT:
        limits.insert(0, "the effect is small")
    if not limits:
        return Verdict("strong", effect, reason, compared)
    return Verdict("weak", effect, f"{reason}; weak because {', and '.join(limits)}", compared)


def _change_text(score: float, after: str) -> str:
    """The score of a missed object, which is 0 if nothing is detected there, and what it is in perturbed images."""
    return f"score {score:.2f}, and {after}" if score else f"not detected; score {after}"


def remaining_score(trial: Trial) -> float:
    """The detection's score in a perturbed image; 0 if it has moved away."""
    return 0.0 if trial.outcome == "moved" else trial.score
