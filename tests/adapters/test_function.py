"""Detectors that are plain functions: adapted, explained, audited and compared."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import detcam
from detcam.detections import Detections, Source

MARKER = slice(40, 56)
"""Rows and columns of what makes the function fire at the box."""
BOX = (8, 8, 24, 24)


def by_marker(image: np.ndarray) -> Any:
    """A box in one corner, whose score is the brightness in another."""
    return [BOX], [image[MARKER, MARKER].mean() / 255], [1]


def scene() -> np.ndarray:
    image = np.full((64, 64, 3), 40, np.uint8)
    image[MARKER, MARKER] = 255
    return image


def empty(image: np.ndarray) -> Any:
    return np.zeros((0, 4)), np.zeros(0), np.zeros(0)


class TestAnswers:
    ANSWERS: dict[str, Any] = {
        "tuple": lambda image: ([BOX], [0.5], [2]),
        "tensors": lambda image: (torch.tensor([BOX]), torch.tensor([0.5], requires_grad=True), torch.tensor([2])),
        "mapping": lambda image: {"boxes": [BOX], "scores": [0.5], "labels": [2]},
        "class scores": lambda image: {"boxes": [BOX], "scores": [0.5], "class_scores": [[0.1, 0.0, 0.5]]},
        "detections": lambda image: Detections(
            torch.tensor([BOX]).float(), torch.tensor([2]), torch.tensor([0.5]), image.shape[:2], (Source("box"),)
        ),
    }

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
    def test_of_each_kind_are_read(self, answer: Any) -> None:
        (found,) = detcam.adapt(answer, kind="detection").predict(scene())
        assert found.boxes_xyxy.tolist() == [list(BOX)]
        assert found.labels.tolist() == [2] and found.scores.tolist() == [0.5]

    def test_without_labels_are_of_one_class(self) -> None:
        adapter = detcam.adapt(lambda image: ([BOX], [0.5]), kind="detection", names=["corner"])
        (found,) = adapter.predict(scene())
        assert found.caption(0) == "corner 0.50"

    def test_may_be_empty_for_one_image_of_a_batch(self) -> None:
        def function(image: np.ndarray) -> Any:
            return by_marker(image) if image.max() > 100 else empty(image)

        found = detcam.adapt(function, kind="detection").predict([scene(), np.zeros_like(scene())])
        assert [len(each) for each in found] == [1, 0]
        assert len(detcam.adapt(empty, kind="detection").predict(scene())[0]) == 0

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (3, TypeError, r"expected Detections, \(boxes, scores\).*per image; got int"),
            (([BOX], [0.5, 0.6]), ValueError, "as many labels and scores as boxes; got 2 scores, 1 boxes"),
            (([BOX], [0.5], [100]), ValueError, "expected labels from 0 to 99; got labels from 100"),
            (([BOX], [1.5], [0]), ValueError, r"expected class scores in \[0, 1\]"),
        ],
    )
    def test_of_another_kind_are_errors(self, answer: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            detcam.adapt(lambda image: answer, kind="detection").predict(scene())


def test_the_function_sees_rgb_bytes_of_the_size_of_the_image() -> None:
    seen = []

    def function(image: np.ndarray) -> Any:
        seen.append(image)
        return empty(image)

    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    detcam.adapt(function, kind="detection").predict(image)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], image)


def test_a_batched_function_takes_lists() -> None:
    sizes = []

    def function(images: list[np.ndarray]) -> Any:
        sizes.append(len(images))
        return [by_marker(image) for image in images]

    adapter = detcam.adapt(function, kind="detection", batched=True)
    assert [len(found) for found in adapter.predict([scene()] * 3)] == [1, 1, 1]
    assert sizes == [3]
    with pytest.raises(TypeError, match="return a list with 1 entries"):
        detcam.adapt(lambda images: [], kind="detection", batched=True).predict(scene())


def test_what_it_is_has_to_be_said() -> None:
    with pytest.raises(TypeError, match=r'a function from an image to .* with kind="detection"; got by_marker'):
        detcam.adapt(by_marker)
    with pytest.raises(TypeError, match="got by_marker with kind='masks'"):
        detcam.adapt(by_marker, kind="masks")
    with pytest.raises(TypeError, match="got int"):
        detcam.adapt(3)
    assert "function" in repr(type(detcam.adapt(partial(by_marker), kind="detection"))).lower()
    with pytest.raises(TypeError, match=r"pass its attribute \.model"):
        detcam.adapt(type("Wrapper", (), {"model": nn.Identity(), "__call__": by_marker})())


@pytest.mark.parametrize("method", ["auto", "drise:passes=300", "rise:passes=300", "occlusion:grid=8,window=2"])
def test_methods_find_the_cause_outside_the_box(method: str) -> None:
    (result,) = detcam.explain(by_marker, scene(), method, kind="detection")
    y, x = np.unravel_index(result.heatmaps[0].argmax(), (64, 64))
    assert 38 <= x < 58 and 38 <= y < 58
    assert float(result.scores[0]) == pytest.approx(1.0)


def test_methods_that_need_gradients_say_so() -> None:
    with pytest.raises(TypeError, match="is a plain function, without gradients.*GradCAM needs gradients.*drise"):
        detcam.explain(by_marker, scene(), "gradcam", kind="detection")


def test_an_audit_finds_the_cause_outside_the_box(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(scene()).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "boat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 2, 10, 10], "area": 100, "iscrowd": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = detcam.audit(
        by_marker, tmp_path / "images", tmp_path / "a.json", kind="detection", names=["ship", "boat"],
        out=tmp_path / "report",
    )  # fmt: skip
    (case,) = [case for case in found.explained if case.type == "background"]
    assert case.confirmed and case.forward_passes <= 60
    assert case.evidence_location not in ("predicted box", "ground truth")
    assert all(38 <= side < 58 for side in case.peak_xy)


def test_a_benchmark_ranks_the_cause_above_the_box() -> None:
    result = detcam.benchmark(
        by_marker, [scene()], ["occlusion:grid=8,window=2"], ["deletion:steps=8"], kind="detection"
    )
    scores = {row.name: row.scores["deletion:steps=8"].mean for row in result.rows}
    assert scores["occlusion:grid=8,window=2"] < scores["filled box"]
