"""Typicality, its features, and the types of background errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detcam import adapt
from detcam.auditing import AuditCase, analyze_errors
from detcam.auditing.background_type import MIN_TYPICALITY, BackgroundClassifier
from detcam.auditing.case import EVIDENCE_LOCATIONS, LIGHT_FILLS, EvidenceLocation, Trial
from detcam.auditing.conformal import MIN_CORRECT, NEIGHBOR_COUNT, pool_boxes, typicality
from detcam.auditing.sentences import case_sentence
from detcam.data.annotations import Annotations
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.scenes import write_scenes


def random_detections(rng: np.random.Generator, right: int, wrong: int, apart: float) -> tuple[np.ndarray, ...]:
    """Features and scores of right and wrong detections, the wrong ones so far apart, in images of three each."""
    count = right + wrong
    is_right = np.arange(count) < right
    features = rng.normal(size=(count, 6)) + np.where(is_right, 0, apart)[:, None] * np.eye(6)[0] + 2 * np.eye(6)[1]
    scores = np.clip(rng.normal(0.8, 0.1, count) - 0.2 * apart * ~is_right, 0.01, 0.99)
    return features, scores, is_right, rng.permutation(count) // 3


def typicality_loop(features: np.ndarray, scores: np.ndarray, right: np.ndarray, images: np.ndarray) -> list[float]:
    def nearness(i: int, among: np.ndarray) -> float:
        cosines = [
            float(features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j]))
            for j in np.flatnonzero(among)
            if images[j] != images[i]
        ]
        return sum(sorted(cosines)[-NEIGHBOR_COUNT:]) / NEIGHBOR_COUNT

    def rank(values: list[float], i: int) -> float:
        good = [values[j] for j in np.flatnonzero(right)]
        return (sum(v < values[i] for v in good) + sum(v <= values[i] for v in good)) / (2 * len(good))

    everyone = range(len(scores))
    looks = [nearness(i, right) - nearness(i, ~right) for i in everyone]
    summed = [rank(scores.tolist(), i) + rank(looks, i) for i in everyone]
    return [rank(summed, i) for i in everyone]


@pytest.mark.parametrize("seed", range(3))
def test_typicality_equals_a_direct_implementation(seed: int) -> None:
    given = random_detections(np.random.default_rng(seed), 25, 14, 1.0)
    assert typicality(*given).tolist() == pytest.approx(typicality_loop(*given), abs=1e-12)


def test_typicality_of_hidden_objects_is_uniform() -> None:
    rng = np.random.default_rng(3)
    hidden = []
    for _ in range(20):  # right ones that are taken for wrong, among others that are wrong
        features, scores, right, images = random_detections(rng, 120, 40, 2.0)
        taken = rng.permutation(120)[:20]
        believed = right.copy()
        believed[taken] = False
        found = typicality(features, scores, believed, images)
        hidden += found[taken].tolist()
        assert (found[~right] >= MIN_TYPICALITY).mean() < 0.25
    for threshold in (0.1, 0.3, 0.5):
        assert np.mean(np.array(hidden) >= threshold) == pytest.approx(1 - threshold, abs=0.12)


def test_typicality_needs_enough_correct_detections() -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(typicality(*random_detections(rng, MIN_CORRECT - 1, 10, 1.0))).all()
    features, scores, right, _ = random_detections(rng, 40, 10, 1.0)
    assert np.isnan(typicality(features, scores, right, np.zeros(50))).all(), "no neighbors in other images"
    few = typicality(*random_detections(rng, 40, 2, 3.0))
    assert np.isfinite(few).all() and few[-2:].max() < few[:40].mean(), (
        "with too few wrong detections, only the correct ones count"
    )


def test_pooled_features_are_the_mean_over_the_box() -> None:
    level = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(0))
    size = (60, 80)  # each cell is 10 pixels
    boxes = np.array([[3, 4, 47, 31], [70, 50, 80, 60], [-20, -20, 5, 5], [12, 12, 12, 12]], dtype=float)
    fine = F.interpolate(level[None], size, mode="nearest")[0].numpy()
    found = pool_boxes(level.numpy(), boxes, size)
    for row, (x1, y1, x2, y2) in zip(found, boxes.clip(0).astype(int).tolist(), strict=True):
        mean = fine[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].mean((1, 2))
        assert row.tolist() == pytest.approx((mean / np.linalg.norm(mean)).tolist(), rel=1e-5)


def explained(case: AuditCase, location: EvidenceLocation) -> AuditCase:
    return replace(
        case,
        evidence_shares={each: float(each == location) for each in EVIDENCE_LOCATIONS},
        evidence_location=location,
        verdict="strong",
        reason="vanished",
    )


def case_of(position: int, label: int) -> AuditCase:
    return AuditCase(
        f"{position}", 1, "a.png", (10, 10), "background", label, "boat", 0.9, (0, 0, 1, 1), True, None, 0.0
    )


def test_hidden_boats_are_distinguished_from_wakes(tmp_path: Path) -> None:
    """A fifth of the labels is hidden; on the demonstration's scenes all other background errors are wakes."""
    whole = Annotations.load(write_scenes(tmp_path, range(1_000_000, 1_000_040)), tmp_path / "images")
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
    whole = whole.for_classes(adapter.names)
    rng = np.random.default_rng(0)
    kept = [torch.from_numpy(rng.random(len(image)) >= 0.2) for image in whole]
    truth = replace(whole, images=tuple(image[keep] for image, keep in zip(whole, kept, strict=True)))
    found = adapter.predict(whole.paths)
    before, analysis = analyze_errors(found, whole), analyze_errors(found, truth)
    always = {(error.image_index, error.detection_index) for error in before if error.type == "background"}
    cases, hidden = {}, {}
    for at, error in enumerate(analysis):
        if error.type == "background" and error.score is not None and error.score >= 0.3:
            cases[at] = explained(case_of(at, error.label), "predicted box")
            hidden[at] = (error.image_index, error.detection_index) not in always
    types = BackgroundClassifier(adapter, analysis, found, truth, 0.3, 4).classify(cases)
    background_types = {kind: [types[at][0] for at in cases if hidden[at] == kind] for kind in (True, False)}
    assert len(background_types[True]) >= 12 and len(background_types[False]) >= 30
    assert background_types[True].count("missing annotation") >= 0.75 * len(background_types[True])
    assert background_types[False].count("missing annotation") <= 0.05 * len(background_types[False])
    elsewhere = {at: explained(case, "ring") for at, case in cases.items()}
    types = BackgroundClassifier(adapter, analysis, found, truth, 0.3, 4).classify(elsewhere)
    assert {background_type for background_type, _ in types.values()} == {"context"}
    untested = {at: replace(case, verdict="not confirmed") for at, case in elsewhere.items()}
    types = BackgroundClassifier(adapter, analysis, found, truth, 0.3, 4).classify(untested)
    assert {types[at][0] for at in cases if not hidden[at]} <= {None, "missing annotation"}, "no context without a test"
    few = analyze_errors(found[:2], truth[:2])
    some = {at: case_of(at, error.label) for at, error in enumerate(few) if error.type == "background"}
    classifier = BackgroundClassifier(adapter, few, found[:2], truth[:2], 0.3, 4)
    types = classifier.classify({at: explained(case, "predicted box") for at, case in some.items()})
    assert some and all(background_type is None and math.isnan(value) for background_type, value in types.values())
    features = classifier.box_features(list(some))
    assert features.keys() == some.keys()
    norms = [float(np.linalg.norm(each)) for each in features.values()]
    assert norms == pytest.approx([2**0.5] * len(some), rel=1e-5), "a unit vector for each of two levels"
    first = {at for at in some if few[at].image_index == min(few[at].image_index for at in some)}
    assert classifier.box_features(list(some), max_images=1).keys() == first


