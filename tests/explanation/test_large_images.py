"""Heatmaps of large images are computed when they are read, one by one, and equal those computed at once."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import detcam
from detcam import RefineCAM, rendering
from detcam.adapters import Adapter, Batch, adapt
from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.torchvision import detector, sampling
from detcam.data import decoding, images
from detcam.explanation import reduction, writer
from detcam.explanation.writer import read_heatmap, read_index
from detcam.geometry import Geometry
from detcam.rendering import DeferredHeatmaps, RawMaps
from detcam.targets import BoxTarget
from detcam.testing import tiny_classifier, tiny_detector
from detcam.visualize.overlay import overlay_heatmap
from tests import zoo

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
    monkeypatch.setattr(rendering, "MAX_PIXELS_TOGETHER", 100)
    return found


@pytest.mark.parametrize("at_once", [False, True], indirect=True, ids=["plain", "aug_smooth"])
def test_deferred_heatmaps_equal_those_computed_at_once(at_once: detcam.Explanation) -> None:
    later = explained(aug_smooth=bool(at_once.smoothing))
    assert isinstance(later.maps, DeferredHeatmaps) and later.maps.shape == (3, 60, 80) and len(later) == 3
    np.testing.assert_allclose(later.heatmaps, at_once.heatmaps, atol=1e-6)
    assert later.heatmaps.dtype == np.float32 and len(np.unique(later.heatmaps)) > 100
    np.testing.assert_array_equal(later.heatmap(-1), later.heatmaps[2])
    np.testing.assert_array_equal(later.heatmap(np.argmin([1, 0])), later.heatmaps[1])
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
    monkeypatch.setattr(rendering, "MAX_PIXELS_TOGETHER", 100)
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


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A photograph of 157 x 211 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 21, 3), np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(coarse).resize((211, 157), Image.Resampling.BICUBIC).save(path)
    return path


def yolo_classifier() -> Adapter:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    torch.manual_seed(0)
    model = tasks.ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False).eval()
    return adapt(zoo.wake(model, torch.rand(8, 3, 64, 64)), image_size=64)


def yolo_maps() -> Adapter:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    torch.manual_seed(0)
    model = tasks.SemanticSegmentationModel("yolo26n-sem.yaml", nc=3, verbose=False).eval()
    return adapt(zoo.wake(model, torch.rand(8, 3, 64, 64)), image_size=64)


def hf_classifier() -> Adapter:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    return adapt(model, processor=transformers.ViTImageProcessor(size={"height": 32, "width": 32}))


OTHERS = {"yolo_classifier": yolo_classifier, "yolo_maps": yolo_maps, "hf_classifier": hf_classifier}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("faster_rcnn", "ssdlite", "yolo", "own_detector", "classifier", "lraspp")),
        *((name, {}) for name in ("hf_detr", "hf_segformer", "hf_mask2former", *OTHERS)),
        *((name, {"aug_smooth": True}) for name in ("faster_rcnn", "yolo")),
        ("own_detector", {"method": "sobel"}),
    ],
)
def test_images_kept_in_bytes_give_the_same_maps(
    name: str, options: dict[str, object], photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = OTHERS[name]() if name in OTHERS else zoo.shared(name).adapter
    expected = detcam.explain(adapter, photograph, **OPTIONS, **options)[0]  # type: ignore[arg-type]
    batches, prepare = [], adapter.prepare
    monkeypatch.setattr(images, "MAX_FLOAT_PIXELS", 157 * 211 - 1)
    monkeypatch.setattr(adapter, "prepare", lambda tensors: batches.append(tensors) or prepare(tensors))
    found = detcam.explain(adapter, photograph, **OPTIONS, **options)[0]  # type: ignore[arg-type]
    assert batches[0][0].dtype == torch.uint8
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=2e-3)
    np.testing.assert_array_equal(found.image, expected.image)
    (detections,) = adapter.predict([photograph])
    assert batches[-1][0].dtype == torch.uint8 and detections.image_size_hw == (157, 211)


class Recording:
    """A mixin with a `prepare` of its own."""

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        self.kinds = [image.dtype for image in images]
        return super().prepare(images)  # type: ignore[misc,no-any-return]


class Mixed(Recording, ClassificationAdapter):
    family = "mixed classifier"


class Own(ClassificationAdapter):
    family = "own classifier"

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        self.kinds = [image.dtype for image in images]
        return super().prepare(images)


class Derived(Mixed):
    family = "derived classifier"


class TakesBytes(Mixed):
    family = "classifier that takes bytes"
    takes_bytes = True


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Own, torch.float32), (Mixed, torch.float32), (Derived, torch.float32), (TakesBytes, torch.uint8)],
)
def test_a_prepare_of_ones_own_gets_floats_unless_it_takes_bytes(
    kind: type, expected: torch.dtype, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_FLOAT_PIXELS", 157 * 211 - 1)
    adapter = kind(tiny_classifier().model, image_size=32)
    adapter.predict(photograph)
    assert adapter.kinds == [expected]


@pytest.mark.parametrize("value_range", [None, (0, 63750)])
def test_large_images_of_16_bits_give_the_same_maps(
    value_range: tuple[float, float] | None, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = np.asarray(Image.open(photograph).convert("L")).astype(np.uint16) * 250
    path = photograph.with_name("deep.png")
    Image.fromarray(levels).save(path)
    adapter = zoo.shared("faster_rcnn").adapter
    reader = images.ImageReader(value_range=value_range)
    expected = detcam.explain(adapter, reader.read(path), **OPTIONS)[0]  # type: ignore[arg-type]
    monkeypatch.setattr(images, "MAX_FLOAT_PIXELS", 157 * 211 - 1)
    monkeypatch.setattr(detector, "MAX_FLOAT_PIXELS", 157 * 211 - 1)
    whole = reader.read(path)
    assert whole.shape == (3, 157, 211) and whole.stride(0) == 0, "gray of three channels is one in memory"
    np.testing.assert_allclose(whole[1], levels / (value_range or (0, 65535))[1], atol=1e-6)
    monkeypatch.setattr(adapter.model.transform, "forward", None)  # which would normalize the whole image
    found = detcam.explain(adapter, whole, **OPTIONS)[0]  # type: ignore[arg-type]
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=2e-3)


class MirroringTransform(GeneralizedRCNNTransform):
    """A transform of a user's own."""

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image).flip(-1)

    def resize(self, image: Tensor, target: None = None) -> tuple[Tensor, None]:
        return F.interpolate(image[None], (96, 128), mode="nearest")[0], None


