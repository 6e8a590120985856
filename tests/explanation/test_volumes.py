"""`detcam.explain` on volumes: default layers, drawing, and files that can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detcam
from detcam import GradCAM, HiResCAM, adapt
from detcam.explanation.volumes import VolumeExplanation, montage_slices
from detcam.explanation.writer import read_heatmap

DEPTH, HEIGHT, WIDTH = 20, 40, 48


class Brightness(nn.Module):
    """Class 1 is the brightness of a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1, bias=False), nn.ReLU())
        self.body[0].weight.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        total = self.body(x).square().mean((1, 2, 3, 4))
        return torch.stack([-total, total], 1)


@pytest.fixture
def volume() -> Tensor:
    volume = torch.zeros(1, 1, DEPTH, HEIGHT, WIDTH)
    volume[..., 4:8, 10:20, 30:40] = 1
    return volume


@pytest.fixture
def explanation(volume: Tensor) -> VolumeExplanation:
    (found,) = detcam.explain(Brightness().eval(), volume, "hirescam", names=["dark", "bright"])
    assert isinstance(found, VolumeExplanation)
    return found


def test_heatmaps_are_those_of_the_method(explanation: VolumeExplanation, volume: Tensor) -> None:
    adapter = adapt(Brightness().eval())
    assert adapter.layer_names == ["body"] == list(explanation.layers)
    np.testing.assert_array_equal(explanation.heatmaps, HiResCAM(adapter)(volume))
    heat = explanation.heatmap()
    assert heat.shape == (DEPTH, HEIGHT, WIDTH) and heat[2:10, 8:22, 28:42].sum() > 0.98 * heat.sum()
    assert explanation.captions == ("bright 1.00",)
    assert explanation.slices[5, 15, 35].tolist() == [255] * 3 and explanation.slices[0].max() == 0


def test_slices_and_montages(explanation: VolumeExplanation) -> None:
    assert montage_slices(3) == [0, 1, 2]
    assert montage_slices(20) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]
    hot, cold = explanation.overlay(depth=5, caption=False), explanation.overlay(depth=19, caption=False)
    scale = 1 + 191 // WIDTH  # small images are enlarged
    assert np.ptp(hot[15 * scale, 35 * scale].astype(int)) > 30  # colored
    assert cold[: HEIGHT * scale, : WIDTH * scale].max() == 0
    figure = explanation.overlay()
    assert figure.shape[0] > 3 * HEIGHT and figure.shape[1] > 3 * WIDTH
    assert explanation.plot().size[0] > figure.shape[1]
    assert np.array_equal(explanation.overlay(shared_scale=True), figure)  # the only target
    assert "hirescam" in repr(explanation) and "array" not in repr(explanation)


def test_saved_volumes_are_read_back(explanation: VolumeExplanation, tmp_path: Path) -> None:
    (entry,) = json.loads(explanation.save(tmp_path).read_text())["images"]
    assert (entry["depth"], entry["height"], entry["width"]) == (DEPTH, HEIGHT, WIDTH)
    (target,) = entry["targets"]
    assert (tmp_path / target["overlay"]).is_file()
    np.testing.assert_allclose(read_heatmap(tmp_path / target["heatmap"]), explanation.heatmap(), atol=1e-5)


def test_default_layer_of_a_video_network() -> None:
    video = pytest.importorskip("torchvision.models.video")
    model = video.mc3_18(weights=None, num_classes=3).eval()
    assert adapt(model).layer_names == ["layer4"]
    assert GradCAM(model)(torch.rand(1, 3, 8, 32, 32)).shape == (1, 8, 32, 32)


def test_normalized_volumes_are_drawn_as_they_were(volume: Tensor) -> None:
    adapter = adapt(Brightness().eval(), mean=(0.5,), std=(0.25,))
    (found,) = detcam.explain(adapter, (volume - 0.5) / 0.25)
    assert isinstance(found, VolumeExplanation)
    assert set(np.unique(found.slices)) == {0, 255} and (found.slices[5, 10:20, 30:40] == 255).all()
