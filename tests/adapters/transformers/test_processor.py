"""Positions of images on the input, measured on the image processors of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detcam.adapters import adapt
from detcam.adapters.transformers.processor import ImagePreparation, is_whole, pixel_mask
from tests.adapters.transformers.detectors import DETECTORS, PROCESSORS, image_processor

tf = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "rt_detr": (64, 80, 96),
    "d_fine": (64, 100, 96),
    "lw_detr": (64, 80, 96),
    "rf_detr": (64, 80, 96),
}
"""A size that the network takes, one that it does not, and the nearest one."""


@pytest.mark.parametrize(("name", "sizes"), SIZES.items(), ids=SIZES)
def test_sizes_that_the_network_cannot_take_are_refused(name: str, sizes: tuple[int, int, int]) -> None:
    model, processor = DETECTORS[name](), image_processor(PROCESSORS.get(name, "RTDetr"))
    good, bad, near = sizes
    image = torch.rand(3, 60, 90)
    assert len(adapt(model, processor=processor, image_size=good, score_threshold=0.0).predict(image)[0])
    adapter = adapt(model, processor=processor, image_size=bad)
    with pytest.raises(
        ValueError, match=f"multiples of 32; got {bad} x {bad}. Pass image_size=.*such as {near} x {near}"
    ):
        adapter.predict(image)
    with pytest.raises(RuntimeError):  # as the network says
        model(torch.rand(1, 3, bad, bad))


EDGES = {"shortest_edge": 60, "longest_edge": 90}


# Expected: input size (h, w), extent of the image on it (w, h), offset (x, y), of an image of 80 x 100.
CASES: list[tuple[str, dict[str, Any], tuple[int, int], tuple[float, float], tuple[float, float]]] = [
    ("DetrImageProcessor", {"size": EDGES}, (60, 75), (75, 60), (0, 0)),
    ("DetrImageProcessorPil", {"size": EDGES}, (60, 75), (75, 60), (0, 0)),
    (
        "DetrImageProcessor",
        {"size": EDGES, "pad_size": {"height": 96, "width": 96}},
        (96, 96),
        (75, 60),
        (0, 0),
    ),
    ("RTDetrImageProcessor", {"size": {"height": 64, "width": 96}}, (64, 96), (96, 64), (0, 0)),
    ("RTDetrImageProcessor", {"size": {"height": 160, "width": 224}}, (160, 224), (224, 160), (0, 0)),
    # Padded to a square below and to the right, then resized: the image is 0.8 x 64 high.
    ("Owlv2ImageProcessor", {"size": {"height": 64, "width": 64}}, (64, 64), (64, 51.2), (0, 0)),
    # The shorter side is resized to 64, then the center of 48 x 48 is cut out.
    (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}},
        (48, 48),
        (80, 64),
        (-16, -8),
    ),
    ("Mask2FormerImageProcessor", {"size": {"shortest_edge": 60, "longest_edge": 90}}, (64, 96), (96, 64), (0, 0)),
]


@pytest.mark.parametrize(("name", "settings", "input_size", "extent", "offset"), CASES)
def test_position_on_the_input(
    name: str,
    settings: dict[str, Any],
    input_size: tuple[int, int],
    extent: tuple[float, float],
    offset: tuple[float, float],
) -> None:
    processor = getattr(tf, name)(**settings)
    pixel_values, geometry = ImagePreparation(processor).prepare(torch.rand(3, 80, 100))
    assert tuple(pixel_values.shape[-2:]) == input_size == geometry.input_size_hw
    assert (geometry.scale_xy[0] * 100, geometry.scale_xy[1] * 80) == pytest.approx(extent, abs=0.01)
    assert geometry.offset_xy == pytest.approx(offset, abs=0.01)
    expected = processor(images=[torch.zeros(3, 80, 100, dtype=torch.uint8)], return_tensors="pt").get("pixel_mask")
    if expected is not None:
        assert torch.equal(pixel_mask(geometry), expected[0])
        assert is_whole(geometry) == bool(expected.all())


def test_pixels_are_those_of_the_processor() -> None:
    processor = tf.DetrImageProcessor(size=EDGES)
    image = torch.randint(0, 256, (3, 80, 100), generator=torch.Generator().manual_seed(0)).float() / 255
    expected = processor(images=[(image * 255).byte().permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ImagePreparation(processor).prepare(image)[0], expected[0])


def test_a_square_marks_the_same_pixels_on_the_input() -> None:
    image = torch.zeros(3, 80, 100)
    image[:, 20:40, 50:80] = 1
    processor = tf.Owlv2ImageProcessor(size={"height": 64, "width": 64}, do_normalize=False)
    pixel_values, geometry = ImagePreparation(processor).prepare(image)
    box = geometry.boxes_to_input(torch.tensor([50.0, 20.0, 80.0, 40.0]))
    rows, columns = (pixel_values[0] > 0.5).nonzero().unbind(1)
    found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert float((found - box).abs().max()) <= 1


def test_image_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="one positive number"):
        ImagePreparation(tf.RTDetrImageProcessor(), 0)
