"""The planted benchmark: which method finds causes that are certified, and whether an audit says the right thing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.base import Target
from detcam.auditing.pipeline import METHOD
from detcam.benchmarking.controls import fill_region
from detcam.benchmarking.planted.audit_check import AuditCheck, audit_case
from detcam.benchmarking.planted.certify import PlantedCase, find_cases
from detcam.benchmarking.planted.detectors import Family, families
from detcam.benchmarking.planted.hit_metrics import HitSummary, MapHit, judge_map, summarize
from detcam.benchmarking.planted.training_cache import ProgressCallback, TrainingCache, detector_name
from detcam.explanation.explain import make_cam
from detcam.methods.spec import method_from
from detcam.metrics.cost import count_work
from detcam.synthetic.shortcuts import BARGE, SCENARIOS, ScenarioName
from detcam.utils.files import plain, replace_file

METHODS = (
    "probecam",
    "reachcam",
    "hirescam",
    "odam",
    "layercam",
    "gradcam",
    "eigencam",
    "occlusion",
    "drise:passes=1000",
)
"""What is compared unless the user says otherwise."""
CONTROLS = ("filled box", "random")
TWIN_SCENES = 32
TWIN_CASES = 12
FILE = "planted.json"


@dataclass(frozen=True)
class MethodRow:
    """One method on one scenario of one family."""

    family: str
    scenario: ScenarioName
    method: str
    summary: HitSummary


@dataclass(frozen=True)
class AuditRow:
    """What the audit said of the cases of one scenario of one family.

    Attributes:
        family: of the detector.
        scenario: what was planted.
        cases: how many.
        peak: share whose map has its peak on the cause.
        energy: mean share of the map's energy on it.
        place: share whose evidence it puts where most of the cause lies.
        confirmed: share that it confirms.
        right: share that it confirms with evidence that touches the cause.
        wrong: causes that are none, held out to it.
        wrong_confirmed: how many of those it confirmed.
        passes: mean images that the network saw for a case: map, verification and controls.
    """

    family: str
    scenario: ScenarioName
    cases: int
    peak: float
    energy: float
    place: float
    confirmed: float
    right: float
    wrong: int
    wrong_confirmed: int
    passes: float


@dataclass(frozen=True)
class DetectorRow:
    """How a scenario's scenes deceive its detector, and not the twin.

    Attributes:
        family: of the detector.
        scenario: what was planted.
        tempted: how many things in the test scenes could deceive it.
        fired: at how many it fired.
        certified: how many of those false positives vanish with the cue and stay without an unrelated thing.
        twin_tempted: the same of the twin, on the first scenes.
        twin_fired: at how many the twin fired.
        energy: mean share of the energy on the cause, of ReachCAM's maps.
        twin_energy: the same where the twin is asked for the same box and class.
        typicality: mean correlation of the two maps, in [-1, 1].
    """

    family: str
    scenario: ScenarioName
    tempted: int
    fired: int
    certified: int
    twin_tempted: int
    twin_fired: int
    energy: float
    twin_energy: float
    typicality: float


@dataclass(frozen=True)
class Planted:
    """What the planted benchmark found."""

    detectors: tuple[DetectorRow, ...]
    methods: tuple[MethodRow, ...]
    audits: tuple[AuditRow, ...]


def benchmark_planted(
    out: str | Path,
    methods: Sequence[str] = METHODS,
    *,
    family_names: Sequence[str] | None = None,
    scenarios: Sequence[ScenarioName] = SCENARIOS,
    cases: int = 40,
    seed: int = 0,
    effort: float = 1.0,
    trained: ProgressCallback | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Planted:
    """Train detectors with planted shortcuts, certify their false positives, and see who finds the causes.

    What is in the folder already, detectors and results, is not computed again.

    Args:
        out: the folder of detectors and results.
        methods: names, with settings if need be, as in `detcam.explain`.
        family_names: some of `families()`; None takes the usual ones.
        scenarios: some of `SCENARIOS`.
        cases: certified false positives of each scenario and family.
        seed: of training.
        effort: factor on the steps of training.
        trained: is told of the progress of training.
        on_progress: is told what is measured.

    Raises:
        ValueError: a family, scenario or method that there is not, or results of other settings in the folder.
    """
    known = families()
    usual = [name for name, family in known.items() if family.usual]
    names = usual if family_names is None else list(family_names)
    for given, among in ((names, list(known)), (list(scenarios), list(SCENARIOS))):
        unknown = [name for name in given if name not in among]
        if unknown:
            raise ValueError(f"expected some of {', '.join(among)}; got {unknown[0]!r}")
    for method in methods:
        method_from(method)
    folder = Path(out)
    notes = _Notes(folder / FILE, {"cases": cases, "seed": seed, "effort": effort})
    workshop = TrainingCache(folder / "detectors", seed, effort)
    for name in names:
        for scenario in scenarios:
            bench = _Bench(known[name], scenario, workshop, cases, trained)
            bench.measure(notes, methods, on_progress or (lambda _: None))
    return notes.found(names, scenarios)


class _Notes:
    """Results on disk by family, scenario and what was measured, so that an interrupted run goes on."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": dict(settings), "results": {}}
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if self.content.get("settings") != dict(settings):
                raise ValueError(
                    f"{path} has results of other settings ({self.content.get('settings')}, now {dict(settings)}); "
                    "choose another folder"
                )

    def get(self, *key: str) -> Any:
        """What was measured before, or None."""
        return self.content["results"].get("/".join(key))

    def put(self, value: Any, *key: str) -> None:
        """Keep what was measured."""
        self.content["results"]["/".join(key)] = plain(asdict(value))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(self.content, indent=1).encode())

    def found(self, names: Sequence[str], scenarios: Sequence[ScenarioName]) -> Planted:
        """Everything that was measured of some families and scenarios."""
        rows: dict[str, list[Any]] = {"detector": [], "method": [], "audit": []}
        for name, scenario in _pairs(names, scenarios):
            for key, value in self.content["results"].items():
                family, planted, kind, *_ = key.split("/")
                if (family, planted) == (name, scenario):
                    rows[kind].append(_numbers(value))
        return Planted(
            tuple(DetectorRow(**row) for row in rows["detector"]),
            tuple(MethodRow(**{**row, "summary": HitSummary(**row["summary"])}) for row in rows["method"]),
            tuple(AuditRow(**row) for row in rows["audit"]),
        )


