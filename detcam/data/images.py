"""Conversion of paths, PIL images, arrays and tensors to validated float tensors of any number of channels."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detcam.data.decoding import STRIP_PIXELS, pil_array, read_file
from detcam.data.opening import IMAGE_SUFFIXES, check_search
from detcam.utils.batching import batch_slices
from detcam.utils.files import is_file, is_folder, with_home
from detcam.utils.warnings import warn

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
"""A path, a PIL image, an HxWxC array (uint8, uint16, or float in [0, 1]; RGB), or a CxHxW tensor of these."""

Bands: TypeAlias = "int | Sequence[int]"
"""Index of one channel, shown in gray, or of three, shown as red, green and blue."""

MAX_FLOAT_PIXELS = 2**23
"""Pixels beyond which memory is saved: images of 8 bits are kept in 8 bits for networks whose input is smaller, and the
bands of gray images are shared."""
MAX_DARK_UINT16 = 4095
"""16-bit images without a greater value are reported: they may have 12 bits, and are nearly black as 16."""


@dataclass(frozen=True)
class ImageReader:
    """How images are read.

    Values are scaled to [0, 1] by their dtype: uint8 by 255, uint16 by 65535; bool and float in [0, 1] stay as they
    are. Other values need `value_range`.

    Attributes:
        channels: number of channels of the result; None takes what an image has. Files of one channel and of RGB are
            converted into each other; other files, arrays and tensors must have this many channels. The pages of a TIFF
            with as many pages are its channels.
        value_range: the values that become 0 and 1; values outside are clipped.
        bgr: whether arrays of three channels are in OpenCV's order, blue first. None takes them as RGB and warns, for
            users of a library that takes them as BGR.
        page: index of the page of a file with several.
    """

    channels: int | None = 3
    value_range: tuple[float, float] | None = None
    bgr: bool | None = False
    page: int | None = None

    def __post_init__(self) -> None:
        if self.value_range is not None:
            low, high = (float(value) for value in self.value_range)
            if not low < high:
                raise ValueError(f"expected value_range as (low, high) with low < high; got {self.value_range}")

    def read(self, image: ImageLike, *, keep_bytes: bool = False) -> Tensor:
        """Read one image; see `load_image`.

        Args:
            image: the image.
            keep_bytes: whether a file of 8 bits with more than `MAX_FLOAT_PIXELS` stays uint8, a quarter of the memory;
                `as_float` converts it.
        """
        if isinstance(image, (str, Path)):
            array = read_file(with_home(image), self.channels, self.page)
            if keep_bytes and self._fits_bytes(array):
                return _marked(torch.from_numpy(array).permute(2, 0, 1))
            return self._from_array(array, str(image))
        if isinstance(image, Image.Image):
            return self._from_array(pil_array(image, self.channels), "PIL image")
        if isinstance(image, np.ndarray):
            is_color = image.ndim == 3 and image.shape[2] == 3
            if is_color and self.bgr is None:
                warn(
                    "arrays are read as RGB here, and as BGR by the model's library: pass bgr=True to detcam.adapt or "
                    "detcam.explain for arrays of cv2.imread, bgr=False for RGB",
                    UserWarning,
                )
            flip = self.bgr and is_color
            return self._from_array(image[..., ::-1] if flip else image, "array")
        if isinstance(image, Tensor):
            return image if hasattr(image, "_detcam_read") else self._from_tensor(image, "tensor")
        shape = "3" if self.channels is None else str(self.channels)
        is_features = isinstance(image, Mapping) and "pixel_values" in image
        hint = "; pass its normalized tensor, features['pixel_values'], or the images themselves" if is_features else ""
        raise TypeError(
            f"expected a path, a PIL image, an HxWx{shape} uint8 array, or a {shape}xHxW tensor; got "
            f"{type(image).__name__}{hint}"
        )

    def read_all(self, images: ImageLike | Sequence[ImageLike], *, keep_bytes: bool = False) -> list[Tensor]:
        """Read one image, a list, or the images of folders and patterns; see `load_images` and `read`."""
        images = expand_paths(images)
        if is_single(images):
            return [self.read(images, keep_bytes=keep_bytes)]  # type: ignore[arg-type]
        items: list[Any] = list(images)  # type: ignore[arg-type]
        if not items:
            raise ValueError("expected at least one image; got an empty list")
        tensors = []
        for position, item in enumerate(items):
            try:
                tensors.append(self.read(item, keep_bytes=keep_bytes))
            except (TypeError, ValueError) as error:
                raise type(error)(f"image {position}: {error}") from error
        return tensors

    def _fits_bytes(self, array: np.ndarray) -> bool:
        is_large = array.shape[0] * array.shape[1] > MAX_FLOAT_PIXELS
        is_plain = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == self.channels
        return is_large and is_plain and self.value_range is None

    def _from_array(self, array: np.ndarray, name: str) -> Tensor:
        wanted = self.channels
        if array.ndim == 2 and wanted in (None, 1):
            array = array[..., None]
        if array.ndim != 3 or (wanted is not None and array.shape[2] != wanted):
            shape = "(H, W, C)" if wanted is None else f"(H, W, {wanted})"
            rgb = ", RGB" if wanted == 3 else f", as the network has {wanted} channels" if wanted else ""
            hint = _channel_hint(array) if wanted == 3 else ""
            raise ValueError(f"{name}: expected an array of shape {shape}{rgb}; got {array.shape}{hint}")
        is_gray = array.shape[2] == 3 and array.strides[2] == 0 and array[..., 0].size > MAX_FLOAT_PIXELS
        bands = (array[..., :1] if is_gray else array).transpose(2, 0, 1)
        scaled = self._scaled(torch.from_numpy(_plain(bands)), name, array.dtype.name)
        return _marked(scaled.expand(3, -1, -1)) if is_gray else scaled

    def _from_tensor(self, tensor: Tensor, name: str) -> Tensor:
        wanted = self.channels
        if tensor.ndim == 2 and wanted in (None, 1):
            tensor = tensor[None]
        if tensor.ndim != 3 or (wanted is not None and tensor.shape[0] != wanted):
            count = "C" if wanted is None else wanted
            fits = tensor.ndim == 3 and tensor.shape[-1] == wanted
            hint = f"; permute HxWx{count} to {count}xHxW" if fits else ""
            if tensor.ndim == 4:
                hint = ". A batch goes in alone, and several inputs of one model as a tuple of batches: (first, second)"
            many = "channel" if wanted == 1 else "channels"
            raise ValueError(f"{name}: expected {count} {many}, shape ({count}, H, W); got {tuple(tensor.shape)}{hint}")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
            tensor = tensor.to(torch.float32 if tensor.dtype == torch.uint16 else torch.int64)
        return self._scaled(tensor, name, dtype)

    def _scaled(self, tensor: Tensor, name: str, dtype: str) -> Tensor:
        """Return a tensor (C, H, W) as float32 in [0, 1], marked as read, so that it is not scaled again."""
        scaled = self._scaled_by_rule(tensor, name, dtype)
        if scaled is tensor:
            scaled = tensor.view_as(tensor)
        return _marked(scaled)

    def _scaled_by_rule(self, tensor: Tensor, name: str, dtype: str) -> Tensor:
        if 0 in tensor.shape:
            raise ValueError(f"{name}: the image has no pixels, shape {tuple(tensor.shape)}")
        if "float" in dtype:
            check_finite(tensor, name)
        if self.value_range is not None:
            low, high = self.value_range
            return tensor.detach().to(torch.float32, copy=True).sub_(low).div_(high - low).clamp_(0, 1)
        if dtype in ("uint8", "bool"):
            return tensor.float().div_(255 if dtype == "uint8" else 1)  # in place: large images fill the memory
        lowest, highest = float(tensor.min()), float(tensor.max())
        if dtype == "uint16":
            if 0 < highest <= MAX_DARK_UINT16:
                warn(
                    f"{name}: 16-bit values up to {highest:.0f} of 65535 are nearly black; if they have fewer bits, "
                    "pass value_range=, such as (0, 4095) for 12 bits",
                    UserWarning,
                )
            return tensor.float().div_(65535)
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name}: expected dtype uint8 or float in [0, 1], or uint16; got {dtype} with values from "
                f"{lowest:.6g} to {highest:.6g}. Pass value_range=, the values of black and white, such as "
                f"{_suggested(highest)}"
            )
        if lowest < -1e-3 or highest > 1 + 1e-3:
            raise ValueError(
                f"{name}: expected float pixels in [0, 1]; got values from {lowest:.3g} to {highest:.3g}. Divide "
                f"0..255 pixels by 255, or pass value_range=, the values of black and white, such as "
                f"{_suggested(highest)}; an already normalized batch goes in as one BxCxHxW tensor to a plain nn.Module"
            )
        return tensor.detach().float()


def load_image(
    image: ImageLike,
    *,
    channels: int | None = 3,
    value_range: tuple[float, float] | None = None,
    bgr: bool = False,
    page: int | None = None,
) -> Tensor:
    """Read one image.

    EXIF rotation is applied; with three channels, gray, palette, CMYK and transparent files are converted to RGB.

    Args:
        image: a path, PIL image, array or tensor.
        channels: as in `ImageReader`, like the other arguments.
        value_range: the values that become 0 and 1.
        bgr: whether arrays are in OpenCV's order.
        page: index of the page of a file with several.

    Returns:
        (C, H, W) float32 in [0, 1], RGB if it has three channels, on the CPU for files and arrays, on its own device
        for a tensor.

    Raises:
        TypeError: not an image, or integers of a dtype without a range.
        ValueError: unreadable file, wrong channel count, zero size, NaN pixels, or float values outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from detcam.data.images import load_image
        >>> load_image(np.full((4, 6, 5), 4095, np.uint16), channels=5, value_range=(0, 4095)).max()
        tensor(1.)
    """
    return ImageReader(channels, value_range, bgr, page).read(image)


def load_images(images: ImageLike | Sequence[ImageLike], **options: Any) -> list[Tensor]:
    """Read one image or a list of them; sizes are free. A 4-d tensor counts as a list.

    Args:
        images: images, folders, or patterns with ``*``, ``?`` or ``[...]``.
        **options: as in `load_image`.

    Raises:
        ValueError: the list is empty, or as in `load_image`, naming the position in the list.
        TypeError: as in `load_image`.
    """
    return ImageReader(**options).read_all(images)


def expand_paths(images: Any) -> Any:
    """Replace folders and patterns by the paths of their images, sorted by name; other images are unchanged.

    Raises:
        ValueError: a folder or pattern has no images.
    """
    if isinstance(images, (str, Path)):
        return _expanded(images) or images
    if not isinstance(images, (list, tuple)) or not any(isinstance(item, (str, Path)) for item in images):
        return images
    expanded: list[Any] = []
    for item in images:
        expanded += (isinstance(item, (str, Path)) and _expanded(item)) or [item]
    return expanded


def _expanded(text: str | Path) -> list[Path]:
    """The images of a folder or pattern; an empty list for a file."""
    path = with_home(text)
    if str(text) and is_folder(path):
        check_search(path)
        found = [
            Path(folder, name)
            for folder, subfolders, names in os.walk(path)
            if not _is_hidden(Path(folder).relative_to(path))
            for name in names
        ]
    elif not is_file(path) and glob.has_magic(str(text)):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
    else:
        return []
    found = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    images = sorted(path for path in found if not path.name.startswith("."))
    if not images:
        raise ValueError(f"no images in {text}; expected files such as .jpg and .png")
    return images


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_single(images: object) -> bool:
    """Return whether this is one image rather than a list of images."""
    if isinstance(images, Tensor):
        return images.ndim != 4
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return not isinstance(images, (list, tuple))


def shown_bands(image: Tensor, bands: Bands | None = None) -> Tensor:
    """Return the channels of an image (C, H, W) that are drawn, as (3, H, W), possibly in the same memory.

    Args:
        image: the image.
        bands: index of one channel, or of three; None takes the first three, or the first one of fewer than three.

    Raises:
        ValueError: the image has no such channels.
    """
    count = len(image)
    default = [0, 1, 2] if count >= 3 else [0]
    chosen = default if bands is None else [bands] if isinstance(bands, int) else list(bands)
    if len(chosen) not in (1, 3) or not all(isinstance(band, int) and -count <= band < count for band in chosen):
        raise ValueError(f"expected show_bands as one or three of the {count} channels, from 0; got {bands}")
    shown = image if chosen == list(range(count)) else image[chosen]
    return shown.expand(3, -1, -1)


def to_uint8(image: Tensor, bands: Bands | None = None) -> np.ndarray:
    """Convert a tensor (C, H, W), float in [0, 1] or uint8, to an (H, W, 3) uint8 RGB array.

    `bands` as in `shown_bands`. The result may share the memory of a uint8 tensor.
    """
    shown = shown_bands(image.detach(), bands)
    if shown.dtype == torch.uint8:
        return np.ascontiguousarray(shown.permute(1, 2, 0).cpu().numpy())
    pixels = torch.empty((*shown.shape[-2:], 3), dtype=torch.uint8)
    for part in batch_slices(len(pixels), max(STRIP_PIXELS // pixels.shape[1], 1)):
        pixels[part] = (shown[:, part].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return pixels.numpy()


def as_float(image: Tensor) -> Tensor:
    """Return an image (C, H, W) as floats in [0, 1], also where `ImageReader.read` kept it in 8 bits."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def _marked(tensor: Tensor) -> Tensor:
    """Mark a tensor as read, so that it is not scaled again."""
    tensor._detcam_read = True  # type: ignore[attr-defined]
    return tensor


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise ValueError if a tensor contains NaN or infinity."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name}: {count} of {tensor.numel()} values are NaN or infinite; clean the input first")


def _plain(array: np.ndarray) -> np.ndarray:
    """A contiguous, writable array in native byte order, of a dtype that PyTorch computes with; 16 bits as floats."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return array.astype(np.float32 if array.dtype.itemsize == 2 else np.int64, order="C")
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def _channel_hint(array: np.ndarray) -> str:
    """How an array becomes RGB."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        return "; repeat gray: np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)"
    return "; without transparency: array[..., :3]" if array.ndim == 3 and array.shape[2] == 4 else ""


def _suggested(highest: float) -> str:
    powers = [value for value in (255, 1023, 4095, 10000, 16383, 65535) if value >= highest]
    return f"(0, {powers[0] if powers else f'{highest:.6g}'})"
