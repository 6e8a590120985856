"""Draws heatmaps over images: overlays, panels with outlines and captions, and grids of panels.

Images are HxWx3 arrays, 3xHxW tensors (uint8, or float in [0, 1]) or PIL images. Heatmaps are (H, W) arrays or tensors
in [0, 1] of the image's size. Functions return HxWx3 uint8 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from detcam.utils.opencv import cv2
from detcam.visualize import drawing
from detcam.visualize.convert import (
    BoxesLike,
    ImageArray,
    PixelsLike,
    TensorLike,
    as_array,
    as_heatmap,
    as_image,
    as_mask,
    as_unit_image,
    colormap_code,
)
from detcam.visualize.convert import save_image as save_image
from detcam.visualize.convert import to_png_bytes as to_png_bytes
from detcam.visualize.drawing import draw_boxes as draw_boxes

DEFAULT_COLORMAP = "inferno"
ROWS_PER_BLOCK = 64
"""Rows of an image that are blended at a time."""
OVERLAY_ALPHA = 0.8
OUTLINE_COLOR = (255, 255, 255)
MIN_PANEL_SIDE = 192  # a panel enlarges an image with a shorter longer side by an integer factor
MAX_FIGURE_SIDE = 4096  # longer side of a grid in pixels
FIGURE_ASPECT_RATIO = 1.6  # width to height of a grid whose number of columns is not given


def show_cam_on_image(
    img: PixelsLike,
    mask: TensorLike,
    use_rgb: bool = False,
    colormap: str | int = DEFAULT_COLORMAP,
    image_weight: float = 0.5,
) -> ImageArray:
    """Blend a heatmap over an image with a constant weight.

    The result is `image_weight * img + (1 - image_weight) * colormap(mask)`, divided by its maximum. `overlay_heatmap`
    keeps the image visible where the heatmap is low.

    Args:
        img: RGB or BGR image.
        mask: (H, W) heatmap in [0, 1].
        use_rgb: whether `img` is RGB; otherwise the heatmap is colored in BGR.
        colormap: name or OpenCV number.
        image_weight: weight of the image in [0, 1].

    Returns:
        HxWx3 uint8 in the channel order of `img`.

    Raises:
        TypeError: an argument is neither an array nor a tensor.
        ValueError: sizes differ, values or the weight are NaN or outside [0, 1], or the colormap does not exist.

    Example:
        >>> import numpy as np
        >>> from detcam import show_cam_on_image
        >>> image = np.full((40, 60, 3), 0.5, np.float32)
        >>> heatmap = np.zeros((40, 60), np.float32)
        >>> show_cam_on_image(image, heatmap, use_rgb=True).shape
        (40, 60, 3)
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
    img: TensorLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> torch.Tensor:
    """Convert an image to a normalized batch of one: `(img - mean) / std`, with uint8 scaled to [0, 1] first.

    Args:
        img: HxWxC array or CxHxW tensor, uint8, or float in the range that `mean` and `std` refer to.
        mean: mean per channel.
        std: standard deviation per channel, not zero.

    Returns:
        1xCxHxW float32 tensor.

    Raises:
        TypeError: `img` is neither an array nor a tensor, or its dtype is neither uint8 nor float.
        ValueError: the shape is wrong, or `mean` and `std` do not match the channels.

    Example:
        >>> import numpy as np
        >>> from detcam import preprocess_image
        >>> preprocess_image(np.zeros((40, 60, 3), np.uint8)).shape
        torch.Size([1, 3, 40, 60])
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


def deprocess_image(img: TensorLike) -> ImageArray:
    """Scale a gradient image for display: mean 0.5 and standard deviation 0.1, clipped to [0, 1].

    Args:
        img: array or tensor of any shape.

    Returns:
        uint8 array of the same shape; a 3xHxW tensor becomes HxWx3.

    Raises:
        TypeError: `img` is neither an array nor a tensor.
        ValueError: `img` is empty, or has NaN or infinite values.

    Example:
        >>> import torch
        >>> from detcam import deprocess_image
        >>> deprocess_image(torch.randn(3, 40, 60)).shape
        (40, 60, 3)
    """
    array = as_array(img, "img")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"img must hold finite values, got shape {array.shape} with NaN, infinity or no values")
    if isinstance(img, torch.Tensor) and array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    standard = (array - array.mean()) / (array.std() + 1e-5)
    return (np.clip(standard * 0.1 + 0.5, 0, 1) * 255).astype(np.uint8)


def overlay_heatmap(
    image: PixelsLike, heatmap: TensorLike, *, colormap: str | int = DEFAULT_COLORMAP, alpha: float = OVERLAY_ALPHA
) -> ImageArray:
    """Draw a heatmap over an image with an opacity that grows with heat.

    A pixel of heat h is `(1 - alpha * h) * image + alpha * h * colormap(h)`.

    Args:
        image: RGB image.
        heatmap: (H, W) in [0, 1]; zeros leave the image as it is.
        colormap: name or OpenCV number, preferably of a perceptually uniform colormap (inferno, viridis, cividis).
        alpha: opacity at heat 1, in [0, 1].

    Returns:
        HxWx3 uint8.

    Raises:
        TypeError: an argument is neither an array nor a tensor.
        ValueError: sizes differ, values are NaN or outside [0, 1], or the colormap does not exist.

    Example:
        >>> import numpy as np
        >>> from detcam.visualize.overlay import overlay_heatmap
        >>> overlay_heatmap(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), np.float32)).shape
        (40, 60, 3)
    """
    pixels = as_image(image)
    heat = as_heatmap(heatmap, pixels.shape[:2]).astype(np.float32, copy=False)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    return _blend(pixels, heat, colormap, alpha)


def _blend(image: ImageArray, heat: np.ndarray[Any, Any], colormap: str | int, alpha: float) -> ImageArray:
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colormap_code(colormap))
    table = np.ascontiguousarray(table[..., ::-1])  # RGB
    blended = np.empty_like(image)
    for start in range(0, len(image), ROWS_PER_BLOCK):  # temporary arrays stay in the cache, for images of any size
        rows = slice(start, start + ROWS_PER_BLOCK)
        pixels, part = image[rows].astype(np.float32), heat[rows]
        colors = cv2.applyColorMap(np.rint(part * 255).astype(np.uint8), table).astype(np.float32)
        colors -= pixels
        colors *= (alpha * part)[..., None]
        colors += pixels
        blended[rows] = np.rint(colors, out=colors)
    return blended


def render(
    image: PixelsLike,
    heatmap: TensorLike,
    *,
    box_xyxy: BoxesLike | None = None,
    mask: TensorLike | None = None,
    caption: str = "",
    colormap: str | int = DEFAULT_COLORMAP,
    color_bar: bool = True,
) -> ImageArray:
    """Draw a panel for one target: overlay, outline, color bar on the right and caption below.

    The overlay fills the upper left corner of the panel and is covered by the outline only. An image whose longer side
    is below 192 pixels is enlarged by an integer factor, so that the text is legible.

    Args:
        image: RGB image.
        heatmap: (H, W) in [0, 1].
        box_xyxy: (4,) the target's box in pixels of the image.
        mask: (H, W) bool, the target's mask, drawn as a contour.
        caption: text; line breaks start a new line, and a line that is too long ends in an ellipsis.
        colormap: name or OpenCV number.
        color_bar: whether to draw the color bar.

    Returns:
        HxWx3 uint8, larger than the image.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes differ, values are NaN or outside [0, 1], or the box lies outside the image.

    Example:
        >>> import numpy as np
        >>> from detcam.visualize.overlay import render
        >>> image, heatmap = np.zeros((200, 300, 3), np.uint8), np.zeros((200, 300), np.float32)
        >>> panel = render(image, heatmap, box_xyxy=[20, 30, 120, 150], caption="dog 0.98")
        >>> panel.shape[0] > 200 and panel.shape[1] > 300
        True
    """
    pixels = overlay_heatmap(image, heatmap, colormap=colormap)
    size_hw = pixels.shape[:2]
    region = None if mask is None else as_mask(mask, size_hw)
    pixels, factor = _enlarge(pixels)
    height, width = pixels.shape[:2]
    scale = drawing.scale_for(height, width)
    if region is not None:
        region = region.repeat(factor, axis=0).repeat(factor, axis=1)
        drawing.draw_outline(pixels, region, OUTLINE_COLOR, scale.line, scale.halo)
    if box_xyxy is not None:
        boxes = drawing.pixel_boxes([box_xyxy], size_hw)
        pixels = draw_boxes(pixels, boxes * factor, colors=OUTLINE_COLOR)
    if color_bar:
        pixels = np.concatenate([pixels, _color_bar(height, scale, colormap)], axis=1)
    if caption.strip():
        strip = drawing.text_strip(caption, width, scale.font)
        padding = ((0, 0), (0, pixels.shape[1] - width), (0, 0))
        pixels = np.concatenate([pixels, np.pad(strip, padding, constant_values=255)])
    return pixels


def _enlarge(image: ImageArray) -> tuple[ImageArray, int]:
    factor = max(1, math.ceil(MIN_PANEL_SIDE / max(image.shape[:2])))
    if factor == 1:
        return image, factor
    return image.repeat(factor, axis=0).repeat(factor, axis=1), factor


@lru_cache(maxsize=8)
def _color_bar(height: int, scale: drawing.Scale, colormap: str | int) -> ImageArray:
    """Draw the colormap over light gray, from 1 at the top to 0 at the bottom, with a margin on the left."""
    width = max(8, scale.font)
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    bar = _blend(np.full((height, width, 3), 225, np.uint8), ramp, colormap, OVERLAY_ALPHA)
    ends = [
        drawing.text_plate(
            text, scale.font, scale.pad, 10 * width, color=drawing.TEXT_COLOR, background=drawing.BACKGROUND_COLOR
        )[:height]
        for text in ("1", "0")
    ]
    margin = 2 * scale.pad
    canvas = np.full((height, margin + width + max(end.shape[1] for end in ends), 3), 255, np.uint8)
    canvas[:, margin : margin + width] = bar
    for end, top in zip(ends, (0, height - ends[1].shape[0]), strict=True):
        canvas[top : top + end.shape[0], margin + width : margin + width + end.shape[1]] = end
    return canvas


def grid(
    panels: Sequence[PixelsLike],
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    original: PixelsLike | None = None,
) -> ImageArray:
    """Arrange panels in one figure, scaled to the same height, with titles above them.

    Args:
        panels: at least one image or panel, of any size.
        columns: number of panels per row; None makes the figure about 1.6 times as wide as high.
        titles: one per panel; a title that is too long ends in an ellipsis.
        original: the plain image, placed before the panels.

    Returns:
        HxWx3 uint8 with white background. Panels shrink if the figure's longer side would exceed 4096 pixels.

    Raises:
        TypeError: a panel is not an image, or `panels` is a single image.
        ValueError: there are no panels, `columns` is below 1, or the number of titles differs from that of panels.

    Example:
        >>> import numpy as np
        >>> from detcam.visualize.overlay import grid
        >>> panel = np.zeros((100, 150, 3), np.uint8)
        >>> grid([panel, panel], columns=2, titles=["GradCAM", "ODAM"]).shape[2]
        3
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
        scaled.insert(0, _as_panel(_enlarge(as_image(original, "original"))[0], images[0], height))
        names.insert(0, "original")
    if columns is None:
        columns = _best_columns([p.shape[1] for p in scaled], height)
    figure = _assemble(scaled, names, min(columns, len(scaled)), height)
    longest = max(figure.shape[:2])
    if longest <= MAX_FIGURE_SIDE:
        return figure
    # The figure is assembled again rather than resized, so that titles stay legible.
    height = max(1, int(height * MAX_FIGURE_SIDE / longest * 0.97))
    return _assemble([_to_height(p, height) for p in scaled], names, min(columns, len(scaled)), height)