def test_transforms_of_users_get_whole_images(photograph: Path) -> None:
    adapter = zoo.shared("faster_rcnn").adapter
    image = images.load_image(photograph)
    plain = adapter.model.transform
    adapter.model.transform = MirroringTransform(64, 128, [0.5] * 3, [0.2] * 3)
    try:
        expected, found = (adapter.prepare([each]).inputs for each in (image, (image * 255).round().byte()))
    finally:
        adapter.model.transform = plain
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size_hw", [(40, 53), (157, 211), (200, 31)])
def test_sampled_pixels_are_those_of_interpolate(size_hw: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, 157, 211), generator=torch.Generator().manual_seed(0)).byte()
    expected = F.interpolate(pixels[None].float() / 255, size_hw, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(sampling.sample_bilinear(pixels, size_hw), expected, atol=2e-5, rtol=0)


def test_files_are_converted_in_strips(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gray = photograph.with_name("gray.png")
    Image.open(photograph).convert("P").save(gray)
    expected = [np.asarray(Image.open(path).convert("RGB")) for path in (photograph, gray)]
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 211 * 20)
    for path, array in zip((photograph, gray), expected, strict=True):
        np.testing.assert_array_equal(decoding.read_file(path, 3, None), array)


def test_overlays_of_very_large_images_are_drawn_reduced(
    at_once: detcam.Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = np.full((60, 80, 3), (200, 100, 50), np.uint8)
    both = [replace(found, image=flat, detections=None) for found in (at_once, explained())]
    assert isinstance(both[1].maps, DeferredHeatmaps)
    monkeypatch.setattr(reduction, "MAX_DRAWN_PIXELS", 60 * 80 // 2)
    monkeypatch.setattr(writer, "MAX_FULL_PIXELS", 60 * 80 // 4)
    monkeypatch.setattr(detcam.Explanation, "heatmap", lambda *_: pytest.fail("the whole heatmap is computed"))
    for number, found in enumerate(both):
        entry = read_index(found.save(tmp_path / str(number)))[0]
        assert (entry["height"], entry["width"]) == (60, 80)
        for heatmap, target, row in zip(at_once.heatmaps, entry["targets"], found.targets, strict=True):
            stored = read_heatmap(tmp_path / str(number) / target["heatmap"])
            expected = heatmap.reshape(30, 2, 40, 2).mean((1, 3))
            assert stored.shape == (30, 40) and np.abs(stored - expected).mean() < 0.02
            overlay = np.asarray(Image.open(tmp_path / str(number) / target["overlay"]))[:150, :200].astype(int)
            plain = overlay_heatmap(flat[:30, :40], stored).repeat(5, 0).repeat(5, 1)  # enlarged to be legible
            differs = np.abs(overlay - plain).max(2) > 100  # the outline alone
            lines = np.flatnonzero(differs.any(0))[[0, -1]], np.flatnonzero(differs.any(1))[[0, -1]]
            x1, y1, x2, y2 = np.clip(np.array(row.box_xyxy) * 2.5, 0, [200, 150, 200, 150])
            np.testing.assert_allclose(np.array(lines).T.ravel(), [x1, y1, x2, y2], atol=8)
        assert found.plot().width > 100  # from the reduced maps too
