"""How often verification confirms wrong regions, by grade, near the score threshold and above.

    python tests/peers/measure_wrong_regions.py photographs [--detector yolox|fastestdet] [--errors 50]
    python tests/peers/measure_wrong_regions.py planted --out planted [--scenario mark or ...] [--cases 10]

Each region is verified like evidence: as the only map of an audit. On photographs (``train.json``), regions are two
discs at random positions and the box of another annotated object, outside the boxes of the detection and its object. On
planted scenes, they are an object that is certified to be unrelated, and a region of the cause's shape at a random
position; *near* means a score threshold at a random distance of 0.01 to 0.1 below the score of the detection.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.verification.evidence import box_region
from detcam.benchmarking.planted.audit_check import PrecomputedMaps, error_image, false_causes, grade_of_region
from detcam.benchmarking.planted.certification import certify_cases
from detcam.benchmarking.planted.detectors import detector_families
from detcam.benchmarking.planted.planted_errors import MIN_SCORE
from detcam.benchmarking.planted.training_cache import TrainingCache, detector_name
from detcam.utils.proportions import wilson_interval
from tests.peers.measure_photographs import CLASS_MAPS, PHOTOGRAPHS, SCORE_THRESHOLD, build

NEAR = 0.1
"""Distance of a score to the threshold from which on it is not near."""
DISC_SIZES = (0.002, 0.04)
"""Smallest and largest fraction of the image that a disc covers."""
MAX_OBJECT_FRACTION = 0.08
"""Maximum fraction of the image that another object covers."""
MAX_TRIES = 40

Key = tuple[str, str]
"""``"near"`` or ``"above"`` the threshold, and the grade."""


def wrong_regions(image: ErrorImage) -> Iterator[Tensor]:
    """Two discs and the box of another object, outside the boxes of the detection and of its object."""
    case, truth = image.cases[0], image.ground_truth
    height, width = truth.image_size_hw
    excluded = box_region(case.box_xyxy, truth.image_size_hw)
    if case.ground_truth is not None:
        excluded |= box_region(case.ground_truth.box_xyxy, truth.image_size_hw)
    generator = np.random.default_rng(sum(case.id.encode()))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    for _ in range(2):
        for _ in range(MAX_TRIES):
            area = np.exp(generator.uniform(*np.log(DISC_SIZES))) * height * width
            row, column = generator.uniform(0, height), generator.uniform(0, width)
            disc = (rows - row).square() + (columns - column).square() <= area / np.pi
            if not bool((disc & excluded).any()):
                yield disc
                break
    for box in generator.permutation(truth.boxes_xyxy.numpy()):
        region = box_region(tuple(box.tolist()), truth.image_size_hw)
        if float(region.float().mean()) <= MAX_OBJECT_FRACTION and not bool((region & excluded).any()):
            yield region
            return


def on_photographs(detector: str, errors: int) -> Counter[Key]:
    """Verify wrong regions for a random sample of the false positives of a detector."""
    adapter, _ = build(detector)
    annotations = PHOTOGRAPHS / "train.json"
    categories = {each["name"] for each in json.loads(annotations.read_text())["categories"]}
    class_map = {name: other for name, other in CLASS_MAPS.items() if name in categories - set(adapter.names.values())}
    counts: Counter[Key] = Counter()
    explain = ErrorExplainer.explain

    def explain_wrong(self: ErrorExplainer, images: Sequence[ErrorImage]) -> list[list[ExplainedError]]:
        """Count the grades of wrong regions; the results of the last ones stand for the audit's."""
        results: list[list[ExplainedError]] = []
        for image in images:
            results.append([])
            for error, case in zip(image.errors, image.cases, strict=True):
                one = replace(image, errors=[error], cases=[case])
                maps = PrecomputedMaps(torch.zeros(image.ground_truth.image_size_hw))
                plain = ErrorExplainer(self.adapter, maps, self.names, self.score_threshold)  # type: ignore[arg-type]
                results[-1].append(explain(plain, [one])[0][0])
                for region in wrong_regions(one):
                    plain = replace(plain, cam=PrecomputedMaps(region.float()))  # type: ignore[arg-type]
                    grade = grade_of_region(explain(plain, [one])[0][0], region)
                    counts["near" if case.score < SCORE_THRESHOLD + NEAR else "above", grade] += 1
        return results

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ErrorExplainer, "explain", explain_wrong):
        detcam.audit(
            adapter,
            PHOTOGRAPHS / "images",
            annotations,
            out=folder,
            score_threshold=SCORE_THRESHOLD,
            explain=errors,
            explain_missed=0,
            explain_order="random",
            class_map=class_map or None,
        )
    return counts


def on_planted(folder: Path, scenario: str, cases: int) -> Counter[Key]:
    """Verify false causes of a Faster R-CNN on development scenes, at the usual threshold and at one near the score."""
    family = detector_families()["two-stage"]
    adapter = family.adapter(TrainingCache(folder / "detectors").detector(family, detector_name(scenario)))  # type: ignore[arg-type]
    certified = certify_cases(adapter, family.first_label, scenario, min_cases=cases).cases[:cases]  # type: ignore[arg-type]
    counts: Counter[Key] = Counter()
    for number, case in enumerate(certified):
        image = error_image(adapter, case, family.first_label)
        if image is None or case.index is None:
            continue
        near = image.cases[0].score - random.Random(number).uniform(0.01, NEAR)
        for name, threshold in (("near", near), ("above", MIN_SCORE)):
            for region in false_causes(case):
                maps = PrecomputedMaps(region.float())
                explainer = ErrorExplainer(adapter, maps, adapter.names, threshold)  # type: ignore[arg-type]
                counts[name, grade_of_region(explainer.explain([image])[0][0], region, case.cause)] += 1
    return counts


def report(title: str, counts: Counter[Key]) -> None:
    """Print the share of each grade with its interval."""
    for name in ("near", "above"):
        total = sum(count for (where, _), count in counts.items() if where == name)
        for verdict in ("strong", "weak"):
            count = counts[name, verdict]
            low, high = wilson_interval(count / total, total) if total else (0.0, 1.0)
            print(f"{title}, {name}: {count} of {total} {verdict} ({low:.1%} to {high:.1%})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["photographs", "planted"])
    parser.add_argument("--detector", choices=["yolox", "fastestdet"], default="yolox")
    parser.add_argument("--errors", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("planted"), help="folder of the planted benchmark")
    parser.add_argument("--scenario", nargs="+", default=["mark", "look-alike", "and", "or"])
    parser.add_argument("--cases", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.data == "photographs":
        report(arguments.detector, on_photographs(arguments.detector, arguments.errors))
        return
    total: Counter[Key] = Counter()
    for scenario in arguments.scenario:
        total += on_planted(arguments.out, scenario, arguments.cases)
    report(", ".join(arguments.scenario), total)


if __name__ == "__main__":
    main()
