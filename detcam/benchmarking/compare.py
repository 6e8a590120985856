"""The benchmark from images to rows, and what can be done with the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from detcam.adapters import Adapter, adapt
from detcam.benchmarking import plots, tables
from detcam.benchmarking.conclusions import listed, recommend, verdicts
from detcam.benchmarking.controls import controls_for, references_of
from detcam.benchmarking.result_store import ResultStore, fingerprint
from detcam.benchmarking.runner import BenchmarkState, Runner, outcomes_of
from detcam.benchmarking.samples import find_samples
from detcam.benchmarking.specs import CONTROLS, MethodSpec, MetricSpec, described, read_methods, read_metrics
from detcam.benchmarking.statistics import RESAMPLES, Row, make_rows
from detcam.data.annotations import Annotations
from detcam.data.images import load_image, to_uint8
from detcam.explanation.explain import SCORE_THRESHOLD, Method
from detcam.methods import METHODS
from detcam.metrics import Metric
from detcam.utils.files import replace_file
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import to_png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA, VERSION = "detcam.benchmark", 1
MOST_TARGETS = {"detection": 3, "segmentation": 3, "classification": 1, "embedding": 1}
"""Findings per image that are explained unless the user says otherwise, best first."""
DEFAULT_METHODS = {
    "detection": ("odam", "gradcam", "layercam", "reachcam", "eigencam"),
    "segmentation": ("gradcam", "hirescam", "layercam", "seggradcam", "eigencam"),
    "classification": ("gradcam", "gradcamplusplus", "hirescam", "layercam", "eigencam"),
    "embedding": ("gradcam", "hirescam", "layercam", "eigencam"),
}
DEFAULT_METRICS = ("insertion", "deletion")
SHOWN = 4

Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class Benchmark(Sequence[Row]):
    """What a benchmark found; a sequence of its rows, methods first, best first by the first metric.

    Attributes:
        rows: one per method and control.
        signs: metric to 1 where higher is better, else -1, in the order asked for.
        notes: what the numbers say, in words, and what was left out.
        model: what the model is called.
        reference: the control against which methods are judged in words.
        images: how many were explained.
        targets: how many findings were explained in them.
        empty: images in which the model found nothing.
        failed: image to what was wrong with it.
        shown: the first images, with their maps.
        computed: how many results were computed now; the others were read.
    """

    rows: tuple[Row, ...]
    signs: Mapping[str, int]
    notes: tuple[str, ...]
    model: str
    reference: str
    images: int
    targets: int
    empty: tuple[str, ...]
    failed: Mapping[str, str]
    shown: tuple[plots.Shown, ...] = ()
    computed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def row(self, name: str) -> Row:
        """The row of a method or control.

        Raises:
            ValueError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"expected one of {', '.join(row.name for row in self.rows)}; got {name!r}")

    @property
    def title(self) -> str:
        """The model, and how much of what it found was explained."""
        return f"{self.model}: {self.targets} findings in {_count(self.images, 'image')}"

    def recommend(self, metric: str | None = None) -> tuple[Row, str]:
        """The cheapest of the methods that are as good as the best by a metric (the first one), and why."""
        chosen = self._metric(metric)
        return recommend(self.rows, chosen, self.signs[chosen], self.reference)

    def to_text(self, width: int | None = None) -> str:
        """The table as the terminal shows it, without colours."""
        return tables.terminal_text(self.rows, self.signs, self.title, width)

    def to_markdown(self) -> str:
        """The table, its legend and the notes, in Markdown."""
        notes = "".join(f"* {note}\n" for note in self.notes)
        return f"**{self.title}**\n\n{tables.markdown(self.rows, self.signs)}\n{tables.LEGEND}\n\n{notes}"

    def to_csv(self) -> str:
        """The rows, one a line."""
        return tables.csv_text(self.rows, self.signs)

    def to_json(self) -> str:
        """Rows, notes and counts."""
        more = {
            "schema": SCHEMA,
            "version": VERSION,
            "model": self.model,
            "metrics": {metric: "higher" if sign > 0 else "lower" for metric, sign in self.signs.items()},
            "images": self.images,
            "targets": self.targets,
            "without findings": list(self.empty),
            "failed": dict(self.failed),
            "notes": list(self.notes),
        }
        return tables.json_text(self.rows, self.signs, more)

    def scatter(self, metric: str | None = None) -> Figure:
        """A metric (the first one) against seconds, as a matplotlib figure."""
        chosen = self._metric(metric)
        return plots.scatter(self.rows, chosen, self.signs[chosen])

    def grid(self) -> ImageArray:
        """The maps of the first images, as an HxWx3 uint8 array."""
        return plots.maps_figure(self.shown, [row.name for row in self.rows])

    def save(self, folder: str | Path) -> list[Path]:
        """Write benchmark.csv, .json, .md, scatter.png and maps.png into a folder; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "benchmark.md": self.to_markdown().encode(),
            "benchmark.csv": self.to_csv().encode(),
            "benchmark.json": self.to_json().encode(),
            "scatter.png": plots.png(self.scatter()),
        }
        if self.shown:
            contents["maps.png"] = to_png_bytes(self.grid())
        return [replace_file(folder / name, content) for name, content in contents.items()]

    def _metric(self, metric: str | None) -> str:
        if metric is not None and metric not in self.signs:
            raise ValueError(f"expected one of the metrics {', '.join(self.signs)}; got {metric!r}")
        return metric or next(iter(self.signs))


def benchmark(
    model: Adapter | nn.Module | Any,
    images: Any = None,
    methods: Iterable[str | Method] | Mapping[str, Method] | None = None,
    metrics: Iterable[str | Metric] | None = None,
    annotations: str | Path | Annotations | None = None,
    out: str | Path | None = None,
    *,
    controls: bool = True,
    top_k: int | None = None,
    score_threshold: float | None = None,
    labels: Sequence[int | str] | None = None,
    class_map: Mapping[str | int, str | int] | None = None,
    target_layers: Any = None,
    limit: int | None = None,
    shown: int = SHOWN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    title: str | None = None,
    progress: Callable[[int, Sequence[MethodSpec]], Progress] | None = None,
    **adapter_options: Any,
) -> Benchmark:
    """Compare methods on what a model finds in images.

    Every method explains the same findings. Means are over images, of means over an image's findings; intervals and
    differences come from a bootstrap over images. Controls that know nothing of the network are rows too.

    With `out`, each result is kept as it is found, and a second run with the same settings goes on where the first one
    stopped; methods and images may be added to it. An image that cannot be read, or on which everything fails, costs
    that image alone; `Benchmark.failed` names it.

    Args:
        model: a detector, segmentation network or classifier of a supported family, or an adapter.
        images: a folder, files, images, or a list of them; None takes the annotated ones.
        methods: names with settings (``"drise:passes=1000"``), classes, or a mapping from names of your own to those or
            to functions from an adapter to a method; None takes a few that suit the model.
        metrics: names with settings (``"insertion:steps=10"``) or metrics; None takes insertion and deletion. The first
            one orders the rows.
        annotations: COCO JSON, or loaded annotations, for metrics that need the truth; images that it does not name
            are left out. Its file names start from `images`, a folder.
        out: folder for results and figures; None keeps all in memory.
        controls: whether to add them.
        top_k: findings per image, best first; None takes three boxes or regions, and one class.
        score_threshold: least score of a finding; None takes 0.3 for boxes.
        labels: class names or indices to explain.
        class_map: from annotated categories to the model's classes, where names differ.
        target_layers: of all methods that look at layers; None takes their defaults.
        limit: only so many images, the first ones.
        shown: of how many images the maps are drawn.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the controls.
        title: what the results call the model; None takes its class.
        progress: from the number of images and the entries to what is told of each image and entry.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `names`, `image_size`.

    Raises:
        TypeError, ValueError: an argument is not as expected, `out` holds results of other settings, or not one image
            could be explained.
    """
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    for name, value in (("top_k", top_k), ("limit", limit), ("resamples", resamples)):
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1; got {value}")
    truth, about = _annotations(adapter, images, annotations, class_map)
    samples, left = find_samples(images, truth)
    method_specs = _entries(adapter, methods, controls, seed)
    metric_specs = read_metrics(
        metrics if metrics is not None else DEFAULT_METRICS, adapter.task, truth=truth is not None
    )
    choosing = {
        "top_k": MOST_TARGETS[adapter.task] if top_k is None else top_k,
        "score_threshold": score_threshold,
        "labels": None if labels is None else list(labels),
    }
    settings = {
        "schema": SCHEMA,
        "version": VERSION,
        "model": fingerprint(adapter),
        "layers": adapter.layer_names,
        "metrics": [_identity(metric_spec) for metric_spec in metric_specs],
        "annotations": None if truth is None else hashlib.sha256(truth.path.read_bytes()).hexdigest()[:16],
        "classes": None if class_map is None else {str(key): value for key, value in class_map.items()},
        "seed": seed,
        **choosing,
    }
    store = ResultStore(None if out is None else Path(out), settings)
    samples = samples[:limit]
    on_progress = progress(len(samples), method_specs) if progress else _silent
    state = Runner(adapter, method_specs, metric_specs, store, shown, on_progress, choosing).run(samples)
    found = _conclude(
        adapter, state, method_specs, metric_specs, store, [*about, *left], shown, resamples, seed, choosing, title
    )
    if out is not None:
        found.save(out)
    return found


def _annotations(
    adapter: Adapter, images: Any, annotations: Any, class_map: Any
) -> tuple[Annotations | None, list[str]]:
    """The annotations in the model's class indices, and what is wrong with them."""
    if annotations is None:
        return None, []
    if not isinstance(annotations, Annotations):
        folder = Path(annotations).parent if images is None else images
        if not isinstance(folder, (str, Path)) or not Path(folder).is_dir():
            raise ValueError(
                "expected images as the folder from which the annotation file's names start; got "
                f"{type(folder).__name__ if not isinstance(folder, (str, Path)) else folder}. For anything else load "
                "them: Annotations.load(path, folder)"
            )
        annotations = Annotations.load(annotations, folder)
    own = annotations.for_classes(adapter.names, class_map)
    words = f"{own.path.name}: {' '.join(own.issues.summary().split())}" if own.issues else ""
    return own, [words] if words else []


