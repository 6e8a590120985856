"""The planted benchmark: compares methods and checks the audit on errors with a certified cause."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.benchmarking.controls import fill_region
from detcam.benchmarking.planted.audit_check import AuditCheck, check_audit, scene_donors
from detcam.benchmarking.planted.cases import SEED_SETS, PlantedCase, SeedSet
from detcam.benchmarking.planted.certification import Certification, certify_cases
from detcam.benchmarking.planted.detectors import DetectorFamily, detector_families
from detcam.benchmarking.planted.explainers import PlantedExplainer, check_heatmap
from detcam.benchmarking.planted.hit_metrics import HitSummary, MapHit, mean_or_nan, measure_hit, summarize_hits
from detcam.benchmarking.planted.results import AuditRow, DetectorRow, MethodRow, PlantedResults, PlantedResultStore
from detcam.benchmarking.planted.training_cache import TrainingCache, detector_name
from detcam.explanation.explain import make_cam
from detcam.methods.spec import parse_method
from detcam.metrics.cost import count_work
from detcam.runs import lock_folder
from detcam.synthetic.shortcut_scenarios import FIRST_SCENARIOS, SCENARIOS, ScenarioName
from detcam.targets import MaskTarget
from detcam.utils.batching import group_by
from detcam.utils.console import ProgressBar
from detcam.utils.files import remove_temporary_files

DEFAULT_PLANTED_METHODS = (
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
CONTROLS = ("filled box", "random")
DEFAULT_CASES = 24
"""Certified errors per scenario, family and set of test scenes."""
MAX_TWIN_SCENES = 32
MAX_TWIN_CASES = 12
RESULTS_FILE, DETECTORS_FOLDER = "planted.json", "detectors"


def benchmark_planted(
    out: str | Path,
    methods: Sequence[str] = DEFAULT_PLANTED_METHODS,
    *,
    explainers: Mapping[str, PlantedExplainer] | None = None,
    audit: bool = True,
    family_names: Sequence[str] | None = None,
    scenarios: Sequence[ScenarioName] = FIRST_SCENARIOS,
    seed_sets: Sequence[SeedSet] = SEED_SETS,
    cases: int = DEFAULT_CASES,
    seed: int = 0,
    effort: float = 1.0,
    progress: bool = False,
) -> PlantedResults:
    """Train detectors with planted shortcuts, certify their errors, and measure methods, explainers and the audit.

    Detectors and results that exist in the folder are reused, so that an interrupted run resumes. The rows of
    explainers are not saved, since their code may change.

    Args:
        out: folder of detectors and results.
        methods: names with settings, as in `detcam.explain`.
        explainers: functions ``explain(model, image, target)`` by the name of their row.
        audit: whether to measure the audit, and the reliance of the detectors and their twins on the cues.
        family_names: names of `detector_families()`; None takes the small ones.
        scenarios: names from `SCENARIOS`.
        seed_sets: test scenes; constants may be chosen on ``"development"``, never on ``"hold-out"``.
        cases: maximum number of certified errors per scenario, family and set of test scenes.
        seed: seed of the training.
        effort: factor on the number of training steps.
        progress: whether to show a progress bar on stderr.

    Returns:
        The rows of the detectors, the methods and explainers, and the audit, for each family, scenario and scene set.

    Raises:
        ValueError: a family, scenario or method does not exist, an explainer returns no heatmap of the image's size,
            or the folder contains results of other settings.
        RuntimeError: another run is working in the folder.
    """
    families = detector_families()
    default_names = [name for name, family in families.items() if family.is_default]
    names = default_names if family_names is None else list(family_names)
    for given, known in ((names, families), (scenarios, SCENARIOS), (seed_sets, SEED_SETS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"expected names from {', '.join(known)}; got {unknown[0]!r}")
    for method in methods:
        parse_method(method)
    with lock_folder(out) as folder, ProgressBar(enabled=progress) as bar:
        for each in (folder, folder / DETECTORS_FOLDER):
            remove_temporary_files(each)  # of a process that was killed
        path = folder / RESULTS_FILE if methods or audit else None
        store = PlantedResultStore(path, {"cases": cases, "seed": seed, "effort": effort})
        cache = TrainingCache(folder / DETECTORS_FOLDER, seed, effort)
        for name in names:
            for scenario in scenarios:
                for seeds in seed_sets:
                    run = _ScenarioRun(families[name], scenario, seeds, cache, cases, bar)
                    run.measure(store, methods, explainers or {}, audit)
    return store.results(names, scenarios)


def evaluate(
    explain: PlantedExplainer, out: str | Path = "planted", *, name: str | None = None, **options: Any
) -> tuple[MethodRow, ...]:
    """Measure how often an explainer finds the certified causes.

    The first call trains the detectors, which takes minutes for each family and scenario; further calls read them from
    the folder.

    Args:
        explain: function ``explain(model, image, target)`` that returns an (H, W) heatmap in image pixels. `model` is
            the `torch.nn.Module` of the detector in evaluation mode: torchvision's detectors take a list of
            (3, H, W) tensors in [0, 1], those of ultralytics a batch; `detcam.adapt(model)` supports all of them.
            `image` is an (H, W, 3) uint8 RGB array. `target` has the ``box_xyxy``, the ``label`` and, if the score of
            another class is subtracted, ``against``. For a missed object it is a `SuppressionTarget`, whose heatmap
            has to show what lowers the score.
        out: folder of detectors and results.
        name: name of the row; None takes the function's name.
        **options: further arguments of `benchmark_planted`, such as ``family_names``, ``scenarios`` and ``cases``.

    Returns:
        The rows of the explainer and of the controls, one per family, scenario and set of test scenes.

    Raises:
        ValueError: the explainer returns no heatmap of the image's size; or as `benchmark_planted`.
    """
    label = name or str(getattr(explain, "__name__", type(explain).__name__))
    return benchmark_planted(out, (), explainers={label: explain}, audit=False, **options).methods


@dataclass(frozen=True)
class _ScenarioRun:
    """The measurements of one scenario and family in one set of test scenes."""

    family: DetectorFamily
    scenario: ScenarioName
    seeds: SeedSet
    cache: TrainingCache
    max_cases: int
    bar: ProgressBar

    def measure(
        self,
        store: PlantedResultStore,
        methods: Sequence[str],
        explainers: Mapping[str, PlantedExplainer],
        audit: bool,
    ) -> None:
        """Measure the explainers, and the other rows that the store does not have."""
        key = (self.family.name, self.scenario, self.seeds)
        missing = [name for name in (*methods, *CONTROLS) if not store.has(*key, "method", name)]
        needs_twin = audit and self.seeds == "development" and not store.has(*key, "detector")
        needs_audit = audit and not store.has(*key, "audit")
        if not (missing or explainers or needs_twin or needs_audit):
            return
        adapter = self._adapter()
        self.bar.restart(f"{' '.join(key)}: certifying")
        certification = certify_cases(
            adapter, self.family.first_label, self.scenario, min_cases=self.max_cases, seeds=self.seeds
        )
        cases = certification.cases[: self.max_cases]
        if needs_twin:
            store.put(self._compare_with_twin(adapter, certification, cases), *key, "detector")
        for name in missing:
            self.bar.restart(f"{' '.join(key)}: {name}")
            store.put(MethodRow(*key, name, self._measure_method(adapter, name, cases)), *key, "method", name)
        for name, explain in explainers.items():
            self.bar.restart(f"{' '.join(key)}: {name}")
            row = MethodRow(*key, name, self._measure_explainer(adapter, name, explain, cases))
            store.put(row, *key, "method", name, save=False)
        if needs_audit:
            self.bar.restart(f"{' '.join(key)}: audit")
            with _no_warnings():
                first_label = self.family.first_label
                donors = scene_donors(adapter, certification.cases, first_label)
                checks = [check_audit(adapter, None, case, first_label, donors) for case in cases]
            store.put(_summarize_audit(*key, [check for check in checks if check is not None]), *key, "audit")

    def _adapter(self, *, twin: bool = False) -> Adapter:
        name = detector_name(self.scenario, twin=twin)
        return self.family.adapter(self.cache.detector(self.family, name, self.bar))

    def _measure_method(self, adapter: Adapter, name: str, cases: Sequence[PlantedCase]) -> HitSummary:
        """Measure a method or a control; the cases of an image share a pass."""
        hits: list[MapHit] = []
        passes: float | None = None
        for scene_cases in group_by(cases, lambda case: id(case.scene)).values():
            if name in CONTROLS:
                heatmaps = [_draw_control(name, case) for case in scene_cases]
            else:
                cam = parse_method(name)(adapter)
                image, targets = scene_cases[0].scene.image, [case.target for case in scene_cases]

                def call(cam: Any = cam, image: Any = image, targets: Any = targets) -> list[Tensor]:
                    with _no_warnings():
                        return list(torch.from_numpy(cam.explain(image, targets)[0].heatmaps))

                heatmaps = call()
                if passes is None:  # counting slows a method down, so only the first image is counted
                    passes = count_work(adapter, image, call).passes / len(scene_cases)
            hits += [measure_hit(heatmap, *case.parts) for heatmap, case in zip(heatmaps, scene_cases, strict=True)]
        return summarize_hits(hits, passes or 0.0)

    def _measure_explainer(
        self, adapter: Adapter, name: str, explain: PlantedExplainer, cases: Sequence[PlantedCase]
    ) -> HitSummary:
        model = adapter.model
        hits: list[MapHit] = []
        passes: float | None = None
        for case in cases:
            image = case.scene.image

            def call(case: PlantedCase = case) -> Tensor:
                with _no_warnings():
                    heatmap = explain(model, case.scene.image.copy(), case.target)
                return check_heatmap(heatmap, (image.shape[0], image.shape[1]), name)  # noqa: B023

            hits.append(measure_hit(call(), *case.parts))
            if passes is None:
                try:
                    passes = count_work(adapter, image, call).passes
                except RuntimeError:  # the counter's hooks do not support every use of autograd
                    passes = float("nan")
        return summarize_hits(hits, passes or 0.0)

    def _compare_with_twin(
        self, adapter: Adapter, certification: Certification, cases: Sequence[PlantedCase]
    ) -> DetectorRow:
        twin = self._adapter(twin=True)
        twin_certification = certify_cases(
            twin, self.family.first_label, self.scenario, min_cases=10**9, max_scenes=MAX_TWIN_SCENES
        )
        cams = make_cam(adapter, "reachcam"), make_cam(twin, "reachcam")
        energies: list[list[float]] = [[], []]
        correlations = []
        for case in cases[:MAX_TWIN_CASES]:
            unpinned = case.target if isinstance(case.target, MaskTarget) else replace(case.target, source=None)
            targets = case.target, unpinned
            with _no_warnings():
                heatmaps = [
                    torch.from_numpy(cam.explain(case.scene.image, [target])[0].heatmaps[0])
                    for cam, target in zip(cams, targets, strict=True)
                ]
            for values, heatmap in zip(energies, heatmaps, strict=True):
                values.append(measure_hit(heatmap, *case.parts).energy)
            correlation = torch.corrcoef(torch.stack([heatmap.flatten() for heatmap in heatmaps]).double())
            correlations.append(float(correlation[0, 1].nan_to_num()))
        return DetectorRow(
            self.family.name,
            self.scenario,
            certification.trials,
            certification.fired,
            len(certification.cases),
            twin_certification.trials,
            twin_certification.fired,
            mean_or_nan(energies[0]),
            mean_or_nan(energies[1]),
            mean_or_nan(correlations),
        )


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _draw_control(name: str, case: PlantedCase) -> Tensor:
    """Draw a map (H, W) that does not depend on the network."""
    size_hw = (case.scene.image.shape[0], case.scene.image.shape[1])
    generator = np.random.default_rng(case.scene.seed)
    if name == "filled box":  # the noise puts the peak at a random position in the box
        return torch.from_numpy(fill_region(size_hw, case.target) * generator.uniform(0.999, 1, size_hw))
    return torch.from_numpy(generator.random(size_hw))


def _summarize_audit(family: str, scenario: ScenarioName, seeds: SeedSet, checks: Sequence[AuditCheck]) -> AuditRow:
    return AuditRow(
        family,
        scenario,
        seeds,
        len(checks),
        mean_or_nan([check.hit.peak for check in checks]),
        mean_or_nan([check.hit.energy for check in checks]),
        mean_or_nan([check.location == check.true_location for check in checks]),
        mean_or_nan([check.confirmed for check in checks]),
        mean_or_nan([check.confirmed and check.on_cause for check in checks]),
        sum(check.false_causes for check in checks),
        sum(check.false_causes_confirmed for check in checks),
        mean_or_nan([check.passes for check in checks]),
        mean_or_nan([check.hit.parts for check in checks]),
        mean_or_nan([check.says_combination for check in checks if check.says_combination is not None]),
    )
