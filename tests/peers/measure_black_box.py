"""Audits of planted causes with a detector that is a function: hits of the peak, and calls of the function.

    python tests/peers/measure_black_box.py --out planted --cases 8 --scenario mark or

`--out` is the folder of `detcam benchmark --planted`, whose detectors are used. Each row gives the share of the cases
whose maximum lies on the cause, the energy on it, the share of those with one of the first maxima on each of several
cues, the share whose words say how these combine, and the mean and largest number of calls of a case.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import detcam
from detcam.adapters import DetectorAdapter
from detcam.benchmarking.planted import audit_check
from detcam.benchmarking.planted.certification import certify_cases
from detcam.benchmarking.planted.detectors import detector_families
from detcam.benchmarking.planted.training_cache import TrainingCache, detector_name
from detcam.synthetic.shortcut_scenarios import ScenarioName


class CountingFunction:
    """A detector as a function of images, which counts them."""

    def __init__(self, adapter: DetectorAdapter) -> None:
        self.adapter = adapter.with_score_threshold(0.01)
        self.calls = 0

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        self.calls += len(images)
        with torch.inference_mode():
            found = self.adapter.predict(list(images))
        return [(each.boxes_xyxy.numpy(), each.scores.numpy(), each.labels.numpy()) for each in found]


def measure(out: Path, family_name: str, scenario: ScenarioName, seeds: str, cases: int) -> str:
    """The row of a scenario."""
    family = detector_families()[family_name]
    adapter = family.adapter(TrainingCache(out / "detectors").detector(family, detector_name(scenario)))
    detect = CountingFunction(adapter)
    function = detcam.adapt(detect, kind="detection", names=dict(adapter.names), batched=True)
    checks, calls = [], []
    for case in certify_cases(adapter, family.first_label, scenario, min_cases=cases, seeds=seeds).cases[:cases]:
        detect.calls = 0
        check = audit_check.check_audit(function, None, case, family.first_label)
        if check is not None:
            checks.append(check)
            calls.append(detect.calls)
    peak, energy, parts = (
        float(np.mean([getattr(each.hit, key) for each in checks])) for key in ("peak", "energy", "parts")
    )
    said = [each.says_combination for each in checks if each.says_combination is not None]
    combination = f"{np.mean(said):.0%}" if said else "-"
    row = (scenario, seeds, len(checks), f"{peak:.0%}", f"{energy:.2f}", f"{parts:.0%}", combination)
    return f"| {' | '.join(map(str, row))} | {np.mean(calls):.1f} | {max(calls)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", default="two-stage")
    parser.add_argument("--scenario", nargs="+", choices=get_args(ScenarioName), default=["mark"])
    parser.add_argument("--cases", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    audit_check.false_causes = lambda case: []  # they cost calls of their own
    print("| scenario | seeds | cases | peak | energy | parts | combination | mean calls | most calls |", flush=True)
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for scenario in options.scenario:
        for seeds in ("development", "hold-out"):
            print(measure(options.out, options.family, scenario, seeds, options.cases), flush=True)


if __name__ == "__main__":
    main()
