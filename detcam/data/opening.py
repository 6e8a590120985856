"""Opening of image files: known formats alone, a limit on pixels, and one error for everything that is damaged."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from detcam.utils.console import shorten
from detcam.utils.files import is_file

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "AVIF", "JPEG2000", "HEIF", "TIFF", "GIF", "PPM")
"""Formats of Pillow that are read, whatever the suffix: others would run a program (EPS) or are no photographs."""
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".dib", ".webp", ".avif", ".jp2", ".j2k", ".heic", ".heif"]
    + [".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"]
)
"""Files that are images: in a folder, those that cannot be read are named."""
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
"""Suffixes of files that tifffile reads where Pillow does not know their bands or depth."""
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})
"""Suffixes of videos, whose frames have to be written as images first."""
LIMIT_VARIABLE = "DETCAM_MAX_PIXELS"
"""Environment variable that replaces the limit on an image's pixels."""
MAX_PIXELS = 178_956_970
"""Maximum number of pixels of an image, unless the environment variable DETCAM_MAX_PIXELS has another number."""
MAX_SHOWN_NAME = 200
"""Characters of a file name in a message."""


class UnknownFormatError(ValueError):
    """A file of a format that Pillow does not read."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; its pixels are decoded inside the block.

    Raises:
        UnknownFormatError: the file has no format of `FORMATS`.
        ValueError: the file does not exist, is damaged, or has more pixels than the limit.
    """
    check_file(path)
    _register_heif(path)
    _raise_limit_of_pillow()
    with readable(path):
        Image.init()
        try:
            image = _pillow_open()(path, formats=[name for name in FORMATS if name in Image.OPEN])
        except (ImportError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            # ultralytics replaces Image.open, which imports a plugin after any error
            first = error.__context__ if isinstance(error, ImportError) else error
            if isinstance(first, Image.DecompressionBombError):
                raise ValueError(f"cannot read {path} ({first}). {_how_to_raise()}") from error
            raise UnknownFormatError(f"cannot read {path} as an image ({_what_else(path)}") from error
        with image:
            check_pixels(path, image.height, image.width)
            yield image


def _pillow_open() -> Callable[..., Image.Image]:
    """Pillow's own function: ultralytics replaces it by one that installs a package for a file of unknown format."""
    patches = sys.modules.get("ultralytics.utils.patches")
    is_replaced = patches is not None and Image.open is getattr(patches, "image_open", None)
    return getattr(patches, "_image_open", Image.open) if is_replaced else Image.open


def _what_else(path: Path) -> str:
    """Why a file has an unknown format, and what to do."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return "unknown format); is the file complete?"
    frames = shlex.quote(f"{path.stem}-frames")
    return (
        "it is a video); write its frames as images and pass their folder: "
        f"mkdir {frames} && ffmpeg -i {shlex.quote(str(path))} -vf fps=2 {frames}/%05d.png"
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error of a library that reads a file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # damaged files raise struct.error, TypeError, KeyError, MemoryError and others
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"cannot read {path} as an image ({_reason(error)}); is the file complete?") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_file(path: Path) -> None:
    """Raise ValueError unless a path is a regular file."""
    if not is_file(path):
        raise ValueError(f"no image file at {shorten(str(path), MAX_SHOWN_NAME)}; check the path")


def check_search(folder: Path) -> None:
    """Raise ValueError if a folder is the root of a file system, which nobody wants to search for images."""
    if folder.resolve() == Path(folder.resolve().anchor):
        raise ValueError(f"{folder} is the whole file system; name the folder of the images")


def max_pixels() -> int:
    """Return the limit on an image's pixels.

    Raises:
        ValueError: the environment variable is no positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or not int(text):
        raise ValueError(f"expected a number of pixels in the environment variable {LIMIT_VARIABLE}; got {text!r}")
    return int(text)


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise ValueError if an image has more pixels than the limit."""
    if height * width > max_pixels():
        raise ValueError(
            f"cannot read {path}: it has {width} x {height} pixels, more than {max_pixels()}, and a small file may "
            f"hold many to exhaust the memory. {_how_to_raise()}"
        )


def _how_to_raise() -> str:
    return f"If you trust it, set the environment variable {LIMIT_VARIABLE} to a larger number of pixels"


def _raise_limit_of_pillow() -> None:
    """Raise Pillow's own limit where the user has set a larger one; Pillow refuses twice its number."""
    if LIMIT_VARIABLE in os.environ and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels() // 2 + 1)


def _register_heif(path: Path) -> None:
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
