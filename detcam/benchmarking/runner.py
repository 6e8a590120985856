"""Runs a benchmark: every method and control on every image, measured, kept at once, and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import ResultStore, plain
from detcam.benchmarking.samples import Sample, find_targets, truth_of
from detcam.benchmarking.specs import MethodSpec, MetricSpec
from detcam.benchmarking.statistics import Outcome
from detcam.explanation.explain import describe
from detcam.metrics.base import MetricWarning, read_heatmaps
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.target_regions import TargetRegions
from detcam.utils.files import number

IMAGE = "image"
"""The name under which an image's own facts are kept."""
BAD_IMAGE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What one image, or one method on it, may fail with while the rest goes on."""

ProgressCallback = Callable[[str, str], None]
"""Is told of each image and entry that is dealt with, also of those that were done before."""


@dataclass
class BenchmarkState:
    """What became of the images.

    Attributes:
        images: those that were explained, in order: key in the store, image, and what was asked in it.
        empty: names of images in which nothing was found.
        failed: image to what was wrong.
        cells: per entry name, per image key, what was found.
        computed: how many results were computed now rather than read.
    """

    images: list[tuple[str, Sample, Mapping[str, Any]]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    computed: int = 0


@dataclass
class Runner:
    """Measures every entry on every image; what the store has is not computed again, but for what failed.

    Attributes:
        adapter: the model.
        method_specs: the rows.
        metric_specs: the columns.
        store: where results are kept.
        shown: of how many images, the first ones with findings, heatmaps are kept for the figure.
        on_progress: of progress.
        choosing: which findings are explained, as in `explain`.
        state: what became of the images.
    """

    adapter: Adapter
    method_specs: Sequence[MethodSpec]
    metric_specs: Sequence[MetricSpec]
    store: ResultStore
    shown: int
    on_progress: ProgressCallback
    choosing: Mapping[str, Any]
    state: BenchmarkState = field(default_factory=BenchmarkState)

    def run(self, samples: Sequence[Sample]) -> BenchmarkState:
        """Deal with the images, one after the other."""
        self.state.cells.update({method_spec.name: {} for method_spec in self.method_specs})
        for sample in samples:
            done = 0
            try:
                key, image = sample.read()
                for method_spec in self._results(sample, key, image):
                    self.on_progress(sample.name, method_spec.name)
                    done += 1
            except BAD_IMAGE as error:
                self.state.failed[sample.name] = _one_line(error)
                self._leave_out(sample)
            for method_spec in self.method_specs[done:]:
                self.on_progress(sample.name, method_spec.name)
        return self.state

    def _leave_out(self, sample: Sample) -> None:
        """Count no half of an image: some entries' values would be of more images than others'."""
        for key, known, _ in list(self.state.images):
            if known is sample:
                self.state.images = [each for each in self.state.images if each[0] != key]
                for cells in self.state.cells.values():
                    cells.pop(key, None)

    def _results(self, sample: Sample, key: str, image: Tensor) -> Iterator[MethodSpec]:
        """Fill in one image's cells, entry by entry.

        Raises:
            ValueError, RuntimeError: the model cannot take the image, or it was there before.
        """
        facts, asked = self.store.get(key, IMAGE), None
        if facts is None:
            asked = _ask(self.adapter, sample, image, self.choosing)
            facts = asked.facts
            self.store.put(key, IMAGE, facts)
        if not facts["targets"]:
            self.state.empty.append(sample.name)
            return
        if any(key == known for known, _, _ in self.state.images):
            raise ValueError("the same image as another one of this name; it counts once")
        first, wanted = not self.state.images, len(self.state.images) < self.shown
        self.state.images.append((key, sample, facts))
        for method_spec in self.method_specs:
            cell = self.store.get(key, method_spec.name)
            other = cell is not None and cell.get("made_by", method_spec.made_by) != method_spec.made_by
            if cell is None or other or cell["error"] or (wanted and self.store.get_map(key, method_spec.name) is None):
                asked = asked or _ask(self.adapter, sample, image, self.choosing)
                counted = first and method_spec.kind == "method"
                cell, maps = _measure(self.adapter, image, asked, method_spec, self.metric_specs, counted=counted)
                if wanted and maps is not None:
                    self.store.put_map(key, method_spec.name, maps[0].double().nan_to_num().clamp(0, 1).numpy())
                self.store.put(key, method_spec.name, cell)
                self.state.computed += 1
            self.state.cells[method_spec.name][key] = cell
            yield method_spec


@dataclass(frozen=True)
class ImageTargets:
    """What is asked in an image: its targets, where their heat belongs, and the facts that are kept."""

    targets: list[Target]
    truth: TargetRegions
    facts: dict[str, Any]


def _ask(adapter: Adapter, sample: Sample, image: Tensor, choosing: Mapping[str, Any]) -> ImageTargets:
    found, targets = find_targets(adapter, image, **choosing)
    truth = truth_of(sample.objects, found, targets)
    box = getattr(targets[0], "box_xyxy", None) if targets else None
    facts = {
        "image": sample.name,
        "targets": [describe(target, adapter.names) for target in targets],
        "scores": plain(found.scores),
        "annotated": int(truth.own.flatten(1).any(1).sum()) if targets else 0,
        "box_xyxy": None if box is None else plain(box),
    }
    return ImageTargets(targets, truth, facts)


def _measure(
    adapter: Adapter,
    image: Tensor,
    asked: ImageTargets,
    method_spec: MethodSpec,
    metric_specs: Sequence[MetricSpec],
    *,
    counted: bool,
) -> tuple[dict[str, Any], Tensor | None]:
    """One result: values by every metric, cost, and the heatmaps; or the error."""
    cell: dict[str, Any] = {"values": {}, "seconds": None, "peak_mib": None, "passes": None, "backward": None}
    cell.update(warnings=[], error=None, made_by=method_spec.made_by)
    doing = method_spec.name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call = partial(method_spec.explain, adapter, [image], [list(asked.targets)])
            found, cost = measure_cost(call, adapter.device)
            maps = read_heatmaps(found, [(image.shape[-2], image.shape[-1])])[0]
            if len(maps) != len(asked.targets):
                raise ValueError(f"expected a heatmap for each of {len(asked.targets)} targets; got {len(maps)}")
            cell.update(seconds=number(cost.seconds), peak_mib=None if cost.peak_mib is None else number(cost.peak_mib))
            cell["warnings"] = _kinds(caught)
            if counted:
                doing = f"counting {method_spec.name}"
                work = count_work(adapter, image, call)
                cell.update(passes=number(work.passes), backward=work.backward)
            for metric_spec in metric_specs:
                doing = metric_spec.name
                values = metric_spec.metric.measure(
                    adapter, [image], [asked.targets], [maps], truth=[asked.truth], method=method_spec.explain
                )
                cell["values"][metric_spec.name] = plain(values)
        except BAD_IMAGE as error:
            cell["error"] = f"{doing}: {_one_line(error)}"
            return cell, None
    return cell, maps


def _kinds(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """The kinds of warnings that the package gave, by name."""
    own = [w.category for w in caught if issubclass(w.category, UserWarning) and w.category is not MetricWarning]
    return sorted({category.__name__ for category in own if category is not UserWarning})


def outcomes_of(
    state: BenchmarkState, method_specs: Sequence[MethodSpec], metric_specs: Sequence[MetricSpec]
) -> list[Outcome]:
    """What was found for each entry, as the statistics take it."""
    names = {key: sample.name for key, sample, _ in state.images}
    found = []
    for method_spec in method_specs:
        cells = [state.cells[method_spec.name][key] for key in names]
        good = [cell for cell in cells if not cell["error"]]
        found.append(
            Outcome(
                method_spec.name,
                method_spec.kind,
                {metric_spec.name: [_values(cell, metric_spec.name) for cell in cells] for metric_spec in metric_specs},
                passes=_known(good, "passes"),
                backward=_known(good, "backward"),
                seconds=_known(good, "seconds"),
                peak_mib=_known(good, "peak_mib"),
                errors={names[key]: cell["error"] for key, cell in zip(names, cells, strict=True) if cell["error"]},
                warnings=sorted({kind for cell in good for kind in cell["warnings"]}),
            )
        )
    return found


def _values(cell: Mapping[str, Any], metric: str) -> np.ndarray:
    if cell["error"]:
        return np.zeros(0)
    return np.array([np.nan if value is None else value for value in cell["values"][metric]], np.float64)


def _known(cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(cell[name]) for cell in cells if cell[name] is not None]


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    plain_words = bool(words) and isinstance(error, (OSError, RuntimeError, ValueError))
    return words if plain_words else f"{type(error).__name__} {words}".strip()
