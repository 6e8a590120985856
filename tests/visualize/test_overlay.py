"""Overlays, panels, grids and saved files on images of known pixels."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detcam.utils import files
from detcam.visualize import drawing
from detcam.visualize.overlay import (
    deprocess_image,
    draw_boxes,
    grid,
    overlay_heatmap,
    preprocess_image,
    render,
    save_image,
    show_cam_on_image,
    to_png_bytes,
)
from tests.drawn import INFERNO_HOT, bounds, colored, noise, plain

# show_cam_on_image, preprocess_image, deprocess_image


@pytest.mark.parametrize("use_rgb", [False, True])
@pytest.mark.parametrize("colormap", [cv2.COLORMAP_JET, cv2.COLORMAP_INFERNO])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_show_cam_equals_grad_cam(use_rgb: bool, colormap: int, dtype: type) -> None:
    peer = pytest.importorskip("pytorch_grad_cam.utils.image")
    image = (noise(40, 30) / 255).astype(dtype)
    mask = np.random.default_rng(1).random((40, 30)).astype(dtype)
    for weight in (0.0, 0.3, 0.5, 1.0):
        expected = peer.show_cam_on_image(image, mask, use_rgb, colormap, weight)
        np.testing.assert_array_equal(show_cam_on_image(image, mask, use_rgb, colormap, weight), expected)


def test_show_cam_accepts_tensors_names_and_uint8() -> None:
    image = noise(20, 30)
    mask = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    expected = show_cam_on_image(image.astype(np.float32) / 255, mask, True, cv2.COLORMAP_VIRIDIS)
    chw = torch.from_numpy(image).permute(2, 0, 1)
    learned = torch.from_numpy(mask).requires_grad_()
    np.testing.assert_array_equal(show_cam_on_image(chw, learned, True, "viridis"), expected)
    np.testing.assert_array_equal(show_cam_on_image(chw / 255, mask, True, "VIRIDIS"), expected)
    np.testing.assert_array_equal(show_cam_on_image(Image.fromarray(image), mask, True, "viridis"), expected)


def test_show_cam_default_colors_and_black() -> None:
    mask = np.zeros((2, 2), np.float32)
    mask[0, 0] = 1
    out = show_cam_on_image(plain(2, 2, 0), mask, use_rgb=True, image_weight=0)
    assert tuple(out[0, 0]) == INFERNO_HOT  # its largest channel is 255: dividing by the maximum changes nothing
    assert tuple(show_cam_on_image(plain(2, 2, 0), mask, image_weight=0)[0, 0]) == INFERNO_HOT[::-1]
    assert not show_cam_on_image(plain(2, 2, 0), mask, image_weight=1).any()


def test_preprocess_equals_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.utils.image")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for image in (noise(9, 7), (noise(9, 7) / 255).astype(np.float32)):
        torch.testing.assert_close(preprocess_image(image), peer.preprocess_image(image))
        torch.testing.assert_close(preprocess_image(image, mean, std), peer.preprocess_image(image, mean, std))


def test_preprocess_known_values_and_channels() -> None:
    image = torch.full((2, 3, 4), 0.75, dtype=torch.float64)
    out = preprocess_image(image, mean=[0.25, 0.5], std=[0.5, 0.125])
    assert out.shape == (1, 2, 3, 4) and out.dtype == torch.float32
    assert (out[0, 0] == 1).all() and (out[0, 1] == 2).all()
    with pytest.raises(ValueError, match="2 channels, got 3 and 3"):
        preprocess_image(image)
    with pytest.raises(ValueError, match="zero"):
        preprocess_image(noise(2, 2), std=[1, 0, 1])
    with pytest.raises(TypeError, match="int64"):
        preprocess_image(noise(2, 2).astype(np.int64))


def test_deprocess_equals_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.utils.image")
    gradients = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(np.float32)
    expected = peer.deprocess_image(gradients)
    np.testing.assert_array_equal(deprocess_image(gradients), expected)
    near = deprocess_image(torch.from_numpy(gradients).permute(2, 0, 1)).astype(int) - expected
    assert np.abs(near).max() <= 1  # the sums run in another order
    with pytest.raises(ValueError, match="finite"):
        deprocess_image(np.full((2, 2), np.nan))


# overlay_heatmap


def test_overlay_known_pixels() -> None:
    heat = np.array([[0, 1, 0.5]], np.float32)
    out = overlay_heatmap(plain(1, 3, 100), heat, alpha=0.8)
    middle = cv2.applyColorMap(np.array([[128]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
    assert tuple(out[0, 0]) == (100, 100, 100)
    np.testing.assert_array_equal(out[0, 1], np.rint(20 + 0.8 * np.array(INFERNO_HOT)))
    np.testing.assert_allclose(out[0, 2], 60 + 0.4 * middle.astype(float), atol=0.51)


def test_overlay_of_zeros_is_the_image() -> None:
    image = noise(20, 31)
    np.testing.assert_array_equal(overlay_heatmap(image, np.zeros((20, 31))), image)
    np.testing.assert_array_equal(overlay_heatmap(image, np.zeros((20, 31), bool)), image)
    np.testing.assert_array_equal(overlay_heatmap(image, np.ones((20, 31)), alpha=0), image)


def test_inputs_are_not_modified() -> None:
    image, heat = noise(50, 60), np.ones((50, 60))
    kept = image.copy()
    overlay_heatmap(image, heat)
    draw_boxes(image, [[5, 5, 40, 40]], ["a"])
    render(image, heat, box_xyxy=[5, 5, 40, 40], caption="a")
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_dtypes_give_the_same_overlay(dtype: torch.dtype) -> None:
    image = noise(16, 16)
    heat = torch.linspace(0, 1, 9).repeat(16, 2)[:, :16]  # eighths: exact in every dtype
    expected = overlay_heatmap(image, heat.numpy())
    np.testing.assert_array_equal(overlay_heatmap(image, heat.to(dtype)), expected)


# render


def test_render_puts_text_around_the_overlay() -> None:
    image, heat = noise(200, 260), np.random.default_rng(0).random((200, 260))
    overlay = overlay_heatmap(image, heat)
    np.testing.assert_array_equal(render(image, heat, color_bar=False), overlay)
    panel = render(image, heat, caption="cat 0.93")
    assert panel.shape[0] > 210 and panel.shape[1] > 270
    np.testing.assert_array_equal(panel[:200, :260], overlay)  # neither caption nor bar covers it
    strip = panel[200:, :260]
    x1, _, x2, _ = bounds((strip < 128).any(axis=2))
    assert abs((x1 + x2) / 2 - 130) < 4 and x2 - x1 > 30  # centered below
    two = render(image, heat, caption="cat 0.93\nbackbone.layer4")
    assert two.shape[0] - 200 == 2 * (panel.shape[0] - 200)


def test_color_bar_runs_from_one_to_zero() -> None:
    bar = render(plain(200, 200), np.zeros((200, 200)))[:, 200:]
    column = bar[:, drawing.scale_for(200, 200).pad * 2 + 3].astype(float)
    np.testing.assert_allclose(column[0], 0.2 * 225 + 0.8 * np.array(INFERNO_HOT), atol=1)
    assert tuple(column[-1]) == (225, 225, 225)
    other = render(plain(200, 200), np.zeros((200, 200)), colormap="viridis")[:, 200:]
    assert (other != bar).any()
    ink = (bar < 100).all(axis=2)  # the digits
    assert ink[:30].any() and ink[-30:].any() and not ink[40:-40].any()


def test_render_outlines_box_and_mask() -> None:
    heat = np.zeros((200, 300))
    white = colored(
        render(plain(200, 300), heat, box_xyxy=torch.tensor([50, 60, 150, 160]), color_bar=False), (255,) * 3
    )
    assert bounds(white) == (50, 60, 150, 160) and not white[70:150, 60:140].any()
    mask = np.zeros((200, 300), bool)
    mask[40:120, 200:280] = True
    mask[80:120, 240:280] = False  # an L
    out = render(plain(200, 300), heat, mask=torch.from_numpy(mask), color_bar=False)
    white = colored(out, (255,) * 3)
    assert (
        not (white & ~mask).any() and white[40:120, 200].all() and white[79, 240:280].all() and white[80:120, 239].all()
    )
    assert not white[60, 220] and colored(out, (0,) * 3)[85, 245:275].sum() == 0  # inside of neither line
    assert colored(out, (0,) * 3)[80, 245:275].all()
    np.testing.assert_array_equal(render(plain(200, 300), heat, mask=~mask & mask, color_bar=False), plain(200, 300))


def test_small_images_are_enlarged_by_an_integer_factor() -> None:
    image, heat = noise(24, 32), np.random.default_rng(0).random((24, 32))
    panel = render(image, heat, color_bar=False)
    np.testing.assert_array_equal(panel, overlay_heatmap(image, heat).repeat(6, 0).repeat(6, 1))
    boxed = render(plain(24, 32), np.zeros((24, 32)), box_xyxy=[4, 5, 20, 15], color_bar=False)
    assert bounds(colored(boxed, (255,) * 3)) == (24, 30, 120, 90)
    mask = np.zeros((24, 32), bool)
    mask[5:15, 4:20] = True
    masked = render(plain(24, 32), np.zeros((24, 32)), mask=mask, color_bar=False)
    np.testing.assert_array_equal(masked, boxed)


# grid


def test_grid_arranges_panels_row_by_row() -> None:
    shades = [plain(100, 150, 10 * (i + 1)) for i in range(5)]
    figure = grid(shades, columns=2)
    corners = [bounds(colored(figure, (10 * (i + 1),) * 3)) for i in range(5)]
    assert all((x2 - x1, y2 - y1) == (150, 100) for x1, y1, x2, y2 in corners)
    gap = corners[0][0]
    assert gap > 0 and [c[0] for c in corners] == [gap, 2 * gap + 150] * 2 + [gap]
    assert [c[1] for c in corners] == [gap, gap, 2 * gap + 100, 2 * gap + 100, 3 * gap + 200]
    assert figure.shape == (300 + 4 * gap, 300 + 3 * gap, 3)
    assert (figure[-20 - gap :, 200 + gap :] == 255).all()


def test_grid_scales_panels_to_the_same_height() -> None:
    figure = grid([plain(50, 100, 10), plain(100, 100, 20), plain(200, 100, 30)], columns=3)
    sizes = [bounds(colored(figure, (v,) * 3)) for v in (10, 20, 30)]
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in sizes] == [(200, 100), (100, 100), (50, 100)]


def test_grid_titles_and_original() -> None:
    image = plain(200, 260)
    image[:] = (60, 90, 30)  # no shade of text
    panels = [render(image, np.zeros((200, 260)), caption="a") for _ in range(2)]
    bare = grid([image, *panels], columns=3)
    figure = grid(panels, titles=["first", ""], original=image, columns=3)
    assert figure.shape[0] > bare.shape[0] and (figure.shape[1] > 3 * 260)
    regions = colored(figure, (60, 90, 30))
    left = bounds(regions[:, : figure.shape[1] // 3])
    size = (left[2] - left[0], left[3] - left[1])
    assert size == (260, 200)  # the original at the scale of the panels' images
    head = figure[: left[1]]
    thirds = [(part < 128).any() for part in np.array_split(head, 3, axis=1)]
    assert thirds == [True, True, False]


def test_grid_of_large_panels_is_bounded() -> None:
    figure = grid([plain(1500, 2000, 70)] * 12)
    assert 3500 < max(figure.shape[:2]) <= 4096
    assert 1.2 < figure.shape[1] / figure.shape[0] < 2.1
    assert (colored(figure, (70, 70, 70)).mean()) > 0.85


# saving


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".PNG"])
def test_save_creates_folders_and_keeps_pixels(tmp_path: Path, suffix: str) -> None:
    image = noise(20, 30)
    path = save_image(tmp_path / "a" / "b" / f"image{suffix}", image)
    np.testing.assert_array_equal(np.array(Image.open(path)), image)
    assert os.listdir(path.parent) == [path.name]


def test_save_jpeg_and_png_bytes(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64)[None, :, None].repeat(40, 0).repeat(3, 2).astype(np.uint8)
    path = save_image(str(tmp_path / "x.jpg"), smooth)
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert np.abs(np.array(image).astype(int) - smooth).max() < 6
    assert to_png_bytes(smooth).startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(to_png_bytes(smooth)))), smooth)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(tmp_path / "x.png", plain(5, 5))
    before = path.read_bytes()

    def fail(source: object, target: object) -> None:
        assert Path(str(source)).parent == tmp_path and Path(str(source)).stat().st_size > 0
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(path, noise(50, 50))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.png"]


def test_unknown_suffix_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.jpg"):
        save_image(tmp_path / "new" / "x.xyz", plain(5, 5))
    assert not (tmp_path / "new").exists()


# invalid input

IMAGE, HEAT = plain(20, 30), np.zeros((20, 30))
NAN = np.full((20, 30), np.nan)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: overlay_heatmap(IMAGE, NAN), ValueError, "heatmap holds NaN"),
        (lambda: overlay_heatmap(IMAGE, HEAT.T), ValueError, r"size \(20, 30\).*got shape \(30, 20\)"),
        (lambda: overlay_heatmap(IMAGE, HEAT[None]), ValueError, r"heatmaps\[i\]"),
        (lambda: overlay_heatmap(IMAGE, HEAT + 1.5), ValueError, r"\[0, 1\], got values from 1.5 to 1.5"),
        (lambda: overlay_heatmap(IMAGE, HEAT - 0.1), ValueError, "-0.1"),
        (lambda: overlay_heatmap(IMAGE, HEAT.tolist()), TypeError, "got list"),
        (lambda: overlay_heatmap(IMAGE, HEAT.astype(complex)), TypeError, "complex128"),
        (lambda: overlay_heatmap(IMAGE, HEAT, alpha=1.2), ValueError, "alpha"),
        (lambda: overlay_heatmap(IMAGE.astype(np.int64), HEAT), TypeError, "uint8 or float, got int64"),
        (lambda: overlay_heatmap(IMAGE.astype(np.float32), HEAT), ValueError, "divide by 255"),
        (lambda: overlay_heatmap(IMAGE[..., 0], HEAT), ValueError, "HxWx3 array"),
        (lambda: overlay_heatmap(torch.from_numpy(IMAGE), HEAT), ValueError, "3xHxW tensor"),
        (lambda: overlay_heatmap("cat.jpg", HEAT), TypeError, "got str"),
        (
            lambda: overlay_heatmap(IMAGE, HEAT, colormap="rosy"),
            ValueError,
            "unknown colormap 'rosy'.*inferno, jet",
        ),
        (lambda: show_cam_on_image(IMAGE, HEAT, colormap=99), ValueError, "99.*viridis"),
        (lambda: show_cam_on_image(IMAGE, HEAT, colormap=2.5), TypeError, "got float"),  # type: ignore[arg-type]
        (lambda: show_cam_on_image(IMAGE, NAN), ValueError, "mask holds NaN"),
        (lambda: show_cam_on_image(IMAGE, HEAT, image_weight=2), ValueError, "image_weight"),
        (lambda: draw_boxes(IMAGE, [1, 2, 3, 4]), ValueError, r"\(N, 4\), got \(4,\)"),
        (lambda: draw_boxes(IMAGE, [[1, 2, np.nan, 4]]), ValueError, "finite"),
        (lambda: draw_boxes(IMAGE, [[9, 2, 3, 4]]), ValueError, "x1 <= x2"),
        (lambda: draw_boxes(IMAGE, [[40, 2, 50, 4]]), ValueError, "30 x 20 pixels"),
        (lambda: draw_boxes(IMAGE, [[1, 2, 3, 4]], ["a", "b"]), ValueError, "captions.*got 2"),
        (lambda: draw_boxes(IMAGE, [[1, 2, 3, 4]], "a"), ValueError, "single string"),
        (lambda: draw_boxes(IMAGE, [[1, 2, 3, 4]], colors=["red", "blue"]), ValueError, "colors"),
        (lambda: draw_boxes(IMAGE, [[1, 2, 3, 4]], colors=(0, 300, 0)), ValueError, "0 to 255"),
        (lambda: draw_boxes(IMAGE, [[1, 2, 3, 4]], avoid=NAN), ValueError, "avoid holds NaN"),
        (lambda: render(IMAGE, HEAT, mask=HEAT + 0.5), ValueError, "mask > 0.5"),
        (lambda: render(IMAGE, HEAT, mask=HEAT.T), ValueError, "mask must have the image's size"),
        (lambda: render(IMAGE, HEAT, box_xyxy=[[1, 2, 3, 4]]), ValueError, r"\(N, 4\)"),
        (lambda: grid([]), ValueError, "at least one"),
        (lambda: grid(IMAGE), TypeError, r"\[panel\]"),
        (lambda: grid([IMAGE], columns=0), ValueError, "columns"),
        (lambda: grid([IMAGE], titles=["a", "b"]), ValueError, "titles"),
        (lambda: grid([IMAGE, HEAT]), ValueError, r"panels\[1\]"),
        (lambda: to_png_bytes(HEAT), ValueError, "HxWx3"),
    ],
)
def test_invalid_input_raises_with_a_remedy(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_rounding_errors_past_one_are_clipped() -> None:
    image = noise(4, 4)
    np.testing.assert_array_equal(
        overlay_heatmap(image, np.full((4, 4), 1.0005)), overlay_heatmap(image, np.ones((4, 4)))
    )


def test_import_does_not_import_matplotlib() -> None:
    code = "import sys, detcam.visualize.overlay; sys.exit(any(m.split('.')[0] == 'matplotlib' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
