"""The work of a benchmark: explains and measures every method on every image, and keeps each result at once."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import CELLS_FOLDER, ResultStore, json_numbers
from detcam.benchmarking.samples import Sample, annotated_regions, predict_targets
from detcam.benchmarking.specs import RESERVED_NAME, MethodSpec, MetricSpec
from detcam.benchmarking.statistics import MethodResult
from detcam.metrics.base import MetricWarning
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.metric_input import read_heatmaps
from detcam.metrics.target_regions import TargetRegions
from detcam.outputs import as_target
from detcam.runs import CrashLog, Engine, Run
from detcam.utils.console import ProgressBar, describe_error, shorten
from detcam.utils.files import is_storage_error, json_number, utf8_bytes

IMAGE_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""Exceptions of one image, or of one method on it, that do not stop the benchmark."""
MAX_LABEL_LENGTH = 24
"""Characters of an image's name beside the progress bar."""
IMAGE_SCHEMA = pa.schema(
    {"key": pa.string(), "record": pa.string(), "cells": pa.string(), "computed": pa.int32(), "error": pa.string()}
)


@dataclass
class BenchmarkState:
    """The results of a run so far.

    Attributes:
        images: explained images in order: key in the result store, sample, and the record of its targets.
        images_without_predictions: names of the images in which the model predicts nothing.
        failed: mapping from image name to error message.
        cells: results by method name and image key.
        computed: number of results that were computed rather than read from the store.
    """

    images: list[tuple[str, Sample, Mapping[str, Any]]] = field(default_factory=list)
    images_without_predictions: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    computed: int = 0


@dataclass(frozen=True)
class ImageTargets:
    """The targets of an image.

    Attributes:
        targets: targets to explain.
        regions: annotated region of each target.
        record: JSON values that the result store keeps for the image.
    """

    targets: list[Target]
    regions: TargetRegions
    record: dict[str, Any]


