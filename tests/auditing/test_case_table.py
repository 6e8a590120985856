"""Cases that are made when they are read are those of the errors, and take little memory."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from detcam.auditing import analyze_errors, case_table
from detcam.auditing.case_table import CaseTable, case_columns, case_ids, explained_cases, unexplained_case
from tests.auditing.random_data import RandomData, make_random_data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return make_random_data(tmp_path_factory.mktemp("made"), 6, detected=6)


def test_cases_are_those_of_the_errors(made: RandomData) -> None:
    analysis = analyze_errors(made.detections, made.annotations)
    table = CaseTable.of(analysis, made.detections, made.annotations)
    expected = [unexplained_case(analysis, i, made.detections, made.annotations) for i in range(len(analysis))]
    assert list(table) == expected and table == expected and len({case.id for case in expected}) == len(expected)
    assert list(case_ids(table)) == list(case_ids(expected)) == [case.id for case in expected]
    assert table[-1] == expected[-1] and table[1:4] == tuple(expected[1:4])
    assert table[1] is table[1]  # made once
    for error, case in zip(analysis, table, strict=True):
        truth = made.annotations[error.image_index]
        if error.detection_index is None:
            box = truth.boxes_xyxy[error.ground_truth_index]
        else:
            box = made.detections[error.image_index].boxes_xyxy[error.detection_index]
        assert case.box_xyxy == tuple(box.tolist()) and (case.type, case.file_name) == (error.type, truth.file_name)
    assert Counter(case.type for case in table)["missed"] > 0
    with pytest.raises(IndexError):
        table[len(expected)]


def test_explained_cases_take_their_places(made: RandomData) -> None:
    analysis = analyze_errors(made.detections, made.annotations)
    table = CaseTable.of(analysis, made.detections, made.annotations)
    missed = next(index for index, case in enumerate(table) if case.type == "missed")
    changed = {index: replace(table[index], method="odam", score=0.25, verdict="strong") for index in (missed, 0)}
    explained = table.with_explained(changed)
    assert not explained_cases(table) and list(explained_cases(explained)) == sorted(changed)
    assert all(explained[index] == case for index, case in changed.items()) and explained[1] == table[1]
    assert explained_cases(list(explained)) == explained_cases(explained)
    ours, plain = case_columns(explained), case_columns(list(explained))
    for name in ("score", "is_missed", "is_false_positive", "is_explained"):
        assert np.array_equal(getattr(ours, name), getattr(plain, name)), name
    assert ours.is_relevant(0.5).tolist() == [case.type == "missed" or case.score >= 0.5 for case in explained]


def test_memory_hardly_grows_with_the_errors(made: RandomData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_table, "MAX_CASES_IN_MEMORY", 8)
    detections, truths = made.detections * 10, list(made.annotations) * 10
    analysis = analyze_errors(detections, truths)
    tracemalloc.start()
    table = CaseTable.of(analysis, detections, truths)
    assert sum(1 for _ in table) > 200
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept / len(table) < 100


def test_the_last_cases_are_kept(made: RandomData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_table, "MAX_CASES_IN_MEMORY", 8)
    analysis = analyze_errors(made.detections, made.annotations)
    table = CaseTable.of(analysis, made.detections, made.annotations)
    seen = [weakref.ref(case) for case in table]
    alive = [reference() is not None for reference in seen]
    assert alive == [False] * (len(table) - 8) + [True] * 8
    assert table[len(table) - 1] is seen[-1]() and table[0] == table[0]
    gc.disable()
    try:
        owner = weakref.ref(table)
        del table
        assert owner() is None, "no cycle of references keeps the cases"
    finally:
        gc.enable()


def test_tables_are_pickled_and_copied(made: RandomData) -> None:
    analysis = analyze_errors(made.detections, made.annotations)
    table = CaseTable.of(analysis, made.detections, made.annotations)
    table = table.with_explained({0: replace(table[0], method="odam", delta_ap=0.5)})
    size = len(pickle.dumps(table))
    expected = [case.to_json() for case in table]
    for other in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert isinstance(other, CaseTable) and list(other.explained) == [0]
        assert [case.to_json() for case in other] == expected
    assert len(pickle.dumps(table)) < size + 100 * len(table), "cases that can be made again are left out"
