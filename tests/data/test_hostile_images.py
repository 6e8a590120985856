"""Image files that are wrong on purpose: one ValueError that names the file, never another exception."""

from __future__ import annotations

import io
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detcam.data.exif import image_size
from detcam.data.images import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header states a size, with further chunks."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def jpeg_with_exif(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0" + exif)
    return buffer.getvalue()


def exif_block(*entries: bytes) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0\0\0\0"


TURNED = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
DAMAGED_EXIF = {
    "points nowhere": exif_block(TURNED, struct.pack(">HHII", 0x010F, 2, 2**31, 2**31)),
    "of a wrong type": exif_block(struct.pack(">HHI4s", 0x0112, 2, 4, b"abc\0"), struct.pack(">HHII", 0x8769, 9, 1, 5)),
    "sub-block out of range": exif_block(TURNED, struct.pack(">HHII", 0x8769, 4, 1, 2**32 - 1)),
    "rational of no length": exif_block(TURNED, struct.pack(">HHII", 0x011A, 5, 0, 0)),
    "cut": exif_block(TURNED)[:13],
    "empty": b"",
    "text for a number": exif_block(TURNED, struct.pack(">HHI4s", 0x0128, 2, 4, b"abc\0")),
}


@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_with_exif(exif))
    image = load_image(path)
    assert image.shape[0] == 3 and tuple(image.shape[1:]) == image_size(path).upright_hw
    assert sorted(image.shape[1:]) == [24, 40]


def test_an_exif_block_that_cannot_be_written_back_turns_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    # Pillow reads the tag as text and cannot write text as a number: exif_transpose raises struct.error.
    path.write_bytes(jpeg_with_exif(exif_block(TURNED, struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0"))))
    assert load_image(path).shape == (3, 40, 24)


@pytest.mark.parametrize("number", range(1, 9))
def test_orientations_are_those_of_pillow(tmp_path: Path, number: int) -> None:
    from PIL import ImageOps

    for suffix in (".png", ".tif"):
        path, exif = tmp_path / f"a{suffix}", Image.Exif()
        exif[0x0112] = number
        Image.fromarray(PIXELS).save(path, exif=exif)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal((load_image(path) * 255).round().byte().permute(1, 2, 0).numpy(), expected)
        size = image_size(path)
        assert (size.stored_hw, size.upright_hw, size.orientation) == ((24, 40), expected.shape[:2], number)


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "size of no memory": png(100_000, 100_000),
    "size of zero": png(0, 5),
    "too little data": png(64, 64),
    "text bomb": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(b"x" * (80 * 2**20)))),
    "cut jpeg": jpeg_with_exif(b"")[:300],
    "dds": b"DDS |\0\0\0" + b"\1" * 200,
    "tiff of nothing": b"II*\0\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_a_value_error_that_names_it(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken"):
        load_image(path)


def test_the_limit_on_pixels_is_told_and_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setenv("DETCAM_MAX_PIXELS", "959")
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match="40 x 24 pixels, more than 959.*DETCAM_MAX_PIXELS"):
            read(path)
    monkeypatch.setenv("DETCAM_MAX_PIXELS", "960")
    assert load_image(path).shape == (3, 24, 40) and image_size(path).stored_hw == (24, 40)
    monkeypatch.setenv("DETCAM_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="expected a number of pixels"):
        load_image(path)


def _open_with_a_plugin(*args: Any, **kwargs: Any) -> Image.Image:
    """As older versions of ultralytics replace `Image.open`: any error is followed by the import of a plugin."""
    try:
        return _open(*args, **kwargs)
    except Image.DecompressionBombError as error:
        raise ModuleNotFoundError("No module named 'pi_heif'") from error


_open = Image.open


@pytest.mark.parametrize("open_image", [_open, _open_with_a_plugin], ids=["pillow", "replaced"])
def test_a_larger_limit_raises_that_of_pillow(
    open_image: Callable[..., Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", open_image)
    path = tmp_path / "a.png"
    path.write_bytes(png(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with pytest.raises(ValueError, match="DETCAM_MAX_PIXELS"):
        image_size(path)
    monkeypatch.setenv("DETCAM_MAX_PIXELS", str(5 * 10**8))
    assert image_size(path).stored_hw == (20_000, 20_000)


def test_no_package_is_installed_for_a_file_that_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ultralytics replaces `Image.open` by a function that installs pi-heif for a file of unknown format."""
    patches = types.ModuleType("ultralytics.utils.patches")
    patches.image_open = lambda *_, **__: pytest.fail("the function of ultralytics was called")  # type: ignore[attr-defined]
    patches._image_open = _open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ultralytics.utils.patches", patches)
    monkeypatch.setattr(Image, "open", patches.image_open)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n not at all")
    with pytest.raises(ValueError, match=r"unknown format\); is the file complete"):
        load_image(path)


def test_a_video_has_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "my clip.MP4"
    path.write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(
        ValueError, match="it is a video.*ffmpeg -i '.*my clip.MP4' -vf fps=2 'my clip-frames'/%05d.png"
    ):
        load_image(path)


def test_a_tiff_that_pillow_does_not_read_has_the_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((24, 40, 7), np.uint16), photometric="minisblack", planarconfig="contig")
    assert load_image(path, channels=7).shape == (7, 24, 40)
    monkeypatch.setenv("DETCAM_MAX_PIXELS", "900")
    for read in (image_size, lambda file: load_image(file, channels=7)):
        with pytest.raises(ValueError, match="DETCAM_MAX_PIXELS"):
            read(path)


@pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", "y/" * 3000])
def test_a_name_that_no_file_can_have_is_a_missing_file(name: str) -> None:
    with pytest.raises(ValueError, match="no image file at") as caught:
        load_image(name)
    assert len(str(caught.value)) < 300


def test_the_whole_file_system_is_not_searched() -> None:
    from detcam.data.images import expand_paths
    from detcam.explanation.image_files import find_images

    for search in (lambda: expand_paths("//"), lambda: find_images(["//"]), lambda: find_images(["/"])):
        with pytest.raises(ValueError, match="the whole file system"):
            search()
    with pytest.raises(ValueError, match="no file or folder at ''"):
        find_images([""])
