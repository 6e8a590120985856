"""Detections of supervision."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from detcam import Detections, Source

BOXES = torch.tensor([[10.0, 10, 50, 40], [60, 20, 90, 80]])


def made(**values: Any) -> Detections:
    masks = torch.zeros(2, 100, 100, dtype=torch.bool)
    masks[0, 12:30, 15:40] = True
    sources = (Source("cell"), Source("cell"))
    labels, scores = torch.tensor([3, 1]), torch.tensor([0.4, 0.9])
    return Detections(BOXES, labels, scores, (100, 100), sources, masks, {1: "dog", 3: "cat"}, **values)


def test_there_and_back() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    detections = made()
    found = detections.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2
    assert found["class_name"].tolist() == ["cat", "dog"] and found.class_id.tolist() == [3, 1]
    np.testing.assert_allclose(found.area, [18 * 25, 0])
    best = found[found.confidence > 0.5]
    again = Detections.from_supervision(best, (100, 100))
    assert again.caption(0) == "dog 0.90" and again.source[0].anchor == -1
    assert torch.equal(again.boxes_xyxy, BOXES[1:]) and again.masks is not None and not again.masks.any()
    whole = Detections.from_supervision(found, (100, 100), {1: "a", 3: "b"})
    assert torch.equal(whole.labels, detections.labels) and whole.names == {1: "a", 3: "b"}
    assert whole.masks is not None and detections.masks is not None and torch.equal(whole.masks, detections.masks)
    empty = Detections.from_supervision(supervision.Detections.empty(), (100, 100))
    assert len(empty) == 0 and len(Detections.empty((9, 9)).to_supervision()) == 0
    with pytest.raises(ValueError, match="class_id"):
        Detections.from_supervision(supervision.Detections(xyxy=np.ones((1, 4))), (100, 100))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'detcam\[supervision\]'"):
        made().to_supervision()
