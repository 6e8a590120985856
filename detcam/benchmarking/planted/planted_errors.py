"""The errors that the cues of a scenario cause, found in the predictions for a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters import Adapter
from detcam.auditing.error_targets import detection_target
from detcam.auditing.verification.evidence import box_region
from detcam.benchmarking.planted.cases import CaseTarget, PlantedCase
from detcam.benchmarking.planted.semantic import body_mask
from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcut_scenarios import BARGE, BOAT, SHORTCUTS
from detcam.synthetic.shortcuts import ShortcutScene, cabin_box
from detcam.targets import EdgesTarget, MaskErrorTarget, MaskTarget, SuppressionTarget

MIN_FALSE_POSITIVE_SCORE = 0.5
MIN_SCORE = 0.3
"""Smallest score of a detection; below it, the detection has vanished."""
MIN_IOU = 0.5
"""Smallest IoU of two boxes of the same object."""
MAX_WRONG_IOU, MIN_RIGHT_IOU = 0.5, 0.75
"""Largest IoU of a box with wrong edges, and smallest IoU of a right box, with the object."""
MIN_WRONG_FILL, MAX_RIGHT_FILL = 0.5, 0.25
"""Smallest share of the rest of its box that a wrong mask of an object fills, and largest share of a right mask."""


def find_error(
    adapter: Adapter,
    scene: ShortcutScene,
    body: SceneObject,
    cues: tuple[SceneObject, ...],
    detections: Detections,
    first_label: int,
) -> tuple[int | None, CaseTarget] | None:
    """Find the error that the cues of a scenario cause.

    Returns:
        The index of the wrong detection, None for a missed object, and the target that explains it; None if the
        detector is right.
    """
    effect = SHORTCUTS[scene.scenario].effect
    if effect in ("miss", "suppressed"):
        label = first_label + (BOAT if scene.get(f"window-{body.name.split('-')[1]}") is not None else BARGE)
        missed = SuppressionTarget(_corners(body), label)
        rivals = cues if effect == "suppressed" else ()
        is_found = _fits(missed, detections.boxes_xyxy, rivals) & (detections.scores >= MIN_SCORE)
        return None if bool(is_found.any()) else (None, missed)
    if effect == "class":
        return _find_wrong_class(adapter, scene, body, detections, first_label)
    if effect == "duplicate":
        index = _find_duplicate(body.box_xyxy, detections, MIN_FALSE_POSITIVE_SCORE)
        return None if index is None else (index, detection_target(detections, index))
    index = _best_index(body.box_xyxy, detections)
    if index is None:
        return None
    target = detection_target(detections, index)
    if effect == "edges":
        is_wrong = _overlap(body.box_xyxy, detections.boxes_xyxy[index]) <= MAX_WRONG_IOU
        return (index, EdgesTarget.displaced(target, _corners(body))) if is_wrong else None
    fill = _filled_share(scene, body.name, detections, index)
    if fill is None or fill < MIN_WRONG_FILL:
        return None
    mask = body_mask(scene, body.name)
    return index, MaskErrorTarget(target.box_xyxy, target.label, target.source, mask=mask)


def error_persists(case: PlantedCase, scene: ShortcutScene, detections: Detections) -> bool:
    """Whether the error of a case is in the predictions for a copy of its scene."""
    effect = SHORTCUTS[case.scenario].effect
    if effect == "miss":
        return not persists(case.target, detections)
    if effect == "suppressed":
        return not persists(case.target, detections, [cue for cue in case.cues if scene.get(cue.name) is not None])
    if effect == "duplicate":
        return _find_duplicate(case.body.box_xyxy, detections, MIN_SCORE) is not None
    if effect == "class":
        return persists(case.target, detections)
    index = _best_index(case.body.box_xyxy, detections)
    if index is None:
        return True
    if effect == "edges":
        return _overlap(case.body.box_xyxy, detections.boxes_xyxy[index]) < MIN_RIGHT_IOU
    fill = _filled_share(scene, case.body.name, detections, index)
    return fill is None or fill > MAX_RIGHT_FILL


def persists(target: CaseTarget, detections: Detections, rivals: Sequence[SceneObject] = ()) -> bool:
    """Whether a detection of the target's class still overlaps its box, and fits none of the rivals better."""
    fits = _fits(target, detections.boxes_xyxy, rivals)
    return bool((fits & (detections.labels == target.label) & (detections.scores >= MIN_SCORE)).any())


