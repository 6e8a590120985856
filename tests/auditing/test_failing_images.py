"""An image that the model does not take costs itself alone, in detection and in explanation, and is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam.adapters import detector
from detcam.auditing.stages import FAILED, UNEXPLAINED

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES_WH = {"a.png": (64, 64), "wide.png": (640, 8), "b.png": (64, 64)}
RED, GRAY = (255, 0, 0), (120, 120, 120)


class Picky(nn.Module):
    """One box per cell of 8 x 8 pixels, as red as the cell; wide images are refused, at once or with gradients only."""

    def __init__(self, *, with_gradients_only: bool = False) -> None:
        super().__init__()
        self.with_gradients_only = with_gradients_only
        self.features = nn.Conv2d(3, 4, 8, 8)
        self.head = nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            for convolution in (self.features, self.head):
                convolution.weight.zero_()
                convolution.bias.zero_()  # type: ignore[union-attr]
            self.features.weight[0, 0] = 1 / 64
            self.features.weight[0, 1] = -1 / 64
            self.head.weight[0, 0] = 8.0
            self.head.bias -= 4  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 2 * x.shape[-2] and (
            x.requires_grad or torch.is_grad_enabled() or not self.with_gradients_only
        ):
            raise RuntimeError("shape '[8, 8]' is invalid for a wide image")
        return self.head(self.features(x).relu())


def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
    count, _, height, width = raw.shape
    ys, xs = torch.meshgrid(torch.arange(height) * 8.0, torch.arange(width) * 8.0, indexing="ij")
    boxes = torch.stack([xs, ys, xs + 8, ys + 8], -1).flatten(0, 1).expand(count, -1, 4)
    return boxes, raw.sigmoid().flatten(2).transpose(1, 2)


def write(folder: Path, names: tuple[str, ...] = tuple(SIZES_WH)) -> Path:
    """Each image has a red cell without a label, and a label without a red cell."""
    images, annotations = [], []
    for number, name in enumerate(names, 1):
        image = Image.new("RGB", SIZES_WH[name], GRAY)
        image.paste(RED, (8, 0, 16, 8))
        image.save(folder / name)
        images.append({"id": number, "file_name": name})
        box = [32, 0, 8, 8]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": 64})
    categories = [{"id": 1, "name": "thing"}]
    path = folder / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def adapter(**options: Any) -> Any:
    return detector(Picky(**options).eval(), decode, names=["thing"], score_threshold=0.3, target_layers=["features"])


def test_an_image_that_the_model_refuses_costs_itself_alone(tmp_path: Path) -> None:
    annotations = write(tmp_path)
    for resume in (False, True):
        found = detcam.audit(adapter(), tmp_path, annotations, out=tmp_path / "out", resume=resume)
        assert {case.file_name for case in found.cases} == {"a.png", "b.png"} and found.explained
        (issue,) = found.issues.of(FAILED)
        assert issue.image_id == 2 and "invalid for a wide image" in issue.message
        assert "wide.png" in (tmp_path / "out" / "audit.json").read_text()


def test_an_image_that_cannot_be_explained_keeps_its_errors(tmp_path: Path) -> None:
    found = detcam.audit(adapter(with_gradients_only=True), tmp_path, write(tmp_path), out=tmp_path / "out")
    assert {case.file_name for case in found.cases} == set(SIZES_WH)
    assert {case.file_name for case in found.explained} == {"a.png", "b.png"}
    (issue,) = found.issues.of(UNEXPLAINED)
    assert issue.image_id == 2 and issue.message.startswith("wide.png: 1 error: shape")


def test_a_model_that_fails_on_every_image_is_an_error(tmp_path: Path) -> None:
    annotations = write(tmp_path, ("wide.png",))
    for options in ({}, {"with_gradients_only": True}):
        with pytest.raises(RuntimeError, match="invalid for a wide image"):
            detcam.audit(adapter(**options), tmp_path, annotations, out=tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
