"""Results of an audit as plain data: one `AuditCase` per error, its trials, and the groups of errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from detcam.auditing.errors import ErrorType
from detcam.utils.files import json_value

EvidenceLocation: TypeAlias = Literal["predicted box", "ground truth", "same class", "ring", "scene"]
"""Location of the evidence. The regions do not overlap; a pixel belongs to the first of these that contains it.

``ground truth``: the object that the detection overlaps, or that the detector missed; ``same class``: another object of
the predicted class, outside the box of a detection; ``predicted box``: the rest of the predicted box; ``ring``: up to
half the box's size around the box; ``scene``: the rest of the image.
"""
EVIDENCE_LOCATIONS: tuple[EvidenceLocation, ...] = get_args(EvidenceLocation)

Outcome: TypeAlias = Literal[
    "vanished", "moved", "class flipped", "mask corrected", "unchanged", "object lost", "appeared", "absent"
]
"""State of a detection in a perturbed image; of a missed object, ``appeared`` if it is found, else ``absent``.

``mask corrected``: a wrong mask fits its object; ``object lost``: a second box of an object ends, and the object's
correct detection with it, or a wrong mask ends with its detection.
"""
PERSISTING: tuple[Outcome, ...] = ("unchanged", "object lost", "absent")
"""Outcomes with which an error persists: without the object, that its second box or wrong mask ends says nothing."""

Intervention: TypeAlias = Literal[
    "without evidence",
    "without part",
    "random control",
    "box control",
    "near control",
    "transplant",
    "transplant control",
]
"""Perturbation of an image.

``without evidence``: the evidence region is filled; ``without part``: another region is filled, to find the evidence;
``random control``: a region of the evidence's size and shape at a random position is filled; ``box control``: a region
of the evidence's size inside the predicted box, beside the evidence, is filled; ``near control``: a region of the
evidence's size in the ring around a missed object, around the second box of an object, or around the box of a wrong
mask, is filled; ``transplant``: the ring shows what surrounds a found object of the class; ``transplant control``: it
is filled, or shows what surrounds a position without an object.
"""

Grade: TypeAlias = Literal["strong", "weak", "not confirmed", "not tested"]
"""How well the evidence is confirmed as the cause.

``strong``: the error ends without the evidence, with every fill, and controls of the same size cost much less;
``weak``: likewise, with a smaller effect, evidence of a tenth of the image or more, no control inside the box (beside
it, of evidence outside alone), or other parts there that are needed as well; ``not confirmed``: the error persists, or
a control costs as much. A missed object is confirmed if it appears without the evidence, and without no control.
"""
LIGHT_FILLS = ("even light", "even light, half")
"""Names of the fills that change the light of a region only."""
CONFIRMED: tuple[Grade, ...] = ("strong", "weak")
"""Grades of confirmed evidence."""

BackgroundType: TypeAlias = Literal["context", "look-alike", "missing annotation"]
"""Type of a background error.

``context``: the evidence lies outside the box, which verification confirms; ``look-alike``: the evidence is confirmed
inside, and the detection is not typical of the correct detections of its class; ``missing annotation``: the detection
is typical of them, so that the object may be real and lack an annotation, and no evidence outside is confirmed.
"""

EvidenceForm: TypeAlias = Literal["border", "mark", "area"]
"""Form of the evidence region.

``border``: most of it lies along the border of the image; ``mark``: a small region whose colors differ from those
around it; ``area``: any other region.
"""

EvidenceKind: TypeAlias = Literal[
    "part of the object",
    "object itself",
    "another object",
    "mark",
    "surroundings",
    "image border",
    "object and surroundings",
    "absent context",
    "look-alike",
    "unlabeled object",
    "not confirmed",
]
"""Kind of evidence that an error rests on.

Of confirmed evidence outside the box and the object concerned: ``another object``, an annotated one; ``image border``;
``mark``, a small region that differs from what is around it; ``surroundings``. Inside: ``look-alike`` of background
errors, ``part of the object`` of others; but ``object itself`` of errors of class if the object is not detected with
another class without the evidence, which then only shows that the detector sees the object. ``object and
surroundings``: on both sides. ``absent context``: a missed object is found in the surroundings of found objects.
``unlabeled object``: the background type is a missing annotation. ``not confirmed``: no evidence is confirmed.
"""
EVIDENCE_KINDS: tuple[EvidenceKind, ...] = get_args(EvidenceKind)

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the image, half-open."""


