"""What decides whether an error persists in a perturbed image."""

from __future__ import annotations

from torchvision.ops import box_iou

from detcam.auditing.case import Box
from detcam.auditing.error_targets import detection_target, object_box
from detcam.auditing.errors import DetectionError
from detcam.auditing.verification.interventions import DetectionCriterion
from detcam.auditing.verification.mask_persistence import MaskCriterion
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.region_persistence import RegionCriterion
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections
from detcam.outputs import DetectorOutput
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import BoxTarget


def criterion_for(
    error: DetectionError,
    detections: Detections,
    ground_truth: GroundTruth,
    output: DetectorOutput | SegmenterOutput,
    detection: BoxTarget,
    score: float,
    *,
    score_threshold: float,
    iou_threshold: float,
    masks: bool,
    background: int | None = None,
) -> DetectionCriterion | None:
    """Choose the criterion for an error of a detection.

    Args:
        error: the error.
        detections: the detections of its image.
        ground_truth: the objects of its image.
        output: the model's output for the unperturbed image.
        detection: the detection.
        score: its score, in [0, 1].
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: minimum IoU of a true positive.
        masks: whether masks are compared instead of boxes.
        background: class index of a semantic network's background; None if there is none.

    Returns:
        Of a semantic network, whether the region still has its class; of a localization error of masks, whether the
        mask is still wrong; else whether the detection persists. None if the output's mask is not wrong, or absent:
        nothing can be verified then.
    """
    if isinstance(output, SegmenterOutput):
        if detections.masks is None or error.detection_index is None:
            raise ValueError("expected regions with masks as detections of a semantic network")
        return RegionCriterion(error.label, detections.masks[error.detection_index], score_threshold, background)
    index = error.ground_truth_index if error.type == "localization" else None
    if masks and index is not None:
        mask = ground_truth.mask(index)
        return MaskCriterion.from_output(output, detection, mask, score, score_threshold, iou_threshold)
    return PersistenceCriterion.from_output(
        output,
        detection,
        score_threshold,
        own_candidate_only=error.type == "duplicate",
        ground_truth_xyxy=None if index is None else object_box(ground_truth, index),
        iou_threshold=iou_threshold,
        first_xyxy=_first_box(error, detections, ground_truth, score_threshold, iou_threshold),
    )


def _first_box(
    error: DetectionError,
    detections: Detections,
    ground_truth: GroundTruth,
    score_threshold: float,
    iou_threshold: float,
) -> Box | None:
    """The box of another detection, a correct one, of the object that a duplicate or localization error is on."""
    if error.ground_truth_index is None or error.detection_index is None:
        return None
    if error.type not in ("localization", "duplicate"):
        return None
    iou = box_iou(ground_truth.boxes_xyxy[[error.ground_truth_index]].float(), detections.boxes_xyxy.float())[0]
    is_correct = (detections.labels == error.label) & (detections.scores >= score_threshold)
    iou = iou.where(is_correct, iou.new_tensor(-1.0))
    iou[error.detection_index] = -1.0
    best = int(iou.argmax())
    return detection_target(detections, best).box_xyxy if float(iou[best]) >= iou_threshold else None
