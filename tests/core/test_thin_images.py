"""Images of one row or column, whose short side would vanish in the network's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import detcam
from detcam.data.images import to_uint8
from detcam.targets import BoxTarget
from tests import zoo


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("size_hw", [(1, 5000), (5000, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "own_detector"])
def test_detectors_explain_images_of_any_shape(name: str, size_hw: tuple[int, int]) -> None:
    adapter, (height, width) = zoo.shared(name).adapter, size_hw
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    target = BoxTarget((0, 0, width, height), 1)
    (explanation,) = detcam.explain(adapter, image, "gradcam", targets=[[target]])
    heatmap = np.asarray(explanation.heatmaps)
    assert (
        heatmap.shape == (1, height, width) and np.isfinite(heatmap).all() and 0 <= heatmap.min() <= heatmap.max() <= 1
    )
    assert all(len(detections.boxes_xyxy[0:1]) <= 1 for detections in adapter.predict(image))


@pytest.mark.parametrize("size_hw", [(1, 7), (1500, 1500), (3, 1_100_000)])
def test_large_images_are_converted_in_strips(size_hw: tuple[int, int]) -> None:
    image = torch.rand(1, *size_hw, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1) * 1.2 - 0.1
    expected = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(to_uint8(image), expected)


def test_pixels_of_the_user_are_not_changed() -> None:
    from detcam.data.images import load_image

    for values, options in (
        (np.full((4, 5, 3), 0.5, np.float32), {"value_range": (0, 2)}),
        (np.full((4, 5, 3), 9, np.uint8), {}),
    ):
        before = values.copy()
        load_image(values, **options)
        load_image(torch.from_numpy(values).permute(2, 0, 1), **options)
        np.testing.assert_array_equal(values, before)
