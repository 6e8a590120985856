"""Questions that explain detection errors, their objects, and the stage that loses a missed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Target
from detcam.auditing.case import Box
from detcam.auditing.errors import DetectionError
from detcam.auditing.verification.evidence import box_region
from detcam.data.annotations import FIRST_UNKNOWN_LABEL
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, class_name
from detcam.geometry import mask_to_box
from detcam.outputs import DetectorOutput
from detcam.targets import (
    QUANTITIES,
    BoxTarget,
    EdgesTarget,
    MaskErrorTarget,
    MaskTarget,
    SuppressionTarget,
    with_quantity,
)


@dataclass(frozen=True)
class ErrorQuestion:
    """The question that explains an error.

    Attributes:
        text: the question in words.
        targets: targets of the heatmap method, whose heatmaps are averaged.
        detection: the detection whose persistence verifies the explanation; None for a missed object.
        reference: for a duplicate, the first detection, whose heatmap is compared; else None.
    """

    text: str
    targets: tuple[Target, ...]
    detection: BoxTarget | None
    reference: BoxTarget | None = None

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """The targets, followed by the reference if there is one."""
        return self.targets if self.reference is None else (*self.targets, self.reference)


def detection_target(detections: Detections, index: int) -> BoxTarget:
    """The box target of a detection, pinned to its source."""
    box = detections.boxes_xyxy[index].tolist()
    return BoxTarget(tuple(box), int(detections.labels[index]), detections.source[index])


def object_box(ground_truth: GroundTruth, index: int) -> Box:
    """The box of a ground-truth object, pixels of the image."""
    x1, y1, x2, y2 = ground_truth.boxes_xyxy[index].tolist()
    return x1, y1, x2, y2


def question_for(
    error: DetectionError,
    detections: Detections,
    ground_truth: GroundTruth,
    names: Mapping[int, str],
    quantity: str = "score",
    *,
    masks: bool = False,
    iou_threshold: float = 0.5,
) -> ErrorQuestion:
    """Choose the question for an error.

    * classification: the predicted class contrasted with the true class, or its score if the model does not know the
      true class;
    * localization: the displacement of the edges that are off the object; of masks, the error of the mask, to which the
      displacement belongs if the box is off as well;
    * both: the two together;
    * duplicate: the score, compared with that of the first detection;
    * background: the score, or another quantity;
    * missed: what lowers the score of the class for the object's box, or another quantity of a `BoxTarget`.

    Args:
        error: the error.
        detections: the detections of its image.
        ground_truth: the objects of its image.
        names: class names by index.
        quantity: the quantity that is explained of duplicates, background errors and missed objects.
        masks: whether masks are compared instead of boxes.
        iou_threshold: minimum IoU of a true positive.
    """
    name = class_name(names, error.label)
    if error.detection_index is None:
        box = object_box(ground_truth, _object_index(error))
        missed = SuppressionTarget(box, error.label, quantity=quantity if quantity in QUANTITIES else "score")
        return ErrorQuestion(f"what suppresses the missed {name}?", (missed,), None)
    target = detection_target(detections, error.detection_index)
    if error.ground_truth_index is None or error.type == "background":
        shown = _region_target(detections, error.detection_index) or with_quantity(target, quantity)
        return ErrorQuestion(f"why {name} here?", (shown,), target)
    true_label = int(ground_truth.labels[error.ground_truth_index])
    true_name = class_name(names, true_label)
    is_known = true_label < FIRST_UNKNOWN_LABEL
    against = true_label if is_known and true_label != target.label else None
    contrast = BoxTarget(target.box_xyxy, target.label, target.source, against=against)
    why = f"why {name} rather than {true_name}?" if is_known else f"why {name} here, on {true_name}?"
    if error.type == "classification":
        return ErrorQuestion(why, (_region_target(detections, error.detection_index, against) or contrast,), target)
    if error.type == "localization" and masks:
        return _mask_question(target, ground_truth.mask(error.ground_truth_index), true_name, iou_threshold)
    edges = EdgesTarget.displaced(target, object_box(ground_truth, error.ground_truth_index))
    displacement = f"what moves its {edges.edges_text} off the {true_name}?"
    if error.type == "localization":
        return ErrorQuestion(displacement, (edges,), target)
    if error.type == "both":
        return ErrorQuestion(f"{why} And {displacement}", (contrast, edges), target)
    first = None if error.duplicate_of is None else detection_target(detections, error.duplicate_of)
    return ErrorQuestion(
        f"does this duplicate {name} rest on the same evidence as the first?",
        (with_quantity(target, quantity),),
        target,
        first,
    )


def _mask_question(target: BoxTarget, mask: Tensor, true_name: str, iou_threshold: float) -> ErrorQuestion:
    """The question about the mask of a detection of an object (H, W) bool.

    A mask ends with its box. Where the box is off as well, its edges are asked about as part of the mask's error, and
    the verdict is about the mask alone.
    """
    wrong = MaskErrorTarget(target.box_xyxy, target.label, target.source, mask=mask)
    object_xyxy = mask_to_box(mask)
    if float(box_iou(*(torch.tensor([box]) for box in (target.box_xyxy, object_xyxy)))) >= iou_threshold:
        return ErrorQuestion(f"what makes its mask differ from the {true_name}?", (wrong,), target)
    edges = EdgesTarget.displaced(target, object_xyxy)
    text = f"what makes its mask differ from the {true_name}, at the {edges.edges_text} of its box as well?"
    return ErrorQuestion(text, (wrong, edges), target)


def _region_target(detections: Detections, index: int, against: int | None = None) -> MaskTarget | None:
    """The target of a region of a semantic network; None for a detection of another model."""
    if detections.source[index].kind != "region" or detections.masks is None:
        return None
    return MaskTarget(int(detections.labels[index]), detections.masks[index], against)


def failure_stage(
    error: DetectionError,
    output: DetectorOutput,
    ground_truth: GroundTruth,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> tuple[str, float]:
    """Determine the stage of the detector that loses a missed object.

    Args:
        error: the missed object.
        output: the detector's output for the image.
        ground_truth: the objects of the image.
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: minimum IoU of a raw candidate of the object.

    Returns:
        The stage: ``"no candidate"`` (no proposal, anchor or query reaches the IoU, or all fit another object of the
        class better), ``"another class"`` (the best candidate scores another class above the threshold), ``"below
        threshold"``, or ``"suppressed"`` (a candidate scores above the threshold, and non-maximum suppression or the
        maximum number of detections removes it); and the score of the object's class, in [0, 1], of the best candidate.
    """
    object_xyxy = object_box(ground_truth, _object_index(error))
    boxes, scores = (part.detach().float().cpu() for part in output.raw_candidates(error.label))
    iou = box_iou(torch.tensor([object_xyxy]), boxes)[0]
    candidates = belongs_to(boxes, object_xyxy, rival_boxes(error, ground_truth), iou_threshold)
    if not bool(candidates.any()):
        return "no candidate", float(scores[int(iou.argmax()), error.label]) if len(boxes) else 0.0
    score = float(scores[candidates, error.label].max())
    if score >= score_threshold:
        return "suppressed", score
    boxes, scores = (part.detach().float().cpu() for part in output.raw_candidates())
    other_classes = torch.ones(scores.shape[1], dtype=torch.bool)
    other_classes[[error.label] if output.background is None else [error.label, output.background]] = False
    rivals = scores[box_iou(torch.tensor([object_xyxy]), boxes)[0] >= iou_threshold][:, other_classes]
    is_rivalled = rivals.numel() > 0 and float(rivals.max()) >= score_threshold
    return ("another class" if is_rivalled else "below threshold"), score


def rival_boxes(error: DetectionError, ground_truth: GroundTruth) -> Tensor:
    """Boxes (K, 4) of the other objects of the class of a missed object."""
    others = (ground_truth.labels == error.label) & ~ground_truth.crowd
    others[_object_index(error)] = False
    return ground_truth.boxes_xyxy[others].float()


def belongs_to(boxes: Tensor, object_xyxy: Box, rivals: Tensor, iou_threshold: float) -> Tensor:
    """Whether boxes belong to an object: they reach the IoU with it, and fit no other object of its class better.

    Args:
        boxes: (K, 4).
        object_xyxy: box of the object.
        rivals: (R, 4), boxes of the other objects.
        iou_threshold: minimum IoU.

    Returns:
        (K,) bool.
    """
    iou = box_iou(torch.tensor([object_xyxy]), boxes)[0]
    if not len(rivals):
        return iou >= iou_threshold
    return (iou >= iou_threshold) & (iou >= box_iou(rivals, boxes).amax(0))


def _object_index(error: DetectionError) -> int:
    if error.ground_truth_index is None:
        raise ValueError(f"expected an error with a ground-truth object; got {error}")
    return error.ground_truth_index


def object_regions(error: DetectionError, ground_truth: GroundTruth, *, masks: bool) -> tuple[Tensor | None, Tensor]:
    """The pixels (H, W) bool of the object that an error concerns, and of the other objects of the predicted class.

    Args:
        error: the error.
        ground_truth: the objects of its image.
        masks: whether objects are their masks instead of their boxes.
    """

    def region(index: int) -> Tensor:
        box = object_box(ground_truth, index)
        return ground_truth.mask(index) if masks else box_region(box, ground_truth.image_size_hw)

    others = torch.zeros(ground_truth.image_size_hw, dtype=torch.bool)
    for index, label in enumerate(ground_truth.labels.tolist()):
        if label == error.label and index != error.ground_truth_index:
            others |= region(index)
    return None if error.ground_truth_index is None else region(error.ground_truth_index), others
