"""Explanation of the errors of an image, below the audit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam import adapt
from detcam.adapters import detector
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.report.summary import headline
from detcam.auditing.verification import black_box
from detcam.data.ground_truth import GroundTruth


def test_a_network_is_told_what_is_padding_on_mirrored_inputs_as_well() -> None:
    tf = pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.adapters.transformers.detectors import DETECTORS

    # The image fills the upper left 64 x 72 pixels of the canvas.
    processor = tf.DetrImageProcessor(size={"height": 64, "width": 72}, pad_size={"height": 96, "width": 128})
    adapter = adapt(DETECTORS["detr"](), processor=processor)
    image = torch.rand(3, 64, 72, generator=torch.Generator().manual_seed(0))
    (found,) = adapter.predict(image)
    seen: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        seen.append((kwargs["pixel_values"], kwargs["pixel_mask"]))

    truth = GroundTruth.without_objects(1, "image.png", Path("image.png"), (64, 72), adapter.names)
    explainer = ErrorExplainer(adapter, None, adapter.names, 0.5)
    with adapter.model.register_forward_pre_hook(record, with_kwargs=True):
        explainer.explain([ErrorImage(image, found, truth, [], [])])
    assert [bool(mask[0, 0, 0]) for _, mask in seen] == [True, False], "the image, and the mirrored one"
    for pixels, mask in seen:
        assert torch.equal(mask.bool(), (pixels != 0).any(1))


class Redness(nn.Module):
    """The redness (B,) of the middle of images (B, 3, H, W), without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(x)[:, 0, 16:48, 16:48].mean((1, 2)).detach()


BOX = torch.tensor([[16.0, 16.0, 48.0, 48.0]])


@pytest.mark.parametrize("is_function", [False, True])
def test_gradients_that_fail_make_no_black_box(is_function: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """Only a model that has none ends at a maximum of perturbed images, whose cases are not confirmed."""
    monkeypatch.setattr(black_box, "MAX_TRIALS", 8)
    network = Redness().eval()
    if is_function:
        adapter: Any = adapt(
            lambda image: (BOX, network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)),
            kind="detection",
            names=["thing"],
        )
    else:
        adapter = detector(
            network, lambda raw: (BOX.expand(len(raw), 1, 4), raw[:, None, None]), names=["thing"], target_layers="seen"
        )
    pixels = np.random.default_rng(0).integers(0, 60, (64, 64, 3), dtype=np.uint8)
    pixels[20:44, 20:44, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (tmp_path / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "image.png"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 56, 8, 8], "area": 64}],
                "categories": [{"id": 1, "name": "thing"}],
            }
        )
    )
    found = detcam.audit(adapter, tmp_path, tmp_path / "labels.json", score_threshold=0.3)
    (case,) = [each for each in found.cases if each.type == "background"]
    assert ("no region was verified within" in case.reason) == is_function, case.reason
    assert (case.forward_passes <= 9) == is_function
    assert case.verdict == "not confirmed" and case.trials if is_function else case.confirmed, case.reason
    lines = headline(found.cases, 0.0, found.score_threshold)
    assert any("of 1 explained false positives" in line for line in lines), "tested cases count, confirmed or not"
