"""The results of the planted benchmark, and their file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detcam.benchmarking.planted.cases import SeedSet
from detcam.benchmarking.planted.hit_metrics import HitSummary
from detcam.synthetic.shortcut_scenarios import ScenarioName
from detcam.utils.files import check_same_settings, json_value, read_json, replace_file

PLANTED_SCHEMA, PLANTED_VERSION = "detcam.planted", 3


@dataclass(frozen=True)
class MethodRow:
    """A method on the cases of one scenario and detector family.

    Attributes:
        family: name of the detector family.
        scenario: name of the scenario.
        seeds: the test scenes.
        method: name of the method with its settings, of the control, or of the explainer.
        summary: mean metrics over the cases.
    """

    family: str
    scenario: str
    seeds: SeedSet
    method: str
    summary: HitSummary


@dataclass(frozen=True)
class AuditRow:
    """The audit on the cases of one scenario and detector family.

    Attributes:
        family: name of the detector family.
        scenario: name of the scenario.
        seeds: the test scenes.
        cases: number of cases.
        peak: share of the cases whose heatmap has its peak on the cause.
        energy: mean share of the heatmap's energy on the cause.
        location: share of the cases whose evidence has the location of most of the cause.
        confirmed: share of the cases that the audit confirms.
        correct: share of the cases that the audit confirms with evidence that overlaps the cause.
        false_causes: number of false causes.
        false_causes_confirmed: number of false causes that the audit confirms strongly, as in `grade_of_region`.
        passes: mean number of images that the network processes per case for heatmap, verification and controls.
        parts: share of the cases whose heatmap has one of its first maxima on each cue; NaN in files without it.
        combination: share of the cases whose evidence overlaps every cue and is said to be of parts any of which
            suffices, or of regions that are all needed, as it is; NaN if there is one cue, and in files without it.
    """

    family: str
    scenario: str
    seeds: SeedSet
    cases: int
    peak: float
    energy: float
    location: float
    confirmed: float
    correct: float
    false_causes: int
    false_causes_confirmed: int
    passes: float
    parts: float = math.nan
    combination: float = math.nan


@dataclass(frozen=True)
class DetectorRow:
    """The reliance on the shortcut of a detector and of its twin, in the development scenes.

    Attributes:
        family: name of the detector family.
        scenario: name of the scenario.
        trials: number of objects in the test scenes that a cue accompanies.
        fired: number of errors of the detector at them.
        certified: number of those that vanish without the cue and persist without an unrelated object.
        twin_trials: number of objects in the first test scenes that a cue accompanies.
        twin_fired: number of errors of the twin at them.
        energy: mean share of the energy on the cause of the detector's ReachCAM heatmaps.
        twin_energy: the same for the twin's heatmaps of the same boxes and class.
        similarity: mean correlation of the two heatmaps, in [-1, 1].
    """

    family: str
    scenario: str
    trials: int
    fired: int
    certified: int
    twin_trials: int
    twin_fired: int
    energy: float
    twin_energy: float
    similarity: float


@dataclass(frozen=True)
class PlantedResults:
    """The result of the planted benchmark.

    Attributes:
        detectors: one row per family and scenario.
        methods: one row per family, scenario, set of seeds and method.
        audits: one row per family, scenario and set of seeds.
        computed: keys of the rows that were computed in this run; the others were read from the folder.
    """

    detectors: tuple[DetectorRow, ...]
    methods: tuple[MethodRow, ...]
    audits: tuple[AuditRow, ...]
    computed: tuple[str, ...] = field(default=(), repr=False, compare=False)


class PlantedResultStore:
    """The file of the results, written after each row, so that an interrupted run resumes.

    Args:
        path: path of the JSON file; None keeps the results in memory.
        settings: everything that all results depend on, as plain JSON values.

    Raises:
        ValueError: the file contains results of other settings or of another version, or is not valid JSON.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.computed: list[str] = []
        self.unsaved: dict[str, Any] = {}
        header = {"schema": PLANTED_SCHEMA, "version": PLANTED_VERSION, "settings": dict(settings)}
        self.content: dict[str, Any] = {**header, "results": {}}
        if path is None or not path.exists():
            return
        self.content = read_json(path, PLANTED_SCHEMA, PLANTED_VERSION)
        check_same_settings(path, self.content["settings"], dict(settings))

    def has(self, *key: str) -> bool:
        """Whether a row exists: key is family, scenario, seeds, then ``detector``, ``audit``, or ``method``, name."""
        return "/".join(key) in self.content["results"]

    def put(self, row: DetectorRow | MethodRow | AuditRow, *key: str, save: bool = True) -> None:
        """Write a row, or keep it in memory."""
        self.computed.append("/".join(key))
        if self.path is None or not save:
            self.unsaved["/".join(key)] = json_value(asdict(row))
            return
        self.content["results"]["/".join(key)] = json_value(asdict(row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(self.content, indent=1).encode())

    def results(self, family_names: Sequence[str], scenarios: Sequence[ScenarioName]) -> PlantedResults:
        """Read all rows of some families and scenarios."""
        rows: dict[str, list[Any]] = {"detector": [], "method": [], "audit": []}
        for name in family_names:
            for scenario in scenarios:
                for key, values in {**self.content["results"], **self.unsaved}.items():
                    row_family, row_scenario, _, kind, *_ = key.split("/")
                    if (row_family, row_scenario) == (name, scenario):
                        rows[kind].append(_restore_nan(values))
        return PlantedResults(
            tuple(DetectorRow(**row) for row in rows["detector"]),
            tuple(MethodRow(**{**row, "summary": HitSummary(**row["summary"])}) for row in rows["method"]),
            tuple(AuditRow(**row) for row in rows["audit"]),
            tuple(self.computed),
        )


def _restore_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace null, which stands for NaN in JSON."""
    return {
        name: _restore_nan(value) if isinstance(value, Mapping) else float("nan") if value is None else value
        for name, value in values.items()
    }
