"""Boxes and captions on images of known pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from detcam.visualize import drawing
from detcam.visualize.overlay import draw_boxes
from tests.drawn import GRAY, bounds, colored, plain


@pytest.mark.parametrize("size", [(120, 160), (700, 900)])
def test_box_line_covers_the_outermost_pixels_of_the_box(size: tuple[int, int]) -> None:
    height, width = size
    box = [20.4, 29.6, 110.2, 99.5]
    out = draw_boxes(plain(height, width), torch.tensor([box]), colors="#ff0000")
    red = colored(out, (255, 0, 0))
    line, halo = drawing.scale_for(height, width)[1:3]
    assert bounds(red) == (20, 30, 110, 100)
    assert red[30, 20:110].all() and red[99, 20:110].all() and red[30:100, 20].all() and red[30:100, 109].all()
    assert not red[30 + line : 100 - line, 20 + line : 110 - line].any()
    halo_pixels = colored(out, (255, 255, 255))  # red is dark: the contrast is white
    assert bounds(halo_pixels) == (20 - halo, 30 - halo, 110 + halo, 100 + halo)
    untouched = ~red & ~halo_pixels
    assert (out[untouched] == GRAY).all()


def test_box_is_clipped_to_the_image_and_keeps_its_edges() -> None:
    out = draw_boxes(plain(60, 80), np.array([[-20, 10, 200, 50]]), colors=(255, 255, 255))
    white = colored(out, (255, 255, 255))
    assert bounds(white) == (0, 10, 80, 50)
    assert white[10:50, 0].all() and white[10:50, 79].all()
    # On a white page the edge at the border needs its dark line within.
    assert colored(out, (0, 0, 0))[20:40, 1].all() and colored(out, (0, 0, 0))[20:40, 78].all()


def test_empty_and_flat_boxes() -> None:
    image = plain(40, 40)
    np.testing.assert_array_equal(draw_boxes(image, []), image)
    np.testing.assert_array_equal(draw_boxes(image, torch.zeros(0, 4), []), image)
    flat = draw_boxes(image, [[10, 20, 10, 20], [40, 40, 40, 40]], colors="red")
    assert set(zip(*np.nonzero(colored(flat, (255, 0, 0))), strict=True)) == {(20, 10), (39, 39)}


def label_of(out: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Pixels that a caption changed."""
    return (out != without).any(axis=2)


def test_label_touches_its_box_from_above() -> None:
    image, box = plain(200, 300), [[100, 90, 220, 160]]
    x1, y1, x2, y2 = bounds(label_of(draw_boxes(image, box, ["cat 0.9"]), draw_boxes(image, box)))
    assert x1 == 100 and y2 == 90 - drawing.scale_for(200, 300).halo and y1 > 60 and x2 < 220


@pytest.mark.parametrize(
    ("box", "side"),
    [
        ((100, 0, 220, 160), "below"),
        ((0, 0, 150, 200), "right"),
        ((150, 0, 300, 200), "left"),
        ((0, 0, 300, 200), "in"),
    ],
)
def test_label_position_depends_on_free_space(box: tuple[int, int, int, int], side: str) -> None:
    image = plain(200, 300)
    label = label_of(draw_boxes(image, [box], ["cat 0.9"]), draw_boxes(image, [box]))
    x1, y1, x2, y2 = bounds(label)
    outside = {"below": y1 >= 160, "right": x1 >= 150, "left": x2 <= 150, "in": (x1, y1) < (10, 10)}
    assert outside[side]


def test_label_prefers_positions_outside_its_box() -> None:
    avoid = np.zeros((300, 400), np.float32)
    avoid[70:230, 70:330] = 1
    avoid[100:200, 100:300] = 0  # all around the box is hot, its inside is not
    image, box, color = plain(300, 400), [[100, 100, 300, 200]], (10, 200, 30)
    out, bare = (draw_boxes(image, box, caption, colors=color, avoid=avoid) for caption in (["cat 0.9"], None))
    inside = label_of(out, bare)[110:190, 110:290]
    assert not inside.any()


