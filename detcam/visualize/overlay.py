"""Images of heatmaps: overlays, boxes with captions, panels, grids, and saving them.

Images are HxWx3 arrays, 3xHxW tensors (uint8, or float in [0, 1]) or PIL images; heatmaps are (H, W) arrays
or tensors in [0, 1] of the image's size. What comes back is an HxWx3 uint8 array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detcam.utils.opencv import cv2
from detcam.visualize import drawing
from detcam.visualize.convert import (
    ImageArray,
    as_array,
    as_heatmap,
    as_image,
    as_mask,
    as_unit_image,
    colormap_code,
    save_image,
    to_png_bytes,
)
from detcam.visualize.drawing import draw_boxes

__all__ = [
    "deprocess_image",
    "draw_boxes",
    "grid",
    "overlay_heatmap",
    "preprocess_image",
    "render",
    "save_image",
    "show_cam_on_image",
    "to_png_bytes",
]

DEFAULT_COLORMAP = "inferno"
OVERLAY_ALPHA = 0.8
OUTLINE_COLOR = (255, 255, 255)
SMALLEST_PANEL = 192  # an image whose longer side is below this is enlarged by a whole factor in a panel
LARGEST_FIGURE = 4096  # pixels on the longer side of a grid
SHAPE_OF_FIGURE = 1.6  # width to height, what a grid aims at when the number of columns is left open


def show_cam_on_image(
    img: Any,
    mask: Any,
    use_rgb: bool = False,
    colormap: str | int = DEFAULT_COLORMAP,
    image_weight: float = 0.5,
) -> ImageArray:
    """Blend a heatmap over an image with one weight: `image_weight * img + (1 - image_weight) * heat`.

    The sum is divided by its maximum. `overlay_heatmap` keeps the image clear where nothing is hot.

    Args:
        img: Image, RGB or BGR.
        mask: (H, W) heatmap in [0, 1].
        use_rgb: Whether `img` is RGB; otherwise the heatmap is coloured in BGR.
        colormap: Name or OpenCV number.
        image_weight: In [0, 1].

    Returns:
        HxWx3 uint8, channels in the order of `img`.

    Raises:
        TypeError: Something is neither array nor tensor.
        ValueError: Sizes differ, values or weight lie outside [0, 1] or are NaN, or an unknown colormap.
    """
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must lie in [0, 1], got {image_weight}")
    image = as_unit_image(img, "img")
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255
    heat = as_heatmap(mask, image.shape[:2], "mask")
    colors = cv2.applyColorMap((255 * heat).astype(np.uint8), colormap_code(colormap))
    if use_rgb:
        colors = colors[..., ::-1]
    blend = (1 - image_weight) * (colors.astype(np.float32) / 255) + image_weight * image
    peak = blend.max()
    return (255 * (blend / peak if peak > 0 else blend)).astype(np.uint8)


def preprocess_image(
    img: Any, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> torch.Tensor:
    """An image as a normalised batch of one: `(img - mean) / std`, uint8 scaled to [0, 1] first.

    Args:
        img: HxWxC array or CxHxW tensor; uint8, or float in the range that `mean` and `std` are meant for.
        mean: One value per channel.
        std: One value per channel, not zero.

    Returns:
        1xCxHxW float32 tensor.

    Raises:
        TypeError: Neither array nor tensor, or a dtype other than uint8 and float.
        ValueError: Wrong shape, or `mean` and `std` do not fit the channels.
    """
    array = as_array(img, "img")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise TypeError(f"img must be uint8 or float, got {array.dtype}; use .astype(np.uint8) for values 0 to 255")
    if array.ndim != 3:
        raise ValueError(f"img must be an HxWxC array or a CxHxW tensor, got shape {array.shape}; index a batch first")
    if not isinstance(img, torch.Tensor):
        array = array.transpose(2, 0, 1)
    if not len(mean) == len(std) == array.shape[0]:
        raise ValueError(
            f"mean and std need one value for each of img's {array.shape[0]} channels, "
            f"got {len(mean)} and {len(std)}; arrays are channels last, tensors channels first"
        )
    if 0 in std:
        raise ValueError(f"std must not hold zero, got {list(std)}")
    pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if array.dtype == np.uint8:
        pixels /= 255
    column = torch.tensor([list(mean), list(std)], dtype=torch.float32)[:, :, None, None]
    return ((pixels - column[0]) / column[1])[None]


def deprocess_image(img: Any) -> ImageArray:
    """A gradient image made visible: mean 0.5 and standard deviation 0.1, clipped to [0, 1], as uint8.

    Args:
        img: Array of any shape, kept; or a tensor, where 3xHxW becomes HxWx3.

    Raises:
        TypeError: Neither array nor tensor.
        ValueError: NaN or infinite values, or nothing at all.
    """
    array = as_array(img, "img")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"img must hold finite values, got shape {array.shape} with NaN, infinity or nothing in it")
    if isinstance(img, torch.Tensor) and array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    standard = (array - array.mean()) / (array.std() + 1e-5)
    return (np.clip(standard * 0.1 + 0.5, 0, 1) * 255).astype(np.uint8)


def overlay_heatmap(
    image: Any, heatmap: Any, *, colormap: str | int = DEFAULT_COLORMAP, alpha: float = OVERLAY_ALPHA
) -> ImageArray:
    """An overlay drawn to be read: opacity grows with heat, and the image shows where nothing is hot.

    A pixel of heat h is `(1 - alpha * h) * image + alpha * h * colormap(h)`.

    Args:
        image: Image, RGB.
        heatmap: (H, W) in [0, 1]; all zeros give the plain image.
        colormap: Name or OpenCV number; best a perceptually uniform one (inferno, viridis, cividis).
        alpha: Opacity at heat 1, in [0, 1].

    Raises:
        TypeError: Something is neither array nor tensor.
        ValueError: Sizes differ, values lie outside [0, 1] or are NaN, or an unknown colormap.
    """
    pixels = as_image(image)
    heat = as_heatmap(heatmap, pixels.shape[:2]).astype(np.float32)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    return _blend(pixels, heat, colormap, alpha)


def _blend(image: ImageArray, heat: np.ndarray[Any, Any], colormap: str | int, alpha: float) -> ImageArray:
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colormap_code(colormap))[:, 0, ::-1]
    colors = table[np.rint(heat * 255).astype(np.uint8)]
    opacity = (alpha * heat)[..., None]
    return np.rint(image + opacity * (colors.astype(np.float32) - image)).astype(np.uint8)


def render(
    image: Any,
    heatmap: Any,
    *,
    box_xyxy: Any = None,
    mask: Any = None,
    caption: str = "",
    colormap: str | int = DEFAULT_COLORMAP,
    color_bar: bool = True,
) -> ImageArray:
    """One target's panel: overlay, the target's outline, a caption below and a colour bar beside the image.

    Nothing but the outline is drawn over the overlay, which fills the panel's upper left corner. An image
    with a longer side below 192 pixels is enlarged by a whole factor, so that text beside it can be read.

    Args:
        image: Image, RGB.
        heatmap: (H, W) in [0, 1].
        box_xyxy: (4,) the target's box, in the image's pixels.
        mask: (H, W) bool, the target's mask, drawn as a contour.
        caption: Line breaks start a new line; lines too long end in an ellipsis.
        colormap: Name or OpenCV number.
        color_bar: Whether to draw the bar from 0 to 1.

    Raises:
        TypeError: Something is of the wrong type.
        ValueError: Sizes differ, values lie outside [0, 1] or are NaN, or a box outside of the image.
    """
    pixels = overlay_heatmap(image, heatmap, colormap=colormap)
    size_hw = pixels.shape[:2]
    region = np.zeros(size_hw, bool) if mask is None else as_mask(mask, size_hw)
    pixels, factor = _enlarge(pixels)
    height, width = pixels.shape[:2]
    scale = drawing.scale_for(height, width)
    if mask is not None:
        region = region.repeat(factor, axis=0).repeat(factor, axis=1)
        drawing.draw_outline(pixels, region, OUTLINE_COLOR, scale.line, scale.halo)
    if box_xyxy is not None:
        boxes = drawing.pixel_boxes([box_xyxy], size_hw)
        pixels = draw_boxes(pixels, boxes * factor, colors=OUTLINE_COLOR)
    if color_bar:
        pixels = np.concatenate([pixels, _color_bar(height, scale, colormap)], axis=1)
    if caption.strip():
        strip = drawing.text_strip(caption, width, scale.font)
        beside = ((0, 0), (0, pixels.shape[1] - width), (0, 0))
        pixels = np.concatenate([pixels, np.pad(strip, beside, constant_values=255)])
    return pixels


def _enlarge(image: ImageArray) -> tuple[ImageArray, int]:
    factor = max(1, math.ceil(SMALLEST_PANEL / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1), factor


def _color_bar(height: int, scale: drawing.Scale, colormap: str | int) -> ImageArray:
    """The colours as they come out over a light grey, from 1 above to 0 below, with a margin on its left."""
    width = max(8, scale.font)
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    bar = _blend(np.full((height, width, 3), 225, np.uint8), ramp, colormap, OVERLAY_ALPHA)
    ends = [
        drawing.text_plate(text, scale.font, scale.pad, 10 * width, ink=drawing.INK, paper=drawing.PAPER)[:height]
        for text in ("1", "0")
    ]
    margin = 2 * scale.pad
    canvas = np.full((height, margin + width + max(end.shape[1] for end in ends), 3), 255, np.uint8)
    canvas[:, margin : margin + width] = bar
    for end, top in zip(ends, (0, height - ends[1].shape[0]), strict=True):
        canvas[top : top + end.shape[0], margin + width : margin + width + end.shape[1]] = end
    return canvas


def grid(
    panels: Sequence[Any],
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    original: Any = None,
) -> ImageArray:
    """Several panels in one figure, scaled to one height, with titles above them.

    Args:
        panels: Images or panels of any sizes, at least one.
        columns: Panels side by side; by default what makes the figure about 1.6 times as wide as high.
        titles: One per panel; lines too long end in an ellipsis.
        original: The plain image, which then comes first.

    Returns:
        White figure; panels shrink where its longer side would pass 4096 pixels.

    Raises:
        TypeError: A panel is not an image, or `panels` is a single one.
        ValueError: No panels, fewer than one column, or as many titles as do not fit.
    """
    if isinstance(panels, (np.ndarray, torch.Tensor)) and panels.ndim != 4:
        raise TypeError("panels must be a list of images, got a single array; wrap it: [panel]")
    images = [as_image(panel, f"panels[{i}]") for i, panel in enumerate(panels)]
    if not images:
        raise ValueError("panels must hold at least one image, got none")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if isinstance(titles, str) or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"titles must be a list of one per panel ({len(images)}), got {titles!r}")
    names = list(titles) if titles is not None else [""] * len(images)
    height = round(float(np.median([p.shape[0] for p in images])))
    scaled = [_to_height(p, height) for p in images]
    if original is not None:
        scaled.insert(0, _beside(_enlarge(as_image(original, "original"))[0], images[0], height))
        names.insert(0, "original")
    if columns is None:
        columns = _best_columns([p.shape[1] for p in scaled], height)
    figure = _assemble(scaled, names, min(columns, len(scaled)), height)
    longest = max(figure.shape[:2])
    if longest <= LARGEST_FIGURE:
        return figure
    # Put together again rather than shrunk: titles keep the size at which they can be read.
    height = max(1, int(height * LARGEST_FIGURE / longest * 0.97))
    return _assemble([_to_height(p, height) for p in scaled], names, min(columns, len(scaled)), height)


def _to_height(image: ImageArray, height: int) -> ImageArray:
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    way = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=way), np.uint8)


def _beside(original: ImageArray, panel: ImageArray, height: int) -> ImageArray:
    """The original as a panel; with white where the panels have `render`'s caption and bar."""
    more = np.array(panel.shape[:2]) - original.shape[:2]
    if (more >= 0).all() and (more * 2 <= original.shape[:2]).all():
        original = np.pad(original, ((0, more[0]), (0, more[1]), (0, 0)), constant_values=255)
    return _to_height(original, height)