@pytest.mark.parametrize(
    ("background_type", "value", "words"),
    [
        (
            "missing annotation",
            0.42,
            "boat without a matching annotation, possibly a missing annotation: 42 % of the correct detections",
        ),
        (
            "look-alike",
            0.02,
            "look-alike or unusual object: 2 % of the correct detections are less typical of the class",
        ),
        ("context", math.nan, "boat without a matching annotation (context);"),
        (None, math.nan, "boat without a matching annotation;"),
    ],
)
def test_the_sentence_states_the_background_type(background_type: str | None, value: float, words: str) -> None:
    case = explained(case_of(0, 1), "ring" if background_type == "context" else "predicted box")
    assert words in case_sentence(replace(case, background_type=background_type, typicality=value))  # type: ignore[arg-type]


@pytest.mark.parametrize(("fills", "said"), [(LIGHT_FILLS, True), (("ring", LIGHT_FILLS[0]), False)])
def test_the_sentence_states_that_the_light_is_the_evidence(fills: tuple[str, ...], said: bool) -> None:
    trials = tuple(Trial("without evidence", fill, 0.1, "class flipped") for fill in fills)
    control = Trial("random control", "even light", 0.9, "unchanged")
    sentence = case_sentence(replace(explained(case_of(0, 1), "ring"), trials=(*trials, control)))
    assert (": its light or color, not its details" in sentence) == said