def _to_height(image: ImageArray, height: int) -> ImageArray:
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    interpolation = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def _as_panel(original: ImageArray, panel: ImageArray, height: int) -> ImageArray:
    """Pad the original with white where the panels have a caption and a color bar, and scale it."""
    margin = np.array(panel.shape[:2]) - original.shape[:2]
    if (margin >= 0).all() and (margin * 2 <= original.shape[:2]).all():
        original = np.pad(original, ((0, margin[0]), (0, margin[1]), (0, 0)), constant_values=255)
    return _to_height(original, height)


def _best_columns(widths: Sequence[int], height: int) -> int:
    def misfit(columns: int) -> float:
        rows = math.ceil(len(widths) / columns)
        aspect_ratio = columns * float(np.mean(widths)) / (rows * height)
        return abs(math.log(aspect_ratio / FIGURE_ASPECT_RATIO)) + 0.5 * (rows * columns - len(widths)) / len(widths)

    return min(range(1, len(widths) + 1), key=misfit)


def _assemble(images: Sequence[ImageArray], titles: Sequence[str], columns: int, height: int) -> ImageArray:
    gap = max(4, round(height * 0.025))
    widths = [max(p.shape[1] for p in images[i::columns]) for i in range(columns)]
    # A page shows a wide figure at a fraction of its size, so titles grow with the width of the figure too.
    size = max(12, round(height * 0.045), round(sum(widths) * 0.012))
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
            start_x = left + (width - images[i].shape[1]) // 2
            canvas[head : head + height, start_x : start_x + images[i].shape[1]] = images[i]
        rows.append(canvas)
    return np.concatenate(rows)
