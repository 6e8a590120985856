"""Explanation and verification of the errors of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Adapter, Batch
from detcam.adapters.black_box import gradient_obstacle
from detcam.adapters.detection import DetectorAdapter
from detcam.auditing.case import AuditCase, EvidenceLocation
from detcam.auditing.conclusion import ExplainedError, conclude
from detcam.auditing.criteria import criterion_for
from detcam.auditing.error_targets import ErrorQuestion, object_regions, question_for
from detcam.auditing.errors import DetectionError
from detcam.auditing.grouping.evidence_kind import describe_evidence
from detcam.auditing.question_heatmaps import compute_heatmaps, propose_by_gradients, propose_by_method
from detcam.auditing.sentences import case_sentence
from detcam.auditing.verification.appearance import AppearanceHypothesis
from detcam.auditing.verification.black_box import BlackBoxVerifier
from detcam.auditing.verification.donors import MAX_WINDOW_PIXELS, MIN_DONORS, Donors, window
from detcam.auditing.verification.evidence import box_region, location_regions, object_under
from detcam.auditing.verification.hypothesis import Hypothesis, VerificationResult
from detcam.auditing.verification.input_mapping import InputMapping
from detcam.auditing.verification.mask_persistence import MaskCriterion
from detcam.auditing.verification.proposals import PORTFOLIO, Proposal, Proposals, gradient_proposals, proposal_layers
from detcam.auditing.verification.suppression import (
    MissedObject,
    find_missed,
    suppressing_detection,
    suppressor_proposals,
)
from detcam.auditing.verification.transplants import Transplantation
from detcam.auditing.verification.verifier import Verifier, verify_together
from detcam.cam import BaseCAM
from detcam.data.annotations import FIRST_UNKNOWN_LABEL
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections
from detcam.methods.common.region_proposals import color_segments
from detcam.outputs import DetectorOutput
from detcam.perturbation.base import ImageScorer, default_batch_size
from detcam.perturbation.bn_folding import BatchNormFolding
from detcam.perturbation.early_layers import EarlyLayers
from detcam.targets import BoxTarget
from detcam.trace import Trace, flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.model_lock import exclusive

MIN_CORRELATION = 0.7
"""Minimum correlation of two heatmaps that show the same evidence."""
CPU_BATCH_SIZE = 4
"""Number of perturbed images per pass on a CPU. For a YOLO11n at 320x320 pixels an image takes 0.63 plain passes in
batches of 4 and 0.60 in batches of 8 on a quiet machine, 0.49 and 0.64 on a busy one, whose caches are shared."""

NO_MASK_REASON = "not tested: the error of the mask is not in the model's output for the image alone"

MAX_LEVEL_BYTES = 256 * 2**20
"""Size of the activations of images that are verified together, from which on no further image is added."""


@dataclass(frozen=True)
class ErrorImage:
    """An image with the errors to explain.

    Attributes:
        image: (3, H, W) RGB, float32 in [0, 1]; large ones uint8 where the adapter takes them.
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
class _PreparedImage:
    """An image with the hypotheses to verify.

    Attributes:
        mapping: between the image and the network's input.
        levels: activations of the adapter's target layers, each (C, h, w).
        proposals: maps by index of the error, or the error of the method.
        references: by index of the error, the map of the first detection of a duplicate.
        missed: missed objects by index of the error.
        verifier: verifies the hypotheses.
        hypotheses: what is verified, by index of the error.
    """

    mapping: InputMapping
    levels: Sequence[Tensor]
    proposals: Sequence[Proposals | RuntimeError]
    references: Mapping[int, Tensor]
    missed: Mapping[int, MissedObject]
    verifier: Verifier
    hypotheses: Mapping[int, Hypothesis | AppearanceHypothesis]


