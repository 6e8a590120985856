"""Networks of one, four and twelve channels from images to overlays, audits and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

import detcam
from detcam import METHODS, adapt, explain
from detcam.adapters import detector
from detcam.metrics.stability import stability

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.EmptyMapWarning")


class LastBand(nn.Module):
    """Class 1 is how bright the last channel is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=4, padding=1, bias=False)
        self.conv.weight.data.zero_()
        self.conv.weight.data[:, -1] = 1.0
        self.fc = nn.Linear(4, 2, bias=False)
        self.fc.weight.data = torch.tensor([[-1.0] * 4, [1.0] * 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def scene(channels: int) -> np.ndarray:
    image = np.zeros((32, 48, channels), np.uint8)
    image[8:20, 28:40, -1] = 255
    return image


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("method", ["gradcam", "occlusion", "rise:passes=100", "reachcam", "probecam", "sess", "vps"])
def test_maps_lie_on_the_patch_of_the_last_band(channels: int, method: str) -> None:
    options: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "image_size": (32, 48)}
    (explanation,) = explain(LastBand(channels).eval(), scene(channels), method, labels=[1], **options)
    y, x = divmod(int(explanation.heatmaps[0].argmax()), 48)
    assert 4 <= y < 24 and 24 <= x < 44
    assert explanation.image.shape == (32, 48, 3)


def test_a_normalization_that_is_not_known_is_reported() -> None:
    with pytest.warns(UserWarning, match="takes 4 channels and stores no normalization.*mean= and std="):
        explain(LastBand(4).eval(), scene(4), labels=[1], image_size=32)
    assert adapt(LastBand(1).eval(), image_size=32).mean == pytest.approx((0.449,), abs=1e-3)
    with pytest.raises(ValueError, match="one value per channel of the network's input, 4"):
        adapt(LastBand(4).eval(), mean=(0.5,) * 3, std=(1.0,) * 3)


def test_the_drawn_bands(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", scene(4), photometric="minisblack", planarconfig="contig")
    options: dict[str, Any] = {"mean": (0.0,) * 4, "std": (1.0,) * 4, "image_size": 32, "labels": [1]}
    plain = explain(LastBand(4).eval(), tmp_path / "x.tif", **options)[0]
    shown = explain(LastBand(4).eval(), tmp_path / "x.tif", show_bands=3, **options)[0]
    assert plain.image.max() == 0 and shown.image[10, 30].tolist() == [255] * 3
    assert np.array_equal(plain.heatmaps, shown.heatmaps)
    shown.save(tmp_path / "out")
    folder = explain(LastBand(4).eval(), str(tmp_path / "*.tif"), **options)
    assert [item.path for item in folder] == [tmp_path / "x.tif"]


def cells(output: Tensor) -> tuple[Tensor, Tensor]:
    rows = output.flatten(2).mT
    y, x = torch.meshgrid(*(torch.arange(n) * 8.0 for n in output.shape[-2:]), indexing="ij")
    corner = torch.stack([x, y], -1).flatten(0, 1).expand(len(rows), -1, -1)
    return torch.cat([corner, corner + 8], -1), (rows * 0.1).sigmoid()


def test_audit_and_benchmark_of_four_bands(tmp_path: Path) -> None:
    import json

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 2, 2, 2)).eval()
    adapter = detector(net, cells, names=["a", "b"], image_size=32, target_layers="1", score_threshold=0)
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 4), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{index}.tif", image, photometric="minisblack", planarconfig="contig")
    images = [{"id": i, "file_name": f"{i}.tif", "width": 32, "height": 32} for i in range(2)]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81} for i in range(2)]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    found = detcam.audit(adapter, tmp_path, tmp_path / "x.json", out=tmp_path / "report", explain=2, explain_missed=0)
    assert len(found.cases) > 0
    result = detcam.benchmark(adapter, [tmp_path / "0.tif"], ["odam", "sobel"], ["insertion"], top_k=1)
    assert len(result) >= 2 and not result.failed
    table = stability(METHODS["odam"](adapter), tmp_path / "0.tif")
    assert table.ssim.ndim == 2
