"""Runs a benchmark: every method and control on every picture, measured, kept at once, and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import Store, plain
from detcam.benchmarking.samples import Subject, find_targets, truth_of
from detcam.benchmarking.specs import Entry, Ruler
from detcam.benchmarking.statistics import Outcome
from detcam.explanation.explain import describe
from detcam.metrics.base import MetricWarning, read_heatmaps
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.target_regions import TrueRegions
from detcam.utils.files import number

PICTURE = "picture"
"""The name under which a picture's own facts are kept."""
BAD_PICTURE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What one picture, or one method on it, may fail with while the rest goes on."""

Told = Callable[[str, str], None]
"""Is told of each picture and entry that is dealt with, also of those that were done before."""


@dataclass
class Tally:
    """What became of the pictures.

    Attributes:
        pictures: those that were explained, in order: key in the store, picture, and what was asked in it.
        empty: names of pictures in which nothing was found.
        failed: picture to what was wrong.
        cells: per entry name, per picture key, what was found.
        computed: how many results were computed now rather than read.
    """

    pictures: list[tuple[str, Subject, Mapping[str, Any]]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    computed: int = 0


@dataclass
class Runner:
    """Measures every entry on every picture; what the store has is not computed again, but for what failed.

    Attributes:
        adapter: the model.
        entries: the rows.
        rulers: the columns.
        store: where results are kept.
        shown: of how many pictures, the first ones with findings, heatmaps are kept for the figure.
        told: of progress.
        choosing: which findings are explained, as in `explain`.
        tally: what became of the pictures.
    """

    adapter: Adapter
    entries: Sequence[Entry]
    rulers: Sequence[Ruler]
    store: Store
    shown: int
    told: Told
    choosing: Mapping[str, Any]
    tally: Tally = field(default_factory=Tally)

    def run(self, subjects: Sequence[Subject]) -> Tally:
        """Deal with the pictures, one after the other."""
        self.tally.cells.update({entry.name: {} for entry in self.entries})
        for subject in subjects:
            done = 0
            try:
                key, picture = subject.read()
                for entry in self._results(subject, key, picture):
                    self.told(subject.name, entry.name)
                    done += 1
            except BAD_PICTURE as error:
                self.tally.failed[subject.name] = _one_line(error)
                self._leave_out(subject)
            for entry in self.entries[done:]:
                self.told(subject.name, entry.name)
        return self.tally

    def _leave_out(self, subject: Subject) -> None:
        """Count no half of a picture: some entries' values would be of more pictures than others'."""
        for key, known, _ in list(self.tally.pictures):
            if known is subject:
                self.tally.pictures = [each for each in self.tally.pictures if each[0] != key]
                for cells in self.tally.cells.values():
                    cells.pop(key, None)

    def _results(self, subject: Subject, key: str, picture: Tensor) -> Iterator[Entry]:
        """Fill in one picture's cells, entry by entry.

        Raises:
            ValueError, RuntimeError: the model cannot take the picture, or it was there before.
        """
        facts, asked = self.store.get(key, PICTURE), None
        if facts is None:
            asked = _ask(self.adapter, subject, picture, self.choosing)
            facts = asked.facts
            self.store.put(key, PICTURE, facts)
        if not facts["targets"]:
            self.tally.empty.append(subject.name)
            return
        if any(key == known for known, _, _ in self.tally.pictures):
            raise ValueError("the same picture as another one of this name; it counts once")
        first, wanted = not self.tally.pictures, len(self.tally.pictures) < self.shown
        self.tally.pictures.append((key, subject, facts))
        for entry in self.entries:
            cell = self.store.get(key, entry.name)
            other = cell is not None and cell.get("made_by", entry.made_by) != entry.made_by
            if cell is None or other or cell["error"] or (wanted and self.store.get_map(key, entry.name) is None):
                asked = asked or _ask(self.adapter, subject, picture, self.choosing)
                counted = first and entry.kind == "method"
                cell, maps = _measure(self.adapter, picture, asked, entry, self.rulers, counted=counted)
                if wanted and maps is not None:
                    self.store.put_map(key, entry.name, maps[0].double().nan_to_num().clamp(0, 1).numpy())
                self.store.put(key, entry.name, cell)
                self.tally.computed += 1
            self.tally.cells[entry.name][key] = cell
            yield entry


@dataclass(frozen=True)
class Asked:
    """What is asked in a picture: its targets, where their heat belongs, and the facts that are kept."""

    targets: list[Target]
    truth: TrueRegions
    facts: dict[str, Any]


def _ask(adapter: Adapter, subject: Subject, picture: Tensor, choosing: Mapping[str, Any]) -> Asked:
    found, targets = find_targets(adapter, picture, **choosing)
    truth = truth_of(subject.objects, found, targets)
    box = getattr(targets[0], "box_xyxy", None) if targets else None
    facts = {
        "picture": subject.name,
        "targets": [describe(target, adapter.names) for target in targets],
        "scores": plain(found.scores),
        "annotated": int(truth.own.flatten(1).any(1).sum()) if targets else 0,
        "box_xyxy": None if box is None else plain(box),
    }
    return Asked(targets, truth, facts)


def _measure(
    adapter: Adapter, picture: Tensor, asked: Asked, entry: Entry, rulers: Sequence[Ruler], *, counted: bool
) -> tuple[dict[str, Any], Tensor | None]:
    """One result: values by every metric, cost, and the heatmaps; or the error."""
    cell: dict[str, Any] = {"values": {}, "seconds": None, "peak_mib": None, "passes": None, "backward": None}
    cell.update(warnings=[], error=None, made_by=entry.made_by)
    doing = entry.name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call = partial(entry.explain, adapter, [picture], [list(asked.targets)])
            found, cost = measure_cost(call, adapter.device)
            maps = read_heatmaps(found, [(picture.shape[-2], picture.shape[-1])])[0]
            if len(maps) != len(asked.targets):
                raise ValueError(f"expected a heatmap for each of {len(asked.targets)} targets; got {len(maps)}")
            cell.update(seconds=number(cost.seconds), peak_mib=None if cost.peak_mib is None else number(cost.peak_mib))
            cell["warnings"] = _kinds(caught)
            if counted:
                doing = f"counting {entry.name}"
                work = count_work(adapter, picture, call)
                cell.update(passes=number(work.passes), backward=work.backward)
            for ruler in rulers:
                doing = ruler.name
                values = ruler.metric.measure(
                    adapter, [picture], [asked.targets], [maps], truth=[asked.truth], method=entry.explain
                )
                cell["values"][ruler.name] = plain(values)
        except BAD_PICTURE as error:
            cell["error"] = f"{doing}: {_one_line(error)}"
            return cell, None
    return cell, maps


def _kinds(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """The kinds of warnings that the package gave, by name."""
    own = [w.category for w in caught if issubclass(w.category, UserWarning) and w.category is not MetricWarning]
    return sorted({category.__name__ for category in own if category is not UserWarning})


def outcomes_of(tally: Tally, entries: Sequence[Entry], rulers: Sequence[Ruler]) -> list[Outcome]:
    """What was found for each entry, as the statistics take it."""
    names = {key: subject.name for key, subject, _ in tally.pictures}
    found = []
    for entry in entries:
        cells = [tally.cells[entry.name][key] for key in names]
        good = [cell for cell in cells if not cell["error"]]
        found.append(
            Outcome(
                entry.name,
                entry.kind,
                {ruler.name: [_values(cell, ruler.name) for cell in cells] for ruler in rulers},
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
