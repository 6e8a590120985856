"""Class names, boxes without a class, arrays, and results of other libraries as targets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detcam import ODAM, GradCAM
from detcam.adapters import Adapter
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget, as_box_targets
from detcam.testing import tiny_classifier, tiny_detector

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.EmptyMapWarning")

IMAGE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
BOXES = np.array([[0.0, 0, 16, 16], [16, 8, 40, 30]])


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    adapter = tiny_detector()
    adapter.names = {0: "RBC", 1: "WBC"}
    return adapter


def test_a_class_may_be_given_by_name(adapter: Adapter) -> None:
    by_name, by_index = (
        ODAM(adapter).explain(IMAGE, [[BoxTarget((4, 4, 20, 20), label, against=against)]])[0]
        for label, against in (("WBC", "RBC"), (1, 0))
    )
    assert by_name.targets == by_index.targets and float(by_name.scores[0]) == float(by_index.scores[0])
    with pytest.raises(ValueError, match="no class named 'WBX'; did you mean WBC"):
        ODAM(adapter)(IMAGE, [[BoxTarget((4, 4, 20, 20), "WBX")]])  # type: ignore[arg-type]


def test_names_of_classes_and_regions() -> None:
    classifier = tiny_classifier()
    classifier.names = {0: "cat", 1: "dog"}
    by_name, by_index = (GradCAM(classifier)(IMAGE, [ClassifierOutputTarget(c)])[0] for c in ("dog", 1))
    assert np.array_equal(by_name, by_index)
    named = MaskTarget("dog", None, against="cat").named({0: "cat", 1: "dog"})
    assert (named.label, named.against) == (1, 0)


FOREIGN = {
    "Results": lambda boxes, labels: SimpleNamespace(boxes=SimpleNamespace(xyxy=boxes, cls=labels.astype(float))),
    "Boxes": lambda boxes, labels: SimpleNamespace(xyxy=boxes, cls=labels.astype(float)),
    "supervision": lambda boxes, labels: SimpleNamespace(xyxy=boxes, class_id=labels, confidence=labels * 0.5),
    "torchvision": lambda boxes, labels: {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)},
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_results_of_other_libraries(adapter: Adapter, make: Any) -> None:
    labels = np.array([1, 0])
    expected = [BoxTarget(tuple(box), label) for box, label in zip(BOXES.tolist(), labels.tolist(), strict=True)]
    cam = ODAM(adapter)
    (alone,) = cam.explain(IMAGE, make(BOXES, labels))
    assert alone.targets == tuple(expected)
    both = cam.explain([IMAGE, IMAGE], [make(BOXES, labels), make(BOXES[:1], labels[:1])])
    assert [len(result.targets) for result in both] == [2, 1]
    # a batch of two images rounds otherwise than one
    np.testing.assert_allclose(both[0].heatmaps, cam(IMAGE, [expected])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("boxes", [BOXES, torch.tensor(BOXES)])
def test_boxes_without_a_class_get_the_best_one(adapter: Adapter, boxes: Any) -> None:
    (result,) = ODAM(adapter).explain(IMAGE, boxes)
    assert [target.box_xyxy for target in result.targets] == [tuple(box) for box in BOXES.tolist()]  # type: ignore[attr-defined]
    for target, score in zip(result.targets, result.scores, strict=True):
        other = BoxTarget(target.box_xyxy, 1 - target.label)  # type: ignore[attr-defined]
        assert float(ODAM(adapter).explain(IMAGE, [[other]])[0].scores[0]) <= float(score)


def test_other_arrays_are_refused(adapter: Adapter) -> None:
    with pytest.raises(ValueError, match=r"array \(N, 4\).*got \(2, 6\)"):
        ODAM(adapter)(IMAGE, np.zeros((2, 6)))
    assert as_box_targets(object()) is None
    with pytest.raises(TypeError, match="got object"):
        ODAM(adapter)(IMAGE, [object()])
