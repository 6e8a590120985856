"""EXIF orientation: image sizes, boxes and masks in the stored and in the upright frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detcam.data.opening import TIFF_SUFFIXES, UnknownFormatError, check_pixels, open_image, readable

ORIENTATION_TAG = 0x0112
"""EXIF's tag of the orientation."""
TIFF_WIDTH_TAG, TIFF_HEIGHT_TAG = 256, 257
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageSize:
    """An image file's size, from its header alone.

    Attributes:
        stored_hw: height and width of the pixels in the file.
        orientation: the EXIF tag, 1 to 8; 5 to 8 exchange height and width when the image is set upright.
    """

    stored_hw: tuple[int, int]
    orientation: int = 1

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width as `detcam.data.images.load_image` returns the image."""
        return self.stored_hw[::-1] if self.orientation >= 5 else self.stored_hw


def image_size(path: Path) -> ImageSize:
    """Read an image file's size without reading its pixels.

    Raises:
        ValueError: the file does not exist, is not an image, or has more pixels than `MAX_PIXELS`.
    """
    try:
        with open_image(path) as image:
            return ImageSize(_stored_hw(image), orientation(image))
    except UnknownFormatError:
        if size_of_tiff := _tiff_size(path):
            return ImageSize(size_of_tiff)
        raise


def _stored_hw(image: Image.Image) -> tuple[int, int]:
    """Height and width of the pixels in a file; Pillow states those of a TIFF as they are when it is upright."""
    tags = getattr(image, "tag_v2", {})
    height, width = (tags.get(tag) for tag in (TIFF_HEIGHT_TAG, TIFF_WIDTH_TAG))
    if isinstance(height, int) and isinstance(width, int):  # of a TIFF
        return height, width
    return image.height, image.width


def orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1 where it has none or its EXIF block is damaged."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a damaged block raises struct.error, TypeError and others; the pixels are whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """Return an image as its EXIF orientation says, whose other EXIF entries are neither read nor checked."""
    image.load()  # which sets a TIFF upright
    method = _TRANSPOSITIONS.get(orientation(image))
    return image if method is None else image.transpose(method)


def _tiff_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a TIFF whose bands Pillow does not know; None for another or a damaged file."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    import tifffile

    try:
        with readable(path), tifffile.TiffFile(path) as file:
            series = file.series[0]
            height, width = (int(series.shape[series.axes.index(axis)]) for axis in "YX")
    except ValueError:
        return None
    check_pixels(path, height, width)
    return height, width


def boxes_upright(boxes_xyxy: np.ndarray, size: ImageSize) -> np.ndarray:
    """Convert boxes (N, 4) from the stored frame to the upright frame."""
    height, width = size.stored_hw
    x, y = boxes_xyxy[:, 0::2], boxes_xyxy[:, 1::2]
    new_x, new_y = {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[size.orientation]
    return np.stack([new_x.min(1), new_y.min(1), new_x.max(1), new_y.max(1)], axis=1)


def masks_upright(masks: np.ndarray, size: ImageSize) -> np.ndarray:
    """Convert masks (N, H, W) from the stored frame to the upright frame."""
    upright = masks.transpose(0, 2, 1) if size.orientation >= 5 else masks
    if size.orientation in (2, 3, 6, 7):
        upright = upright[:, :, ::-1]
    if size.orientation in (3, 4, 7, 8):
        upright = upright[:, ::-1]
    return np.ascontiguousarray(upright)
