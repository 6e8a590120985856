"""EXIF orientation: image sizes, boxes and masks in the stored and in the upright frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

ORIENTATION_TAG = 0x0112
"""EXIF's tag of the orientation."""


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
        ValueError: the file does not exist or is not an image.
    """
    if not path.is_file():
        raise ValueError(f"no image file at {path}; check the path")
    register_heif(path)
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            size_hw = (image.height, image.width)
    except (UnidentifiedImageError, ImportError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        if path.suffix.lower() in (".tif", ".tiff") and (size_of_tiff := _tiff_size(path)):
            return ImageSize(size_of_tiff)
        # ultralytics replaces Image.open by a function that raises ImportError for unknown formats
        reason = "unknown format" if isinstance(error, ImportError) else str(error)
        raise ValueError(f"cannot read {path} as an image ({reason}); is the file complete?") from error
    known = isinstance(orientation, int) and 1 <= orientation <= 8
    return ImageSize(size_hw, orientation if known else 1)


def register_heif(path: Path) -> None:
    """Let Pillow open HEIC files, if the path is one.

    Raises:
        ValueError: it is one, and pillow-heif is not installed.
    """
    if path.suffix.lower() not in (".heic", ".heif"):
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError(f"cannot read {path}: HEIC files need pip install 'detcam[heic]'") from error
    register_heif_opener()


def _tiff_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a TIFF whose bands Pillow does not know; None for a damaged file."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            return int(series.shape[series.axes.index("Y")]), int(series.shape[series.axes.index("X")])
    except (tifffile.TiffFileError, ValueError, IndexError, OSError):
        return None


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
