"""Error types by hand, one image at a time, and what errors cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detcam.auditing import DetectionError, ErrorAnalysis, analyze_errors
from detcam.auditing.error_table import ErrorTable
from detcam.auditing.report.evaluation import Evaluation
from detcam.detections import Detections
from tests.auditing.random_data import BOX, RIGHT, make_detections, make_ground_truth, make_random_data


def only(found: Detections, truth: Any, **options: Any) -> DetectionError:
    (case,) = analyze_errors([found], [truth], **options)
    return case


def test_classification_error() -> None:
    case = only(make_detections([[0, 0, 10, 8]], [2], [0.75]), make_ground_truth([RIGHT, BOX], [2, 1])[1])
    assert case == DetectionError(0, 1, "classification", 0, 0, None, 2, 0.75, 0.0, pytest.approx(0.8), True)


def test_localization_error() -> None:
    case = only(make_detections([[0, 0, 10, 4]], [1], [0.5]), make_ground_truth([BOX], [1]))
    assert case == DetectionError(0, 1, "localization", 0, 0, None, 1, 0.5, pytest.approx(0.4), 0.0, True)


def test_both_error() -> None:
    found = make_detections([[0, 0, 10, 4]], [2], [0.5])
    cases = list(analyze_errors([found], [make_ground_truth([BOX], [1])]))
    assert [case.type for case in cases] == ["both", "missed"]
    assert (cases[0].ground_truth_index, cases[0].iou_same_class, cases[0].iou_other_class) == (
        0,
        0,
        pytest.approx(0.4),
    )
    assert (cases[1].ground_truth_index, cases[1].detection_index, cases[1].score) == (0, None, None)
    assert (cases[1].label, cases[1].iou_other_class, cases[1].is_false_positive) == (1, pytest.approx(0.4), False)


def test_a_duplicate_refers_to_the_first_detection() -> None:
    found = make_detections([[0, 0, 10, 8], RIGHT, BOX], [1, 1, 1], [0.5, 0.7, 0.9])
    case = only(found, make_ground_truth([RIGHT, BOX], [1, 1]))
    assert (case.type, case.detection_index, case.ground_truth_index, case.duplicate_of) == ("duplicate", 0, 1, 2)


def test_background_error_and_missed_object() -> None:
    found = make_detections([[30, 0, 40, 10]], [1], [0.5])
    cases = list(analyze_errors([found], [make_ground_truth([BOX], [1])]))
    assert [(case.type, case.detection_index, case.ground_truth_index) for case in cases] == [
        ("background", 0, None),
        ("missed", None, 0),
    ]
    assert only(found, make_ground_truth([], [])).type == "background"
    assert only(make_detections([], [], []), make_ground_truth([BOX], [1])).type == "missed"
    grazing = analyze_errors([make_detections([[9, 0, 19, 10]], [2], [0.5])], [make_ground_truth([BOX], [1])])[0]
    assert (grazing.type, grazing.ground_truth_index) == ("background", 0)


def test_thresholds() -> None:
    found, truth = make_detections([[0, 0, 10, 4]], [1], [0.5]), make_ground_truth([BOX], [1])
    assert len(analyze_errors([found], [truth], iou_threshold=0.3)) == 0
    cases = analyze_errors([found], [truth], background_threshold=0.45)
    assert [case.type for case in cases] == ["background", "missed"]


def test_detections_in_crowd_regions_are_errors_but_not_false_positives() -> None:
    truth = make_ground_truth([[0, 0, 40, 20]], [1], crowd=[True])
    analysis = analyze_errors([make_detections([BOX, [0, 30, 10, 40]], [1, 1], [0.9, 0.8])], [truth])
    assert [(case.type, case.is_false_positive) for case in analysis] == [("background", False), ("background", True)]
    assert analysis.indices(false_positives_only=True) == [1]
    assert np.isnan(analysis.average_precision)


def test_coco_and_tide_differ_for_equal_ious() -> None:
    truth = make_ground_truth([BOX, [4, 0, 14, 10]], [1, 1])
    analysis = analyze_errors([make_detections([[2, 0, 12, 10], BOX], [1, 1], [0.9, 0.8])], [truth])
    assert analysis.average_precision == 1
    assert [(case.type, case.is_false_positive) for case in analysis] == [("duplicate", False), ("missed", False)]
    assert analysis.delta_ap.average_precision == pytest.approx(51 / 101)


def two_images() -> ErrorAnalysis:
    first = make_detections([BOX, [0, 0, 10, 9], [30, 0, 40, 10]], [1, 1, 2], [0.9, 0.6, 0.7])
    second = make_detections([RIGHT, BOX, RIGHT], [1, 2, 3], [0.8, 0.5, 0.95])
    truths = [
        make_ground_truth([BOX, RIGHT], [1, 1]),
        replace(make_ground_truth([BOX, [0, 20, 5, 25]], [2, 1]), image_id=2),
    ]
    return analyze_errors([first, second], truths)


def test_delta_ap_by_hand() -> None:
    analysis = two_images()
    assert [case.type for case in analysis] == [
        "background",
        "duplicate",
        "missed",
        "background",
        "background",
        "missed",
    ]
    # Class 1: right, wrong (0.8), wrong (0.6), three objects: precision 1 up to a recall of 1/3. Class 2: wrong, right.
    assert analysis.classes[1].average_precision == pytest.approx(34 / 101)
    assert analysis.classes[2].average_precision == 0.5
    assert np.isnan(analysis.classes[3].average_precision)
    assert analysis.average_precision == pytest.approx((34 / 101 + 0.5) / 2)
    assert analysis.average_precision_corrected([0]) == pytest.approx((34 / 101 + 1) / 2)
    assert analysis.delta_ap_of([0]) == pytest.approx(0.25)
    assert analysis.average_precision_corrected([2]) == pytest.approx((51 / 101 + 0.5) / 2)
    assert analysis.average_precision_corrected([]) == analysis.average_precision
    everything = range(len(analysis))
    assert analysis.average_precision_corrected(everything) == 1
    # TIDE counts class 3, which has no object, as 0.
    assert analysis.delta_ap.average_precision == pytest.approx((34 / 101 + 0.5 + 0) / 3)
    assert analysis.delta_ap.by_type["background"] == pytest.approx((34 / 101 + 1) / 2 - (34 / 101 + 0.5) / 3)
    assert analysis.delta_ap.by_type["missed"] == pytest.approx((1 + 0.5) / 3 - (34 / 101 + 0.5) / 3)
    assert analysis.delta_ap.by_type["duplicate"] == 0


def test_class_summary() -> None:
    analysis = two_images()
    one = analysis.classes[1]
    assert (one.label, one.name, one.objects, one.true_positives) == (1, "class 1", 3, 1)
    assert (one.false_positives, one.missed) == (2, 2)
    assert one.errors == {
        "classification": 0, "localization": 0, "both": 0, "duplicate": 1, "background": 1, "missed": 2
    }  # fmt: skip
    assert analysis.counts()["background"] == 3
    assert analysis.indices("background", label=1) == [4] and analysis.indices(image_index=1) == [3, 4, 5]


def test_delta_ap_of_each_error(tmp_path: Any) -> None:
    made = make_random_data(tmp_path, 3, detected=5)
    analysis = analyze_errors(made.detections, made.annotations)
    lost = analysis.delta_ap_by_error
    assert len(lost) == len(analysis) and (lost > 1e-3).sum() > 5
    for index, case in enumerate(analysis):
        assert lost[index] == pytest.approx(analysis.delta_ap_of([index]), abs=1e-12), case.type
    types = {analysis[index].type for index in np.flatnonzero(lost > 1e-3).tolist()}
    assert types >= {"classification", "localization", "background", "missed"}


def test_a_corrected_error_finds_its_object() -> None:
    """A dog on a cat, twice, and a cat beside its box: each becomes right, the second dog is removed."""
    truths = [make_ground_truth([BOX, RIGHT], [1, 1])]
    found = make_detections([BOX, [0, 0, 10, 9], [24, 20, 34, 30]], [2, 2, 1], [0.9, 0.8, 0.7])
    analysis = analyze_errors([found], truths)
    assert [case.type for case in analysis] == ["classification", "classification", "localization"]
    assert analysis.corrected_labels.tolist() == [1, -1, 1] and analysis.average_precision == 0
    assert analysis.delta_ap_of([0]) == pytest.approx(51 / 101), "class 2 has no objects, so that removal costs nothing"
    assert analysis.delta_ap_of([0, 1]) == analysis.delta_ap_of([0]) and analysis.delta_ap_of([0, 1, 2]) == 1
    assert analysis.delta_ap_by_error.tolist() == pytest.approx([51 / 101, 0, 51 / 101])
    evaluation = Evaluation.from_analysis(analysis)
    chosen = evaluation.corrected(np.ones(3, dtype=bool), np.zeros(2, dtype=bool))
    assert (
        chosen.hits.tolist() == [True, True] and [evaluation.names[each] for each in chosen.classes] == ["class 1"] * 2
    )


def test_only_classes_of_the_file_are_evaluated() -> None:
    found = make_detections([RIGHT, BOX, RIGHT], [7, 1, 1], [0.9, 0.8, 0.7])
    analysis = analyze_errors([found], [make_ground_truth([BOX], [1])], labels=[1])
    assert [(case.type, case.detection_index) for case in analysis] == [("background", 2)]
    assert (analysis.outside, analysis.dropped) == (1, 0)
    assert analysis.delta_ap.average_precision == analysis.average_precision == 1
    assert analyze_errors([found], [make_ground_truth([BOX], [1])], labels=[1], max_detections=1).dropped == 1


def test_labels_may_start_at_0_or_1(tmp_path: Any) -> None:
    made = make_random_data(tmp_path, 5)
    lower = [replace(found, labels=found.labels - 1) for found in made.detections]
    from_zero = made.annotations.for_classes([f"thing {i}" for i in range(1, 5)])
    first, second = analyze_errors(made.detections, made.annotations), analyze_errors(lower, from_zero)
    assert first.average_precision == second.average_precision and first.delta_ap == second.delta_ap
    assert [replace(case, label=case.label - 1) for case in first] == list(second)


def test_invalid_arguments_are_refused() -> None:
    found, truth = make_detections([BOX], [1], [0.9]), make_ground_truth([BOX], [1])
    with pytest.raises(ValueError, match="one Detections for each of the 2 images; got 1"):
        analyze_errors([found], [truth, truth])
    with pytest.raises(ValueError, match=r"a\.png\) has size \(30, 40\) .* image of size \(40, 40\)"):
        analyze_errors([found], [make_ground_truth([BOX], [1], size_hw=(30, 40))])
    with pytest.raises(ValueError, match="background_threshold < iou_threshold"):
        analyze_errors([found], [truth], iou_threshold=0.1)
    with pytest.raises(ValueError, match='"bbox" or "segm"; got'):
        analyze_errors([found], [truth], iou_type="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1; got 0"):
        analyze_errors([found], [truth], max_detections=0)
    for wrong in (1, -1):
        with pytest.raises(ValueError, match=f"indices of the 0 errors, from 0; got {wrong}"):
            analyze_errors([found], [truth]).average_precision_corrected([wrong])


def test_no_images_and_no_detections() -> None:
    nothing = analyze_errors([], [])
    assert len(nothing) == 0 and np.isnan(nothing.average_precision) and np.isnan(nothing.delta_ap.average_precision)
    empty = analyze_errors([make_detections([], [], [])], [make_ground_truth([BOX], [1])])
    assert (empty.average_precision, empty.counts()["missed"], empty.classes[1].missed) == (0, 1, 1)
    assert np.isnan(empty.delta_ap.by_type["missed"]) and empty.delta_ap.by_type["background"] == 0
    assert np.isnan(empty.delta_ap_by_error).all() and np.isnan(empty.average_precision_corrected([0]))


def test_detections_on_any_device_and_with_gradient() -> None:
    found = make_detections([BOX], [1], [0.9])
    found = replace(found, boxes_xyxy=found.boxes_xyxy.requires_grad_(), scores=torch.tensor([0.9]).requires_grad_())
    assert analyze_errors([found], [make_ground_truth([BOX], [1])]).average_precision == 1


def test_errors_survive_columns() -> None:
    errors = [
        DetectionError(0, "a", "duplicate", 3, 1, 2, 7, float(np.float32(0.1)), 0.7, 0.1, True, 0.6),
        DetectionError(1, 5, "missed", None, 0, None, -4, None, 0.2, 0.0, False, 0.2),
        DetectionError(1, 5, "background", 0, None, None, 2**40, 0.0, 0.0, 0.0, True, 0.0),
    ]
    table = ErrorTable([errors[:1], [], errors[1:]], ("a", 5))
    assert list(table) == errors and table == tuple(errors) and table[1:] == errors[1:] and table != errors[:2]
    assert [each.iou for each in table] == [each.iou for each in errors] and table[-1] == errors[-1]
    assert not len(ErrorTable((), ())) and table.types.tolist() == ["duplicate", "missed", "background"]
