"""Heatmaps of large images are computed when they are read, one by one, and equal those computed at once."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detcam
from detcam import RefineCAM, cam
from detcam.explanation import writer
from detcam.explanation.writer import read_heatmap, read_index
from detcam.geometry import Geometry
from detcam.rendering import DeferredHeatmaps, RawMaps
from detcam.targets import BoxTarget
from detcam.testing import tiny_detector

IMAGE = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
OPTIONS = {"score_threshold": 0.0, "top_k": 3}

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.EmptyMapWarning")


def explained(**options: object) -> detcam.Explanation:
    return detcam.explain(tiny_detector(), IMAGE, **OPTIONS, **options)[0]  # type: ignore[arg-type]


@pytest.fixture
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> detcam.Explanation:
    """The explanation whose maps are computed at once; further calls defer them."""
    found = explained(aug_smooth=getattr(request, "param", False))
    assert isinstance(found.maps, np.ndarray)
    monkeypatch.setattr(cam, "MAX_PIXELS_TOGETHER", 100)
    return found


@pytest.mark.parametrize("at_once", [False, True], indirect=True, ids=["plain", "aug_smooth"])
def test_deferred_heatmaps_equal_those_computed_at_once(at_once: detcam.Explanation) -> None:
    later = explained(aug_smooth=bool(at_once.smoothing))
    assert isinstance(later.maps, DeferredHeatmaps) and later.maps.shape == (3, 60, 80) and len(later) == 3
    np.testing.assert_allclose(later.heatmaps, at_once.heatmaps, atol=1e-6)
    assert later.heatmaps.dtype == np.float32 and len(np.unique(later.heatmaps)) > 100
    np.testing.assert_array_equal(later.heatmap(-1), later.heatmaps[2])
    np.testing.assert_array_equal(later[1:].heatmaps, later.heatmaps[1:])
    np.testing.assert_array_equal(later[2].heatmaps, later.heatmaps[2:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(later.maps)), later.heatmaps)
    assert np.array_equal(later.overlay(1), at_once.overlay(1))


def test_saving_computes_one_heatmap_at_a_time(
    at_once: detcam.Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = explained()
    monkeypatch.delattr(DeferredHeatmaps, "__array__")
    entry = read_index(later.save(tmp_path))[0]
    for target, expected in zip(entry["targets"], at_once.heatmaps, strict=True):
        np.testing.assert_allclose(read_heatmap(tmp_path / target["heatmap"]), expected, atol=1e-5)


def test_large_images_get_compact_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_FULL_PIXELS", 60 * 80 // 3)
    found = replace(explained(), image=np.full((60, 80, 3), (200, 100, 50), np.uint8))
    for index, target in enumerate(read_index(found.save(tmp_path))[0]["targets"]):
        stored = read_heatmap(tmp_path / target["heatmap"])
        expected = found.heatmap(index)
        np.testing.assert_allclose(stored, expected.reshape(30, 2, 40, 2).mean((1, 3)), atol=1e-5)
        resized = read_heatmap(tmp_path / target["heatmap"], (60, 80))
        assert resized.shape == (60, 80) and np.abs(resized - expected).mean() < 0.02
        assert target["overlay"].endswith(".jpg")
        overlay = np.asarray(Image.open(tmp_path / target["overlay"])).astype(int)
        assert np.abs(overlay - found.overlay(index)).mean() < 4
    monkeypatch.setattr(writer, "MAX_JPEG_SIDE", 79)
    assert read_index(found.save(tmp_path))[0]["targets"][0]["overlay"].endswith(".png")
    assert not list(tmp_path.glob("*.jpg"))


def test_empty_maps_are_reported_without_computing_them(
    at_once: detcam.Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DeferredHeatmaps, "__array__")
    adapter = tiny_detector()
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.zero_()
    targets = [[BoxTarget((2, 2, 9, 9), 1), BoxTarget((5, 5, 30, 30), 1)]]
    with pytest.warns(detcam.EmptyMapWarning, match="of 2 of 2 targets"):
        later = detcam.explain(adapter, IMAGE, targets=targets)[0]
    assert isinstance(later.maps, DeferredHeatmaps) and later.maps.count_empty() == 2


@pytest.mark.parametrize(
    "method", ["reachcam", "fullgrad", "refinecam", "probecam", "finercam", "guidedbackprop", "sobel"]
)
def test_methods_with_their_own_combination_keep_raw_maps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target_layers = ["0", "3"] if method == "refinecam" else None
    at_once = explained(method=method, target_layers=target_layers)
    monkeypatch.setattr(cam, "MAX_PIXELS_TOGETHER", 100)
    later = explained(method=method, target_layers=target_layers)
    assert isinstance(at_once.maps, np.ndarray) and isinstance(later.maps, DeferredHeatmaps)
    np.testing.assert_allclose(later.heatmaps, at_once.heatmaps, atol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(later.maps))[1], later.heatmaps[1])
    assert later.maps.count_empty() == int((at_once.heatmaps.max((1, 2)) == 0).sum())


def test_levels_that_agree_nowhere_are_an_empty_map() -> None:
    levels = [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)]
    levels[0][0, :, :2] = levels[1][0, :, 6:] = 1.0
    maps = RawMaps(tuple(levels), Geometry.resize((600, 800), (8, 8)), combine=RefineCAM.combine)
    assert DeferredHeatmaps((maps,)).count_empty() == 1
    levels[1][0, 3, 0] = 1.0
    assert DeferredHeatmaps((maps,)).count_empty() == 0
