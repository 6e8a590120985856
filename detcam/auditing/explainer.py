"""One image's errors: what each rests on, where that lies, and whether it is really so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.auditing.case import EVIDENCE_LOCATIONS, AuditCase, CaseMaps, EvidenceLocation
from detcam.auditing.error_targets import ErrorQuestion, question_of, stage_of, true_box
from detcam.auditing.errors import DetectionError
from detcam.auditing.evidence import box_region, places, shares
from detcam.auditing.persistence import TrackedDetection
from detcam.auditing.sentences import case_sentence
from detcam.auditing.verification import Hypothesis, VerificationResult, Verifier
from detcam.cam import BaseCAM
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections
from detcam.geometry import Geometry
from detcam.perturbation.base import ImageScorer, default_batch_size
from detcam.perturbation.bn_folding import BatchNormFolding
from detcam.targets import BoxTarget
from detcam.trace import Trace, flatten_tensors, guarded
from detcam.utils.model_lock import exclusive

SAME_EVIDENCE = 0.7
"""Least correlation of two maps that rest on the same evidence."""


@dataclass(frozen=True)
class ExplainedError:
    """An error with its explanation.

    Attributes:
        case: what was found out.
        maps: its images; None where it could not be explained.
        features: (D,) float32, the network's features pooled over the evidence; None where there are none.
    """

    case: AuditCase
    maps: CaseMaps | None
    features: np.ndarray | None


@dataclass(frozen=True)
class ErrorImage:
    """One image with the errors that are to be explained.

    Attributes:
        image: (3, H, W) float32 RGB in [0, 1].
        found: what the detector found.
        truth: what is there.
        errors: the errors.
        cases: the same as cases, without an explanation.
    """

    image: Tensor
    found: Detections
    truth: GroundTruth
    errors: Sequence[DetectionError]
    cases: Sequence[AuditCase]


class ErrorExplainer:
    """Explains and verifies errors.

    Args:
        adapter: the detector.
        cam: what makes the heatmaps.
        names: class index to name.
        threshold: least score of a detection, in [0, 1].
        masks: whether true objects are what their masks cover, rather than their boxes.
        iou_threshold: least overlap of a right detection.
    """

    def __init__(
        self,
        adapter: Adapter,
        cam: BaseCAM,
        names: Mapping[int, str],
        threshold: float,
        *,
        masks: bool = False,
        iou_threshold: float = 0.5,
    ) -> None:
        self.adapter = adapter
        self.plain = adapter.without_layers()
        self.cam = cam
        self.names = names
        self.threshold = threshold
        self.masks = masks
        self.iou_threshold = iou_threshold
        self._foldings: dict[tuple[int, ...], BatchNormFolding | None] = {}

    def examine(self, images: Sequence[ErrorImage]) -> list[list[ExplainedError]]:
        """Explain every error of some images; heatmaps are made for all of them together."""
        questions = [
            [question_of(error, image.found, image.truth, self.names) for error in image.errors] for image in images
        ]
        asked = [[target for question in row for target in _targets(question)] for row in questions]
        # No other thread's passes may be counted.
        with exclusive(self.adapter.model), _Passes(self.adapter.target_layers[0]) as counted:
            heat = self._heat([image.image for image in images], asked)
        share = counted.images / max(sum(len(row) for row in questions), 1)
        return [self._image(image, own, maps, share) for image, own, maps in zip(images, questions, heat, strict=True)]

    def _heat(self, images: Sequence[Tensor], asked: Sequence[Sequence[Target]]) -> list[list[Tensor | RuntimeError]]:
        """A map (H, W) for every target, or why there is none."""
        if not any(asked):
            return [[] for _ in asked]
        try:
            results = self.cam.explain(list(images), [list(row) for row in asked])
            return [list(result.heatmaps) for result in results]
        except RuntimeError as error:
            if sum(len(row) for row in asked) == 1:
                return [[error] * len(row) for row in asked]
        alone = []  # one target that cannot be explained must not cost the others
        for image, row in zip(images, asked, strict=True):
            alone.append([self._heat([image], [[target]])[0][0] for target in row])
        return alone

    def _image(
        self,
        image: ErrorImage,
        questions: Sequence[ErrorQuestion],
        maps: Sequence[Tensor | RuntimeError],
        passes: float,
    ) -> list[ExplainedError]:
        heats, besides = _joined(questions, maps)
        with guarded(self.adapter.model, gradients=False), torch.no_grad():
            batch = self.plain.prepare([image.image])
            layers = self.adapter.target_layers
            trace = Trace(
                layers,
                self.adapter.layer_names,
                gradients=False,
                reshape_transform=self.adapter.reshape_for(batch),
            )
            with trace:
                raw = self.plain.forward(batch)
            output = self.plain.outputs(raw, batch)[0]
            levels = [level[0] for layer in trace.activations() for level in layer if len(level) == 1]
            asked = [question.tracked for question in questions if question.tracked is not None]
            most = default_batch_size(self.adapter.device)
            scorer = ImageScorer(self.plain, batch, output, asked, torch.zeros(0), (), (), most, False)
            size = tuple(batch.inputs.shape)
            scorer.folding = self._foldings.get(size)  # found once for all images of a size
            verifier = Verifier(scorer)
            to_canvas = _ToCanvas(batch.geometries[0], verifier)
            hypotheses: dict[int, Hypothesis] = {}
            for number, (question, heat) in enumerate(zip(questions, heats, strict=True)):
                if isinstance(heat, Tensor) and question.tracked is not None:
                    tracked = self._followed(output, question.tracked, image.errors[number], image.truth)
                    box = to_canvas(box_region(question.tracked.box_xyxy, image.truth.image_size_hw).float()) > 0.5
                    hypotheses[number] = Hypothesis(image.cases[number].id, tracked, to_canvas(heat), box)
            verified = dict(zip(hypotheses, verifier.verify(list(hypotheses.values())), strict=True))
            self._foldings[size] = scorer.folding
            stages = [
                stage_of(error, output, image.truth, self.threshold, self.iou_threshold)
                if error.detection is None
                else ("", 0.0)
                for error in image.errors
            ]
        found = []
        for number, error in enumerate(image.errors):
            case = replace(image.cases[number], question=questions[number].words, forward_passes=passes)
            if error.detection is None:
                case = replace(case, failure_stage=stages[number][0], score=stages[number][1])
            heat, beside = heats[number], besides[number]
            if isinstance(heat, RuntimeError):
                case = replace(case, reason=f"no heatmap: {heat}")
                found.append(ExplainedError(replace(case, sentence=case_sentence(case)), None, None))
                continue
            if beside is not None:
                case = replace(case, evidence_comparison=_compared(heat, beside))
            own, others = object_regions(error, image.truth, masks=self.masks)
            where = places(image.truth.image_size_hw, case.box_xyxy, own, others)
            found.append(self._conclude(case, where, heat, verified.get(number), to_canvas, levels))
        return found

    def _followed(self, output: Any, target: BoxTarget, error: DetectionError, truth: GroundTruth) -> TrackedDetection:
        at = None
        if error.type == "localization" and error.truth is not None:
            x1, y1, x2, y2 = truth.boxes_xyxy[error.truth].tolist()
            at = (x1, y1, x2, y2)
        alone = error.type in ("localization", "duplicate")
        return TrackedDetection.start(
            output, target, self.threshold, alone=alone, truth_xyxy=at, iou_threshold=self.iou_threshold
        )

    def _conclude(
        self,
        case: AuditCase,
        where: Mapping[EvidenceLocation, Tensor],
        heat: Tensor,
        verified: VerificationResult | None,
        to_canvas: _ToCanvas,
        levels: Sequence[Tensor],
    ) -> ExplainedError:
        region = to_canvas.back(verified.evidence) if verified is not None else _brightest(heat)
        control = None if verified is None or verified.control is None else to_canvas.back(verified.control)
        held = shares(heat * region, where)  # faint heat beyond the region is no evidence: nothing was tried there
        mostly: EvidenceLocation = max(EVIDENCE_LOCATIONS, key=held.__getitem__)
        peak = int(heat.argmax())
        case = replace(
            case,
            method=self.cam.name,
            evidence_shares=held,
            evidence_location=mostly,
            evidence_fraction=float(region.float().mean()),
            peak_xy=(peak % heat.shape[1], peak // heat.shape[1]),
        )
        if verified is not None:
            case = replace(
                case,
                trials=verified.trials,
                verdict=verified.verdict,
                reason=verified.reason,
                minimal_region_fraction=verified.minimal_region_fraction,
                forward_passes=case.forward_passes + verified.passes,
            )
        case = replace(case, sentence=case_sentence(case))
        maps = CaseMaps(
            (heat.clamp(0, 1) * 255).round().to(torch.uint8).numpy(),
            region.numpy(),
            None if control is None else control.numpy(),
        )
        weight = to_canvas(heat * region)
        return ExplainedError(case, maps, _pooled(levels, weight, to_canvas))


class _ToCanvas:
    """Between an image's own pixels and its place on the network's input."""

    def __init__(self, geometry: Geometry, verifier: Verifier) -> None:
        self.geometry = geometry
        self.rows, self.columns = verifier.canvas.rows, verifier.canvas.columns
        self.size_hw = geometry.input_size_hw

    def __call__(self, image: Tensor) -> Tensor:
        """A map (H, W) of the image, on its place (h, w) on the input."""
        return self.geometry.from_image(image[None].float(), self.size_hw)[0, self.rows, self.columns]

    def back(self, region: Tensor) -> Tensor:
        """A region (h, w) bool on that place as one of the image (H, W)."""
        whole = torch.zeros((1, *self.size_hw))
        whole[0, self.rows, self.columns] = region.float()
        return self.geometry.to_image(whole)[0] > 0.5

    def on_level(self, weight: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """A map (h, w) on that place as weights (h', w') of a layer's cells."""
        whole = torch.zeros((1, 1, *self.size_hw))
        whole[0, 0, self.rows, self.columns] = weight
        return torch.nn.functional.adaptive_avg_pool2d(whole, size_hw)[0, 0]


