"""Images of any number of channels and any depth: the same scene stored otherwise is the same image."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, UnidentifiedImageError

from detcam.data.decoding import read_file
from detcam.data.exif import ImageSize, image_size
from detcam.data.images import ImageReader, expand_paths, load_image, load_images, to_uint8
from detcam.utils.opencv import cv2

SCENE = np.linspace(0.1, 0.9, 6 * 8, dtype=np.float32).reshape(6, 8)
BANDS = np.stack([SCENE * factor for factor in (1.0, 0.5, 0.25, 0.75, 0.6)], axis=-1)


def close(image: torch.Tensor, expected: np.ndarray, atol: float = 1 / 500) -> None:
    torch.testing.assert_close(image, torch.as_tensor(expected), atol=atol, rtol=0)


DEPTHS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "uint8 png": ("x.png", (SCENE * 255).round().astype(np.uint8), {}),
    "uint16 png": ("x.png", (SCENE * 65535).astype(np.uint16), {}),
    "uint16 tiff": ("x.tif", (SCENE * 65535).astype(np.uint16), {}),
    "12 of 16 bits": ("x.png", (SCENE * 4095).astype(np.uint16), {"value_range": (0, 4095)}),
    "int32 tiff": ("x.tif", (SCENE * 4095).astype(np.int32), {"value_range": (0, 4095)}),
    "float tiff": ("x.tif", SCENE, {}),
    "float tiff in 0..255": ("x.tif", SCENE * 255, {"value_range": (0, 255)}),
    "reflectance": ("x.tif", SCENE * 10000, {"value_range": (0, 10000)}),
}


@pytest.mark.parametrize(("name", "array", "options"), DEPTHS.values(), ids=DEPTHS)
def test_the_scene_is_the_same_in_every_depth(tmp_path: Path, name: str, array: np.ndarray, options: Any) -> None:
    Image.fromarray(array).save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channels in (1, 3):
            close(load_image(tmp_path / name, channels=channels, **options), np.stack([SCENE] * channels))
        close(load_image(array, channels=1, **options)[0], SCENE)


def test_sixteen_bit_color_keeps_its_bits_and_order(tmp_path: Path) -> None:
    color = (BANDS[..., :3] * 65535).astype(np.uint16)
    for name in ("x.png", "x.tif"):
        cv2.imwrite(str(tmp_path / name), np.ascontiguousarray(color[..., ::-1]))
        close(load_image(tmp_path / name), BANDS[..., :3].transpose(2, 0, 1), 1e-4)


REFUSED = {
    "int32": (SCENE * 4095, np.int32, TypeError, r"int32 with values from 409 to 3685.*value_range=.*\(0, 4095\)"),
    "int64": (SCENE * 255, np.int64, TypeError, r"value_range=.*\(0, 255\)"),
    "float": (SCENE * 10000, np.float32, ValueError, r"value_range=.*\(0, 10000\)"),
}


@pytest.mark.parametrize(("array", "dtype", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_values_without_a_range_are_refused(array: Any, dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_image(array.astype(dtype), channels=1)
    with pytest.raises(ValueError, match="low < high"):
        load_image(array.astype(dtype), channels=1, value_range=(4, 4))


def test_nearly_black_sixteen_bits_are_reported() -> None:
    with pytest.warns(UserWarning, match=r"up to 3685 of 65535 are nearly black.*value_range="):
        load_image((SCENE * 4095).astype(np.uint16), channels=1)


def test_files_of_many_bands(tmp_path: Path) -> None:
    whole = (BANDS * 255).round().astype(np.uint8)
    path = tmp_path / "bands.tif"
    for layout, order in ((whole, "contig"), (whole.transpose(2, 0, 1), "separate")):
        tifffile.imwrite(path, layout, photometric="minisblack", planarconfig=order)
        close(load_image(path, channels=5), BANDS.transpose(2, 0, 1))
        close(load_image(path, channels=None), BANDS.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"\(H, W, 4\), as the network has 4 channels; got \(6, 8, 5\)"):
        load_image(path, channels=4)
    Image.fromarray(whole[..., :4]).save(tmp_path / "four.tif")
    close(load_image(tmp_path / "four.tif", channels=4), BANDS[..., :4].transpose(2, 0, 1))
    assert load_image(tmp_path / "four.tif").shape == (3, 6, 8)


def test_pages_are_channels_or_named(tmp_path: Path) -> None:
    pages = [Image.fromarray((BANDS[..., i] * 255).round().astype(np.uint8)) for i in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(load_image(tmp_path / "pages.tif", channels=5), BANDS.transpose(2, 0, 1))
        close(load_image(tmp_path / "pages.tif", channels=1, page=2)[0], BANDS[..., 2])
    with pytest.warns(UserWarning, match=r"has 5 pages or frames: the first is read; page="):
        close(load_image(tmp_path / "pages.tif")[0], BANDS[..., 0])
    with pytest.raises(ValueError, match="has 5 pages; page 7 does not exist"):
        load_image(tmp_path / "pages.tif", page=7)


def test_color_and_gray_follow_the_network(tmp_path: Path) -> None:
    color = (BANDS[..., :3] * 255).round().astype(np.uint8)
    Image.fromarray(color).save(tmp_path / "color.png")
    gray = load_image(tmp_path / "color.png", channels=1)
    close(gray[0], np.asarray(Image.fromarray(color).convert("L"), np.float32) / 255)
    with pytest.raises(ValueError, match=r"\(H, W, 1\).*got \(6, 8, 3\)"):
        load_image(color, channels=1)
    with pytest.raises(ValueError, match=r"without transparency: array\[..., :3\]"):
        load_image(np.zeros((4, 6, 4), np.uint8))
    with pytest.raises(ValueError, match="repeat gray"):
        load_image(color[..., 0])


def test_bgr_arrays() -> None:
    color = (BANDS[..., :3] * 255).round().astype(np.uint8)
    assert torch.equal(load_image(color[..., ::-1], bgr=True), load_image(color))
    assert torch.equal(load_image(Image.fromarray(color), bgr=True), load_image(color)), "only arrays have an order"


def test_a_tensor_that_was_read_is_not_scaled_again() -> None:
    reader = ImageReader(1, value_range=(0, 4095))
    image = reader.read((SCENE * 4095).astype(np.int32))
    close(reader.read(image)[0], SCENE)


def test_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    for name in ("in/b.jfif", "in/a.png", "in/deep/c.jp2", "in/d.avif"):
        Image.new("RGB", (8, 6), "white").save(tmp_path / name, format="JPEG" if name.endswith("jfif") else None)
    assert [path.name for path in expand_paths(tmp_path / "in")] == ["a.png", "b.jfif", "d.avif", "c.jp2"]
    assert len(load_images(str(tmp_path / "in"))) == 4
    assert len(load_images([str(tmp_path / "in" / "*.png"), tmp_path / "in" / "deep"])) == 2
    with pytest.raises(ValueError, match="no images in"):
        load_images(str(tmp_path / "in" / "*.gif"))


@pytest.mark.parametrize("read", [load_image, image_size])
def test_heic_files_need_their_extra(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"....ftypheic")
    with pytest.raises(ValueError, match=r"photo.heic: HEIC files need pip install 'detcam\[heic\]'"):
        read(tmp_path / "photo.heic")


@pytest.mark.parametrize("read", [load_image, image_size])
def test_heic_files_are_read(read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    for table in ("ID", "OPEN", "EXTENSION", "MIME"):  # as in a process that has not read such a file yet
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    color = np.zeros((64, 96, 3), np.uint8)
    color[:, :48] = 200, 40, 10
    pillow_heif.from_pillow(Image.fromarray(color)).save(tmp_path / "photo.HEIC", quality=95)
    found = read(tmp_path / "photo.HEIC")
    if isinstance(found, torch.Tensor):
        close(found, color.transpose(2, 0, 1) / np.float32(255), 0.05)
    else:
        assert found == ImageSize((64, 96))


def test_drawn_bands() -> None:
    image = torch.as_tensor(BANDS.transpose(2, 0, 1))
    assert np.array_equal(to_uint8(image), to_uint8(image[:3]))
    assert np.array_equal(to_uint8(image, [4, 0, 1])[..., 0], to_uint8(image[4:5])[..., 1])
    assert np.array_equal(to_uint8(image, 3), to_uint8(image[3:4]))
    assert to_uint8(image[:2]).shape == (6, 8, 3)
    with pytest.raises(ValueError, match="one or three of the 5 channels"):
        to_uint8(image, [0, 5, 1])


def test_tiff_of_many_bands_where_another_package_replaced_image_open(tmp_path: Path, monkeypatch: Any) -> None:
    """A replacement of Pillow's function that raises ImportError for unknown formats changes nothing."""
    path = tmp_path / "x.tif"
    pixels = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    original = Image.open

    def image_open(*args: Any, **kwargs: Any) -> Image.Image:
        try:
            return original(*args, **kwargs)
        except UnidentifiedImageError as error:
            raise ModuleNotFoundError("No module named 'pi_heif'") from error

    monkeypatch.setattr(Image, "open", image_open)
    assert image_size(path).stored_hw == (6, 5)
    assert np.array_equal(read_file(path, 4, None), pixels)
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="unknown format"):
        image_size(tmp_path / "x.png")


def test_big_endian_arrays_are_read_as_those_of_this_machine() -> None:
    native = (SCENE * 65535).astype(np.uint16)
    torch.testing.assert_close(load_image(native.astype(">u2"), channels=1), load_image(native, channels=1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_image(np.full_like(SCENE, np.nan, dtype=">f4"), channels=1)
