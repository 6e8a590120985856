"""Checks whether an audit confirms the certified cause of a false positive and rejects false causes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_masks
from torch import Tensor

from detcam.adapters import Adapter
from detcam.auditing.analysis import analyze_errors
from detcam.auditing.case import EVIDENCE_LOCATIONS, AuditCase, EvidenceLocation, Grade
from detcam.auditing.case_table import unexplained_case
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.error_targets import object_regions
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.sentences import further_regions_needed, sufficient_parts
from detcam.auditing.verification.donors import Donors, choose_donors
from detcam.auditing.verification.evidence import box_region, location_regions, location_shares, move_region
from detcam.benchmarking.planted.cases import PlantedCase
from detcam.benchmarking.planted.hit_metrics import MapHit, measure_hit
from detcam.benchmarking.planted.planted_errors import MIN_IOU, MIN_SCORE
from detcam.benchmarking.planted.semantic import body_mask
from detcam.cam import BaseCAM
from detcam.data.ground_truth import GroundTruth
from detcam.data.images import load_image
from detcam.synthetic.shortcut_scenarios import SHORTCUTS
from detcam.targets import MaskErrorTarget

MAX_TRIES = 20
"""Random positions that are tried for a false cause."""
MIN_MASK_IOU = 0.77
"""IoU of a true positive of masks: a mask that fills its box reaches 0.70 to 0.76 with a boat or barge."""


@dataclass(frozen=True)
class AuditCheck:
    """The result of an audit of one case.

    Attributes:
        hit: metrics of the audit's heatmap against the cause.
        location: location of the evidence according to the audit; None if it is unknown.
        true_location: location of most of the cause; of a neighbor, that of other objects of the class.
        confirmed: whether the audit confirms its evidence as the cause.
        on_cause: whether the evidence overlaps the cause.
        false_causes: number of false causes that the audit verified.
        false_causes_confirmed: number of false causes that the audit confirmed strongly, as in `grade_of_region`.
        passes: number of images that the network processed for heatmap, verification and controls.
        says_combination: whether the evidence overlaps every cue, and the audit says, as it is, that either of its
            parts suffices or that a further region is needed as well; None if there is one cue.
    """

    hit: MapHit
    location: EvidenceLocation | None
    true_location: EvidenceLocation
    confirmed: bool
    on_cause: bool
    false_causes: int
    false_causes_confirmed: int
    passes: float
    says_combination: bool | None


class PrecomputedMaps:
    """Replaces a method in an `ErrorExplainer` and returns a given heatmap (H, W) for every target."""

    name = "precomputed"

    def __init__(self, heatmap: Tensor) -> None:
        self.heatmap = heatmap

    def explain(self, images: Sequence[Any], targets: Sequence[Sequence[Any]]) -> list[SimpleNamespace]:
        """Return the heatmap once for each target of each image."""
        return [SimpleNamespace(heatmaps=self.heatmap.expand(len(row), -1, -1)) for row in targets]


def check_audit(
    adapter: Adapter, cam: BaseCAM | None, case: PlantedCase, first_label: int, donors: Donors | None = None
) -> AuditCheck | None:
    """Audit a case, then verify false causes in the same way.

    Args:
        adapter: adapter of the detector.
        cam: method of the audit; None takes the portfolio.
        case: certified error.
        first_label: the detector's label of the first class.
        donors: found objects of the audited scenes, as from `scene_donors`; None has none.

    Returns:
        The result; None if the case is no error by the rules of the audit. An error that the audit cannot explain has
        the metrics of an empty heatmap.
    """
    image = error_image(adapter, case, first_label)
    if image is None:
        return None
    masks = compares_masks(case)
    explained = explain_error(adapter, cam, image, donors, masks=masks)
    heatmap, evidence = torch.zeros(case.cause.shape), torch.zeros_like(case.cause)
    if explained.maps is not None:
        heatmap = torch.from_numpy(np.asarray(explained.maps.heatmap)).float()
        evidence = torch.from_numpy(np.asarray(explained.maps.needed))
    truth = image.ground_truth
    locations = location_regions(
        truth.image_size_hw, explained.case.box_xyxy, *object_regions(image.errors[0], truth, masks=masks)
    )
    shares = location_shares(case.cause.float(), locations)
    is_neighbor = SHORTCUTS[case.scenario].effect == "suppressed"  # an object of the class, within the box of the other
    regions = false_causes(case)
    grades = []
    for region in regions:
        of_region = explain_error(adapter, cast(BaseCAM, PrecomputedMaps(region.float())), image, masks=masks)
        grades.append(grade_of_region(of_region, region, case.cause))
    return AuditCheck(
        measure_hit(heatmap, *case.parts),
        explained.case.evidence_location,
        "same class" if is_neighbor else max(EVIDENCE_LOCATIONS, key=shares.__getitem__),
        explained.case.confirmed,
        bool((evidence & case.cause).any()),
        len(regions),
        grades.count("strong"),
        explained.case.forward_passes,
        _says_combination(case, explained.case, evidence) if len(case.parts) > 1 else None,
    )


def _says_combination(case: PlantedCase, explained: AuditCase, evidence: Tensor) -> bool:
    """Whether an audit says how several cues act together; `evidence` (H, W) bool are all regions that it names."""
    covers_all = all(bool((evidence & part).any()) for part in case.parts)
    count = further_regions_needed(explained) if case.needs_all_cues else sufficient_parts(explained)
    return explained.confirmed and covers_all and count > 0


def grade_of_region(explained: ExplainedError, region: Tensor, cause: Tensor | None = None) -> Grade:
    """The grade of a region (H, W) bool that an audit was given as its only map, with `PrecomputedMaps`.

    It is ``"not confirmed"`` if the audit confirms another region: one that it proposes by itself, such as the
    surroundings of the box, one beside the map, or one with more of the certified cause (H, W) bool than of the region.
    """
    case, maps = explained.case, explained.maps
    if not case.confirmed or maps is None:
        return case.verdict
    evidence = torch.from_numpy(np.asarray(maps.evidence))
    on_cause = 0 if cause is None else int((evidence & cause).sum())
    is_other = case.proposal != PrecomputedMaps.name or int((evidence & region).sum()) <= on_cause
    return "not confirmed" if is_other else case.verdict


def false_causes(case: PlantedCase) -> list[Tensor]:
    """Make regions that are not the cause.

    Returns:
        Masks (H, W) bool: the unrelated object, and a region of the cue's shape at a random position outside the cue
        and the box, if there is room for one.
    """
    seed = int.from_bytes(hashlib.sha256(f"{case.scene.seed} {case.cues[0].name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    regions = [torch.from_numpy(case.unrelated.mask) & ~case.cause]
    x1, y1, x2, y2 = case.body.box_xyxy.tolist() if case.target.box_xyxy is None else case.target.box_xyxy
    box = box_region((x1, y1, x2, y2), (case.cause.shape[0], case.cause.shape[1]))
    for _ in range(MAX_TRIES):
        moved = move_region(case.cause, generator)
        if moved is not None and not bool((moved & (box | case.cause)).any()):
            return [*regions, moved]
    return regions


def explain_error(
    adapter: Adapter, cam: BaseCAM | None, image: ErrorImage, donors: Donors | None = None, *, masks: bool = False
) -> ExplainedError:
    """Audit the error of an image from `error_image`; `masks` says whether it is one of a mask."""
    iou_threshold = MIN_MASK_IOU if masks else MIN_IOU
    explainer = ErrorExplainer(
        adapter, cam, adapter.names, MIN_SCORE, donors=donors or {}, masks=masks, iou_threshold=iou_threshold
    )
    return explainer.explain([image])[0][0]


def compares_masks(case: PlantedCase) -> bool:
    """Whether the audit of a case compares masks instead of boxes."""
    return isinstance(case.target, MaskErrorTarget)


def scene_donors(adapter: Adapter, cases: Sequence[PlantedCase], first_label: int) -> Donors:
    """The objects that a detector finds in the scenes of missed ones, as an audit of these scenes chooses donors."""
    missed = [case for case in cases if case.index is None]
    if not missed:
        return {}
    truths = [scene_ground_truth(case, adapter, first_label) for case in missed]
    analysis = analyze_errors([case.detections for case in missed], truths)
    labels = {case.target.label for case in missed}
    return choose_donors(analysis, truths, labels, MIN_SCORE, lambda index: load_image(missed[index].scene.image))


def error_image(adapter: Adapter, case: PlantedCase, first_label: int) -> ErrorImage | None:
    """Prepare the case as an audit does, with the scene's labels as annotations; None if it is no error there."""
    truth = scene_ground_truth(case, adapter, first_label)
    detections = case.detections
    if case.index is None:  # a detection of another class below the threshold does not find the object
        detections = detections[detections.scores >= MIN_SCORE]
    if compares_masks(case):
        analysis = analyze_errors([detections], [truth], iou_type="segm", iou_threshold=MIN_MASK_IOU)
    else:
        analysis = analyze_errors([detections], [truth])
    body = case.scene.bodies.index(case.body.name) if case.index is None else None
    index = next(
        (
            index
            for index, error in enumerate(analysis)
            if error.detection_index == case.index and (body is None or error.ground_truth_index == body)
        ),
        None,
    )
    if index is None:
        return None
    audit_case = unexplained_case(analysis, index, [detections], [truth])
    return ErrorImage(load_image(case.scene.image), detections, truth, [analysis[index]], [audit_case])