def _numbers(value: Mapping[str, Any]) -> dict[str, Any]:
    """What was kept, with NaN where JSON has null."""
    return {
        name: _numbers(one) if isinstance(one, Mapping) else float("nan") if one is None else one
        for name, one in value.items()
    }


def _pairs(names: Sequence[str], scenarios: Sequence[ScenarioName]) -> Iterator[tuple[str, ScenarioName]]:
    yield from ((name, scenario) for name in names for scenario in scenarios)


class _Bench:
    """One scenario of one family."""

    def __init__(
        self,
        family: Family,
        scenario: ScenarioName,
        workshop: TrainingCache,
        wanted: int,
        trained: ProgressCallback | None,
    ):
        self.family, self.scenario, self.workshop = family, scenario, workshop
        self.wanted, self.trained = wanted, trained
        self._tried: Any = None

    def measure(self, notes: _Notes, methods: Sequence[str], on_progress: Callable[[str], None]) -> None:
        """Measure what is not on record."""
        key = (self.family.name, self.scenario)
        waiting = [name for name in (*methods, *CONTROLS) if notes.get(*key, "method", name) is None]
        done = notes.get(*key, "detector") and notes.get(*key, "audit")
        if done and not waiting:
            return
        on_progress(f"{' '.join(key)}: certifying")
        adapter = self.family.adapter(self._detector())
        tried = find_cases(adapter, self.family.first_label, self.scenario, wanted=self.wanted)
        found = tried.cases[: self.wanted]
        if notes.get(*key, "detector") is None:
            notes.put(self._detectors(adapter, tried, found), *key, "detector")
        for name in waiting:
            on_progress(f"{' '.join(key)}: {name}")
            notes.put(MethodRow(*key, name, self._method(adapter, name, found)), *key, "method", name)
        if notes.get(*key, "audit") is None:
            on_progress(f"{' '.join(key)}: audit")
            cam = make_cam(adapter, METHOD)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = [audit_case(adapter, cam, case, self.family.first_label) for case in found]
            notes.put(_audited(*key, said), *key, "audit")

    def _detector(self, *, twin: bool = False) -> Any:
        return self.workshop.detector(self.family, detector_name(self.scenario, twin=twin), self.trained)

    def target(self, case: PlantedCase) -> Target:
        """What every method is asked, as an audit asks it: why a boat, and, on a barge, why not a barge."""
        if self.scenario == "look-alike":
            return case.target
        return replace(case.target, against=self.family.first_label + BARGE)

    def _method(self, adapter: Adapter, name: str, cases: Sequence[PlantedCase]) -> HitSummary:
        findings: list[MapHit] = []
        work: list[float] = []
        for own in by_scene(cases):
            targets = [self.target(case) for case in own]
            if name in CONTROLS:
                maps = [_control(name, case) for case in own]
            else:
                cam = method_from(name)(adapter)

                def call(cam: Any = cam, own: Any = own, targets: Any = targets) -> list[Tensor]:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        return list(cam.explain(own[0].scene.image, targets)[0].heatmaps)

                maps = call()
                if not work:  # counting slows a method down, and one image tells
                    work.append(count_work(adapter, own[0].scene.image, call).passes / len(own))
            findings += [judge_map(heat, case.cause) for heat, case in zip(maps, own, strict=True)]
        return summarize(findings, work[0] if work else 0.0)

    def _detectors(self, adapter: Adapter, tried: Any, cases: Sequence[PlantedCase]) -> DetectorRow:
        twin = self.family.adapter(self._detector(twin=True))
        deceived = find_cases(twin, self.family.first_label, self.scenario, wanted=10**9, scenes=TWIN_SCENES)
        own, other = make_cam(adapter, "reachcam"), make_cam(twin, "reachcam")
        energies, typicality = [], []
        for case in cases[:TWIN_CASES]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                first = own.explain(case.scene.image, [self.target(case)])[0].heatmaps[0]
                second = other.explain(case.scene.image, [replace(self.target(case), source=None)])[0].heatmaps[0]  # type: ignore[type-var]
            energies.append([judge_map(heat, case.cause).energy for heat in (first, second)])
            both = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())
            typicality.append(float(both[0, 1].nan_to_num()))
        energy = np.mean(energies, 0) if energies else np.full(2, np.nan)
        return DetectorRow(
            self.family.name,
            self.scenario,
            tried.tempted,
            tried.fired,
            len(tried.cases),
            deceived.tempted,
            deceived.fired,
            float(energy[0]),
            float(energy[1]),
            float(np.mean(typicality)) if typicality else float("nan"),
        )


