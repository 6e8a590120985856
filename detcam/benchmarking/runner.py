"""The loop of a benchmark: explains and measures every method on every image, and keeps each result at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import ResultStore, json_numbers
from detcam.benchmarking.samples import Sample, annotated_regions, predict_targets
from detcam.benchmarking.specs import RESERVED_NAME, MethodSpec, MetricSpec
from detcam.benchmarking.statistics import MethodResult
from detcam.metrics.base import MetricWarning
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.metric_input import read_heatmaps
from detcam.metrics.target_regions import TargetRegions
from detcam.outputs import as_target
from detcam.utils.console import ProgressBar, describe_error, shorten
from detcam.utils.files import json_number

IMAGE_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""Exceptions of one image, or of one method on it, that do not stop the benchmark."""
MAX_LABEL_LENGTH = 24
"""Characters of an image's or method's name beside the progress bar."""


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


@dataclass
class Runner:
    """Measures every method on every image. Results in the store are reused, except failed ones.

    Attributes:
        adapter: adapter of the model.
        method_specs: methods and controls, the rows.
        metric_specs: metrics, the columns.
        store: store of the results.
        figure_images: number of images whose heatmaps are kept for the figure.
        selection: arguments that select predictions, as in `detcam.explain`.
        progress: whether to show a progress bar on stderr.
        state: results so far.
    """

    adapter: Adapter
    method_specs: Sequence[MethodSpec]
    metric_specs: Sequence[MetricSpec]
    store: ResultStore
    figure_images: int
    selection: Mapping[str, Any]
    progress: bool = False
    state: BenchmarkState = field(default_factory=BenchmarkState)

    def run(self, samples: Sequence[Sample]) -> BenchmarkState:
        """Explain and measure the images one after the other."""
        self.state.cells.update({spec.name: {} for spec in self.method_specs})
        with ProgressBar(total=len(samples) * len(self.method_specs), enabled=self.progress) as bar:
            for sample in samples:
                done = 0
                try:
                    key, image = sample.read(self.adapter)
                    for spec in self._measure_image(sample, key, image):
                        label = f"{shorten(sample.name, MAX_LABEL_LENGTH)} {shorten(spec.name, MAX_LABEL_LENGTH)}"
                        bar.advance(1, label)
                        done += 1
                except IMAGE_ERRORS as error:
                    self.state.failed[sample.name] = describe_error(error)
                    self._discard(sample)
                bar.advance(len(self.method_specs) - done)
        return self.state

    def _discard(self, sample: Sample) -> None:
        """Remove the results of an incomplete image, so that all rows are means over the same images."""
        for key, other, _ in list(self.state.images):
            if other is sample:
                self.state.images = [image for image in self.state.images if image[0] != key]
                for cells in self.state.cells.values():
                    cells.pop(key, None)

    def _measure_image(self, sample: Sample, key: str, image: Tensor) -> Iterator[MethodSpec]:
        """Fill in the cells of an image; yields each method when its cell is done.

        Raises:
            ValueError, RuntimeError: the model does not accept the image, or the image occurred before.
        """
        record, image_targets = self.store.get(key, RESERVED_NAME), None
        if record is None:
            image_targets = prepare_targets(self.adapter, sample, image, self.selection)
            record = image_targets.record
            self.store.put(key, RESERVED_NAME, record)
        if not record["targets"]:
            self.state.images_without_predictions.append(sample.name)
            return
        if any(key == other for other, _, _ in self.state.images):
            raise ValueError("an image with the same name and content occurred before; it counts once")
        is_first, in_figure = not self.state.images, len(self.state.images) < self.figure_images
        self.state.images.append((key, sample, record))
        for spec in self.method_specs:
            cell = self.store.get(key, spec.name)
            is_missing_heatmap = in_figure and self.store.get_heatmap(key, spec.name) is None
            if cell is None or cell["error"] or cell["definition"] != spec.definition or is_missing_heatmap:
                image_targets = image_targets or prepare_targets(self.adapter, sample, image, self.selection)
                with_work = is_first and spec.kind == "method"
                cell, heatmaps = _measure_method(
                    self.adapter, image, image_targets, spec, self.metric_specs, with_work=with_work
                )
                if in_figure and heatmaps is not None:
                    heatmap = heatmaps[0].double().nan_to_num().clamp(0, 1).numpy()
                    self.store.put_heatmap(key, spec.name, heatmap)
                self.store.put(key, spec.name, cell)
                self.state.computed += 1
            self.state.cells[spec.name][key] = cell
            yield spec


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
    *,
    with_work: bool,
) -> tuple[dict[str, Any], Tensor | None]:
    """Measure a method on an image: values by every metric, costs and heatmaps, or the error message.

    `with_work` also counts computing work, which slows the method down.
    """
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
            if with_work:
                activity = f"counting {spec.name}"
                work = count_work(adapter, image, call)
                cell.update(passes=json_number(work.passes), backward=work.backward)
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