@dataclass(frozen=True)
class Trial:
    """The detection in one perturbed image.

    Attributes:
        intervention: the perturbation.
        fill: name of the fill: ``"linear"``, linear imputation; ``"ring"``, the mean color of a ring around each part
            of the region; ``"transplant"``, what surrounds another position; of surroundings only, ``"mean"``, the mean
            color of the image, and `LIGHT_FILLS`, which keep the details of the region and give it the light of other
            pixels.
        score: score of the detection in the perturbed image, in [0, 1]: the maximum over its own raw candidate and
            the candidates that overlap it. Of a wrong mask, the score in the unperturbed image times the share of the
            mask's wrong pixels that remains.
        outcome: state of the detection.
    """

    intervention: Intervention
    fill: str
    score: float
    outcome: Outcome


@dataclass(frozen=True)
class CasePart:
    """A part of the evidence that was removed alone.

    Attributes:
        fraction: fraction of the image that it covers, in [0, 1].
        location: location of most of it.
        score: score of the detection without it, in [0, 1].
        needed: whether the error ends without it alone.
    """

    fraction: float
    location: EvidenceLocation
    score: float
    needed: bool


@dataclass(frozen=True)
class GroundTruthObject:
    """The ground-truth object that an error concerns.

    Attributes:
        box_xyxy: pixels of the image, half-open.
        label: class index.
        name: class name.
        iou: intersection over union with the detection, in [0, 1].
        annotation_id: id in the annotation file.
        is_known: whether the class is one of the model's.
        iou_type: whether the IoU is that of boxes, ``"bbox"``, or of masks, ``"segm"``.
    """

    box_xyxy: Box
    label: int
    name: str
    iou: float
    annotation_id: int | str
    is_known: bool = True
    iou_type: Literal["bbox", "segm"] = "bbox"


@dataclass(frozen=True)
class CaseMaps:
    """Heatmap and regions of an explained case.

    Attributes:
        heatmap: (H, W) uint8, 0 to 255, pixels of the image.
        evidence: (H, W) bool, the evidence region.
        needed: (H, W) bool, the evidence region and all other parts that the error needs.
        control: (H, W) bool, the first random control region; None if no position was free.
    """

    heatmap: np.ndarray
    evidence: np.ndarray
    needed: np.ndarray
    control: np.ndarray | None


