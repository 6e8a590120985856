"""The audit of a detector: detection, matching, explanation, verification, grouping, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detcam.adapters import adapt
from detcam.adapters.base import ModelLike
from detcam.auditing.analysis import ErrorAnalysis, analyze_errors
from detcam.auditing.background_type import BackgroundClassifier
from detcam.auditing.case_table import CaseTable
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.explainer import ErrorExplainer
from detcam.auditing.grouping.assignment import MIN_EXPLAINED
from detcam.auditing.grouping.grouped_errors import GroupedErrors, group_errors
from detcam.auditing.matching import IouType
from detcam.auditing.report import ReportSummary, ReportWriter
from detcam.auditing.report.evaluation import Evaluation
from detcam.auditing.result import Audit
from detcam.auditing.run_state import check_audit_folder
from detcam.auditing.selection import ExplainOrder, choose_errors, relevant_errors
from detcam.auditing.sentences import case_sentence, without_annotations
from detcam.auditing.settings import AuditSettings, recorded_settings
from detcam.auditing.stages import AuditStages
from detcam.auditing.triage import TrustEstimator, unlabeled_images
from detcam.auditing.validation import prepare_annotations
from detcam.auditing.verification.donors import choose_donors
from detcam.auditing.verification.proposals import PORTFOLIO
from detcam.cam import BaseCAM
from detcam.data.annotations import Annotations
from detcam.data.issues import DataIssues
from detcam.detections import LabelsLike, label_indices
from detcam.explanation.explain import DEFAULT_SCORE_THRESHOLD, MethodLike, make_cam
from detcam.layers import LayersLike
from detcam.runs import EngineLike, Run, lock_folder, make_engine
from detcam.targets.registry import TARGETS
from detcam.utils.batching import check_count
from detcam.utils.device import on_device

DEFAULT_BATCH_SIZE = 4
"""Images per forward pass."""
MAX_IMAGES_TOGETHER = 16
"""Number of images that are explained together by default, so that their perturbed images fill the passes: a YOLO11n
takes a fifth less time a case than with 4."""
DEFAULT_METHOD = PORTFOLIO
"""Default: several maps propose evidence, and the smallest region that verification confirms is the cause."""


def audit(
    model: ModelLike,
    images: str | Path | Sequence[str | Path],
    annotations: str | Path | Annotations | None = None,
    *,
    out: str | Path | None = None,
    score_threshold: float | None = None,
    explain: int = 200,
    explain_missed: int = 50,
    explain_order: ExplainOrder = "score",
    sample_seed: int = 0,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    iou_type: IouType = "bbox",
    labels: LabelsLike | None = None,
    quantity: str = "score",
    class_map: Mapping[str | int, str | int] | None = None,
    box_format: str | None = None,
    method: MethodLike = DEFAULT_METHOD,
    target_layers: LayersLike = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    engine: EngineLike = "local",
    progress: bool = False,
    model_name: str | None = None,
    **adapter_options: Any,
) -> Audit:
    """Find the errors of a detector on annotated images, explain them, and verify the explanations.

    Detections are matched with annotations by COCO's rules, and errors are classified as in TIDE. The false positives
    with the highest scores and the largest missed objects are explained. Each explanation is verified by removing its
    evidence from the image, and control regions of the same size: a wrong detection has to vanish, and a missed object
    to appear. Errors with similar evidence are grouped and ranked by their cost in average precision.

    Args:
        model: a detector of a supported family, or an adapter.
        images: folder that the annotations' file names are relative to; without annotations, a folder of images or a
            list of files.
        annotations: path of a COCO JSON file, or annotations loaded from one. None explains and verifies the detections
            themselves, and ranks them by how little trust they deserve: see `detcam.auditing.triage`.
        out: folder of the report; None writes no report.
        score_threshold: minimum score of a relevant detection, in (0, 1); None takes 0.3. See `AuditSettings`.
        explain: maximum number of false positives to explain.
        explain_missed: maximum number of missed objects to explain.
        explain_order: ``"score"`` explains the false positives with the highest scores and the largest missed objects;
            ``"random"`` explains random samples, from which the shares of the causes among all errors are estimated:
            see `Audit.inventory`.
        sample_seed: seed of the random samples.
        iou_threshold: minimum IoU of a true positive, in (0, 1].
        background_threshold: maximum IoU of a background error.
        iou_type: ``"bbox"``, or ``"segm"`` to match masks; then a localization error is one of the mask, which is what
            is explained and verified.
        labels: class names or indices whose errors are explained; None explains all classes. Errors of all classes are
            counted.
        quantity: the quantity to explain of background errors, duplicates and missed objects: ``"score"``, ``"logit"``,
            or another one of `detcam.explain`. Verification always uses the score.
        class_map: category name (or id) to the model's class name (or index), where they differ.
        box_format: format of the annotated boxes, as in `detcam.data.annotations.Annotations.load`.
        method: ``"portfolio"``, which proposes evidence with gradients at several depths, with the removal of single
            regions and, where they are not confirmed, with coarse-to-fine removal; or a heatmap method, as in
            `detcam.explain`.
        target_layers: modules or dotted names; None takes the method's default.
        batch_size: images per forward pass; None takes 4, and explains up to 16 images together.
        device: where the model runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"``, which is CUDA if
            available; the model is moved back afterwards. None leaves the model where it is.
        resume: whether to resume an interrupted audit in `out`; a finished one with the same settings runs again.
        engine: where detection and explanation run: ``"local"``, in this process; ``"ray"``, on processes of this
            machine; or `detcam.runs.RayEngine` with settings, also on a cluster. Results are equal.
        progress: whether to show progress bars on stderr.
        model_name: name of the model in the report; None takes its class name.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `names` and `image_size`.

    Returns:
        The errors, their explanations and groups, and the path of the report.

    Raises:
        TypeError: the model is not a detector.
        ValueError: an argument, the annotations or the folder are invalid.
        RuntimeError: the model fails on every image, or another run works in the folder.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> import torch, detcam
        >>> from PIL import Image
        >>> from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64)).save(folder / "a.png")
        >>> coco = {
        ...     "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0}
        ...     ],
        ... }
        >>> _ = (folder / "labels.json").write_text(json.dumps(coco))
        >>> model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=2).eval()
        >>> found = detcam.audit(
        ...     model, folder, folder / "labels.json", names=["background", "cat"], explain=0, explain_missed=0
        ... )
        >>> found.analysis.classes[1].objects
        1
    """
    start = time.perf_counter()
    score_threshold = DEFAULT_SCORE_THRESHOLD if score_threshold is None else score_threshold
    TARGETS.find(quantity)
    settings = AuditSettings(score_threshold, explain, explain_missed, iou_threshold, background_threshold, iou_type)
    settings = replace(settings, quantity=quantity, explain_order=explain_order, sample_seed=sample_seed)
    if batch_size is not None:
        check_count(batch_size)
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    if adapter.task != "detection":
        raise TypeError(f"expected a detector; {type(adapter.model).__name__} is a model for {adapter.task}")
    if labels is not None:
        settings = replace(settings, labels=tuple(sorted(set(label_indices(adapter.names, labels)))))
    is_unlabeled = annotations is None
    if annotations is None:
        annotations = unlabeled_images(adapter, images)
    else:
        if not isinstance(images, (str, Path)):
            raise TypeError(f"expected the folder of the annotated images; got {type(images).__name__}")
        if not isinstance(annotations, Annotations):
            annotations = Annotations.load(annotations, images, box_format=box_format)
        annotations = prepare_annotations(adapter, annotations, class_map)
    name = model_name or type(adapter.model).__name__
    engine = make_engine(engine)
    if out is None and resume:
        raise ValueError("resume=True needs the folder of the interrupted audit: out=")
    with lock_folder(out) as folder, engine.started(), on_device(adapter.model, device):
        cam = None if method == PORTFOLIO else make_cam(adapter, method)
        recorded = recorded_settings(settings, adapter, cam, annotations, name)
        if is_unlabeled:
            recorded["unlabeled"] = True
        images_per_pass = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        recorded_run = {**recorded, "batch_size": images_per_pass}
        check_audit_folder(folder, recorded, resume=resume)
        run = Run(folder, "audit", recorded_run, resume=resume)
        stages = AuditStages(
            adapter,
            run,
            engine,
            iou_type == "segm",
            progress,
            images_per_pass,
            None if out is None else ReportWriter(folder),
            images_together=MAX_IMAGES_TOGETHER if batch_size is None and cam is None else images_per_pass,
        )
        analysis, grouped, annotations = _run(stages, settings, cam, annotations, is_unlabeled)
        seconds = time.perf_counter() - start
        report = None
        if stages.writer is not None:
            summary = ReportSummary.from_analysis(
                analysis,
                annotations,
                model=name,
                adapter=adapter.family,
                iou_threshold=iou_threshold,
                cases=grouped.cases,
                groups=grouped.groups,
                causes=grouped.causes,
                assignment=grouped.assignment,
                inventory=grouped.inventory,
                settings=recorded,
                seconds=seconds,
            )
            with stages.timed("writing"):
                Evaluation.from_analysis(analysis).save(stages.writer.out)
                report = stages.writer.finish(summary)
        run.remove()
    timings, issues = dict(stages.timings), annotations.issues
    return Audit(
        analysis,
        grouped.cases,
        grouped.groups,
        grouped.causes,
        grouped.assignment,
        grouped.inventory,
        issues,
        report,
        seconds,
        timings,
        score_threshold,
        is_unlabeled=is_unlabeled,
    )


def _run(
    stages: AuditStages,
    settings: AuditSettings,
    cam: BaseCAM | None,
    annotations: Annotations,
    is_unlabeled: bool = False,
) -> tuple[ErrorAnalysis, GroupedErrors, Annotations]:
    """Run all stages; the annotations returned lack the images that cannot be read."""
    adapter, masks = stages.adapter, settings.iou_type == "segm"
    with stages.timed("detecting"):
        annotations, detections = stages.detect(annotations)
    with stages.timed("matching"):
        analysis = analyze_errors(
            detections.with_masks() if masks else detections,
            annotations,
            iou_threshold=settings.iou_threshold,
            background_threshold=settings.background_threshold,
            iou_type=settings.iou_type,
            labels=annotations.labels,
        )
        cases = CaseTable.of(analysis, detections, annotations)
    explainer = ErrorExplainer(
        adapter,
        cam,
        annotations.names,
        settings.score_threshold,
        masks=masks,
        iou_threshold=settings.iou_threshold,
        quantity=settings.quantity,
    )
    with stages.timed("explaining"):
        relevant = relevant_errors(analysis.errors, annotations.images, settings.score_threshold, settings.labels)
        limits = settings.explain, settings.explain_missed
        chosen = choose_errors(relevant, limits, settings.explain_order, settings.sample_seed)
        if cam is None:
            labels = {error.label for error in map(analysis.__getitem__, chosen) if error.detection_index is None}
            explainer.donors = choose_donors(
                analysis,
                annotations,
                labels,
                settings.score_threshold,
                lambda index: adapter.reader.read(annotations[index].path, keep_bytes=True),
            )
        by_id = stages.explain(explainer, analysis, detections, annotations, cases.__getitem__, chosen)
        ids = {index: cases[index].id for index in sorted(chosen)}
        explained = {index: by_id[name] for index, name in ids.items() if name in by_id}
    with stages.timed("comparing"):
        counted = sorted({index for indices in (*relevant, chosen) for index in indices})
        if len(chosen) < MIN_EXPLAINED:
            counted = []
        classifier = BackgroundClassifier(
            adapter, analysis, detections, annotations, settings.score_threshold, stages.batch_size, counted
        )
        explained = _classify_background(classifier, explained)
        if is_unlabeled:
            explained = _estimate_trust(classifier, analysis, explained)
        box_features = classifier.box_features(counted)
    with stages.timed("grouping"):
        cases = cases.with_explained({index: each.case for index, each in explained.items()})
        features = {index: each.features for index, each in explained.items()}
        is_random = settings.explain_order == "random"
        grouped = group_errors(analysis, cases, features, relevant, box_features, is_random_sample=is_random)
    annotations = replace(annotations, issues=annotations.issues + DataIssues(stages.failures))
    return analysis, grouped, annotations


def _estimate_trust(
    classifier: BackgroundClassifier, analysis: ErrorAnalysis, explained: Mapping[int, ExplainedError]
) -> dict[int, ExplainedError]:
    """Add trust to the explained detections of an audit without annotations."""
    errors = {index: analysis[index] for index in explained}
    keys = {
        (error.image_index, error.detection_index): index
        for index, error in errors.items()
        if error.detection_index is not None
    }
    rated = TrustEstimator(classifier.adapter, classifier).estimate(
        {key: explained[index].case for key, index in keys.items()}
    )
    result = dict(explained)
    for key, case in rated.items():
        result[keys[key]] = replace(explained[keys[key]], case=replace(case, sentence=without_annotations(case)))
    return result


def _classify_background(
    classifier: BackgroundClassifier, explained: Mapping[int, ExplainedError]
) -> dict[int, ExplainedError]:
    """Add the types of background errors to the explained errors."""
    cases = {index: each.case for index, each in explained.items()}
    classified = dict(explained)
    for index, (background_type, typicality) in classifier.classify(cases).items():
        case = replace(cases[index], background_type=background_type, typicality=typicality)
        classified[index] = replace(classified[index], case=replace(case, sentence=case_sentence(case)))
    return classified
