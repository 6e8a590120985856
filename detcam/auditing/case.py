"""What an audit says of one error, of a group of errors, and of a detector: plain data, as reports and JSON hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from detcam.auditing.errors import ErrorType
from detcam.utils.files import plain

EvidenceLocation: TypeAlias = Literal["predicted box", "true object", "same class", "ring", "scene"]
"""Where evidence can lie, each pixel in the first that holds it.

``true object``: the true object that the detection overlaps or that was missed; ``same class``: another object of the
predicted class; ``predicted box``: what is left of the detection's own box; ``ring``: around that box, up to half its
size away; ``scene``: everywhere else.
"""
EVIDENCE_LOCATIONS: tuple[EvidenceLocation, ...] = get_args(EvidenceLocation)

Outcome: TypeAlias = Literal["vanished", "moved", "class flipped", "unchanged"]
"""What became of a detection in a changed image."""

Change: TypeAlias = Literal["without evidence", "only evidence", "random control", "box control"]
"""How an image was changed: its evidence taken away, all but its evidence taken away, a region of the evidence's size
and shape taken away elsewhere, or one inside the predicted box but beside the evidence."""

Verdict: TypeAlias = Literal["confirmed", "unconfirmed", "not tested"]
"""``confirmed``: the error vanishes without the evidence, with every fill, and with no control."""

BackgroundType: TypeAlias = Literal["context", "look-alike", "unlabelled"]
"""What a detection of nothing is: made up from its surroundings (most of its evidence lies outside the box), a
look-alike (inside, and it does not look like the right detections of its class), or perhaps an object that nobody
labelled (inside, and it does)."""
BACKGROUND_TYPES: tuple[BackgroundType, ...] = get_args(BackgroundType)

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Trial:
    """The detector's answer to one changed image.

    Attributes:
        change: what was taken away.
        fill: what took its place: ``"blur"``, of what is left around, or ``"linear"`` imputation.
        score: the detection's score then, in [0, 1]: the best among its own raw candidate and those that overlap it.
        outcome: what became of it.
    """

    change: Change
    fill: str
    score: float
    outcome: Outcome


@dataclass(frozen=True)
class MatchedObject:
    """The true object that an error is about.

    Attributes:
        box_xyxy: pixels of the image, half-open.
        label: class index.
        name: its class.
        iou: overlap with the detection, in [0, 1].
        annotation_id: its id in the annotation file.
    """

    box_xyxy: Box
    label: int
    name: str
    iou: float
    annotation_id: int | str


@dataclass(frozen=True)
class CaseMaps:
    """A case's images; None for cases that were not explained.

    Attributes:
        heatmap: (H, W) uint8, 0 to 255, pixels of the image.
        evidence: (H, W) bool, the region that was taken away.
        control: (H, W) bool, the first random region that was taken away instead.
    """

    heatmap: np.ndarray
    evidence: np.ndarray
    control: np.ndarray | None


@dataclass(frozen=True)
class AuditCase:
    """One error: what it is, what it rests on, and whether that is really so.

    Attributes:
        id: stable name, unique in the audit: ``image-12-detection-3``, ``image-12-missed-0``.
        image_id: the image's id in the annotation file.
        file_name: the image's name in the annotation file.
        image_size_hw: height and width of the image.
        type: the kind of error, as TIDE names it.
        label: class index of the detection, or of the missed object.
        name: that class.
        score: the detection's score in [0, 1]; of a missed object, that of the best raw candidate there.
        box_xyxy: the detection's box, or the missed object's; pixels, half-open.
        is_false_positive: whether it counts as wrong in COCO's average precision.
        truth: the true object concerned, or None.
        delta_ap: how much higher average precision (COCO's, at the audit's overlap) would be without this case.
        question: what was asked, in words: "why platelet rather than red cell?".
        method: what answered it; empty where nothing was explained.
        shares: share of the evidence's strength at each place, in [0, 1], in sum 1: of the map in the region that was
            taken away; None where unexplained.
        place: where most of the evidence in the region that was taken away lies; None where unexplained.
        area: the evidence region's share of the image, in [0, 1]; NaN where unexplained.
        smallest: the smallest tried region's share of the image that removes the error; None where none did.
        peak_xy: the pixel of the strongest evidence; None where unexplained.
        trials: every changed image and what the detector said to it.
        verdict: whether the evidence is the cause.
        reason: the verdict in words.
        stage: for a missed object, where it died; for a duplicate, whether it rests on the winner's evidence; else "".
        background_type: what a background error is; None for other errors, and where nothing tells.
        typicality: of a background error with its evidence in the box, the share of the right detections of its class
            that look less like the class to the network, in [0, 1]; NaN where nothing was compared.
        sentence: the case in one line.
        group: number of its group, or None.
        passes: forward passes that it took, its share of those that it had together with others.
    """

    id: str
    image_id: int | str
    file_name: str
    image_size_hw: tuple[int, int]
    type: ErrorType
    label: int
    name: str
    score: float
    box_xyxy: Box
    is_false_positive: bool
    truth: MatchedObject | None
    delta_ap: float
    question: str = ""
    method: str = ""
    shares: Mapping[EvidenceLocation, float] | None = None
    place: EvidenceLocation | None = None
    area: float = math.nan
    smallest: float | None = None
    peak_xy: tuple[int, int] | None = None
    trials: tuple[Trial, ...] = ()
    verdict: Verdict = "not tested"
    reason: str = ""
    stage: str = ""
    background_type: BackgroundType | None = None
    typicality: float = math.nan
    sentence: str = ""
    group: int | None = None
    passes: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The case for ``audit.json``."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditCase:
        """The case that `to_json` wrote."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        for name in ("image_size_hw", "box_xyxy", "peak_xy"):
            values[name] = None if values.get(name) is None else tuple(values[name])
        truth = values.get("truth")
        if truth is not None:
            values["truth"] = MatchedObject(**{**truth, "box_xyxy": tuple(truth["box_xyxy"])})
        values["trials"] = tuple(Trial(**trial) for trial in values.get("trials", ()))
        for name in ("area", "typicality"):
            values[name] = math.nan if values.get(name) is None else values[name]
        return cls(**values)


@dataclass(frozen=True)
class ErrorGroup:
    """Errors that share a cause.

    Attributes:
        number: from 0, the costliest first.
        type: the kind of error.
        label: class index of the detections.
        name: that class.
        place: where their evidence lies.
        background_type: what they are, of background errors; else None.
        cases: ids, the nearest to the group's centre first.
        delta_ap: how much higher average precision would be without all of them.
        confirmed: how many of them are confirmed.
        sentence: the group in one line.
    """

    number: int
    type: ErrorType
    label: int
    name: str
    place: EvidenceLocation | None
    cases: tuple[str, ...]
    delta_ap: float
    confirmed: int
    sentence: str
    background_type: BackgroundType | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def to_json(self) -> dict[str, Any]:
        """The group for ``audit.json``."""
        return plain(asdict(self))