@dataclass(frozen=True)
class AuditCase:
    """An error with its explanation and verification.

    `DetectionError` is the result of matching: it refers to detections and objects by index. An `AuditCase` is
    self-contained: it holds boxes, names and scores, and the explanation if there is one. ``audit.json`` stores these
    fields under the same names.

    Attributes:
        id: unique in the audit and stable between runs: ``image-12-detection-3``, ``image-12-missed-0``.
        image_id: id of the image in the annotation file.
        file_name: name of the image in the annotation file.
        image_size_hw: height and width of the image, pixels.
        type: TIDE's error type.
        label: class index of the detection, or of the missed object.
        name: name of that class.
        score: score of the detection in [0, 1]; for an explained missed object, of the best raw candidate there.
        box_xyxy: box of the detection, or of the missed object; pixels of the image, half-open.
        is_false_positive: whether the detection counts as a false positive in COCO's average precision.
        ground_truth: the object that the error concerns, or None.
        delta_ap: increase of average precision (COCO's, at the audit's IoU threshold) when this error alone is
            corrected, as in `ErrorAnalysis.average_precision_corrected`; NaN if neither its class nor that of the
            object that it then finds has objects, or if it is a missed object and the only object of all, so that
            average precision is undefined.
        question: the question that the heatmap answers: ``"why platelet rather than red cell?"``.
        method: name of the heatmap method; empty if the case is not explained.
        proposal: what proposed the evidence: one of the maps of the portfolio, or the method.
        evidence_shares: share of the evidence at each location, in [0, 1], sum 1: the heatmap's strength within the
            evidence region; None if the case is not explained.
        evidence_location: the location with the largest share; None if the case is not explained.
        evidence_object: class name of the annotated object in whose box most of the evidence region lies, other than
            the object that the error concerns; empty if there is none, or the case is not explained.
        evidence_fraction: fraction of the image that the evidence region covers, in [0, 1]; NaN if the case is not
            explained.
        evidence_box_xyxy: bounding box of the evidence region, pixels of the image, half-open; None if there is none.
        evidence_form: form of the evidence region; empty if there is none.
        evidence_kind: kind of evidence; None if the case is not explained.
        minimal_region_fraction: fraction of the image that the smallest tried region covers whose removal ends the
            error with every fill; None if no region does.
        peak_xy: column and row of the heatmap's maximum; None if the case is not explained.
        trials: the perturbed images and their outcomes.
        parts: parts of the evidence that were removed alone, and further regions that the error needs.
        verdict: how well the evidence is confirmed as the cause.
        effect: the score that the evidence costs beyond the costliest control, relative to the score, in [-1, 1]; of a
            missed object, the score gained without it beyond all controls, relative to the threshold; NaN if it was
            not measured.
        compared_controls: number of controls that `effect` compares; 0 if it was not measured.
        error_rate: rate of wrong regions that get this verdict, the center of its measured 95 % interval; NaN if it
            confirms nothing, and for missed objects.
        reason: the reason for the verdict.
        failure_stage: for an explained missed object, the stage of the detector that lost it; else empty.
        evidence_comparison: for an explained duplicate, whether it rests on the same evidence as the first detection;
            else empty.
        background_type: type of a background error; None for other errors, and if it could not be determined.
        typicality: for a background error with its evidence in the box, its conformal p-value: the share of correct
            detections of the class that resemble the class less, in [0, 1]; NaN if not computed.
        trust: in an audit without annotations, how much trust the detection deserves, in [0, 1]; else NaN.
        trust_signals: the signals that `trust` combines, each in [0, 1]; None without them.
        sentence: summary of the case in one line.
        group: number of its group; None if it resembles no other, or is not explained.
        forward_passes: forward passes spent on the case, with its share of passes that cases have in common.
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
    ground_truth: GroundTruthObject | None
    delta_ap: float
    question: str = ""
    method: str = ""
    proposal: str = ""
    evidence_shares: Mapping[EvidenceLocation, float] | None = None
    evidence_location: EvidenceLocation | None = None
    evidence_object: str = ""
    evidence_fraction: float = math.nan
    evidence_box_xyxy: Box | None = None
    evidence_form: EvidenceForm | Literal[""] = ""
    evidence_kind: EvidenceKind | None = None
    minimal_region_fraction: float | None = None
    peak_xy: tuple[int, int] | None = None
    trials: tuple[Trial, ...] = ()
    parts: tuple[CasePart, ...] = ()
    verdict: Grade = "not tested"
    effect: float = math.nan
    compared_controls: int = 0
    error_rate: float = math.nan
    reason: str = ""
    failure_stage: str = ""
    evidence_comparison: str = ""
    background_type: BackgroundType | None = None
    typicality: float = math.nan
    trust: float = math.nan
    trust_signals: Mapping[str, float] | None = None
    sentence: str = ""
    group: int | None = None
    forward_passes: float = 0.0

    @property
    def needs_context(self) -> bool:
        """Whether a missed object is confirmed to be found in the surroundings of found objects of its class.

        The evidence is then what is absent around the object, and no region whose removal makes it appear.
        """
        return self.confirmed and any(trial.intervention == "transplant" for trial in self.trials)

    @property
    def confirmed(self) -> bool:
        """Whether the evidence is confirmed as the cause, strongly or weakly."""
        return self.verdict in CONFIRMED

    def to_json(self) -> dict[str, Any]:
        """Convert to the entry of ``audit.json``."""
        return json_value(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditCase:
        """Convert back from the output of `to_json`."""
        names = {field.name for field in fields(cls)}
        values = {name: value for name, value in data.items() if name in names}
        for name in ("image_size_hw", "box_xyxy", "peak_xy", "evidence_box_xyxy"):
            values[name] = None if values.get(name) is None else tuple(values[name])
        ground_truth = values.get("ground_truth")
        if ground_truth is not None:
            box = tuple(ground_truth["box_xyxy"])
            values["ground_truth"] = GroundTruthObject(**{**ground_truth, "box_xyxy": box})
        values["trials"] = tuple(Trial(**trial) for trial in values.get("trials", ()))
        values["parts"] = tuple(CasePart(**part) for part in values.get("parts", ()))
        for name in ("delta_ap", "evidence_fraction", "typicality", "effect", "error_rate", "trust"):
            values[name] = math.nan if values.get(name) is None else values[name]
        return cls(**values)


@dataclass(frozen=True)
class ErrorGroup:
    """At least two errors of one type and class whose evidence is of one kind and looks alike to the network.

    Attributes:
        number: from 0, in order of decreasing `delta_ap`, then of the scores that confirmed evidence costs.
        type: TIDE's error type.
        label: class index of the detections.
        name: name of that class.
        evidence_kind: kind of the evidence.
        evidence_location: most frequent location of the confirmed evidence; None if none is confirmed.
        case_ids: ids of its cases, the nearest to the group's center first.
        delta_ap: increase of average precision when all of them are corrected; NaN if their classes have no objects,
            or no objects are left without the missed ones.
        confirmed_count: number of its cases that are confirmed.
        sentence: summary of the group in one line.
        background_type: most frequent type of its background errors; else None.
    """

    number: int
    type: ErrorType
    label: int
    name: str
    evidence_location: EvidenceLocation | None
    case_ids: tuple[str, ...]
    delta_ap: float
    confirmed_count: int
    sentence: str
    background_type: BackgroundType | None = None
    evidence_kind: EvidenceKind | None = None

    def __len__(self) -> int:
        return len(self.case_ids)

    def to_json(self) -> dict[str, Any]:
        """Convert to the entry of ``audit.json``."""
        return json_value(vars(self))
