"""Image files as arrays of their own bands and depth: Pillow for photographs, OpenCV and tifffile for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from detcam.data.exif import ImageSize, masks_upright, orientation, upright
from detcam.data.opening import TIFF_SUFFIXES, UnknownFormatError, check_pixels, open_image, readable
from detcam.utils.batching import batch_slices
from detcam.utils.opencv import decode_image
from detcam.utils.warnings import warn

STRIP_PIXELS = 2**20
"""Pixels of a large image that are converted at once."""
_RGB_MODES = frozenset({"P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La"})
"""Modes of Pillow whose bands are no channels of an image: they are converted to RGB."""


def read_file(path: Path, channels: int | None, page: int | None) -> np.ndarray:
    """Read an image file, upright.

    Args:
        path: the file.
        channels: number of channels that are needed, which decides how gray, color, alpha and pages are read; None
            takes what the file has.
        page: index of the page of a file with several; None takes the first, with a warning, unless the pages are the
            channels.

    Returns:
        (H, W, C) of the file's own dtype.

    Raises:
        ValueError: the file does not exist, cannot be read, has no such page, or more pixels than `MAX_PIXELS`.
    """
    try:
        with open_image(path) as image:
            return _bands(_page(image, path, channels, page), path, channels)
    except UnknownFormatError:
        if path.suffix.lower() not in TIFF_SUFFIXES:
            raise
    with readable(path):
        return _read_tiff(path, channels, page)


def pil_array(image: Image.Image, channels: int | None) -> np.ndarray:
    """Return a Pillow image as an array (H, W, C), upright; see `read_file`."""
    return _bands(image, None, channels)


def _page(image: Image.Image, path: Path, channels: int | None, page: int | None) -> Image.Image:
    """One page of a file, or its pages as the bands of one image of mode "bands"."""
    count = int(getattr(image, "n_frames", 1))
    if page is not None:
        if not 0 <= page < count:
            raise ValueError(f"{path} has {count} page{'s' * (count > 1)}; page {page} does not exist")
        image.seek(page)
        return image
    if count > 1:
        pages = [frame.copy() for frame in ImageSequence.Iterator(image)] if count == channels else []
        if pages and all(len(frame.getbands()) == 1 and frame.mode != "P" for frame in pages):
            if channels == 3:
                warn(f"{path.name}: its 3 pages are read as 3 channels; page= reads one of them", UserWarning)
            return _Stacked(pages)  # type: ignore[return-value]
        warn(f"{path.name} has {count} pages or frames: the first is read; page= reads another", UserWarning)
        image.seek(0)
    return image


class _Stacked:
    """Pages that are the channels of one image."""

    def __init__(self, pages: list[Image.Image]) -> None:
        self.pages = pages


def _bands(image: Any, path: Path | None, channels: int | None) -> np.ndarray:
    """The array (H, W, C) of a page; color and gray are converted into each other if the channels ask for it."""
    if isinstance(image, _Stacked):
        return np.stack([_deep(page) for page in image.pages], axis=-1)
    if path is not None and _is_deep_color(image):
        return _read_with_opencv(path, ImageSize((image.height, image.width), orientation(image)))
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        gray = _deep(image)
        return np.broadcast_to(gray[..., None], (*gray.shape, 3 if channels == 3 else 1))
    if channels == 1:
        return np.array(image.convert("L"))[..., None]
    if channels in (None, 2, 4) and image.mode not in _RGB_MODES:
        array = np.array(image.convert("L") if image.mode == "1" else image)
        array = array[..., None] if array.ndim == 2 else array
        if channels is None or array.shape[2] == channels:
            return array
    return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    """A page as an array (H, W, 3), converted in strips: Pillow holds 4 bytes a pixel, and as much in any copy."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    for rows in batch_slices(image.height, max(STRIP_PIXELS // image.width, 1)):
        array[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)).convert("RGB"))
    return array


def _deep(page: Image.Image) -> np.ndarray:
    """A page of one band as an array (H, W) of its own dtype; 16 bits stay unsigned."""
    array = np.asarray(page.convert("L") if page.mode == "1" else page)
    if page.mode.startswith("I;16"):
        return array.astype(np.uint16)
    is_png = page.mode == "I" and page.format in ("PNG", "PPM")  # older versions of Pillow widen 16-bit gray
    return array.astype(np.uint16) if is_png else array


def _is_deep_color(image: Image.Image) -> bool:
    """Whether a color file has 16 bits per channel, of which Pillow keeps 8."""
    return len(image.getbands()) > 1 and ";16" in str(getattr(image, "tile", ""))


def _read_with_opencv(path: Path, size: ImageSize) -> np.ndarray:
    array = decode_image(path.read_bytes())
    if array is None:
        raise ValueError(f"cannot read {path} as an image; is the file complete?")
    array = array[..., None] if array.ndim == 2 else array
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[2], slice(None))
    return masks_upright(array[..., order].transpose(2, 0, 1), size).transpose(1, 2, 0)


def _read_tiff(path: Path, channels: int | None, page: int | None) -> np.ndarray:
    """Read a TIFF whose bands or depth Pillow does not know."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = series.axes
        if "Y" in axes and "X" in axes:
            check_pixels(path, series.shape[axes.index("Y")], series.shape[axes.index("X")])
        array = series.asarray()
    if "Y" not in axes or "X" not in axes:
        raise ValueError(f"cannot read {path} as an image: its axes are {axes}")
    array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (0, 1))
    others = [axis for axis in axes if axis not in "YX"]
    pages = array.shape[2] if len(others) == 2 else 1
    if len(others) == 2:  # pages of several bands
        if page is None:
            warn(f"{path.name} has {pages} pages: the first is read; page= reads another", UserWarning)
        if not 0 <= (page or 0) < pages:
            raise ValueError(f"{path} has {pages} pages; page {page} does not exist")
        array = array[:, :, page or 0]
    elif len(others) > 2:
        raise ValueError(f"cannot read {path} as an image: its axes are {axes}")
    array = array.reshape(*array.shape[:2], -1)
    if len(others) == 1 and others[0] != "S" and (page is not None or array.shape[2] != channels):
        if page is None:
            warn(f"{path.name} has {array.shape[2]} pages: the first is read; page= reads another", UserWarning)
        if not 0 <= (page or 0) < array.shape[2]:
            raise ValueError(f"{path} has {array.shape[2]} pages; page {page} does not exist")
        array = array[..., page or 0 : (page or 0) + 1]
    return array
