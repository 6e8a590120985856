"""Audits without annotations: every detection is explained and rated."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detcam
from detcam import adapt
from detcam.adapters import Adapter
from detcam.auditing import Audit, AuditCase
from detcam.auditing.report.summary import unlabeled_headline
from detcam.auditing.sentences import is_inside, without_annotations
from detcam.auditing.triage import least_trusted_first, unlabeled_images
from detcam.auditing.triage.probes import (
    best_overlapping_score,
    own_class,
    own_content,
    score_stability,
    self_typicality,
)
from detcam.auditing.triage.trust import evidence_signals, trust, typicalities
from detcam.cli.app import app
from detcam.demo.model import load_demo_detector
from detcam.detections import Detections, Source
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from tests.auditing.report.browser import browser, opener

SEEDS = (1_000_000, 1_000_001)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in SEEDS:
        (folder / "harbor").mkdir(exist_ok=True)
        Image.fromarray(draw_scene(seed).image).save(folder / "harbor" / f"{seed}.png")
    (folder / "harbor" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def found(adapter: Adapter, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    out = tmp_path_factory.mktemp("report")
    return detcam.audit(adapter, folder, out=out, score_threshold=0.5, explain=6)


def test_detections_are_explained_and_rated(found: Audit) -> None:
    assert found.is_unlabeled and len(found.explained) == 6 == len(found.least_trusted)
    assert math.isnan(found.analysis.average_precision) and found.analysis.counts()["missed"] == 0
    for case in found.explained:
        assert case.type == "background" and "annotation" not in case.sentence
        outside = case.background_type == "context"
        assert case.trust_signals is not None and (case.trust_signals["inside"] < 0.75) == outside
        signals = {"score", "stability", "inside", "own class"} | (set() if is_inside(case) else {"own content"})
        assert set(case.trust_signals) == signals, "the box alone is tested unless the evidence is inside"
        assert all(0 <= value <= 1 for value in (case.trust, *case.trust_signals.values()))
    trusts = [case.trust for case in found.least_trusted]
    assert trusts == sorted(trusts)
    assert len(found.issues.of("unreadable image")) == 1 and {case.file_name for case in found.cases} == {
        f"{seed}.png" for seed in SEEDS
    }


def test_detections_beside_wakes_are_trusted_least(found: Audit) -> None:
    def is_ghost(case: AuditCase) -> bool:
        boxes = draw_scene(int(case.file_name[:-4])).ghost_boxes_xyxy.values()
        center = np.array([(case.box_xyxy[0] + case.box_xyxy[2]) / 2, (case.box_xyxy[1] + case.box_xyxy[3]) / 2])
        return any((box[:2] < center).all() and (center < box[2:]).all() for box in boxes)

    ghosts = [is_ghost(case) for case in found.least_trusted]
    buoys = [case.trust for case in found.explained if case.name == "buoy"]
    assert any(ghosts) and not all(ghosts)
    assert all(value > 0.8 for value in buoys)
    assert max(case.trust for case, ghost in zip(found.least_trusted, ghosts, strict=True) if ghost) < 0.5


def test_the_report_has_no_average_precision(found: Audit, tmp_path: Path) -> None:
    assert found.report is not None
    data = json.loads((found.report.parent / "audit.json").read_text())
    with pytest.raises(ValueError, match="no annotations"):
        detcam.repair(found, tmp_path)
    assert data["settings"]["unlabeled"] is True and data["average_precision"] is None
    assert "no annotations" in data["headline"][0] and "6 are explained" in data["headline"][1]
    rated = [AuditCase.from_json(case) for case in data["cases"] if case["trust"] is not None]
    assert [case.trust for case in least_trusted_first(rated)] == pytest.approx(
        [case.trust for case in found.least_trusted], abs=1e-6
    )


def test_the_page_speaks_of_detections_and_shows_their_trust(found: Audit) -> None:
    assert found.report is not None
    with browser() as started, opener(started) as look:
        page = look(found.report)
        text = page.locator("#overview").inner_text().lower()
        assert "explained detections" in text and "detections by class" in text
        assert "error" not in text, text[max(text.index("error") - 60, 0) : text.index("error") + 60]
        shown = page.locator(".case-name .number").all_text_contents()
        assert shown[: len(found.explained)] == [f"trust {case.trust:.2f}" for case in found.least_trusted]


def test_command(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "harbor.pt"
    torch.save(load_demo_detector(), model)
    arguments = ["audit", "--model", str(model), "--trust-checkpoint", "--names", "background,boat,buoy"]
    done = CliRunner().invoke(
        app, [*arguments, "--images", str(folder), "--out", str(tmp_path / "out"), "--explain", "1"]
    )
    assert done.exit_code == 1, done.stderr  # one file cannot be read
    assert "detections that deserve the least trust" in done.stdout and "no annotations" in done.stdout


def test_images(adapter: Adapter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = folder / "harbor" / f"{SEEDS[0]}.png"
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 20)).save(other)
    listed = unlabeled_images(adapter, [image, other])
    assert [entry.path for entry in listed] == [image, other] and listed[1].image_size_hw == (20, 30)
    assert listed.labels == (1, 2) and len({entry.file_name for entry in listed}) == 2
    monkeypatch.chdir(tmp_path)
    mixed = unlabeled_images(adapter, ["other.png", image])
    assert [(entry.path, entry.file_name) for entry in mixed] == [(e.path, e.file_name) for e in (listed[1], listed[0])]
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of the 1 files can be read"):
        unlabeled_images(adapter, tmp_path / "bad.png")
    with pytest.raises(ValueError, match="expected images.* got an empty list"):
        unlabeled_images(adapter, [])
    with pytest.raises(TypeError, match="folder of the annotated images"):
        detcam.audit(adapter, [image], folder / "labels.json")


def test_contradictions_lower_the_trust_of_untypical_detections() -> None:
    signals = {"score": 0.9, "stability": 0.8, "own content": 1.0, "inside": 1.0, "typicality": 0.4}
    assert trust(signals) == pytest.approx(0.7)
    assert trust({**signals, "inside": 0.25}) == pytest.approx(0.7 * (1 - 0.75 * 0.6))
    assert trust({**signals, "own content": 0.5}) == pytest.approx(0.7 * (1 - 0.5 * 0.6))
    assert trust({**signals, "inside": 0.0, "typicality": 1.0}) == pytest.approx(0.9), (
        "typical ones may rest on context"
    )
    unknown = {name: value for name, value in signals.items() if name != "typicality"}
    assert trust({**unknown, "inside": 0.2}) == trust({**signals, "inside": 0.2, "typicality": 0.5}), "neutral"
    typical = {**signals, "inside": 0.2, "typicality": 1.0}
    assert trust({**typical, "own class": 0.2}) == pytest.approx(0.9 * 0.2), "no excuse for another class without it"
    inside = {name: value for name, value in signals.items() if name != "own content"}
    assert trust(inside) == pytest.approx(0.7) and trust({**inside, "inside": 0.5}) == pytest.approx(0.7 * 0.7)


def test_evidence_outside_that_makes_the_class_is_a_signal(found: Audit) -> None:
    ghost = next(case for case in found.explained if case.background_type == "context")
    assert evidence_signals(ghost) == {"inside": pytest.approx(1 - ghost.effect)}
    flipped = replace(ghost, trials=tuple(replace(trial, outcome="class flipped") for trial in ghost.trials))
    assert evidence_signals(flipped) == dict.fromkeys(("inside", "own class"), pytest.approx(1 - ghost.effect))
    within = replace(flipped, evidence_shares={"predicted box": 1.0}, evidence_location="predicted box")
    assert evidence_signals(within) == {"inside": 1.0}


def test_an_object_of_another_class_without_its_surroundings_is_said(found: Audit) -> None:
    (case, *_), threshold = found.explained, found.score_threshold
    told = f"{case.name} without a matching annotation; strongly confirmed"
    plain = replace(case, sentence=told, trust_signals={"own class": 1.0}, trust=0.9)
    other = replace(plain, trust_signals={"own class": 0.1}, trust=0.1)
    assert without_annotations(plain) == f"{case.name}; strongly confirmed"
    assert without_annotations(other) == f"{case.name}, with another class without its surroundings; strongly confirmed"
    first, second = unlabeled_headline([plain, other, other], threshold)
    assert first.startswith("3 detections") and "; 2 have another class without their surroundings. 2 have" in second
    assert second.endswith("2 have a trust below 0.5: look at these first.")
    assert all("detection" in group.sentence and "error" not in group.sentence for group in found.groups)


def test_the_headline_says_what_becomes_of_detections_without_a_region_outside(found: Audit) -> None:
    ghost = replace(next(case for case in found.explained if case.background_type == "context"), trust=0.9)
    flipped = replace(ghost, trials=tuple(replace(trial, outcome="class flipped") for trial in ghost.trials))
    outside = "without a region outside the box, which is confirmed. None has a trust below 0.5."
    for cases, said in (
        ([ghost], "1 is explained; 1 vanishes"),
        ([ghost, flipped], "2 are explained; 2 vanish or change class"),
    ):
        assert unlabeled_headline(cases, 0.0)[1] == f"{said} {outside}"


def test_typicality_compares_with_detections_that_are_not_explained(found: Audit) -> None:
    case, random = replace(found.explained[0], label=1, score=0.9), np.random.default_rng(0)
    keys = [(image, 0) for image in range(45)]
    features = {key: np.roll([1.0, 0.1 * random.random()], int(key[0] > 22)) for key in keys}
    detections = [
        Detections(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0.5 + image / 100]), (9, 9), (Source("query"),))
        for image, _ in keys
    ]
    classifier: Any = SimpleNamespace(
        detections=detections, planned_keys=lambda: keys,
        features=lambda asked: {(image, row): features[image, row] for image, rows in asked.items() for row in rows},
    )  # fmt: skip
    untypical = typicalities(classifier, {(0, 0): replace(case, score=0.5)})
    typical = typicalities(classifier, {(40, 0): case})
    assert set(untypical) == {(0, 0)} and set(typical) == {(40, 0)}
    assert untypical[0, 0] < 0.1 < 0.3 < typical[40, 0]


class BrightSpots:
    """A detector of 10 x 10 boxes around the pixels above 0.9; its score is the mean of a patch at a given offset."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.batches: list[int] = []

    def predict(self, images: list[torch.Tensor], **_: Any) -> list[Detections]:
        self.batches.append(len(images))
        results = []
        for image in images:
            box = torch.tensor([[20.0, 20, 30, 30]])
            patch = image[0, 24:26, 24 + self.offset : 26 + self.offset]
            one = torch.tensor([1])
            score = patch.mean().clamp(0, 1)[None]
            results.append(Detections(box, one, score, (60, 60), (Source("region"),)))
        return results


