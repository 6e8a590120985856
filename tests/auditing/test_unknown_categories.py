"""Annotated categories that the model does not know: objects of another class, on which a detection is wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam.adapters import Adapter, detector
from detcam.auditing import Audit

RACCOON, CAT, EMPTY = (8.0, 8.0, 40.0, 32.0), (60.0, 8.0, 90.0, 40.0), (10.0, 44.0, 30.0, 60.0)
HALF = (8.0, 8.0, 40.0, 17.0)
"""A box with an IoU of 0.375 with the raccoon."""


class Blueness(nn.Module):
    """A detector of fixed boxes that scores each by the blue within it."""

    def __init__(self, boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 1, bias=False)
        self.seen.weight.data[:] = torch.eye(3)[:, :, None, None]
        self.boxes, self.labels = boxes, labels

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(x)
        scores = seen.new_zeros(len(x), len(self.boxes), 2) + 0.001 * seen.mean()
        for row, ((x1, y1, x2, y2), label) in enumerate(zip(self.boxes, self.labels, strict=True)):
            inside = seen[:, 2, int(y1) : int(y2), int(x1) : int(x2)].mean((1, 2))
            scores[:, row, label] = inside.clamp(0, 0.95)
        return scores


def blue_detector(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Adapter:
    table = torch.tensor(boxes)
    return detector(
        Blueness(boxes, labels).eval(),
        lambda raw: (table.expand(len(raw), -1, -1), raw),
        names=["cat", "dog"],
        target_layers="seen",
        iou_threshold=0.9,
    )


def run(
    folder: Path,
    adapter: Adapter,
    objects: Sequence[tuple[Sequence[float], str]],
    categories: Sequence[str],
    **more: Any,
) -> Audit:
    """Audit an image that is blue in the boxes of the detector."""
    pixels = np.full((64, 96, 3), 40, dtype=np.uint8)
    for row, (x1, y1, x2, y2) in enumerate(adapter.model.boxes):  # type: ignore[union-attr, arg-type]
        pixels[int(y1) : int(y2), int(x1) : int(x2), 2] = 230 - 20 * row
    Image.fromarray(pixels).save(folder / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": categories.index(name) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, ((x1, y1, x2, y2), name) in enumerate(objects, 1)
        ],
    }
    (folder / "labels.json").write_text(json.dumps(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return detcam.audit(adapter, folder, folder / "labels.json", **more)


def test_a_detection_on_an_unknown_category_is_a_classification_error(tmp_path: Path) -> None:
    adapter = blue_detector([RACCOON, CAT, EMPTY], [0, 0, 0])
    found = run(tmp_path, adapter, [(RACCOON, "raccoon"), (CAT, "cat")], ["raccoon", "cat"], out=tmp_path / "report")
    assert found.analysis.counts() == {
        "classification": 1, "localization": 0, "both": 0, "duplicate": 0, "background": 1, "missed": 0
    }  # fmt: skip
    summary = found.analysis.classes[0]
    assert sorted(found.analysis.classes) == [0] and (summary.objects, summary.missed) == (1, 0)
    # The detection with the highest score is wrong, the second one right: precision 1/2 at full recall.
    assert found.analysis.average_precision == pytest.approx(0.5)
    (case,) = [case for case in found.cases if case.type == "classification"]
    assert case.ground_truth is not None and case.ground_truth.name == "raccoon" and not case.ground_truth.is_known
    assert case.question == "why cat here, on raccoon?" and case.method
    assert case.sentence.startswith("cat on an object of class raccoon, which the model does not know")
    assert case.is_false_positive and case.verdict != "not tested"
    assert found.issues.counts() == {"category unknown to the model": 1}
    assert "'raccoon' is none of the model's classes: an object of another class" in found.issues.summary()
    data = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert data["object_count"] == 1
    assert [item["name"] for item in data["images"][0]["objects"]] == ["raccoon", "cat"]
    known = [item["ground_truth"]["is_known"] for item in data["cases"] if item["ground_truth"]]
    assert known == [False]


def test_delta_ap_does_not_know_the_category(tmp_path: Path) -> None:
    """A corrected error on the raccoon is no detection of any class of the model: the detection of the cat is left."""
    adapter = blue_detector([RACCOON, CAT], [0, 0])
    found = run(tmp_path, adapter, [(RACCOON, "raccoon"), (CAT, "cat")], ["raccoon", "cat"], explain=0)
    assert found.analysis.delta_ap.average_precision == pytest.approx(0.5)
    assert found.analysis.delta_ap.by_type["classification"] == pytest.approx(0.5)
    assert found.analysis.delta_ap.by_type["missed"] == 0 and found.analysis.delta_ap.false_negative == 0


def test_an_overlap_below_the_threshold_is_both(tmp_path: Path) -> None:
    adapter = blue_detector([HALF, CAT], [0, 0])
    found = run(tmp_path, adapter, [(RACCOON, "raccoon"), (CAT, "cat")], ["raccoon", "cat"])
    (case,) = [case for case in found.cases if case.type == "both"]
    assert "why cat here, on raccoon? And what moves its" in case.question
    assert "IoU of 0.38 with an object of class raccoon" in case.sentence


def test_an_audit_whose_categories_are_all_unknown(tmp_path: Path) -> None:
    adapter = blue_detector([RACCOON, CAT], [0, 1])
    found = run(tmp_path, adapter, [(RACCOON, "raccoon"), (EMPTY, "badger")], ["raccoon", "badger"])
    counts = found.analysis.counts()
    assert (counts["classification"], counts["background"], counts["missed"]) == (1, 1, 0)
    assert np.isnan(found.analysis.average_precision) and "undefined" in repr(found)
    assert len(found.explained) == 2 and all(np.isnan(case.delta_ap) for case in found.cases)
    assert found.issues.counts() == {"category unknown to the model": 2}


def test_evidence_on_an_object_of_an_unknown_category_is_named(tmp_path: Path) -> None:
    """The detector finds a cat in an empty region, because of what it sees on the raccoon."""

    class Elsewhere(Blueness):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return torch.stack([scores[:, 0, 0], scores[:, 0, 1]], -1)[:, None]

    table = torch.tensor([EMPTY])
    adapter = detector(
        Elsewhere([(14.0, 12.0, 24.0, 22.0)], [0]).eval(),
        lambda raw: (table.expand(len(raw), -1, -1), raw),
        names=["cat", "dog"],
        target_layers="seen",
    )
    found = run(tmp_path, adapter, [(RACCOON, "raccoon"), (CAT, "cat")], ["raccoon", "cat"], explain_missed=0)
    (case,) = [case for case in found.cases if case.type == "background"]
    assert case.confirmed and case.evidence_object == "raccoon", case.sentence
    assert "on an object of class raccoon" in case.sentence