class _Passes:
    """Counts how many images pass through a layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.images = 0

    def __enter__(self) -> _Passes:
        self._handle = self.layer.register_forward_hook(self._ran)
        return self

    def _ran(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = flatten_tensors(output)[0]
        self.images += len(first)

    def __exit__(self, *exc_info: object) -> None:
        self._handle.remove()


def _targets(question: ErrorQuestion) -> list[Target]:
    """What is explained for a question: its own targets, then the one that it is compared with."""
    return [*question.targets, *([] if question.beside is None else [question.beside])]


def _joined(
    questions: Sequence[ErrorQuestion], maps: Sequence[Tensor | RuntimeError]
) -> tuple[list[Tensor | RuntimeError], list[Tensor | None]]:
    """One map per question, the mean of its own, and the map that it is compared with."""
    heats: list[Tensor | RuntimeError] = []
    besides: list[Tensor | None] = []
    start = 0
    for question in questions:
        own = maps[start : start + len(question.targets)]
        start += len(question.targets)
        good = [each for each in own if isinstance(each, Tensor)]
        failed = [each for each in own if isinstance(each, RuntimeError)]
        heat = torch.stack(good).mean(0) if good else failed[0]
        if isinstance(heat, Tensor) and not bool(heat.amax() > 0):
            heat = RuntimeError("nothing in the image speaks for it, the map is zero everywhere")
        heats.append(heat)
        beside = None
        if question.beside is not None:
            other = maps[start]
            beside = other if isinstance(other, Tensor) else None
            start += 1
        besides.append(beside)
    return heats, besides


def _compared(heat: Tensor, beside: Tensor) -> str:
    """Whether two maps rest on the same evidence, in words."""
    both = torch.corrcoef(torch.stack([heat.flatten().double(), beside.flatten().double()]))
    alike = float(both[0, 1]) if bool(torch.isfinite(both[0, 1])) else 0.0
    words = "the same evidence as" if alike >= SAME_EVIDENCE else "other evidence than"
    return f"{words} the first detection (correlation {alike:.2f})"


def object_regions(error: DetectionError, truth: GroundTruth, *, masks: bool) -> tuple[Tensor | None, Tensor]:
    """The pixels (H, W) bool of the true object that an error is about, and of the others of the predicted class."""
    others = torch.zeros(truth.image_size_hw, dtype=torch.bool)
    for index, label in enumerate(truth.labels.tolist()):
        if label == error.label and index != error.truth:
            others |= _object_region(truth, index, masks)
    return None if error.truth is None else _object_region(truth, error.truth, masks), others


def _object_region(truth: GroundTruth, index: int, masks: bool) -> Tensor:
    """The pixels (H, W) bool of a true object's mask, or of its box."""
    return truth.mask(index) if masks else box_region(true_box(truth, index), truth.image_size_hw)


def _brightest(heat: Tensor) -> Tensor:
    """The region of a map above half of its maximum."""
    return heat >= 0.5 * heat.amax().clamp(min=1e-12)


def _pooled(levels: Sequence[Tensor], weight: Tensor, to_canvas: _ToCanvas) -> np.ndarray | None:
    """The features (D,) of an image's levels (C, h, w), each averaged with weights and scaled to length 1."""
    parts = []
    for level in levels:
        cells = to_canvas.on_level(weight, (level.shape[-2], level.shape[-1])).to(level.device)
        total = float(cells.sum())
        if total > 0:
            pooled = (level.float() * cells).sum((1, 2)) / total
            parts.append(pooled / pooled.norm().clamp(min=1e-12))
        else:
            parts.append(torch.zeros(len(level), device=level.device))
    return torch.cat(parts).cpu().numpy().astype(np.float32) if parts else None
