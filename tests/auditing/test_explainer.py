"""Explanation of the errors of an image, below the audit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import adapt
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
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