def _best_columns(widths: Sequence[int], height: int) -> int:
    def misfit(columns: int) -> float:
        rows = math.ceil(len(widths) / columns)
        shape = columns * float(np.mean(widths)) / (rows * height)
        return abs(math.log(shape / SHAPE_OF_FIGURE)) + 0.5 * (rows * columns - len(widths)) / len(widths)

    return min(range(1, len(widths) + 1), key=misfit)


def _assemble(images: Sequence[ImageArray], titles: Sequence[str], columns: int, height: int) -> ImageArray:
    size, gap = max(12, round(height * 0.045)), max(4, round(height * 0.025))
    widths = [max(p.shape[1] for p in images[i::columns]) for i in range(columns)]
    lefts = np.cumsum([gap] + [width + gap for width in widths])
    rows = [np.full((gap, lefts[-1], 3), 255, np.uint8)]
    for start in range(0, len(images), columns):
        row = range(start, min(start + columns, len(images)))
        strips = [drawing.text_strip(titles[i], widths[i - start], size) for i in row] if any(titles) else []
        head = max((strip.shape[0] for strip in strips), default=0)
        canvas = np.full((head + height + gap, lefts[-1], 3), 255, np.uint8)
        for left, width, strip in zip(lefts, widths, strips, strict=False):
            canvas[: strip.shape[0], left : left + width] = strip
        for left, width, i in zip(lefts, widths, row, strict=False):
            across = left + (width - images[i].shape[1]) // 2
            canvas[head : head + height, across : across + images[i].shape[1]] = images[i]
        rows.append(canvas)
    return np.concatenate(rows)
