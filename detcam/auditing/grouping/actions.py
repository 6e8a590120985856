"""The recommended action for a group of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from detcam.auditing.case import AuditCase
from detcam.auditing.sentences import outside_share

Action: TypeAlias = Literal[
    "relabel",
    "counterfactual pairs",
    "hard negatives",
    "review boxes",
    "review classes",
    "add images",
    "look at the cases",
]
"""``relabel``: objects that may lack an annotation. ``counterfactual pairs``: the evidence is not the object; train
with images in which it appears without the object, and the object without it. ``hard negatives``: the evidence
resembles the class; train with these images. ``review boxes``: the class is right and the box is not, or there are two
boxes; compare them with the annotations. ``review classes``: the object itself is the evidence for a wrong class;
compare the classes with the annotations. ``add images``: objects that are missed. ``look at the cases``: nothing is
confirmed."""
ACTIONS: tuple[Action, ...] = get_args(Action)

MAX_MARK_SHARE = 0.35
"""Maximum share of the box that evidence covers which is a mark or a texture on an object rather than the object."""
MIN_OUTSIDE = 0.5
"""Minimum share of the evidence outside the box and the object, from which it is context."""

REASONS: dict[Action, str] = {
    "relabel": "the detections are typical of the correct ones: the objects may be real and lack an annotation. Check "
    "the queue, highest gain first, and correct the annotations before anything else",
    "counterfactual pairs": "the evidence is not the object itself. Add the pairs to the training data: images with "
    "and without the evidence, and the evidence in other images, with unchanged labels",
    "hard negatives": "the evidence looks like the class. Add the images with their labels to the training data, and "
    "compare each case with the true objects beside it: the classes may need a clearer definition",
    "review boxes": "the object is found, with another box than its annotation or with two boxes. Compare the boxes in "
    "the queue, highest gain first: correct wrong annotations, agree on what the box of the class contains, and add "
    "images where the annotation is right; for duplicates, lower the IoU threshold of non-maximum suppression",
    "review classes": "the object is detected with another class than its annotation's, and no region is known without "
    "which its class changes: the annotation may be wrong, or the classes resemble each other. Compare the classes in "
    "the queue, highest gain first: correct wrong annotations; where they are right, agree on what tells the classes "
    "apart, and add images of both",
    "add images": "the objects are not detected. Add images with such objects; where a region suppresses the "
    "detection, the pairs with and without it show the object with the same label; objects that are found in the "
    "surroundings of found ones need images in other surroundings",
    "look at the cases": "no evidence is confirmed. Look at the cases in the report",
}


def choose_action(cases: Sequence[AuditCase]) -> Action:
    """Choose the action for a group from its cases: the one that most of them call for, the first of a tie."""
    chosen = [case_action(case) for case in cases]
    return max(ACTIONS, key=chosen.count)


def case_action(case: AuditCase) -> Action:
    """The action that one case calls for."""
    if case.background_type == "missing annotation":
        return "relabel"
    if case.type == "missed":
        return "add images"
    if case.evidence_kind == "object itself":
        return "review classes"
    is_outside = case.background_type == "context" or outside_share(case) >= MIN_OUTSIDE
    if case.confirmed and is_outside:
        return "counterfactual pairs"
    if case.type in ("localization", "duplicate"):
        return "review boxes"  # the object is evidence for its class, which is right
    if not case.confirmed:
        return "look at the cases"
    left, top, right, bottom = case.box_xyxy
    box_fraction = max((right - left) * (bottom - top), 1.0) / (case.image_size_hw[0] * case.image_size_hw[1])
    is_mark = case.evidence_fraction <= MAX_MARK_SHARE * box_fraction
    return "counterfactual pairs" if case.type != "background" and is_mark else "hard negatives"
