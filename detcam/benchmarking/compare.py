"""`detcam.benchmark`: compares methods on images, with controls."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from detcam import diagnostics
from detcam.adapters import Adapter, adapt
from detcam.adapters.base import ModelLike
from detcam.benchmarking.conclusions import join_names, make_notes
from detcam.benchmarking.controls import reference_controls
from detcam.benchmarking.plots import FigureImage
from detcam.benchmarking.result import BENCHMARK_SCHEMA, BENCHMARK_VERSION, Benchmark
from detcam.benchmarking.result_store import ResultStore, model_digest
from detcam.benchmarking.row_specs import MAX_NAMES, earlier_rows, row_specs
from detcam.benchmarking.runner import BenchmarkState, MeasurementWork, collect_method_results, measure_images
from detcam.benchmarking.samples import collect_samples
from detcam.benchmarking.specs import MethodSpec, describe_settings, make_metric_specs
from detcam.benchmarking.statistics import DEFAULT_RESAMPLES, MethodResult, make_rows
from detcam.benchmarking.tables import sort_rows
from detcam.data.annotations import Annotations
from detcam.data.images import ImageLike
from detcam.detections import LabelsLike, label_indices
from detcam.explanation.explain import DEFAULT_SCORE_THRESHOLD, MethodLike
from detcam.layers import LayersLike
from detcam.metrics import Metric
from detcam.runs import RUN_FOLDER, EngineLike, Run, lock_folder, make_engine
from detcam.targets.registry import TARGETS, BuiltinQuantity
from detcam.utils.batching import check_count
from detcam.utils.console import plural
from detcam.utils.device import on_device
from detcam.utils.files import is_folder, with_home

DEFAULT_TOP_K = {"detection": 3, "segmentation": 3, "classification": 1, "embedding": 1}
"""Explained predictions per image, by task."""
DEFAULT_METRICS = ("insertion", "deletion")
DEFAULT_FIGURE_IMAGES = 4
MAX_ERRORS_PER_METHOD = 3
"""Errors of a method that are repeated in the notes."""


def benchmark(
    model: ModelLike,
    images: ImageLike | Sequence[ImageLike] | None = None,
    methods: Iterable[MethodLike] | Mapping[str, MethodLike] | None = None,
    metrics: Iterable[str | Metric] | None = None,
    annotations: str | Path | Annotations | None = None,
    out: str | Path | None = None,
    *,
    controls: bool = True,
    score_threshold: float | None = None,
    top_k: int | None = None,
    labels: LabelsLike | None = None,
    quantity: str = "score",
    class_map: Mapping[str | int, str | int] | None = None,
    box_format: str | None = None,
    target_layers: LayersLike = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    limit: int | None = None,
    figure_images: int = DEFAULT_FIGURE_IMAGES,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    model_name: str | None = None,
    engine: EngineLike = "local",
    progress: bool = False,
    **adapter_options: Any,
) -> Benchmark:
    """Compare methods on the predictions of a model.

    All methods explain the same predictions. A score is the mean over images of the mean over an image's predictions;
    intervals and differences come from a bootstrap over images. Controls that do not depend on the network are rows of
    the table as well.

    With `out`, each result is written as soon as it is computed. A second run with the same settings resumes an
    interrupted one, and may add methods and images: the table keeps the rows of methods that the run does not name,
    and they are measured on the new images too. An image that cannot be read or explained is reported in
    `Benchmark.failed` and does not stop the run.

    Args:
        model: a detector, segmentation network or classifier of a supported family, or an adapter.
        images: a folder, a file, a pattern, an image, or a list of them; None takes the annotated images.
        methods: names with settings (``"drise:passes=1000"``), classes, or a mapping from custom names to those or to
            functions from an adapter to a method; None takes a few that suit the model.
        metrics: names with settings (``"insertion:steps=10"``) or metrics; None takes insertion and deletion. The
            first one orders the rows.
        annotations: COCO JSON file or loaded annotations, for metrics that need ground truth; images without an entry
            are excluded. File names in it are relative to `images`, which has to be a folder.
        out: folder of results and figures; None keeps everything in memory.
        controls: whether to add controls.
        score_threshold: smallest score in [0, 1]; None takes 0.3 for boxes and no threshold otherwise.
        top_k: maximum number of predictions per image, best first; None takes three boxes or regions, or one class.
        labels: class names or indices to explain, one or several.
        quantity: quantity of a prediction to explain, as in `detcam.explain`: ``score``, ``logit``, ``x1``,
            ..., or a name given to `detcam.targets.register_target`.
        class_map: mapping from annotated categories to the model's classes, if names differ.
        box_format: format of the annotated boxes, as in `detcam.data.annotations.Annotations.load`.
        target_layers: modules or dotted names, for all methods that use layers; None takes the defaults.
        batch_size: images per forward pass of every method; None keeps each method's own.
        device: where the model runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"``, which is CUDA if
            available; the model is moved back afterwards. None leaves the model where it is.
        limit: maximum number of images, the first ones; None takes all.
        figure_images: number of images whose heatmaps are drawn in maps.png.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap and of the controls.
        model_name: name of the model in the results; None takes its class name.
        engine: where the methods are measured, as in `detcam.audit`; workers that share a machine disturb each other's
            times.
        progress: whether to show a progress bar on stderr.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `names` and `image_size`.

    Returns:
        The rows of the table, with notes and figures.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is invalid, `out` contains results of other settings or of images that are not given, or
            no image could be explained.

    Example:
        >>> import detcam, torch, torchvision
        >>> model = torchvision.models.resnet18(weights=None).eval()
        >>> images = [torch.rand(3, 64, 64) for _ in range(2)]
        >>> results = detcam.benchmark(model, images, ["gradcam", "layercam"], ["sparseness"], controls=False)
        >>> results.title
        'ResNet: 2 predictions in 2 images'
        >>> sorted(row.name for row in results)
        ['gradcam', 'layercam']
    """
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    counts = {"top_k": top_k, "batch_size": batch_size, "limit": limit, "resamples": resamples}
    for name, value in counts.items():
        if value is not None:
            check_count(value, name)
    truth, truth_notes = _load_annotations(adapter, images, annotations, class_map, box_format)
    samples, sample_notes = collect_samples(images, truth)
    metric_specs = make_metric_specs(
        DEFAULT_METRICS if metrics is None else metrics, adapter.task, has_annotations=truth is not None
    )
    selection = {
        "top_k": DEFAULT_TOP_K[adapter.task] if top_k is None else top_k,
        "score_threshold": score_threshold,
        "labels": None if labels is None else label_indices(adapter.names, labels),
        "quantity": quantity,
    }
    function = TARGETS.find(quantity)
    settings = {
        "schema": BENCHMARK_SCHEMA,
        "version": BENCHMARK_VERSION,
        "model": model_digest(adapter),
        "target_layers": adapter.layer_names,
        "metrics": [spec.definition for spec in metric_specs],
        "annotations": None if truth is None else hashlib.sha256(truth.path.read_bytes()).hexdigest()[:16],
        "class_map": None if class_map is None else {str(key): value for key, value in class_map.items()},
        "seed": seed,
        **selection,
        "quantity": quantity if isinstance(function, BuiltinQuantity) else f"{quantity} {describe_settings(function)}",
    }
    engine = make_engine(engine)
    with ExitStack() as stack:
        stack.enter_context(on_device(adapter.model, device))
        method_specs = row_specs(adapter, methods, controls, batch_size, seed)
        folder = stack.enter_context(lock_folder(out))
        stack.enter_context(engine.started())
        store = ResultStore(folder, settings)
        names = [sample.name for sample in samples[:limit]]
        earlier = earlier_rows(store, method_specs, names, adapter, batch_size, seed)
        method_specs += earlier
        shutil.rmtree(folder / RUN_FOLDER, ignore_errors=True)  # the store has what an interrupted run measured
        run = Run(folder, "benchmark", settings, resume=False)
        work = MeasurementWork(adapter, method_specs, metric_specs, store, figure_images, selection)
        state = measure_images(work, samples[:limit], run, engine, progress=progress)
        figures = _make_figure_images(adapter, state, method_specs, store, figure_images)
        run.remove()
    if not state.images:
        raise ValueError(_describe_empty_run(state))

    signs = {spec.name: spec.sign for spec in metric_specs}
    method_results = collect_method_results(state, method_specs, metric_specs)
    rows = make_rows(method_results, signs, resamples=resamples, seed=seed)
    references = reference_controls(adapter.task)
    targets = sum(len(record["targets"]) for _, _, record in state.images)
    annotated = sum(record["annotated"] for _, _, record in state.images)
    unannotated = {spec.name: targets - annotated for spec in metric_specs if "truth" in spec.metric.needs}
    notes = make_notes(method_results, rows, signs, references, unannotated=unannotated, resamples=resamples, seed=seed)
    if earlier:
        notes.append(f"Rows of earlier runs in this folder: {join_names([spec.name for spec in earlier])}.")
    notes += _run_notes(state, method_results, adapter.task, score_threshold)
    results = Benchmark(
        rows=tuple(sort_rows(rows, metric_specs[0].name, metric_specs[0].sign)),
        signs=signs,
        notes=(*notes, *truth_notes, *sample_notes),
        model=model_name or type(adapter.model).__name__,
        reference=references[0],
        images=len(state.images),
        targets=targets,
        images_without_predictions=tuple(state.images_without_predictions),
        failed=dict(state.failed),
        figure_images=figures,
        computed=state.computed,
    )
    if out is not None:
        store.write_table({spec.name: spec.definition for spec in method_specs}, names)
        results.save(out)
    return results


def _load_annotations(
    adapter: Adapter,
    images: ImageLike | Sequence[ImageLike] | None,
    annotations: str | Path | Annotations | None,
    class_map: Mapping[str | int, str | int] | None,
    box_format: str | None,
) -> tuple[Annotations | None, list[str]]:
    """Load the annotations in the model's class indices, with notes about their issues."""
    if annotations is None:
        return None, []
    if not isinstance(annotations, Annotations):
        folder = with_home(annotations).parent if images is None else images
        if not isinstance(folder, (str, Path)) or not is_folder(with_home(folder)):
            got = folder if isinstance(folder, (str, Path)) else type(folder).__name__
            raise ValueError(
                "expected images as the folder that contains the annotated files; got "
                f"{got}. For anything else load the annotations: Annotations.load(path, folder)"
            )
        annotations = Annotations.load(annotations, folder, box_format=box_format)
    annotations = annotations.for_classes(adapter.names, class_map, first_label=adapter.first_label)
    if not annotations.issues:
        return annotations, []
    return annotations, [f"{annotations.path.name}: {' '.join(annotations.issues.summary().split())}"]