@pytest.mark.parametrize(("offset", "alone"), [(0, 1.0), (20, 0.0)], ids=["inside", "outside"])
def test_what_a_box_contains_is_told_from_what_is_around_it(offset: int, alone: float) -> None:
    image = torch.zeros(3, 60, 60)
    image[:, 22:28, 22 + offset : 28 + offset] = 0.8
    detector: Any = BrightSpots(offset)
    box, label = torch.tensor([[20.0, 20, 30, 30]]), [1]
    assert own_content(detector, image, box, label, [0.8])[0] == pytest.approx(alone, abs=0.1)
    # Mirrored and moved, nothing is where it looks; darker, 0.8 of the score remains; brighter and blurred, all of it.
    stable = score_stability(detector, image, box, label, [0.8])[0]
    assert stable == pytest.approx((0 + 0 + 1 + 0.8 + 1) / 5, abs=0.03)


@pytest.mark.parametrize(
    ("offset", "other", "remaining", "batches"),
    [(10, 0.9, 0.0, [2, 2]), (10, 0.2, 1.0, [2, 1]), (20, 0.9, 1.0, [2]), (0, 0.9, 1.0, [2])],
    ids=["beside", "beside, and no other class", "far away", "inside"],
)
def test_the_class_that_the_surroundings_make(offset: int, other: float, remaining: float, batches: list[int]) -> None:
    class Rivals(BrightSpots):
        """Another class at the same box scores `other`, unless the spot makes the first one."""

        def predict(self, images: list[torch.Tensor], **_: Any) -> list[Detections]:
            found = [each.scores.item() for each in super().predict(images)]
            box, labels, source = torch.tensor([[20.0, 20, 30, 30]] * 2), torch.tensor([1, 2]), (Source("region"),) * 2
            rows = [torch.tensor([score, other if score < 0.5 else 0.1]) for score in found]
            return [Detections(box, labels, row, (60, 60), source) for row in rows]

    image = torch.zeros(3, 60, 60)
    image[:, 22:28, 22 + offset : 28 + offset] = 0.8
    detector: Any = Rivals(offset)
    measured = own_class(detector, image, torch.tensor([[20.0, 20, 30, 30]]), [1], [0.8], 0.3)
    assert measured == [pytest.approx(remaining, abs=0.15)]
    assert detector.batches == batches, "one batch a fill, the second of rings without which the class may change"


def test_remaining_score_needs_class_and_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    found = Detections(boxes, torch.tensor([1, 2, 1]), torch.tensor([0.3, 0.6, 0.9]), (60, 60), (Source("region"),) * 3)
    assert best_overlapping_score(found, torch.tensor([1.0, 0, 10, 10]), 1) == pytest.approx(0.3)
    assert best_overlapping_score(found, boxes[0], 3) == 0 and best_overlapping_score(
        found, boxes[0], 2
    ) == pytest.approx(0.6)


def test_typicality_finds_what_differs_from_confident_detections() -> None:
    random = np.random.default_rng(0)
    keys = [(image, 0) for image in range(60)]
    odd = set(keys[:10])
    features = {key: random.normal([0, 5] if key in odd else [5, 0], 0.3) for key in keys}
    scores = {key: 0.6 if key in odd else float(random.uniform(0.6, 1)) for key in keys}
    values = self_typicality(features, scores)
    assert max(values[key] for key in odd) == 0
    assert np.mean([values[key] for key in keys if key not in odd]) > 0.3
    few = self_typicality({key: features[key] for key in keys[:20]}, scores)
    assert all(math.isnan(value) for value in few.values())