def has_candidate(adapter: Adapter, case: PlantedCase) -> bool:
    """Whether the detector has a candidate of a missed object, above `MIN_SCORE`, before non-maximum suppression."""
    image = torch.from_numpy(case.scene.image).permute(2, 0, 1).float() / 255
    batch = adapter.prepare([image])
    with torch.no_grad():
        (output,) = adapter.outputs(adapter.forward(batch), batch)
    label = case.target.label
    boxes, scores = (part.float().cpu() for part in output.raw_candidates(label))
    return bool((_fits(case.target, boxes, case.cues) & (scores[:, label] >= MIN_SCORE)).any())


def is_semantic(adapter: Adapter | None) -> bool:
    """Whether the network labels pixels instead of boxes."""
    return adapter is not None and adapter.task == "segmentation"


def _fits(target: CaseTarget, boxes: Tensor, rivals: Sequence[SceneObject]) -> Tensor:
    """Whether boxes (K, 4) overlap the box of a target, and none of the rivals more."""
    overlap = box_iou(torch.tensor([target.box_xyxy]), boxes)[0]
    fits = overlap >= MIN_IOU
    for rival in rivals:
        fits &= overlap > box_iou(torch.from_numpy(rival.box_xyxy)[None], boxes)[0]
    return fits


def _find_wrong_class(
    adapter: Adapter, scene: ShortcutScene, body: SceneObject, detections: Detections, first_label: int
) -> tuple[int, CaseTarget] | None:
    is_cart = body.kind == "cart"
    index = _find_false_positive(detections, body, None if is_cart else first_label + BOAT)
    if index is None:
        return None
    against = None if is_cart else first_label + BARGE
    if is_semantic(adapter):
        return index, MaskTarget(int(detections.labels[index]), body_mask(scene, body.name), against)
    return index, replace(detection_target(detections, index), against=against)


def _corners(body: SceneObject) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = body.box_xyxy.tolist()
    return x1, y1, x2, y2


def _find_false_positive(detections: Detections, confused: SceneObject, label: int | None) -> int | None:
    """Index of the best detection of a label (None: any) at an object, or None."""
    if not len(detections):
        return None
    overlap = box_iou(torch.from_numpy(confused.box_xyxy)[None], detections.boxes_xyxy)[0]
    hits = (overlap >= MIN_IOU) & (detections.scores >= MIN_FALSE_POSITIVE_SCORE)
    if label is not None:
        hits &= detections.labels == label
    return _highest(detections, hits)


def _find_duplicate(body_xyxy: np.ndarray, detections: Detections, min_score: float) -> int | None:
    """Index of the best detection that fits the cabin of a body better than the body, or None."""
    if not len(detections):
        return None
    boxes = torch.from_numpy(np.stack([cabin_box(body_xyxy), body_xyxy]))
    cabin, whole = box_iou(boxes, detections.boxes_xyxy)
    return _highest(detections, (cabin >= MIN_IOU) & (cabin > whole) & (detections.scores >= min_score))


def _best_index(body_xyxy: np.ndarray, detections: Detections) -> int | None:
    """Index of the detection with the largest IoU with a body, None if none overlaps it."""
    if not len(detections):
        return None
    overlap = box_iou(torch.from_numpy(body_xyxy)[None], detections.boxes_xyxy)[0]
    overlap = overlap.where(detections.scores >= MIN_SCORE, 0)
    return int(overlap.argmax()) if bool(overlap.any()) else None


def _overlap(body_xyxy: np.ndarray, box: Tensor) -> float:
    return float(box_iou(torch.from_numpy(body_xyxy)[None], box[None]))


def _filled_share(scene: ShortcutScene, name: str, detections: Detections, index: int) -> float | None:
    """Share of the pixels of a body's box beside the body that a detection's mask fills; None without masks."""
    if detections.masks is None:
        return None
    body = scene.object(name)
    rest = box_region(_corners(body), scene.image.shape[:2]) & ~body_mask(scene, name)
    return float((detections.masks[index].cpu().bool() & rest).sum() / rest.sum())


def _highest(detections: Detections, hits: torch.Tensor) -> int | None:
    indices = torch.nonzero(hits)[:, 0].tolist()
    return max(indices, key=lambda index: float(detections.scores[index])) if indices else None
