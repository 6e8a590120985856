"""Geometry: boxes there and back, heatmaps back to image pixels, regions onto cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detcam.geometry import Geometry, checked_size, normalize

LETTERBOX = Geometry((60, 100), (128, 128), (1.28, 1.28), (0.0, 25.6))


def test_filling_image_equals_interpolate() -> None:
    maps = torch.rand(3, 5, 7)
    geometry = Geometry.resize((40, 91), (80, 112))
    expected = F.interpolate(maps[None], (40, 91), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(geometry.to_image(maps), expected, atol=1e-6, rtol=0)


def test_letterbox_equals_resizing_the_canvas_pixel_by_pixel() -> None:
    maps = torch.rand(2, 16, 16, dtype=torch.float64)
    actual = LETTERBOX.to_image(maps)
    for y, x in [(0, 0), (10, 99), (59, 50), (31, 7)]:
        row = (y + 0.5) * 1.28 + 25.6
        column = (x + 0.5) * 1.28
        r, c = min(max(row / 8 - 0.5, 0), 15), min(max(column / 8 - 0.5, 0), 15)
        r0, c0 = int(r), int(c)
        r1, c1 = min(r0 + 1, 15), min(c0 + 1, 15)
        expected = (
            maps[:, r0, c0] * (1 - (r - r0)) * (1 - (c - c0))
            + maps[:, r0, c1] * (1 - (r - r0)) * (c - c0)
            + maps[:, r1, c0] * (r - r0) * (1 - (c - c0))
            + maps[:, r1, c1] * (r - r0) * (c - c0)
        )
        torch.testing.assert_close(actual[:, y, x], expected, atol=1e-9, rtol=0)


def test_boxes_round_trip() -> None:
    boxes = torch.tensor([[0.0, 0.0, 100.0, 60.0], [10.0, 20.0, 30.0, 50.0]])
    there = LETTERBOX.boxes_to_input(boxes)
    torch.testing.assert_close(there[0], torch.tensor([0.0, 25.6, 128.0, 102.4]))
    torch.testing.assert_close(LETTERBOX.boxes_to_image(there), boxes, atol=1e-4, rtol=0)
    assert LETTERBOX.point_to_image(LETTERBOX.point_to_input((3.0, 4.0))) == pytest.approx((3.0, 4.0))


def test_area_of_cells_on_the_image() -> None:
    # Rows 3 to 12 of 16 are input pixels 24 to 104; minus 25.6, at 1.28 a pixel. Columns 4 to 7 are 32 to 64.
    area = LETTERBOX.area_of_cells(slice(3, 13), slice(4, 8), (16, 16))
    assert area == pytest.approx((32 / 1.28, (24 - 25.6) / 1.28, 64 / 1.28, (104 - 25.6) / 1.28))


def test_valid_cells_leave_the_padding_out() -> None:
    rows, columns = LETTERBOX.valid_cells((16, 16))
    assert (rows.start, rows.stop) == (3, 13)  # 25.6 / 8 = 3.2 and 102.4 / 8 = 12.8: cells 3 to 12 touch the image
    assert (columns.start, columns.stop) == (0, 16)


def test_mirrored_position_is_that_of_the_mirrored_input() -> None:
    uneven = Geometry((60, 100), (100, 170), (1.25, 1.5), (5, 25.0))
    mirrored = uneven.hflip()
    assert mirrored == Geometry((60, 100), (100, 170), (1.25, 1.5), (40, 25.0))
    canvas = torch.zeros(100, 170)
    canvas[uneven.valid_cells((100, 170))] = 1
    there = torch.zeros(100, 170)
    there[mirrored.valid_cells((100, 170))] = 1
    assert torch.equal(there, canvas.flip(-1)) and mirrored.hflip() == uneven


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (128, 128), (200, 300)])
def test_region_covers_the_same_share_of_cells(grid: tuple[int, int]) -> None:
    region = torch.zeros(1, 60, 100)
    region[:, 15:45, 20:80] = 1
    cells = LETTERBOX.from_image(region, grid)[0]
    # rows 44.8 to 83.2 of the canvas: coarse cells of 32 rows hold at most 19.2 of them, finer ones lie inside
    assert float(cells.max()) == pytest.approx(0.6 if grid == (4, 4) else 1.0)
    share_of_canvas = (30 * 1.28) * (60 * 1.28) / 128**2
    # cells half on padding are averaged over their part on the image, so only cells inside count exactly
    assert float(cells.mean()) == pytest.approx(share_of_canvas, rel=0.02)
    assert float(cells[0].sum()) == 0.0


def test_binning_is_the_mean_of_the_pixels_of_a_cell() -> None:
    pixels = torch.rand(1, 8, 12)
    cells = Geometry.identity((8, 12)).from_image(pixels, (4, 3))[0]
    for row in range(4):
        for column in range(3):
            expected = pixels[0, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4].mean()
            assert float(cells[row, column]) == pytest.approx(float(expected), abs=1e-6)


BLOCKS = [
    Geometry((240, 400), (512, 512), (1.28, 1.28), (0.0, 102.4)),
    Geometry((250, 130), (200, 110), (0.8, 0.8), (2.5, 20.0)),
    Geometry.resize((1, 1), (32, 32)),
    Geometry.resize((7, 300), (64, 96)),
]


@pytest.mark.parametrize("geometry", BLOCKS)
def test_blocks_of_rows_are_the_whole_sum(geometry: Geometry) -> None:
    """Each map is interpolated alone, pixel by pixel of its canvas."""
    levels = [torch.rand(2, *size, dtype=torch.float64) for size in ((64, 60), (16, 16), (5, 3), (1, 1))]
    height, width = geometry.image_size_hw
    expected = torch.zeros(2, height, width, dtype=torch.float64)
    rows = ((torch.arange(height) + 0.5) * geometry.scale_xy[1] + geometry.offset_xy[1]).double()
    columns = ((torch.arange(width) + 0.5) * geometry.scale_xy[0] + geometry.offset_xy[0]).double()
    for maps in levels:
        cells = [
            (each * size / length - 0.5).clamp(0, size - 1)
            for each, size, length in zip((rows, columns), maps.shape[1:], geometry.input_size_hw, strict=True)
        ]
        low = [each.floor().long() for each in cells]
        high = [(each + 1).clamp(max=size - 1) for each, size in zip(low, maps.shape[1:], strict=True)]
        (dy, dx) = (each - first for each, first in zip(cells, low, strict=True))
        upper = maps[:, low[0]][:, :, low[1]] * (1 - dx) + maps[:, low[0]][:, :, high[1]] * dx
        lower = maps[:, high[0]][:, :, low[1]] * (1 - dx) + maps[:, high[0]][:, :, high[1]] * dx
        expected += upper * (1 - dy[:, None]) + lower * dy[:, None]
    torch.testing.assert_close(geometry.sum_to_image(levels), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("geometry", BLOCKS)
@pytest.mark.parametrize("grid", [(100, 128), (33, 40), (3, 1)])
def test_blocks_of_cells_are_the_mean_of_their_pixels(geometry: Geometry, grid: tuple[int, int]) -> None:
    maps = torch.rand(2, *geometry.image_size_hw, dtype=torch.float64)
    shares = []
    for axis in (0, 1):
        pixels, length = geometry.image_size_hw[axis], geometry.input_size_hw[axis]
        edges = torch.arange(pixels + 1).double() * geometry.scale_xy[1 - axis] + geometry.offset_xy[1 - axis]
        cells = torch.arange(grid[axis] + 1).double() * length / grid[axis]
        first, last = torch.maximum(edges[:-1], cells[:-1, None]), torch.minimum(edges[1:], cells[1:, None])
        covered = (last - first).clamp(min=0)
        shares.append(covered / covered.sum(1, keepdim=True).clamp(min=1e-9))
    expected = shares[0] @ maps @ shares[1].T
    torch.testing.assert_close(geometry.from_image(maps, grid), expected, atol=1e-6, rtol=0)


def test_normalize_keeps_order_and_ends() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]], [[0.0, 1e-30], [0.0, 5e-31]]])
    actual = normalize(maps)
    torch.testing.assert_close(actual[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
    assert torch.equal(actual[1], torch.zeros(2, 2))
    torch.testing.assert_close(actual[2], torch.tensor([[0.0, 1.0], [0.0, 0.5]]))


@pytest.mark.parametrize("size", [np.int64(64), (np.int32(64), 96), [64, 96], np.array([64, 96]), torch.Size([64, 96])])
def test_sizes_become_integers_of_python(size: object) -> None:
    checked = checked_size(size)
    sides = checked if isinstance(checked, tuple) else (checked,)
    assert sides in ((64,), (64, 96)) and {type(side) for side in sides} == {int}


@pytest.mark.parametrize("size", [0, -5, "64", 64.0, True, (64,), (64, 64, 3), (0, 5), (64, None), np.array(64)])
def test_other_sizes_are_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"expected image_size as \(height, width\)"):
        checked_size(size)


def test_many_large_maps_are_rendered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from detcam import rendering

    levels = [torch.rand(3, 5, 6), torch.rand(3, 9, 12)]
    geometry = Geometry.resize((20, 24), (40, 48))
    together = rendering.combine_levels(levels, geometry)
    monkeypatch.setattr(rendering, "MAX_PIXELS_TOGETHER", 100)
    torch.testing.assert_close(rendering.combine_levels(levels, geometry), together)