def _entries(adapter: Adapter, methods: Any, controls: bool, seed: int) -> list[MethodSpec]:
    method_specs = read_methods(DEFAULT_METHODS[adapter.task] if methods is None else methods, adapter)
    if not controls:
        return method_specs
    there = {method_spec.name for method_spec in method_specs}
    wanted = [
        name
        for name in CONTROLS
        if not any(own.partition(":")[0] == name for own in there) and adapter.task in METHODS[name].tasks
    ]
    more = read_methods(wanted, adapter, alone=False) if wanted else []
    drawn = controls_for(adapter.task, seed)
    clash = there & {method_spec.name for method_spec in drawn}
    if clash:
        raise ValueError(f"{', '.join(sorted(clash))} is the name of a control; give your method another one")
    return [*method_specs, *more, *drawn]


def _conclude(
    adapter: Adapter,
    state: BenchmarkState,
    method_specs: Sequence[MethodSpec],
    metric_specs: Sequence[MetricSpec],
    store: ResultStore,
    about: Sequence[str],
    shown: int,
    resamples: int,
    seed: int,
    choosing: Mapping[str, Any],
    title: str | None,
) -> Benchmark:
    if not state.images:
        first = next(iter(state.failed.items()), None)
        why = f"; {first[0]}: {first[1]}" if first else ""
        raise ValueError(
            f"not one image could be explained: {len(state.empty)} without findings, {len(state.failed)} failed{why}"
        )
    signs = {metric_spec.name: metric_spec.sign for metric_spec in metric_specs}
    outcomes = outcomes_of(state, method_specs, metric_specs)
    rows = make_rows(outcomes, signs, resamples=resamples, seed=seed)
    main = metric_specs[0]
    references = references_of(adapter.task)
    lonely = sum(len(facts["targets"]) - facts["annotated"] for _, _, facts in state.images)
    unannotated = {metric_spec.name: lonely for metric_spec in metric_specs if "truth" in metric_spec.metric.needs}
    words = verdicts(outcomes, rows, signs, references, unannotated=unannotated, resamples=resamples, seed=seed)
    for outcome in outcomes:
        words += [f"{outcome.name}, {image}: {error}" for image, error in list(outcome.errors.items())[:3]]
    kinds = sorted({kind for outcome in outcomes for kind in outcome.warnings})
    for kind in kinds:
        names = [outcome.name for outcome in outcomes if outcome.kind == "method" and kind in outcome.warnings]
        words += [f"{kind} from {listed(names)}."] if names else []
    if state.empty:
        at = ""
        if adapter.task == "detection":
            least = choosing["score_threshold"]
            at = f" at or above {SCORE_THRESHOLD if least is None else least:g}"
        words.append(f"{_count(len(state.empty), 'image')} without findings{at} left out: {_some(state.empty)}.")
    words += [f"failed: {name}: {error}" for name, error in state.failed.items()]
    drawn = tuple(
        plots.Shown(
            sample.name,
            to_uint8(load_image(sample.source)),
            facts["targets"][0],
            None if facts["box_xyxy"] is None else tuple(facts["box_xyxy"]),
            {e.name: found for e in method_specs if (found := store.get_map(key, e.name)) is not None},
        )
        for key, sample, facts in state.images[:shown]
    )
    return Benchmark(
        tuple(tables.in_order(rows, main.name, main.sign)),
        signs,
        (*words, *about),
        title or type(adapter.model).__name__,
        references[0],
        len(state.images),
        sum(len(facts["targets"]) for _, _, facts in state.images),
        tuple(state.empty),
        dict(state.failed),
        drawn,
        state.computed,
    )


def _identity(metric_spec: MetricSpec) -> str:
    """A metric with all its settings: results of other settings are not taken for its own."""
    return f"{metric_spec.name} {described(metric_spec.metric)}"


def _silent(image: str, name: str) -> None:
    """Tell nobody."""


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
