"""Converts and validates images, heatmaps, masks and colors; encodes and saves images.

Functions of this package draw on HxWx3 uint8 RGB arrays. `as_image` makes one from any accepted input.
"""

from __future__ import annotations

import io
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from detcam.utils.console import did_you_mean
from detcam.utils.files import replace_file, with_home
from detcam.utils.opencv import cv2

ImageArray: TypeAlias = NDArray[np.uint8]
"""An HxWx3 uint8 RGB image."""
TensorLike: TypeAlias = NDArray[Any] | torch.Tensor
"""An array or a tensor on any device, with or without a graph."""
PixelsLike: TypeAlias = NDArray[Any] | torch.Tensor | Image.Image
"""An HxWx3 array or 3xHxW tensor, uint8 or float in [0, 1]; or a PIL image."""
BoxesLike: TypeAlias = NDArray[Any] | torch.Tensor | Sequence[Any]
"""Boxes (N, 4), or one box (4,), xyxy: an array, a tensor, or nested sequences of numbers."""
Color: TypeAlias = str | tuple[int, int, int]
"""RGB from 0 to 255, a CSS name, or ``#rrggbb``."""

COLORMAPS: dict[str, int] = {
    name.removeprefix("COLORMAP_").lower(): int(getattr(cv2, name)) for name in dir(cv2) if name.startswith("COLORMAP_")
}
RANGE_TOLERANCE = 1e-3  # resizing in half precision leaves [0, 1] by this much; values are clipped
JPEG_QUALITY = 95
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def as_array(value: TensorLike, name: str) -> NDArray[Any]:
    """Convert a tensor or array to a NumPy array of real numbers.

    Args:
        value: array, or tensor on any device, with or without a graph.
        name: name of the argument in error messages.

    Raises:
        TypeError: `value` is neither an array nor a tensor, or its dtype is not real.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(value).__name__}")
    if value.dtype.kind not in "fuib":
        raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}; convert it to float32 or uint8")
    return value


def as_image(image: PixelsLike, name: str = "image") -> ImageArray:
    """Convert an image to a new HxWx3 uint8 RGB array.

    Args:
        image: HxWx3 array or 3xHxW tensor, uint8 or float in [0, 1]; or a PIL image.
        name: name of the argument in error messages.

    Raises:
        TypeError: `image` is not an array, tensor or PIL image, or its dtype is neither uint8 nor float.
        ValueError: the shape is wrong, or values are NaN or outside [0, 1].
    """
    unit = as_unit_image(image, name)
    if unit.dtype == np.uint8:
        return np.array(unit, order="C")
    return np.rint(unit * 255).astype(np.uint8, order="C")


def as_unit_image(image: PixelsLike, name: str = "image") -> NDArray[Any]:
    """Convert an image to an HxWx3 array as `as_image` does, but keep floats in [0, 1] as floats of their dtype."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = as_array(image, name)
    is_tensor = isinstance(image, torch.Tensor)
    layout = "a 3xHxW tensor" if is_tensor else "an HxWx3 array"
    if array.ndim != 3 or array.shape[0 if is_tensor else 2] != 3 or 0 in array.shape:
        raise ValueError(
            f"{name} must be {layout} of at least one pixel, got shape {tuple(array.shape)}; "
            "tensors are channels first, arrays last; index a batch, repeat a gray channel three times"
        )
    if is_tensor:
        array = array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8 or float, got {array.dtype}; use .astype(np.uint8) for values 0 to 255")
    remedy = "divide by 255, or undo the normalization"
    return _in_unit_range(array, name, remedy)


def as_heatmap(heatmap: TensorLike, image_size_hw: tuple[int, int], name: str = "heatmap") -> NDArray[np.floating[Any]]:
    """Convert a heatmap to a (H, W) float array in [0, 1].

    Args:
        heatmap: (H, W) array or tensor in [0, 1].
        image_size_hw: height and width of the image.
        name: name of the argument in error messages.

    Raises:
        TypeError: `heatmap` is neither an array nor a tensor, or its dtype is not real.
        ValueError: the size differs from the image's, or values are NaN or outside [0, 1].
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


def as_mask(mask: TensorLike, image_size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Convert a mask to a (H, W) bool array.

    Raises:
        ValueError: the size differs from the image's, or values are other than 0 and 1.
    """
    array = as_heatmap(mask, image_size_hw, "mask")
    if not np.isin(array, (0, 1)).all():
        raise ValueError("mask must be bool or hold only 0 and 1; threshold it first: mask > 0.5")
    return array.astype(bool)


def _in_unit_range(array: NDArray[Any], name: str, remedy: str) -> NDArray[Any]:
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())  # min and max propagate NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} holds NaN or infinite values; expected finite values in [0, 1]: check the model's output"
        )
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {remedy}")
    return np.clip(array, 0, 1)


def colormap_code(colormap: str | int) -> int:
    """Return the OpenCV number of a colormap.

    Args:
        colormap: name such as ``"inferno"``, or OpenCV number.

    Raises:
        TypeError: `colormap` is neither a string nor an integer.
        ValueError: the colormap does not exist; the message lists the names.
    """
    if isinstance(colormap, str):
        code = COLORMAPS.get(colormap.lower(), -1)
    elif isinstance(colormap, bool) or not hasattr(colormap, "__index__"):
        raise TypeError(f"colormap must be a name or an OpenCV colormap number, got {type(colormap).__name__}")
    else:
        code = operator.index(colormap)
    if code not in COLORMAPS.values():
        near = did_you_mean(str(colormap), COLORMAPS)
        raise ValueError(f"unknown colormap {colormap!r}; choose one of {', '.join(sorted(COLORMAPS))}{near}")
    return code


def color_rgb(color: Color) -> tuple[int, int, int]:
    """Convert a color (three integers from 0 to 255, a CSS name, or ``#rrggbb``) to RGB."""
    if isinstance(color, str):
        return ImageColor.getrgb(color)[:3]
    values = tuple(int(part) for part in color)
    if len(values) != 3 or not all(0 <= part <= 255 for part in values):
        raise ValueError(f"a color must be three numbers 0 to 255 or a CSS name, got {color!r}")
    return values


def contrast_to(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever contrasts more with `color` (by luma)."""
    return (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)


def to_png_bytes(array: PixelsLike) -> bytes:
    """Encode an image as PNG."""
    return encode_png(as_image(array, "array"))


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16, as PNG, fast rather than small."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else np.ascontiguousarray(image)
    return bytes(cv2.imencode(".png", pixels)[1])


def to_jpeg_bytes(image: ImageArray) -> bytes:
    """Encode an image (H, W, 3) uint8 RGB as JPEG with full color resolution; its sides are below 65,500 pixels."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return bytes(cv2.imencode(".jpg", pixels, options)[1])


def save_image(path: str | os.PathLike[str], array: PixelsLike) -> Path:
    """Save an image in the format of the path's suffix.

    Missing folders are created. The file is written under a temporary name and renamed.

    Args:
        path: path that ends in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff. An existing file is replaced.
        array: RGB image.

    Returns:
        The path.

    Raises:
        TypeError: `array` is not an image.
        ValueError: the suffix is unknown, or the shape or values are not those of an image.
    """
    path = with_home(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot save {path.name!r}: the suffix must be one of {', '.join(FORMATS)}")
    data = _encode(as_image(array, "array"), kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, data)


def _encode(image: ImageArray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **({"quality": JPEG_QUALITY} if kind in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()