@pytest.mark.parametrize("hot", [(0, 0, 300, 89), (0, 60, 300, 200), (60, 50, 260, 180)])
def test_label_avoids_the_salient_region(hot: tuple[int, int, int, int]) -> None:
    avoid = np.zeros((200, 300), np.float32)
    avoid[hot[1] : hot[3], hot[0] : hot[2]] = 1
    box, image = [[120, 90, 200, 140]], plain(200, 300)
    # The plate alone, without the line that leads from a distant one to its box.
    color = (10, 200, 30)
    out = draw_boxes(image, box, ["cat 0.9"], colors=color, avoid=avoid)
    changed = label_of(out, draw_boxes(image, box, colors=color))
    plate = cv2.erode(changed.astype(np.uint8), np.ones((9, 9)), borderValue=0)
    plate = cv2.dilate(plate, np.ones((9, 9))).astype(bool) & changed
    assert plate.sum() > 400
    assert not (plate & (avoid >= 0.5)).any()


def test_label_covers_the_region_without_avoid() -> None:
    avoid = np.zeros((200, 300), np.float32)
    avoid[0:89] = 1
    box, image = [[120, 90, 200, 140]], plain(200, 300)
    assert (label_of(draw_boxes(image, box, ["cat 0.9"]), draw_boxes(image, box)) & (avoid > 0)).any()


def test_labels_of_adjacent_boxes_do_not_overlap() -> None:
    image = plain(480, 640)
    boxes = [[100 + 7 * i, 200 + 5 * i, 300 + 7 * i, 300 + 5 * i] for i in range(8)]
    paints = [(200, 10 + i, 10) for i in range(8)]
    captions = ["traffic light"] * 8
    together = draw_boxes(image, boxes, captions, colors=paints)
    outlines = draw_boxes(image, boxes, colors=paints)
    alone = draw_boxes(image, [boxes[0]], ["traffic light"], colors=[paints[0]])
    plate = (colored(alone, paints[0]) & ~colored(draw_boxes(image, [boxes[0]], colors=[paints[0]]), paints[0])).sum()
    for paint in paints:
        assert (colored(together, paint) & label_of(together, outlines)).sum() >= plate * 0.98


@pytest.mark.parametrize("background", [0, 128, 255])
@pytest.mark.parametrize("color", ["black", "white", "yellow", "navy", "gray"])
def test_captions_contrast_with_any_background(background: int, color: str) -> None:
    image, box = plain(100, 200, background), [[20, 40, 180, 90]]
    label = label_of(draw_boxes(image, box, ["HHH"], colors=color), draw_boxes(image, box, colors=color))
    out = draw_boxes(image, box, ["HHH"], colors=color).astype(float)
    x1, y1, x2, y2 = bounds(label)
    lumas = out[y1:y2, x1:x2] @ (0.299, 0.587, 0.114)
    assert lumas.max() - lumas.min() > 100


def test_long_captions_are_shortened() -> None:
    image, box = plain(100, 150), [[20, 40, 120, 90]]
    label = label_of(draw_boxes(image, box, ["word " * 60]), draw_boxes(image, box))
    x1, y1, x2, y2 = bounds(label)
    assert x1 >= 0 and x2 <= 150 and x2 - x1 > 110 and y2 < 40
    text, font = drawing.typeset("word " * 60, 12, 100)
    assert text.startswith("word word") and text.endswith("…") and font.getlength(text) <= 100
    assert font.getlength("word " * (text.count("word") + 1)) > 90  # no shorter than it must be
    assert drawing.typeset("short  one", 12, 500)[0] == "short one"
    assert drawing.typeset("word", 12, 3)[0] == ""


def test_letters_without_a_font_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FALLBACK_FONTS", ())
    drawing.fallback_font.cache_clear()
    assert drawing.typeset("Café 猫…", 12, 500)[0] == "Cafe ?..."
    drawing.fallback_font.cache_clear()


def test_tiny_images_get_boxes_without_captions() -> None:
    image = plain(16, 16)
    np.testing.assert_array_equal(draw_boxes(image, [[4, 4, 12, 12]], ["cat"]), draw_boxes(image, [[4, 4, 12, 12]]))
