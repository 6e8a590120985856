"""Explanation and verification of the errors of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.base import Adapter, Batch
from detcam.auditing.case import EVIDENCE_LOCATIONS, AuditCase, CaseMaps, EvidenceLocation
from detcam.auditing.error_targets import ErrorQuestion, failure_stage, object_box, question_for
from detcam.auditing.errors import DetectionError
from detcam.auditing.evidence import box_region, location_regions, location_shares
from detcam.auditing.input_mapping import InputMapping
from detcam.auditing.persistence import PersistenceCriterion
from detcam.auditing.sentences import case_sentence
from detcam.auditing.verification import Hypothesis, VerificationResult, Verifier
from detcam.cam import BaseCAM
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections
from detcam.outputs import DetectorOutput
from detcam.perturbation.base import ImageScorer, default_batch_size
from detcam.perturbation.bn_folding import BatchNormFolding
from detcam.targets import BoxTarget
from detcam.trace import flatten_tensors, guarded
from detcam.utils.model_lock import exclusive

MIN_CORRELATION = 0.7
"""Minimum correlation of two heatmaps that show the same evidence."""


@dataclass(frozen=True)
class ExplainedError:
    """An error with its explanation.

    Attributes:
        case: the case.
        maps: heatmap and regions; None if the error could not be explained.
        features: (D,) float32, the network's features averaged over the evidence; None if there are none.
    """

    case: AuditCase
    maps: CaseMaps | None
    features: np.ndarray | None


@dataclass(frozen=True)
class ErrorImage:
    """An image with the errors to explain.

    Attributes:
        image: (3, H, W) float32 RGB in [0, 1].
        detections: the model's detections.
        ground_truth: the objects.
        errors: the errors to explain.
        cases: the same errors as cases without an explanation.
    """

    image: Tensor
    detections: Detections
    ground_truth: GroundTruth
    errors: Sequence[DetectionError]
    cases: Sequence[AuditCase]


@dataclass(frozen=True)
class _ForwardPass:
    """Results for one image apart from its heatmaps.

    Attributes:
        mapping: between the image and the network's input.
        levels: activations of the target layers, each (C, h, w).
        verified: verification results by index of the error.
        stages: failure stage and best score of missed objects, by index of the error.
    """

    mapping: InputMapping
    levels: Sequence[Tensor]
    verified: Mapping[int, VerificationResult]
    stages: Mapping[int, tuple[str, float]]


@dataclass
class ErrorExplainer:
    """Explains and verifies errors.

    Args:
        adapter: the detector.
        cam: the heatmap method.
        names: class names by index.
        score_threshold: minimum score of a detection, in [0, 1].
        masks: whether ground-truth objects are their masks instead of their boxes.
        iou_threshold: minimum IoU of a true positive.
        quantity: the quantity to explain, as in `question_for`.
    """

    adapter: Adapter
    cam: BaseCAM
    names: Mapping[int, str]
    score_threshold: float
    masks: bool = field(default=False, kw_only=True)
    iou_threshold: float = field(default=0.5, kw_only=True)
    quantity: str = field(default="score", kw_only=True)

    def __post_init__(self) -> None:
        self._layerless = self.adapter.without_layers()
        self._foldings: dict[tuple[int, ...], BatchNormFolding | None] = {}

    def explain(self, images: Sequence[ErrorImage]) -> list[list[ExplainedError]]:
        """Explain every error of some images; the heatmaps of all images share forward passes."""
        questions = [
            [
                question_for(error, image.detections, image.ground_truth, self.names, self.quantity)
                for error in image.errors
            ]
            for image in images
        ]
        passed: list[int] = []  # images per run of the first target layer

        def count(module: Any, inputs: Any, output: Any) -> None:
            passed.append(len(flatten_tensors(output)[0]))

        # The hook is registered inside the lock, which keeps the passes of other threads out of the count.
        with exclusive(self.adapter.model), self.adapter.target_layers[0].register_forward_hook(count):
            heatmaps = self.heatmaps([image.image for image in images], questions)
        passes = sum(passed) / max(sum(len(row) for row in questions), 1)
        return [
            self._explain_image(image, of_image, maps, passes)
            for image, of_image, maps in zip(images, questions, heatmaps, strict=True)
        ]

    def heatmaps(
        self, images: Sequence[Tensor], questions: Sequence[Sequence[ErrorQuestion]]
    ) -> list[list[Tensor | RuntimeError]]:
        """Compute the heatmap of every target of the questions of each image.

        If a batch fails, its targets are explained one by one, so that one target does not affect the others.

        Returns:
            Per image, a heatmap (H, W) for each target in `ErrorQuestion.all_targets`, or the error.
        """
        targets = [[target for question in row for target in question.all_targets] for row in questions]
        if not any(targets):
            return [[] for _ in targets]
        try:
            return [list(torch.as_tensor(result.heatmaps)) for result in self.cam.explain(list(images), targets)]
        except RuntimeError as error:
            if sum(len(row) for row in targets) == 1:
                return [[error] * len(row) for row in targets]
            return [
                [self._single_heatmap(image, target) for target in row]
                for image, row in zip(images, targets, strict=True)
            ]

    def _single_heatmap(self, image: Tensor, target: Any) -> Tensor | RuntimeError:
        try:
            return torch.as_tensor(self.cam.explain([image], [[target]])[0].heatmaps[0])
        except RuntimeError as error:
            return error

    def _explain_image(
        self,
        image: ErrorImage,
        questions: Sequence[ErrorQuestion],
        maps: Sequence[Tensor | RuntimeError],
        passes: float,
    ) -> list[ExplainedError]:
        joined = _join_heatmaps(questions, maps)
        results = self._forward(image, questions, [heatmap for heatmap, _ in joined])
        explained = []
        for number, (heatmap, reference) in enumerate(joined):
            case = replace(image.cases[number], question=questions[number].text, forward_passes=passes)
            if number in results.stages:
                stage, score = results.stages[number]
                case = replace(case, failure_stage=stage, score=score)
            if isinstance(heatmap, RuntimeError):
                case = replace(case, reason=f"no heatmap: {heatmap}")
                explained.append(ExplainedError(replace(case, sentence=case_sentence(case)), None, None))
                continue
            if reference is not None:
                case = replace(case, evidence_comparison=_compare(heatmap, reference))
            regions = self._location_regions(case, image.errors[number], image.ground_truth)
            explained.append(_conclude(case, self.cam.name, heatmap, regions, results, results.verified.get(number)))
        return explained

    def _location_regions(
        self, case: AuditCase, error: DetectionError, ground_truth: GroundTruth
    ) -> dict[EvidenceLocation, Tensor]:
        concerned, others = object_regions(error, ground_truth, masks=self.masks)
        return location_regions(ground_truth.image_size_hw, case.box_xyxy, concerned, others)

    def _forward(
        self, image: ErrorImage, questions: Sequence[ErrorQuestion], heatmaps: Sequence[Tensor | RuntimeError]
    ) -> _ForwardPass:
        """Run the detector on an image, verify its heatmaps, and find the failure stages of missed objects."""
        with guarded(self.adapter.model, gradients=False), torch.no_grad():
            batch = self._layerless.prepare([image.image])
            with self.adapter.trace(batch, gradients=False) as trace:
                raw = self._layerless.forward(batch)
            output = self._layerless.outputs(raw, batch)[0]
            levels = [level[0] for layer in trace.activations() for level in layer if len(level) == 1]
            scorer = self._scorer(batch, output, questions)
            mapping = InputMapping(scorer)
            hypotheses = {
                number: self._hypothesis(image, number, question.detection, heatmap, output, mapping)
                for number, (question, heatmap) in enumerate(zip(questions, heatmaps, strict=True))
                if isinstance(heatmap, Tensor) and question.detection is not None
            }
            verified = dict(zip(hypotheses, Verifier(scorer).verify(list(hypotheses.values())), strict=True))
            self._foldings[tuple(batch.inputs.shape)] = scorer.folding
            stages = {
                number: failure_stage(error, output, image.ground_truth, self.score_threshold, self.iou_threshold)
                for number, error in enumerate(image.errors)
                if error.detection_index is None
            }
        return _ForwardPass(mapping, levels, verified, stages)

    def _scorer(self, batch: Batch, output: DetectorOutput, questions: Sequence[ErrorQuestion]) -> ImageScorer:
        """A scorer of perturbed versions of an image; images of one size share the batch-norm folding."""
        return ImageScorer(
            self._layerless,
            batch,
            output,
            [question.detection for question in questions if question.detection is not None],
            batch_size=default_batch_size(self.adapter.device),
            folding=self._foldings.get(tuple(batch.inputs.shape)),
        )

    def _hypothesis(
        self,
        image: ErrorImage,
        number: int,
        detection: BoxTarget,
        heatmap: Tensor,
        output: DetectorOutput,
        mapping: InputMapping,
    ) -> Hypothesis:
        error, ground_truth = image.errors[number], image.ground_truth
        is_localization = error.type == "localization" and error.ground_truth_index is not None
        criterion = PersistenceCriterion.from_output(
            output,
            detection,
            self.score_threshold,
            own_candidate_only=error.type in ("localization", "duplicate"),
            ground_truth_xyxy=object_box(ground_truth, error.ground_truth_index or 0) if is_localization else None,
            iou_threshold=self.iou_threshold,
        )
        box = mapping.to_input(box_region(detection.box_xyxy, ground_truth.image_size_hw).float()) > 0.5
        return Hypothesis(image.cases[number].id, criterion, mapping.to_input(heatmap), box)


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


def _join_heatmaps(
    questions: Sequence[ErrorQuestion], maps: Sequence[Tensor | RuntimeError]
) -> list[tuple[Tensor | RuntimeError, Tensor | None]]:
    """Per question, the mean heatmap of its targets, or the error, and the heatmap of its reference."""
    remaining = iter(maps)
    joined: list[tuple[Tensor | RuntimeError, Tensor | None]] = []
    for question in questions:
        of_targets = [next(remaining) for _ in question.targets]
        valid = [each for each in of_targets if isinstance(each, Tensor)]
        failed = [each for each in of_targets if isinstance(each, RuntimeError)]
        heatmap = torch.stack(valid).mean(0) if valid else failed[0]
        if isinstance(heatmap, Tensor) and not bool(heatmap.amax() > 0):
            heatmap = RuntimeError("it is zero everywhere, no pixel supports the target")
        reference = None if question.reference is None else next(remaining)
        joined.append((heatmap, reference if isinstance(reference, Tensor) else None))
    return joined


def _compare(heatmap: Tensor, reference: Tensor) -> str:
    """Whether two heatmaps show the same evidence, in words."""
    matrix = torch.corrcoef(torch.stack([heatmap.flatten().double(), reference.flatten().double()]))
    correlation = float(matrix[0, 1]) if bool(torch.isfinite(matrix[0, 1])) else 0.0
    words = "the same evidence as" if correlation >= MIN_CORRELATION else "other evidence than"
    return f"{words} the first detection (correlation {correlation:.2f})"


def _conclude(
    case: AuditCase,
    method: str,
    heatmap: Tensor,
    regions: Mapping[EvidenceLocation, Tensor],
    results: _ForwardPass,
    verified: VerificationResult | None,
) -> ExplainedError:
    """Complete a case with its evidence and, if it was verified, with the result."""
    mapping = results.mapping
    evidence = heatmap >= 0.5 * heatmap.amax().clamp(min=1e-12)
    control = None
    if verified is not None:
        evidence = mapping.to_image(verified.evidence)
        control = None if verified.control is None else mapping.to_image(verified.control)
        case = replace(
            case,
            trials=verified.trials,
            verdict=verified.verdict,
            reason=verified.reason,
            minimal_region_fraction=verified.minimal_region_fraction,
            forward_passes=case.forward_passes + verified.forward_passes,
        )
    strength = heatmap * evidence  # the rest of the heatmap is not verified
    shares = location_shares(strength, regions)
    location: EvidenceLocation = max(EVIDENCE_LOCATIONS, key=shares.__getitem__)
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    case = replace(
        case,
        method=method,
        evidence_shares=shares,
        evidence_location=location,
        evidence_fraction=float(evidence.float().mean()),
        peak_xy=(column, row),
    )
    maps = CaseMaps(
        (heatmap.clamp(0, 1) * 255).round().to(torch.uint8).numpy(),
        evidence.numpy(),
        None if control is None else control.numpy(),
    )
    features = mapping.pool(results.levels, mapping.to_input(strength))
    return ExplainedError(replace(case, sentence=case_sentence(case)), maps, features)
