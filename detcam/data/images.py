"""Conversion of paths, PIL images, arrays and tensors to validated float RGB tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
"""A path, a PIL image, an HxWx3 uint8 RGB (or float [0, 1]) array, or a 3xHxW tensor (uint8, or float in [0, 1])."""

_EXPECTED = "a path, a PIL image, an HxWx3 uint8 RGB array, or a 3xHxW tensor"


def load_image(image: ImageLike) -> Tensor:
    """Read one image.

    EXIF rotation is applied; gray, palette, CMYK, 16-bit and transparent files are converted to RGB.

    Returns:
        (3, H, W) float32, RGB in [0, 1], on the CPU for files and arrays, on its own device for a tensor.

    Raises:
        TypeError: not an image.
        ValueError: unreadable file, wrong channel count, zero size, NaN pixels, or float values outside [0, 1].
    """
    if isinstance(image, (str, Path)):
        return _from_array(_read(Path(image)), str(image))
    if isinstance(image, Image.Image):
        return _from_array(_rgb(image), "PIL image")
    if isinstance(image, np.ndarray):
        return _from_array(image, "array")
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise TypeError(f"expected {_EXPECTED}; got {type(image).__name__}")


def load_images(images: ImageLike | Sequence[ImageLike]) -> list[Tensor]:
    """Read one image or a list of them; sizes are free. A 4-d tensor counts as a list.

    Raises:
        ValueError: the list is empty, or as in `load_image`, naming the position in the list.
        TypeError: as in `load_image`.
    """
    if is_single(images):
        return [load_image(images)]  # type: ignore[arg-type]
    items: list[Any] = list(images)  # type: ignore[arg-type]
    if not items:
        raise ValueError("expected at least one image; got an empty list")
    tensors = []
    for position, item in enumerate(items):
        try:
            tensors.append(load_image(item))
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {position}: {error}") from error
    return tensors


def is_single(images: object) -> bool:
    """Return whether this is one image rather than a list of images."""
    if isinstance(images, Tensor):
        return images.ndim != 4
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return not isinstance(images, (list, tuple))


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert a (3, H, W) float tensor in [0, 1] to an (H, W, 3) uint8 RGB array."""
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise ValueError if a tensor contains NaN or infinity."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name}: {count} of {tensor.numel()} values are NaN or infinite; clean the input first")


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"no image file at {path}; check the path")
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except ImportError as error:  # ultralytics replaces Image.open by a function that may raise it
        raise ValueError(f"cannot read {path} as an image (unknown format); is the file complete?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image ({error}); is the file complete?") from error


def _rgb(image: Image.Image) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit and 32-bit gray: PIL's conversion clips instead of scaling
        values = np.asarray(upright, dtype=np.float64)
        gray = np.clip(values / (65535.0 if values.max(initial=0) > 255 else 255.0) * 255.0, 0, 255)
        return np.repeat(gray.round().astype(np.uint8)[..., None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"{name}: expected an array of shape (H, W, 3), RGB; got {array.shape}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name}: expected dtype uint8 (or float in [0, 1]); got {array.dtype}")
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))), name)


def _from_tensor(tensor: Tensor, name: str = "tensor") -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        hint = "; permute HxWx3 to 3xHxW" if tensor.ndim == 3 and tensor.shape[-1] == 3 else ""
        raise ValueError(f"{name}: expected 3 channels, shape (3, H, W); got {tuple(tensor.shape)}{hint}")
    if 0 in tensor.shape:
        raise ValueError(f"{name}: the image has no pixels, shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected dtype uint8 or float; got {tensor.dtype}")
    check_finite(tensor, name)
    low, high = float(tensor.min()), float(tensor.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"{name}: expected float pixels in [0, 1]; got values from {low:.3g} to {high:.3g}. Divide 0..255 pixels "
            "by 255; an already normalized batch goes in as one BxCxHxW tensor to a plain nn.Module"
        )
    return tensor.detach().float()