def by_scene(cases: Sequence[PlantedCase]) -> list[list[PlantedCase]]:
    """Cases that share an image together, in order."""
    found: dict[int, list[PlantedCase]] = {}
    for case in cases:
        found.setdefault(case.scene.seed, []).append(case)
    return list(found.values())


def _control(name: str, case: PlantedCase) -> Tensor:
    """A map that knows nothing of the network."""
    size = (case.scene.image.shape[0], case.scene.image.shape[1])
    if name == "filled box":
        generator = np.random.default_rng(case.scene.seed)  # its peak is anywhere in the box
        return torch.from_numpy(fill_region(size, case.target) * generator.uniform(0.999, 1, size))
    return torch.from_numpy(np.random.default_rng(case.scene.seed).random(size))


def _audited(family: str, scenario: ScenarioName, said: Sequence[AuditCheck]) -> AuditRow:
    def share(values: list[bool] | list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return AuditRow(
        family,
        scenario,
        len(said),
        share([one.finding.peak for one in said]),
        share([one.finding.energy for one in said]),
        share([one.place == one.true_place for one in said]),
        share([one.confirmed for one in said]),
        share([one.confirmed and one.on_cause for one in said]),
        sum(one.wrong for one in said),
        sum(one.wrong_confirmed for one in said),
        share([one.passes for one in said]),
    )