def _describe_empty_run(state: BenchmarkState) -> str:
    example = "".join(f"; {name}: {error}" for name, error in list(state.failed.items())[:1])
    return (
        f"no image could be explained: {len(state.images_without_predictions)} without predictions, "
        f"{len(state.failed)} failed{example}"
    )


def _run_notes(
    state: BenchmarkState, method_results: Sequence[MethodResult], task: str, score_threshold: float | None
) -> list[str]:
    """Describe errors, warnings and excluded images."""
    notes = []
    for result in method_results:
        errors = list(result.errors.items())[:MAX_ERRORS_PER_METHOD]
        notes += [f"{result.name}, {image}: {error}" for image, error in errors]
    for warning in sorted({warning for result in method_results for warning in result.warnings}):
        names = [result.name for result in method_results if result.kind == "method" and warning in result.warnings]
        meaning = getattr(getattr(diagnostics, warning, None), "__doc__", None) or ""
        reason = f": {meaning[0].lower()}{meaning[1:].rstrip('.')}" if meaning else ""
        notes += [f"{warning} from {join_names(names)}{reason}."] if names else []
    empty = state.images_without_predictions
    if empty:
        threshold = DEFAULT_SCORE_THRESHOLD if score_threshold is None else score_threshold
        condition = f" with a score of at least {threshold:g}" if task == "detection" else ""
        more = f" and {len(empty) - MAX_NAMES} more" if len(empty) > MAX_NAMES else ""
        names_text = ", ".join(empty[:MAX_NAMES]) + more
        notes.append(f"{plural(len(empty), 'image')} without predictions{condition} excluded: {names_text}.")
    return notes + [f"failed: {name}: {error}" for name, error in state.failed.items()]


def _make_figure_images(
    adapter: Adapter, state: BenchmarkState, method_specs: Sequence[MethodSpec], store: ResultStore, count: int
) -> tuple[FigureImage, ...]:
    figure_images = []
    for key, sample, record in state.images[:count]:
        heatmaps = {spec.name: store.get_heatmap(key, spec.name) for spec in method_specs}
        figure_images.append(
            FigureImage(
                name=sample.name,
                image=adapter.display(adapter.reader.read(sample.source)),
                caption=record["targets"][0],
                box_xyxy=None if record["box_xyxy"] is None else tuple(record["box_xyxy"]),
                heatmaps={name: heatmap for name, heatmap in heatmaps.items() if heatmap is not None},
            )
        )
    return tuple(figure_images)
