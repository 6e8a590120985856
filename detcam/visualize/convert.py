"""Checked images, heatmaps, masks and colours on the way in; PNG bytes and files on the way out.

An *image* is always an HxWx3 uint8 RGB array; `as_image` turns everything else into one.
"""

from __future__ import annotations

import io
import math
import operator
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from detcam.utils.opencv import cv2

ImageArray = NDArray[np.uint8]
Color = str | tuple[int, int, int]

COLORMAPS: dict[str, int] = {
    name.removeprefix("COLORMAP_").lower(): int(getattr(cv2, name)) for name in dir(cv2) if name.startswith("COLORMAP_")
}
RANGE_SLACK = 1e-3  # resizing in half precision overshoots [0, 1] by this much; it is clipped
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def as_array(value: Any, name: str) -> NDArray[Any]:
    """A tensor (any device, with or without graph) or array as a real-valued NumPy array.

    Raises:
        TypeError: `value` is neither, or does not hold real numbers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(value).__name__}")
    if value.dtype.kind not in "fuib":
        raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}; convert it to float32 or uint8")
    return value


def as_image(image: Any, name: str = "image") -> ImageArray:
    """An image in any accepted form as a new HxWx3 uint8 RGB array.

    Args:
        image: HxWx3 array or 3xHxW tensor, uint8 or float in [0, 1]; or a PIL image.
        name: What the messages call it.

    Raises:
        TypeError: Neither array, tensor nor PIL image, or a dtype other than uint8 and float.
        ValueError: Wrong shape, NaN, or values outside [0, 1].
    """
    unit = as_unit_image(image, name)
    if unit.dtype == np.uint8:
        return np.array(unit, order="C")
    return np.rint(unit * 255).astype(np.uint8, order="C")


def as_unit_image(image: Any, name: str = "image") -> NDArray[Any]:
    """As `as_image`, but floats in [0, 1] stay floats, of their own precision."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = as_array(image, name)
    is_tensor = isinstance(image, torch.Tensor)
    layout = "a 3xHxW tensor" if is_tensor else "an HxWx3 array"
    if array.ndim != 3 or array.shape[0 if is_tensor else 2] != 3 or 0 in array.shape:
        raise ValueError(
            f"{name} must be {layout} of at least one pixel, got shape {tuple(array.shape)}; "
            "tensors are channels first, arrays last; index a batch, repeat a grey channel three times"
        )
    if is_tensor:
        array = array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8 or float, got {array.dtype}; use .astype(np.uint8) for values 0 to 255")
    remedy = "divide by 255, or undo the normalisation"
    return _in_unit_range(array, name, remedy)


def as_heatmap(heatmap: Any, image_size_hw: tuple[int, int], name: str = "heatmap") -> NDArray[np.floating[Any]]:
    """A heatmap as a (H, W) float array in [0, 1], checked against the image's size.

    Raises:
        TypeError: Neither array nor tensor, or not numbers.
        ValueError: Not of the image's size, NaN, or values outside [0, 1].
    """
    array = as_array(heatmap, name)
    if array.shape != tuple(image_size_hw):
        raise ValueError(
            f"{name} must have the image's size {tuple(image_size_hw)} (height, width), got shape "
            f"{tuple(array.shape)}; pass one heatmap of a batch (heatmaps[i]), resized to the image"
        )
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    return _in_unit_range(array, name, "divide by its maximum, or clip it")


def as_mask(mask: Any, image_size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask as a (H, W) bool array.

    Raises:
        ValueError: Not of the image's size, or values other than 0 and 1.
    """
    array = as_heatmap(mask, image_size_hw, "mask")
    if not np.isin(array, (0, 1)).all():
        raise ValueError("mask must be bool or hold only 0 and 1; threshold it first: mask > 0.5")
    return array.astype(bool)


def _in_unit_range(array: NDArray[Any], name: str, remedy: str) -> NDArray[Any]:
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())  # NaN comes through min and max
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} holds NaN or infinite values; expected finite values in [0, 1]: find where they arose"
        )
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {remedy}")
    return np.clip(array, 0, 1)


def colormap_code(colormap: str | int) -> int:
    """The OpenCV number of a colormap given by name ("inferno") or by that number.

    Raises:
        TypeError: Neither a string nor an integer.
        ValueError: Unknown; the message lists the names.
    """
    if isinstance(colormap, str):
        code = COLORMAPS.get(colormap.lower(), -1)
    elif isinstance(colormap, bool) or not hasattr(colormap, "__index__"):
        raise TypeError(f"colormap must be a name or an OpenCV colormap number, got {type(colormap).__name__}")
    else:
        code = operator.index(colormap)
    if code not in COLORMAPS.values():
        raise ValueError(f"unknown colormap {colormap!r}; choose one of {', '.join(sorted(COLORMAPS))}")
    return code


def color_rgb(color: Color) -> tuple[int, int, int]:
    """A colour given as three numbers 0 to 255, or as a CSS name or "#rrggbb", as RGB."""
    if isinstance(color, str):
        return ImageColor.getrgb(color)[:3]
    values = tuple(int(part) for part in color)
    if len(values) != 3 or not all(0 <= part <= 255 for part in values):
        raise ValueError(f"a colour must be three numbers 0 to 255 or a CSS name, got {color!r}")
    return values


def contrast_to(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is read better on `color` (by luma)."""
    return (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)


def to_png_bytes(array: Any) -> bytes:
    """An image as the bytes of a PNG file (for `_repr_png_`)."""
    return _encode(as_image(array, "array"), "PNG")


def save_image(path: str | os.PathLike[str], array: Any) -> Path:
    """Write an image in the format of the path's suffix; the folder is made, and no half file is ever seen.

    Args:
        path: Ends in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff. An existing file is replaced.
        array: Image, RGB.

    Returns:
        The path written.

    Raises:
        TypeError: `array` is not an image.
        ValueError: Unknown suffix, or values that are no image.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot save {path.name!r}: the suffix must be one of {', '.join(FORMATS)}")
    data = _encode(as_image(array, "array"), kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _encode(image: ImageArray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()
