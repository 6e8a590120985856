"""The false-positive audit from end to end: find, match, explain, verify, group, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from detcam.adapters import Adapter, adapt
from detcam.auditing.analysis import ErrorAnalysis, analyze_errors
from detcam.auditing.background_type import BackgroundClassifier
from detcam.auditing.case import AuditCase, ErrorGroup, GroundTruthObject
from detcam.auditing.clustering import group_cases
from detcam.auditing.errors import DetectionError
from detcam.auditing.explainer import ErrorExplainer, ExplainedError
from detcam.auditing.matching import IouType
from detcam.auditing.report import ReportSummary, ReportWriter
from detcam.auditing.run_state import AuditState
from detcam.auditing.sentences import case_sentence
from detcam.auditing.stages import AuditStages
from detcam.auditing.validation import judged, truth_digest
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssues
from detcam.data.rle import UnpackedDetections
from detcam.detections import Detections, class_name
from detcam.explanation.explain import Method, make_cam
from detcam.utils.hashing import adapter_digest, weights_digest

METHOD = "probecam"
"""What explains errors unless the user says otherwise: its peaks lie on certified causes outside the box."""


@dataclass(frozen=True)
class Settings:
    """What an audit was asked for.

    Attributes:
        score_threshold: least score of a detection that matters to the user, in [0, 1]; errors at or above it are
            explained, and an error is gone when its score falls below it. Average precision counts all detections.
        explain: so many false positives are explained and verified, the highest scores first.
        explain_missed: so many missed objects are explained, the largest first.
        iou_threshold: least overlap of a right detection, in (0, 1].
        background_threshold: greatest overlap of a detection of nothing.
        iou_type: ``"bbox"`` or ``"segm"``.
    """

    score_threshold: float = 0.3
    explain: int = 200
    explain_missed: int = 50
    iou_threshold: float = 0.5
    background_threshold: float = 0.1
    iou_type: IouType = "bbox"

    def __post_init__(self) -> None:
        if not 0 < self.score_threshold < 1:
            raise ValueError(f"expected score_threshold between 0 and 1; got {self.score_threshold}")
        if not 0 < self.background_threshold < self.iou_threshold <= 1:
            raise ValueError(
                "expected 0 < background_threshold < iou_threshold <= 1; got "
                f"{self.background_threshold} and {self.iou_threshold}"
            )
        if self.iou_type not in ("bbox", "segm"):
            raise ValueError(f'expected iou_type "bbox" or "segm"; got {self.iou_type!r}')
        if self.explain < 0 or self.explain_missed < 0:
            raise ValueError(
                f"expected explain and explain_missed of at least 0; got {self.explain} and {self.explain_missed}"
            )


@dataclass(frozen=True, repr=False)
class Audit:
    """What an audit found; printed, it tells the essentials.

    Attributes:
        analysis: every error, named, counted and priced.
        cases: the same errors in the same order, explained where they were to be.
        groups: explained errors that share a cause, the costliest first.
        issues: what was wrong with the data, and what was left out because of it.
        report: the report's ``index.html``, or None where no folder was given.
        seconds: how long it took.
        timings: seconds of that spent ``detecting``, ``matching``, ``explaining``, ``comparing``, ``writing`` and
            ``grouping``; what an earlier, interrupted run did is in none of them.
    """

    analysis: ErrorAnalysis
    cases: tuple[AuditCase, ...]
    groups: tuple[ErrorGroup, ...]
    issues: DataIssues
    report: Path | None
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Audit({len(self.cases)} errors, {len(self.explained)} explained, {len(self.confirmed)} confirmed, "
            f"{len(self.groups)} groups, AP {self.analysis.average_precision:.3f}, report={str(self.report)!r})"
        )

    @property
    def explained(self) -> list[AuditCase]:
        """The cases that have a heatmap."""
        return [case for case in self.cases if case.method]

    @property
    def confirmed(self) -> list[AuditCase]:
        """The cases whose evidence is the cause."""
        return [case for case in self.cases if case.verdict == "confirmed"]


def audit(
    model: Adapter | nn.Module | Any,
    images: str | Path,
    annotations: str | Path | Annotations,
    *,
    out: str | Path | None = None,
    score_threshold: float = 0.3,
    explain: int = 200,
    explain_missed: int = 50,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    iou_type: IouType = "bbox",
    class_map: Mapping[str | int, str | int] | None = None,
    method: Method = METHOD,
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    batch_size: int = 4,
    resume: bool = False,
    progress: bool = False,
    model_name: str | None = None,
    **adapter_options: Any,
) -> Audit:
    """Why did it fire there? What a detector gets wrong on annotated images, and what each mistake rests on.

    Detections are matched by COCO's rules and errors named as TIDE does; the false positives with the highest scores
    and the largest missed objects are explained; each explanation is verified by taking its evidence away; errors
    that share a cause are grouped by what they cost.

    Args:
        model: a detector of a supported family, or an adapter.
        images: the folder that the annotations' file names start from.
        annotations: a COCO JSON file, or what was read from one.
        out: the report's folder; None makes no report.
        score_threshold: the least score that matters to you; see `Settings`.
        explain: so many false positives are explained, the highest scores first.
        explain_missed: so many missed objects are explained, the largest first.
        iou_threshold: least overlap of a right detection.
        background_threshold: greatest overlap of a detection of nothing.
        iou_type: ``"bbox"``, or ``"segm"`` to match masks.
        class_map: category name (or id) to the model's class name (or index), where they differ.
        method: as in `detcam.explain`.
        target_layers: as in `detcam.explain`; None takes the method's own choice.
        batch_size: images per forward pass.
        resume: go on with an interrupted audit in `out`.
        progress: whether to show progress bars on stderr.
        model_name: what the report calls the model.
        **adapter_options: further arguments of `detcam.adapters.adapt`.

    Raises:
        TypeError: the model is no detector.
        ValueError: an argument, the annotations or the folder are not as expected.
    """
    start = time.perf_counter()
    settings = Settings(score_threshold, explain, explain_missed, iou_threshold, background_threshold, iou_type)
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    if adapter.task != "detection":
        raise TypeError(f"an audit is of a detector; {type(adapter.model).__name__} does {adapter.task}")
    truth = annotations if isinstance(annotations, Annotations) else Annotations.load(annotations, images)
    truth = judged(adapter, truth, class_map)
    name = model_name or type(adapter.model).__name__
    cam = make_cam(adapter, method)
    asked = {
        **vars(settings),
        "method": cam.name,
        "layers": list(adapter.layer_names),
        "model": name,
        "annotations": truth.path.name,
        "images": len(truth),
        "truth": truth_digest(truth),
        "weights": weights_digest(adapter.model),
        "adapter_options": adapter_digest(adapter),
    }
    work = AuditStages(adapter, iou_type == "segm", progress, batch_size)
    if out is not None:
        work.store = AuditState(Path(out), asked, resume=resume)
        work.writer = ReportWriter(Path(out))
    elif resume:
        raise ValueError("resume goes on with the audit in a folder; say which with out=")
    with work.timed("detecting"):
        truth, packed = work.detect(truth)
    found = [one.found for one in packed]
    with work.timed("matching"):
        analysis = analyze_errors(
            UnpackedDetections(packed) if iou_type == "segm" else found,
            truth,
            iou_threshold=iou_threshold,
            background_threshold=background_threshold,
            iou_type=iou_type,
            labels=truth.labels,
        )
    plain = [plain_case(analysis, position, found, truth) for position in range(len(analysis))]
    chosen = _choose(analysis, truth, settings)
    examiner = ErrorExplainer(
        adapter, cam, truth.names, score_threshold, masks=iou_type == "segm", iou_threshold=iou_threshold
    )
    with work.timed("explaining"):
        examined = work.explain(examiner, analysis, found, truth, plain, chosen)
    with work.timed("comparing"):
        background_types = BackgroundClassifier(adapter, analysis, found, truth, score_threshold, batch_size)
        examined = _with_background_types(background_types, plain, examined)
    with work.timed("grouping"):
        cases, groups = _grouped(analysis, plain, examined)
    seconds = time.perf_counter() - start
    report = None
    if work.writer is not None:
        summary = ReportSummary.from_analysis(
            analysis,
            truth,
            model=name,
            adapter=adapter.family,
            iou_threshold=iou_threshold,
            cases=cases,
            groups=groups,
            settings=asked,
            issues=DataIssues(()),
            seconds=seconds,
        )
        with work.timed("writing"):
            report = work.writer.finish(summary)
    return Audit(analysis, tuple(cases), tuple(groups), truth.issues, report, seconds, dict(work.timings))


def _choose(analysis: ErrorAnalysis, truth: Annotations, settings: Settings) -> list[int]:
    """Positions of the errors that are explained."""
    wrong = [
        (-(case.score or 0.0), position)
        for position, case in enumerate(analysis)
        if case.is_false_positive and (case.score or 0.0) >= settings.score_threshold
    ]
    missed = [
        (-float(truth[case.image].area[case.truth]), position)
        for position, case in enumerate(analysis)
        if case.detection is None and case.truth is not None
    ]
    return [position for _, position in sorted(wrong)[: settings.explain]] + [
        position for _, position in sorted(missed)[: settings.explain_missed]
    ]


def plain_case(
    analysis: ErrorAnalysis, position: int, found: Sequence[Detections], truth: Sequence[GroundTruth] | Annotations
) -> AuditCase:
    """An error as a case, not yet explained."""
    error: DetectionError = analysis[position]
    image, own = truth[error.image], found[error.image]
    at = error.truth
    if error.detection is not None:
        box, what = own.boxes_xyxy[error.detection].tolist(), f"detection-{error.detection}"
    else:
        box, what = image.boxes_xyxy[at].tolist(), f"missed-{at}"
    concerned = None
    if at is not None:
        x1, y1, x2, y2 = image.boxes_xyxy[at].tolist()
        overlap = max(error.iou_same_class, error.iou_other_class)
        if error.detection is not None:
            overlap = float(analysis.matches[error.image].iou[error.detection, at])
        label = int(image.labels[at])
        identity = int(image.ids[at])
        concerned = GroundTruthObject((x1, y1, x2, y2), label, class_name(analysis.names, label), overlap, identity)
    case = AuditCase(
        id=f"image-{error.image_id}-{what}",
        image_id=error.image_id,
        file_name=image.file_name,
        image_size_hw=image.image_size_hw,
        type=error.type,
        label=error.label,
        name=class_name(analysis.names, error.label),
        score=error.score or 0.0,
        box_xyxy=(box[0], box[1], box[2], box[3]),
        is_false_positive=error.is_false_positive,
        ground_truth=concerned,
        delta_ap=float(analysis.delta_ap_by_case[position]),
    )
    return replace(case, sentence=case_sentence(case))


def _with_background_types(
    background_types: BackgroundClassifier, plain: Sequence[AuditCase], examined: Mapping[str, ExplainedError]
) -> dict[str, ExplainedError]:
    """The explained errors, those of nothing with what they are."""
    explained = {at: examined[case.id].case for at, case in enumerate(plain) if case.id in examined}
    changed = dict(examined)
    for at, (background_type, value) in background_types.tell(explained).items():
        case = replace(explained[at], background_type=background_type, typicality=value)
        changed[case.id] = replace(changed[case.id], case=replace(case, sentence=case_sentence(case)))
    return changed


def _grouped(
    analysis: ErrorAnalysis, plain: Sequence[AuditCase], examined: Mapping[str, ExplainedError]
) -> tuple[list[AuditCase], list[ErrorGroup]]:
    """All cases, the explained ones with the number of their group; and the groups."""
    cases = [examined[case.id].case if case.id in examined else case for case in plain]
    positions = [position for position, case in enumerate(cases) if case.method]  # without a map there is no cause
    explained = [examined[plain[position].id] for position in positions]
    groups = group_cases(
        [one.case for one in explained],
        [one.features for one in explained],
        lambda members: analysis.delta_ap_without([positions[member] for member in members]),
    )
    for group, members in groups:
        for member in members:
            cases[positions[member]] = replace(explained[member].case, group=group.number)
    return cases, [group for group, _ in groups]
