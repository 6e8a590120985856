"""Matching by COCO's rules: known answers by hand, and the corners of the rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detcam.auditing import average_precision, match, overlaps
from detcam.auditing.average_precision import Ranking
from tests.auditing.random_data import BOX, RIGHT, make_detections, make_ground_truth


def test_the_highest_score_of_the_class_is_matched() -> None:
    found = make_detections([BOX, [0, 0, 10, 9], BOX, RIGHT], [1, 1, 2, 2], [0.5, 0.9, 0.8, 0.1])
    matched = match(found, make_ground_truth([BOX, RIGHT], [1, 2]))
    assert matched.ground_truth_index.tolist() == [-1, 0, -1, 1]
    assert matched.detection_index.tolist() == [1, 3]
    assert matched.true_positive.tolist() == [False, True, False, True]
    assert matched.false_positive.tolist() == [True, False, True, False]
    assert not matched.missed.any() and not matched.ignored.any()
    np.testing.assert_allclose(matched.iou[:, 0], [1, 0.9, 1, 0])


def test_an_iou_equal_to_the_threshold_matches() -> None:
    truth = make_ground_truth([BOX], [1])
    half = make_detections([[0, 0, 10, 5]], [1], [0.9])
    assert match(half, truth).ground_truth_index.tolist() == [0]
    assert match(half, truth, iou_threshold=0.51).missed.tolist() == [True]
    assert match(make_detections([BOX], [1], [0.9]), truth, iou_threshold=1.0).ground_truth_index.tolist() == [0]


def test_crowd_regions_ignore_detections() -> None:
    truth = make_ground_truth([BOX, [0, 0, 40, 20]], [1, 1], crowd=[False, True])
    found = make_detections([BOX, [11, 0, 15, 10], [30, 15, 34, 25], [30, 16, 34, 26]], [1] * 4, [0.9, 0.8, 0.7, 0.6])
    matched = match(found, truth)
    np.testing.assert_allclose(matched.iou[:, 1], [1, 1, 0.5, 0.4])
    assert matched.ignored.tolist() == [False, True, True, False]
    assert matched.true_positive.tolist() == [True, False, False, False]
    assert matched.false_positive.tolist() == [False, False, False, True]
    assert matched.ground_truth_index.tolist() == [0, 1, 1, -1] and matched.detection_index.tolist() == [0, -1]
    assert matched.missed.tolist() == [False, False]
    other = match(make_detections([[11, 0, 15, 10]], [2], [0.9]), truth)
    assert other.false_positive.all() and other.missed.tolist() == [True, False]


def test_the_last_of_objects_with_equal_iou_is_matched() -> None:
    truth = make_ground_truth([BOX, [4, 0, 14, 10]], [1, 1])
    matched = match(make_detections([[2, 0, 12, 10], BOX], [1, 1], [0.9, 0.8]), truth)
    assert matched.ground_truth_index.tolist() == [1, 0]


def test_areas_outside_the_range_are_ignored() -> None:
    truth = make_ground_truth([BOX, [20, 20, 22, 22]], [1, 1])
    found = make_detections([BOX, [20, 20, 22, 22], [30, 30, 31, 31], [30, 0, 40, 10]], [1] * 4, [0.9, 0.8, 0.7, 0.6])
    matched = match(found, truth, area_range=(50, 1000))
    assert matched.ground_truth_ignored.tolist() == [False, True]
    assert matched.ignored.tolist() == [False, True, True, False]
    assert matched.false_positive.tolist() == [False, False, False, True]
    assert not matched.missed.any()


def test_dropped_detections() -> None:
    found = make_detections([BOX, BOX, BOX, RIGHT], [1, 1, 2, 1], [0.1, 0.9, 0.05, 0.5])
    matched = match(found, make_ground_truth([BOX, RIGHT], [1, 1]), max_detections=2)
    assert matched.dropped.tolist() == [True, False, False, False]
    assert matched.false_positive.tolist() == [False, False, True, False]
    matched = match(found, make_ground_truth([BOX, RIGHT], [1, 1]), labels=[1])
    assert matched.dropped.tolist() == [False, False, True, False]
    assert matched.false_positive.tolist() == [True, False, False, False]


def test_no_detections_and_no_objects() -> None:
    empty = make_detections([], [], [])
    matched = match(empty, make_ground_truth([BOX], [1]))
    assert matched.missed.tolist() == [True] and matched.iou.shape == (0, 1)
    matched = match(make_detections([BOX], [1], [0.9]), make_ground_truth([], []))
    assert matched.false_positive.tolist() == [True] and matched.iou.shape == (1, 0)
    assert len(match(empty, make_ground_truth([], [])).ground_truth_index) == 0


def test_mask_iou() -> None:
    masks = torch.zeros(1, 40, 40)
    masks[0, 0:10, 0:5] = 1
    truth = make_ground_truth([BOX], [1])
    assert overlaps(make_detections([BOX], [1], [0.9]), truth).tolist() == [[1.0]]
    assert overlaps(make_detections([BOX], [1], [0.9], masks=masks), truth, "segm").tolist() == [[0.5]]
    with pytest.raises(ValueError, match="no masks"):
        overlaps(make_detections([BOX], [1], [0.9]), truth, "segm")
    with pytest.raises(ValueError, match=r"of the image's size \(40, 40\); got \(20, 40\)"):
        overlaps(make_detections([BOX], [1], [0.9], masks=masks[:, :20]), truth, "segm")


def test_average_precision_by_hand() -> None:
    # Ranks 1 and 3 of two objects: precision 1 up to recall 1/2 (51 of 101 points), then 2/3.
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.array([False, True]), 1) == 0.5
    assert average_precision(np.array([True, True]), 2) == 1
    assert average_precision(np.array([True]), 4) == pytest.approx(26 / 101)
    assert average_precision(np.array([False]), 3) == average_precision(np.zeros(0, bool), 3) == 0
    assert np.isnan(average_precision(np.array([False]), 0))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_each_correction_equals_direct_correction(seed: int) -> None:
    random = np.random.default_rng(seed)
    hits = random.random(40) < [0.5, 0.1, 0.9, 0.0, 1.0][seed]
    scores, none = np.sort(random.random(40))[::-1], np.zeros(40, dtype=bool)
    keys = np.stack([np.full(40, 1), np.arange(40)], axis=1)
    ranking = Ranking(hits, keys, 45, scores, np.zeros(45, dtype=np.int64), image_ranks=np.array([0, 2, 1]))
    each, wrong = ranking.without_each(), np.flatnonzero(~hits)
    assert np.isnan(each[hits]).all()
    for rank, found in zip(wrong.tolist(), ranking.found_each(wrong).tolist(), strict=True):
        chosen = np.arange(40) == rank
        assert each[rank] == pytest.approx(literal_average_precision(hits[~chosen], 45), abs=1e-12)
        assert found == pytest.approx(literal_average_precision(hits | chosen, 45), abs=1e-12)
        assert ranking.corrected(chosen, none) == pytest.approx(each[rank], abs=1e-12)
        assert ranking.corrected(none, chosen) == pytest.approx(found, abs=1e-12)
    new = np.array([0.0, *[float(scores[7])] * 3, 1.0])
    new_keys = np.array([[0, 0], [0, 50], [2, 0], [1, 50], [1, 0]])
    positions = ranking.positions(new, new_keys)
    assert positions.tolist() == [40, 7, 7, 8, 0], "equal scores by image rank, then by index"
    for position, added in zip(positions.tolist(), ranking.added_each(positions).tolist(), strict=True):
        assert added == pytest.approx(literal_average_precision(np.insert(hits, position, True), 45), abs=1e-12)
        assert ranking.corrected(none, none, np.array([position])) == pytest.approx(added, abs=1e-12)


def literal_average_precision(hits: np.ndarray, truths: int) -> float:
    """As pycocotools' loop: every rank's precision, made falling, read off at 101 recalls."""
    precision, recall, right = [], [], 0
    for rank, hit in enumerate(hits, start=1):
        right += bool(hit)
        precision.append(right / rank)
        recall.append(right / truths)
    total = 0.0
    for wanted in np.linspace(0, 1, 101):
        reached = [i for i, value in enumerate(recall) if value >= wanted]
        total += max(precision[reached[0] :]) if reached else 0.0
    return total / 101
