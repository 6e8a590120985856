"""Class names, boxes without a class, arrays, and results of other libraries as targets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detcam import ODAM, GradCAM
from detcam.adapters import Adapter, detector
from detcam.detections import Detections
from detcam.geometry import Geometry
from detcam.outputs import DetectorOutput
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


def test_detections_of_an_unknown_source_have_the_scores_of_the_best_candidates(adapter: Adapter) -> None:
    (found,) = adapter.predict(IMAGE, score_threshold=0, top_k=3)
    box_only = SimpleNamespace(xyxy=found.boxes_xyxy, class_id=found.labels, confidence=None, mask=None, data={})
    unknown = Detections.from_supervision(box_only, found.image_size_hw)
    own, other = (ODAM(adapter).explain(IMAGE, detections)[0].scores for detections in (found, unknown))
    assert len(other) == 3 and other.tolist() == own.tolist()


@pytest.mark.parametrize("boxes", [BOXES, torch.tensor(BOXES)])
def test_boxes_without_a_class_get_the_best_one(adapter: Adapter, boxes: Any) -> None:
    (result,) = ODAM(adapter).explain(IMAGE, boxes)
    assert [target.box_xyxy for target in result.targets] == [tuple(box) for box in BOXES.tolist()]  # type: ignore[attr-defined]
    for target, score in zip(result.targets, result.scores, strict=True):
        other = BoxTarget(target.box_xyxy, 1 - target.label)  # type: ignore[attr-defined]
        assert float(ODAM(adapter).explain(IMAGE, [[other]])[0].scores[0]) <= float(score)


def test_all_views_explain_the_best_class_of_the_plain_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AvgPool2d(16)).eval()
    torch.nn.init.ones_(model[0].weight)  # type: ignore[arg-type]

    def decode(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 16]]).expand(len(raw), -1, -1)
        bright = (raw.flatten(1) - 1.5).sigmoid()
        return boxes, torch.stack([1 - bright, bright], -1)

    cam = ODAM(detector(model, decode, target_layers="0"))
    image = torch.cat([IMAGE[:, :16, :16] / 4, 1 - IMAGE[:, :16, :16] / 4], -1)
    box = np.array([[0.0, 0, 16, 16]])  # dark, and bright in the mirrored image
    (result,) = cam.explain(image, box, aug_smooth=True)
    (expected,) = cam.explain(image, [[BoxTarget(tuple(box[0]), 0)]], aug_smooth=True)
    assert result.targets == expected.targets
    np.testing.assert_array_equal(result.heatmaps, expected.heatmaps)


class Candidate(DetectorOutput):
    """One candidate of three classes, the first of them the background."""

    geometry, classes, background = Geometry.identity((32, 48)), 3, 0

    def candidates(self, targets: Any) -> Any:
        raise NotImplementedError

    def detections(self) -> Any:
        raise NotImplementedError

    def raw_candidates(self, label: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.7, 0.1, 0.2]])


def test_the_best_class_is_not_the_background() -> None:
    target = BoxTarget((0, 0, 16, 16), None)  # type: ignore[arg-type]
    assert target.labeled(Candidate()).label == 2


def test_class_indices_may_be_those_of_numpy() -> None:
    one, zero = np.array([1, 0])
    BoxTarget((4, 4, 20, 20), one, against=zero).check((32, 48), {}, 2)
    MaskTarget(one, against=zero).check((32, 48), {}, 2)
    with pytest.raises(ValueError, match="class 1 against itself"):
        MaskTarget(1, None, 1)


def test_other_arrays_are_refused(adapter: Adapter) -> None:
    with pytest.raises(ValueError, match=r"array \(N, 4\).*got \(2, 6\)"):
        ODAM(adapter)(IMAGE, np.zeros((2, 6)))
    assert as_box_targets(object()) is None
    with pytest.raises(TypeError, match="got object"):
        ODAM(adapter)(IMAGE, [object()])
