"""Bootstrapped average precision and the tests behind "new" and "gone"."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from detcam.auditing.analysis import analyze_errors
from detcam.auditing.comparison.paired import bootstrap_weights, corrected_threshold, interval, sign_flip_p_value
from detcam.auditing.report.evaluation import Evaluation, mean_over_classes
from tests.auditing.random_data import make_random_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, list[int], float]:
    drawn = make_random_data(tmp_path_factory.mktemp("data"), 0)
    analysis = analyze_errors(drawn.detections, drawn.annotations)
    return Evaluation.from_analysis(analysis), list(analysis.image_ids), analysis.average_precision  # type: ignore[arg-type]


def test_with_equal_weights_it_is_cocos_average_precision(data: tuple[Evaluation, list[int], float]) -> None:
    evaluation, images, expected = data
    values = mean_over_classes(evaluation.class_precision(np.ones((1, len(images)))))
    assert values[0] == pytest.approx(expected, abs=1e-12)


def test_weights_are_repeated_images(tmp_path: Path) -> None:
    drawn = make_random_data(tmp_path, 1)
    evaluation = Evaluation.from_analysis(analyze_errors(drawn.detections, drawn.annotations))
    weights = bootstrap_weights(len(drawn.detections), 6, seed=3)
    assert (weights.sum(1) == len(drawn.detections)).all() and len(np.unique(weights, axis=0)) == 6
    values = mean_over_classes(evaluation.class_precision(weights))
    for row, value in zip(weights, values, strict=True):
        rows = np.repeat(np.arange(len(row)), row)
        repeated = analyze_errors([drawn.detections[i] for i in rows], [drawn.annotations[i] for i in rows])
        assert value == pytest.approx(repeated.average_precision, abs=0.02), "up to the order of equal scores"


def test_a_file_holds_the_same(data: tuple[Evaluation, list[int], float], tmp_path: Path) -> None:
    evaluation, images, expected = data
    evaluation.save(tmp_path)
    read = Evaluation.load(tmp_path)
    assert read.image_ids == evaluation.image_ids and read.names == evaluation.names
    assert read.object_counts() == evaluation.object_counts() and read.rows == evaluation.rows
    values = mean_over_classes(read.class_precision(np.ones((1, len(images)))))
    assert values[0] == pytest.approx(expected, abs=1e-12)
    (tmp_path / "evaluation.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged"):
        Evaluation.load(tmp_path)
    with pytest.raises(ValueError, match="--resume"):
        Evaluation.load(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_counted_exactly(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-2, 4, 9)
    sums = [
        sum(sign * size for sign, size in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=9)
    ]
    expected = np.mean([abs(total) >= abs(differences.sum()) for total in sums])
    assert sign_flip_p_value(differences) == pytest.approx(expected, abs=1e-12)


def test_p_values_of_known_cases() -> None:
    assert sign_flip_p_value(np.zeros(30, dtype=int)) == 1
    assert sign_flip_p_value(np.array([1] * 6 + [0] * 40)) == pytest.approx(2 / 64)
    assert corrected_threshold([]) == 0.05
    # Two of four tests can reach 0.05 / 2; the others are too small to count.
    assert corrected_threshold([0.001, 0.002, 0.5, 1.0]) == pytest.approx(0.025)
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0) and np.isnan(interval(np.array([np.nan]))).all()