@dataclass
class ErrorExplainer:
    """Explains and verifies errors.

    Args:
        adapter: the detector.
        cam: the heatmap method; None proposes evidence with a portfolio of maps.
        names: class names by index.
        score_threshold: minimum score of a detection, in [0, 1].
        masks: whether ground-truth objects are their masks instead of their boxes.
        iou_threshold: minimum IoU of a true positive.
        quantity: the quantity to explain, as in `question_for`.
        donors: found objects whose surroundings are tried around missed ones, as from `choose_donors`.
        proposing: the adapter at the layers of the portfolio's maps; None looks for them.
        foldings: batch-norm foldings by the shape of the network's input, kept for further images.
        early_layers: the layers that run on windows of perturbed images, once they were looked for.
    """

    adapter: Adapter
    cam: BaseCAM | None
    names: Mapping[int, str]
    score_threshold: float
    masks: bool = field(default=False, kw_only=True)
    iou_threshold: float = field(default=0.5, kw_only=True)
    quantity: str = field(default="score", kw_only=True)
    donors: Donors = field(default_factory=dict, kw_only=True, repr=False)
    proposing: Adapter | None = field(default=None, kw_only=True, repr=False)
    foldings: dict[tuple[int, ...], BatchNormFolding | None] = field(default_factory=dict, kw_only=True, repr=False)
    early_layers: list[EarlyLayers | None] = field(default_factory=list, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        layerless = self.adapter.without_layers()
        self._is_detector = self.adapter.task == "detection"
        # A model whose gradients fail on an image is none.
        self._is_black_box = self.cam is None and gradient_obstacle(self.adapter.model) is not None
        if isinstance(layerless, DetectorAdapter):  # missed objects are looked for among its detections
            layerless = layerless.with_score_threshold(self.score_threshold)
        self._layerless = layerless
        if self.proposing is None:
            self.proposing = proposal_layers(self.adapter) if self.cam is None else self.adapter
        self._proposing = self.proposing

    def explain(self, images: Sequence[ErrorImage]) -> list[list[ExplainedError]]:
        """Explain every error of some images; their perturbed versions, and a method's heatmaps, share passes."""
        questions = [
            [
                question_for(
                    error,
                    image.detections,
                    image.ground_truth,
                    self.names,
                    self.quantity,
                    masks=self.masks,
                    iou_threshold=self.iou_threshold,
                )
                for error in image.errors
            ]
            for image in images
        ]
        maps: Sequence[Sequence[Tensor | RuntimeError] | None] = [None] * len(images)
        passed = float(len(images))  # the portfolio takes one pass an image
        if self.cam is not None:
            maps, passed = self._heatmaps_and_passes(self.cam, [image.image for image in images], questions)
        passes = passed / max(sum(len(row) for row in questions), 1)
        explained: list[list[ExplainedError]] = []
        while len(explained) < len(images):
            prepared = self._prepare_images(images, questions, maps, len(explained))
            with guarded(self.adapter.model, gradients=False), torch.no_grad():
                results = verify_together([(each.verifier, list(each.hypotheses.values())) for each in prepared])
            for each, verified in zip(prepared, results, strict=True):
                image, of_image = images[len(explained)], questions[len(explained)]
                by_error = dict(zip(each.hypotheses, verified, strict=True))
                explained.append(self._conclude_image(image, of_image, each, by_error, passes))
        return explained

    def _prepare_images(
        self,
        images: Sequence[ErrorImage],
        questions: Sequence[Sequence[ErrorQuestion]],
        maps: Sequence[Sequence[Tensor | RuntimeError] | None],
        first: int,
    ) -> list[_PreparedImage]:
        """Prepare images from the first one on, as many as fit in memory together."""
        prepared: list[_PreparedImage] = []
        size = 0
        with guarded(self.adapter.model, gradients=self.cam is None):
            for index in range(first, len(images)):
                prepared.append(self._prepare(images[index], questions[index], maps[index]))
                size += sum(level.numel() * level.element_size() for level in prepared[-1].levels)
                if size >= MAX_LEVEL_BYTES:
                    break
        return prepared

    def _heatmaps_and_passes(
        self, cam: BaseCAM, images: Sequence[Tensor], questions: Sequence[Sequence[ErrorQuestion]]
    ) -> tuple[list[list[Tensor | RuntimeError]], float]:
        """The heatmaps of a method, and the number of images that passed through the first target layer."""
        passed: list[int] = []

        def count(module: Any, inputs: Any, output: Any) -> None:
            passed.append(len(flatten_tensors(output)[0]))

        # The hook is registered inside the lock, which keeps the passes of other threads out of the count.
        first = (self.adapter.target_layers or [self.adapter.model])[0]
        with exclusive(self.adapter.model), active_hooks([(first, count)]):
            return compute_heatmaps(cam, images, questions), float(sum(passed))

    def _conclude_image(
        self,
        image: ErrorImage,
        questions: Sequence[ErrorQuestion],
        results: _PreparedImage,
        results_by_error: Mapping[int, VerificationResult],
        passes: float,
    ) -> list[ExplainedError]:
        explained = []
        for number, question in enumerate(questions):
            case = replace(image.cases[number], question=question.text, forward_passes=passes)
            if number in results.missed:
                missed = results.missed[number]
                case = replace(case, failure_stage=missed.stage, score=missed.score)
            proposals, verified = results.proposals[number], results_by_error.get(number)
            if verified is not None and bool(verified.evidence.any()):
                proposal = verified.proposal
            elif isinstance(proposals, RuntimeError):
                case = replace(case, reason=f"no heatmap: {proposals}")
                explained.append(ExplainedError(replace(case, sentence=case_sentence(case)), None, None))
                continue
            else:
                proposal = proposals.maps[0]
                if verified is None and question.detection is not None:
                    case = replace(case, reason=NO_MASK_REASON)
            if number in results.references:
                case = replace(case, evidence_comparison=_compare(proposal.heatmap, results.references[number]))
            method = PORTFOLIO if self.cam is None else self.cam.name
            regions = self._location_regions(case, image.errors[number], image.ground_truth)
            concluded = conclude(case, method, proposal, regions, results.mapping, results.levels, verified)
            explained.append(_with_description(concluded, image.errors[number], image))
        return explained

    def _location_regions(
        self, case: AuditCase, error: DetectionError, ground_truth: GroundTruth
    ) -> dict[EvidenceLocation, Tensor]:
        concerned, others = object_regions(error, ground_truth, masks=self.masks)
        if case.type != "missed":  # what lies in the box is no context, whatever it shows
            others = others & ~box_region(case.box_xyxy, ground_truth.image_size_hw)
        return location_regions(ground_truth.image_size_hw, case.box_xyxy, concerned, others)

    def _prepare(
        self,
        image: ErrorImage,
        questions: Sequence[ErrorQuestion],
        heatmaps: Sequence[Tensor | RuntimeError] | None,
    ) -> _PreparedImage:
        """Run the detector on an image, propose evidence, and find the failure stages of missed objects."""
        batch = self._layerless.prepare([image.image])
        with self._proposing.trace(batch, gradients=heatmaps is None) as trace:
            raw = self._layerless.forward(batch)
        output = self._layerless.outputs(raw, batch)[0]
        levels = self._with_mirrored(batch, self._own_levels(trace))
        missed = find_missed(image.errors, output, image.ground_truth, self.score_threshold, self.iou_threshold)
        suppressing = {} if self.cam is not None else _suppressing_detections(missed, output)
        rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
        segments = cache(lambda: color_segments(batch.inputs[0, :, rows, columns].float()))
        if heatmaps is None:
            own = tuple(self.adapter.layer_names)
            propose = partial(gradient_proposals, self._proposing, own, trace, batch, output)
            proposals, references = propose_by_gradients(questions, propose, segments, suppressing)
        with torch.no_grad():
            scorer = self._scorer(batch, output, questions)
            scorer.output = None  # the pass and its graph are not kept while further images are prepared
            mapping = InputMapping(scorer)
            if heatmaps is not None:
                name = self.cam.name if self.cam else ""
                proposals, references = propose_by_method(questions, heatmaps, name, mapping)
            for number, detection in suppressing.items():
                box = mapping.to_input(box_region(detection.box_xyxy, image.ground_truth.image_size_hw).float()) > 0.5
                maps = proposals[number]
                own_maps = [] if isinstance(maps, RuntimeError) else maps.maps
                proposals[number] = Proposals(suppressor_proposals(own_maps, box))
            hypotheses = self._hypotheses(image, questions, proposals, missed, output, mapping, segments)
            if hypotheses:
                self.foldings[tuple(batch.inputs.shape)] = scorer.prepared_folding()
                if not self.early_layers:
                    self.early_layers.append(scorer.find_early_layers())
                scorer.early_layers = self.early_layers[0]
                if scorer.early_layers is not None:
                    scorer.batch_size = default_batch_size(self.adapter.device)
        verifier = BlackBoxVerifier(scorer) if self._is_black_box else Verifier(scorer)
        return _PreparedImage(mapping, levels, proposals, references, missed, verifier, hypotheses)

    def _own_levels(self, trace: Trace) -> list[Tensor]:
        """The activations (C, h, w) of the adapter's target layers in a recorded pass of one image."""
        own = set(self.adapter.layer_names)
        return [
            level[0]
            for name, layer in zip(trace.names, trace.activations(), strict=True)
            for level in layer
            if name in own and len(level) == 1
        ]

    def _with_mirrored(self, batch: Batch, levels: Sequence[Tensor]) -> list[Tensor]:
        """The mean of activations (C, h, w) and those of the mirrored input.

        The same thing seen from the other side has the same features then, and is not another cause.
        """
        geometries = tuple(geometry.hflip() for geometry in batch.geometries)
        mirrored = replace(batch, inputs=batch.inputs.flip(-1), geometries=geometries)
        with torch.no_grad(), self.adapter.trace(mirrored, gradients=False) as trace:
            self._layerless.forward(mirrored)
        found = [level[0].flip(-1) for layer in trace.activations() for level in layer if len(level) == 1]
        if [level.shape for level in levels] != [other.shape for other in found]:  # the layers depend on the content
            return list(levels)
        return [(level + other) / 2 for level, other in zip(levels, found, strict=True)]

    def _scorer(self, batch: Batch, output: DetectorOutput, questions: Sequence[ErrorQuestion]) -> ImageScorer:
        """A scorer of perturbed versions of an image; images of one size share the batch-norm folding."""
        return ImageScorer(
            self._layerless,
            batch,
            output,
            [(self._is_detector and question.detection) or question.targets[0] for question in questions],
            batch_size=CPU_BATCH_SIZE if self.adapter.device.type == "cpu" else default_batch_size(self.adapter.device),
            folding=self.foldings.get(tuple(batch.inputs.shape)),
            reads_candidates=self._is_detector,
        )

    def _hypotheses(
        self,
        image: ErrorImage,
        questions: Sequence[ErrorQuestion],
        proposals: Sequence[Proposals | RuntimeError],
        missed: Mapping[int, MissedObject],
        output: DetectorOutput,
        mapping: InputMapping,
        segments: Callable[[], Tensor],
    ) -> dict[int, Hypothesis | AppearanceHypothesis]:
        """What is verified, by index of the error; detections come first."""
        hypotheses: dict[int, Hypothesis | AppearanceHypothesis] = {}
        for number, (question, maps) in enumerate(zip(questions, proposals, strict=True)):
            if question.detection is not None and (self.cam is None or not isinstance(maps, RuntimeError)):
                claim = self._hypothesis(image, number, question.detection, maps, output, mapping, segments)
                if claim is not None:
                    hypotheses[number] = claim
        for number, each in missed.items():
            maps = proposals[number]
            if not isinstance(maps, RuntimeError):
                hypotheses[number] = self._appearance_hypothesis(image, number, each, maps.maps, mapping)
            elif len(self.donors.get(each.criterion.label, ())) >= MIN_DONORS:
                # Surroundings are transplanted without a map.
                hypotheses[number] = self._appearance_hypothesis(image, number, each, [], mapping)
        return hypotheses

    def _hypothesis(
        self,
        image: ErrorImage,
        number: int,
        detection: BoxTarget,
        proposals: Proposals | RuntimeError,
        output: DetectorOutput,
        mapping: InputMapping,
        segments: Callable[[], Tensor],
    ) -> Hypothesis | None:
        """What is verified of a detection; None if the error of its mask is not in the output."""
        error, ground_truth = image.errors[number], image.ground_truth
        criterion = criterion_for(
            error,
            image.detections,
            ground_truth,
            output,
            detection,
            image.cases[number].score,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            masks=self.masks,
            background=self.adapter.background,
        )
        if criterion is None:
            return None
        concerned, _ = object_regions(error, ground_truth, masks=self.masks)
        box = box_region(detection.box_xyxy, ground_truth.image_size_hw)
        box_on_input = mapping.to_input(box.float()) > 0.5
        inside = box if concerned is None else box | concerned
        if isinstance(criterion, MaskCriterion):
            inside = criterion.mask
        inside_on_input = mapping.to_input(inside.float()) > 0.5
        maps = Proposals([]) if isinstance(proposals, RuntimeError) else proposals
        return Hypothesis(
            image.cases[number].id,
            criterion,
            image.cases[number].score,
            maps.outside(inside_on_input) if isinstance(criterion, MaskCriterion) else maps,
            box_on_input,
            inside_on_input,
            segments if self.cam is None else None,
            is_confusion=error.type == "classification" and _is_known(error, ground_truth),
            is_second=criterion.first_xyxy is not None and self.cam is None,
            is_outside=isinstance(criterion, MaskCriterion),
        )

    def _appearance_hypothesis(
        self,
        image: ErrorImage,
        number: int,
        missed: MissedObject,
        proposals: Sequence[Proposal],
        mapping: InputMapping,
    ) -> AppearanceHypothesis:
        case, error = image.cases[number], image.errors[number]
        regions = self._location_regions(case, error, image.ground_truth)
        return AppearanceHypothesis(
            case.id,
            missed.criterion,
            missed.criterion_score,
            proposals,
            mapping.to_input(regions["ground truth"].float()) > 0,
            mapping.to_input(regions["ring"].float()) > 0.5,
            None if missed.criterion.is_suppressed else self._transplantation(image.image, missed, mapping),
        )

    def _transplantation(self, image: Tensor, missed: MissedObject, mapping: InputMapping) -> Transplantation | None:
        donors = self.donors.get(missed.criterion.label, ())
        left, top, right, bottom = window(missed.criterion.box_xyxy)
        if len(donors) < MIN_DONORS or (right - left) * (bottom - top) > MAX_WINDOW_PIXELS:
            return None

        def prepare(changed: Tensor) -> Tensor:
            return self._layerless.prepare([changed]).inputs[:, :, mapping.rows, mapping.columns]

        return Transplantation(
            image,
            missed.criterion.box_xyxy,
            donors,
            prepare,
            mapping.to_input,
            missed.criterion_score,
            missed.criterion.score_threshold,
        )


def _suppressing_detections(missed: Mapping[int, MissedObject], output: DetectorOutput) -> dict[int, BoxTarget]:
    """The detections that suppress missed objects, by index of the error."""
    found = {
        number: suppressing_detection(output, each.criterion)
        for number, each in missed.items()
        if each.stage == "suppressed"
    }
    return {number: detection for number, detection in found.items() if detection is not None}


def _is_known(error: DetectionError, ground_truth: GroundTruth) -> bool:
    """Whether the model knows the class of the object that an error concerns."""
    index = error.ground_truth_index
    return index is not None and int(ground_truth.labels[index]) < FIRST_UNKNOWN_LABEL


def _with_description(explained: ExplainedError, error: DetectionError, image: ErrorImage) -> ExplainedError:
    """Add the bounding box and form of the evidence, and the class of the other object that it lies on."""
    if explained.maps is None:
        return explained
    evidence = torch.from_numpy(explained.maps.evidence)
    case = replace(explained.case, **describe_evidence(image.image, evidence))
    index = object_under(evidence, image.ground_truth, error.ground_truth_index)
    if index is not None:
        case = replace(case, evidence_object=image.ground_truth.name(index))
        case = replace(case, sentence=case_sentence(case))
    return replace(explained, case=case)


def _compare(heatmap: Tensor, reference: Tensor) -> str:
    """Whether two heatmaps show the same evidence, in words."""
    matrix = torch.corrcoef(torch.stack([heatmap.flatten().double(), reference.flatten().double()]))
    correlation = float(matrix[0, 1]) if bool(torch.isfinite(matrix[0, 1])) else 0.0
    words = "the same evidence as" if correlation >= MIN_CORRELATION else "other evidence than"
    return f"{words} the first detection (correlation {correlation:.2f})"