@dataclass(frozen=True)
class MeasurementWork:
    """Measures every method on an image. Results in the store are reused, except failed ones.

    Attributes:
        adapter: adapter of the model.
        method_specs: methods and controls, the rows.
        metric_specs: metrics, the columns.
        store: store of the results.
        figure_images: number of images whose heatmaps are kept for the figure.
        selection: arguments that select predictions, as in `detcam.explain`.
    """

    adapter: Adapter
    method_specs: Sequence[MethodSpec]
    metric_specs: Sequence[MetricSpec]
    store: ResultStore
    figure_images: int
    selection: Mapping[str, Any]

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.adapter.model

    def __call__(self, payload: tuple[int, Sample], log: CrashLog) -> pa.Table:
        """Return a table of one row: the image's key, its record and its cells, or the error message."""
        number, sample = payload
        own_log = CrashLog(self.store.folder / CELLS_FOLDER / f"{number}.log")  # the run is a new one at each start
        row: dict[str, Any] = {"computed": 0}
        try:
            key, image = own_log.call(ascii(sample.name), sample.read, self.adapter)
            row.update(own_log.call(key, self._measure, number, sample, key, image), key=key)
        except IMAGE_ERRORS as error:
            if self._is_storage_error(error):
                raise
            row["error"] = utf8_bytes(describe_error(error)).decode()
        own_log.close()
        return pa.Table.from_pylist([row], IMAGE_SCHEMA)

    def _measure(self, number: int, sample: Sample, key: str, image: Tensor) -> dict[str, Any]:
        record, image_targets = self.store.get(key, RESERVED_NAME), None
        if record is None:
            image_targets = prepare_targets(self.adapter, sample, image, self.selection)
            record = image_targets.record
            self.store.put(key, RESERVED_NAME, record)
        cells: dict[str, Mapping[str, Any]] = {}
        computed = 0
        for spec in self.method_specs if record["targets"] else ():
            cell = self.store.get(key, spec.name)
            if cell is None or cell["error"] or cell["definition"] != spec.definition:
                image_targets = image_targets or prepare_targets(self.adapter, sample, image, self.selection)
                cell, heatmaps = _measure_method(self.adapter, image, image_targets, spec, self.metric_specs)
                if number < self.figure_images and heatmaps is not None:
                    self.store.put_heatmap(key, spec.name, _first_heatmap(heatmaps))
                self.store.put(key, spec.name, cell)
                computed += 1
            cells[spec.name] = cell
        return {"record": json.dumps(record), "cells": json.dumps(cells), "computed": computed}

    def _is_storage_error(self, error: BaseException) -> bool:
        """Whether an exception is about the store, not about the image."""
        is_gone = isinstance(error, FileNotFoundError) and not self.store.folder.is_dir()
        return is_gone or is_storage_error(error)

    def complete(self, state: BenchmarkState) -> None:
        """Count the work of each method on the first image, and draw the heatmaps of the figure that are missing.

        Raises:
            StorageError: a result cannot be written.
        """
        for index, (key, sample, _) in enumerate(state.images[: max(self.figure_images, 1)]):
            missing = [spec for spec in self.method_specs if self._lacks(spec, index, key, state)]
            if not missing:
                continue
            try:
                _, image = sample.read(self.adapter)
                targets = prepare_targets(self.adapter, sample, image, self.selection).targets
            except IMAGE_ERRORS:
                continue
            for spec in missing:
                call = partial(spec.explain, self.adapter, [image], [list(targets)])
                with self._suppressed():
                    if self._lacks_heatmap(spec, index, key):
                        heatmaps = read_heatmaps(call(), [(image.shape[-2], image.shape[-1])])[0]
                        self.store.put_heatmap(key, spec.name, _first_heatmap(heatmaps))
                    if self._lacks_work(spec, index, state):
                        work = count_work(self.adapter, image, call)
                        counted = {"passes": json_number(work.passes), "backward": work.backward}
                        state.cells[spec.name][key] = {**state.cells[spec.name][key], **counted}
                        self.store.put(key, spec.name, state.cells[spec.name][key])

    @contextlib.contextmanager
    def _suppressed(self) -> Iterator[None]:
        """Suppress warnings, and exceptions of the image."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except IMAGE_ERRORS as error:
            if self._is_storage_error(error):
                raise

    def _lacks(self, spec: MethodSpec, index: int, key: str, state: BenchmarkState) -> bool:
        if state.cells[spec.name][key]["error"]:
            return False
        return self._lacks_heatmap(spec, index, key) or self._lacks_work(spec, index, state)

    def _lacks_heatmap(self, spec: MethodSpec, index: int, key: str) -> bool:
        return index < self.figure_images and self.store.get_heatmap(key, spec.name) is None

    def _lacks_work(self, spec: MethodSpec, index: int, state: BenchmarkState) -> bool:
        cells = state.cells[spec.name].values()
        return index == 0 and spec.kind == "method" and all(cell["passes"] is None for cell in cells)


def measure_images(
    work: MeasurementWork, samples: Sequence[Sample], run: Run, engine: Engine, *, progress: bool
) -> BenchmarkState:
    """Measure all methods on all images.

    Args:
        work: the work on an image.
        samples: the images.
        run: a new run.
        engine: runs the work.
        progress: whether to show a progress bar on stderr.
    """
    stage = run.stage("images", lambda: [[number] for number in range(len(samples))])
    with ProgressBar(total=len(samples), enabled=progress) as bar:
        for number in stage.process(engine, work, lambda shard: (shard[0], samples[shard[0]])):
            bar.advance(1, shorten(samples[number].name, MAX_LABEL_LENGTH))
    state = BenchmarkState(cells={spec.name: {} for spec in work.method_specs})
    keys: set[str] = set()
    for sample, table in zip(samples, stage.tables(), strict=True):
        (row,) = table.to_pylist()
        state.computed += row["computed"]
        if row["error"] is not None:
            state.failed[sample.name] = row["error"]
            continue
        key, record = row["key"], json.loads(row["record"])
        if not record["targets"]:
            state.images_without_predictions.append(sample.name)
        elif key in keys:
            state.failed[sample.name] = "an image with the same name and content occurred before; it counts once"
        else:
            keys.add(key)
            state.images.append((key, sample, record))
            for name, cell in json.loads(row["cells"]).items():
                state.cells[name][key] = cell
    work.complete(state)
    return state


def prepare_targets(adapter: Adapter, sample: Sample, image: Tensor, selection: Mapping[str, Any]) -> ImageTargets:
    """Predict in an image and select the targets to explain.

    Args:
        adapter: adapter of the model.
        sample: the image's name and annotations.
        image: pixels (C, H, W) in [0, 1].
        selection: arguments that select predictions, as in `detcam.explain`.
    """
    predictions, targets = predict_targets(adapter, image, **selection)
    regions = annotated_regions(sample.ground_truth, predictions, targets)
    box = as_target(targets[0]).box_xyxy if targets else None
    record = {
        "image": sample.name,
        "targets": [as_target(target).describe(adapter.names) for target in targets],
        "scores": json_numbers(predictions.scores),
        "annotated": int(regions.objects.flatten(1).any(1).sum()) if targets else 0,
        "box_xyxy": None if box is None else json_numbers(box),
    }
    return ImageTargets(targets, regions, record)


def _measure_method(
    adapter: Adapter,
    image: Tensor,
    image_targets: ImageTargets,
    spec: MethodSpec,
    metric_specs: Sequence[MetricSpec],
) -> tuple[dict[str, Any], Tensor | None]:
    """Measure a method on an image: values by every metric, costs and heatmaps, or the error message."""
    cell: dict[str, Any] = {"values": {}, "seconds": None, "peak_mib": None, "passes": None, "backward": None}
    cell.update(warnings=[], error=None, definition=spec.definition)
    targets, activity = image_targets.targets, spec.name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call = partial(spec.explain, adapter, [image], [list(targets)])
            results, cost = measure_cost(call, adapter.device)
            heatmaps = read_heatmaps(results, [(image.shape[-2], image.shape[-1])])[0]
            if len(heatmaps) != len(targets):
                raise ValueError(f"expected one heatmap per target, {len(targets)}; got {len(heatmaps)}")
            cell.update(
                seconds=json_number(cost.seconds),
                peak_mib=None if cost.peak_mib is None else json_number(cost.peak_mib),
            )
            cell["warnings"] = _warning_names(caught)
            for metric_spec in metric_specs:
                activity = metric_spec.name
                values = metric_spec.metric.measure(
                    adapter, [image], [targets], [heatmaps], truth=[image_targets.regions], method=spec.explain
                )
                cell["values"][metric_spec.name] = json_numbers(values)
        except IMAGE_ERRORS as error:
            cell["error"] = f"{activity}: {describe_error(error)}"
            return cell, None
    return cell, heatmaps


def _first_heatmap(heatmaps: Tensor) -> np.ndarray:
    return heatmaps[0].double().nan_to_num().clamp(0, 1).numpy()


def _warning_names(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Class names of detcam's own warnings, without those of metrics."""
    categories = {w.category for w in caught if issubclass(w.category, UserWarning)} - {UserWarning, MetricWarning}
    return sorted(category.__name__ for category in categories)