def scene_ground_truth(case: PlantedCase, adapter: Adapter, first_label: int) -> GroundTruth:
    """Convert the labels of a scene to annotations, with the masks of the objects if masks are compared."""
    boxes = torch.from_numpy(case.scene.boxes_xyxy)
    x1, y1, x2, y2 = case.scene.boxes_xyxy.astype(np.float64).T.reshape(4, -1)
    labels = torch.from_numpy(case.scene.labels) + first_label
    name = f"{case.scenario}-{case.scene.seed}"
    segmentations: list[Any] = [None] * len(labels)
    if compares_masks(case):
        masks = [body_mask(case.scene, body).numpy().astype(np.uint8) for body in case.scene.bodies]
        segmentations = [coco_masks.encode(np.asfortranarray(mask)) for mask in masks]
    return GroundTruth(
        image_id=name,
        file_name=f"{name}.png",
        path=Path(f"{name}.png"),
        image_size_hw=(case.scene.image.shape[0], case.scene.image.shape[1]),
        boxes_xyxy=boxes,
        boxes_xywh=np.stack([x1, y1, x2 - x1, y2 - y1], 1),
        labels=labels,
        category_ids=labels,
        crowd=torch.zeros(len(labels), dtype=torch.bool),
        area=torch.from_numpy((x2 - x1) * (y2 - y1)),
        ids=torch.arange(len(labels)),
        segmentations=tuple(segmentations),
        names=adapter.names,
    )