def collect_method_results(
    state: BenchmarkState, method_specs: Sequence[MethodSpec], metric_specs: Sequence[MetricSpec]
) -> list[MethodResult]:
    """Collect the measurements of each method and control for the statistics."""
    image_names = {key: sample.name for key, sample, _ in state.images}
    method_results = []
    for spec in method_specs:
        cells = {key: state.cells[spec.name][key] for key in image_names}
        valid = [cell for cell in cells.values() if not cell["error"]]
        method_results.append(
            MethodResult(
                spec.name,
                spec.kind,
                {metric.name: [_values(cell, metric.name) for cell in cells.values()] for metric in metric_specs},
                passes=_numbers(valid, "passes"),
                backward=_numbers(valid, "backward"),
                seconds=_numbers(valid, "seconds"),
                peak_mib=_numbers(valid, "peak_mib"),
                errors={image_names[key]: cell["error"] for key, cell in cells.items() if cell["error"]},
                warnings=sorted({name for cell in valid for name in cell["warnings"]}),
            )
        )
    return method_results


def _values(cell: Mapping[str, Any], metric: str) -> np.ndarray:
    if cell["error"]:
        return np.zeros(0)
    return np.array([np.nan if value is None else value for value in cell["values"][metric]], np.float64)


def _numbers(cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(cell[name]) for cell in cells if cell[name] is not None]
