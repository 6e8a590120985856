"""Reading images: every kind that people have, and clear errors for what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detcam.data.images import load_image, load_images, to_uint8
from detcam.demo.labels import write_coco
from detcam.explanation.image_files import find_images
from detcam.explanation.writer import encode_heatmap, read_heatmap
from detcam.runs import lock_folder
from detcam.visualize.overlay import save_image

ARRAY = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def test_all_kinds_give_equal_tensors(tmp_path: Path) -> None:
    path = tmp_path / "ü b.png"
    Image.fromarray(ARRAY).save(path)
    expected = torch.from_numpy(ARRAY.transpose(2, 0, 1).copy()).float() / 255
    for kind in (path, str(path), Image.fromarray(ARRAY), ARRAY, ARRAY / np.float32(255), expected, expected.double()):
        torch.testing.assert_close(load_image(kind), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(load_image((expected * 255).round().byte()), expected)
    assert np.array_equal(to_uint8(expected), ARRAY)


def test_the_home_folder_has_a_sign_and_names_may_begin_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "~draft.png"):
        Image.fromarray(ARRAY).save(tmp_path / name)
    assert load_image("~/a.png").shape == load_image("~draft.png").shape == (3, 4, 6)
    assert len(load_images(["~/a.png", "~draft.png", "~/*.png"])) == 4
    with lock_folder("~/out") as out:
        assert out == tmp_path / "out" and out.is_dir()
    assert save_image("~/new/b.png", ARRAY) == tmp_path / "new" / "b.png" == find_images(["~/new"])[0]
    (out / "heat.png").write_bytes(encode_heatmap(np.eye(4)))
    assert np.array_equal(read_heatmap("~/out/heat.png"), np.eye(4))
    labels = write_coco("~/out", [])
    assert labels == out / "annotations.json" and labels.is_file()
    assert find_images(["~/a.png", "~draft.png"]) == [tmp_path / "a.png", Path("~draft.png")]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it upright
    path = tmp_path / "rotated.png"
    Image.fromarray(ARRAY).save(path, exif=exif)
    assert np.array_equal(to_uint8(load_image(path)), np.rot90(ARRAY, -1))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_other_modes_are_converted_to_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray(ARRAY).convert(mode if mode != "LA" else "L").convert(mode).save(path)
    assert load_image(path).shape == (3, 4, 6)


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 32768], [65535, 16384]], dtype=np.uint16)).save(path)
    torch.testing.assert_close(load_image(path)[0], torch.tensor([[0.0, 0.5], [1.0, 0.25]]), atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (ARRAY[..., :2], ValueError, r"\(H, W, 3\)"),
        (ARRAY.transpose(2, 0, 1), ValueError, r"\(H, W, 3\)"),
        (ARRAY.astype(np.int64), TypeError, "uint8"),
        (ARRAY.astype(np.float32), ValueError, "Divide 0..255"),
        (torch.rand(4, 6, 3), ValueError, "permute"),
        (torch.rand(1, 4, 6), ValueError, "3 channels"),
        (torch.zeros(3, 0, 6), ValueError, "no pixels"),
        (torch.full((3, 4, 6), float("nan")), ValueError, "NaN"),
        (torch.zeros(3, 4, 6, dtype=torch.int64), TypeError, "uint8 or float"),
        ("no such file.png", ValueError, "no image file"),
        (7, TypeError, "expected a path"),
    ],
)
def test_invalid_images_raise_with_a_remedy(bad: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_image(bad)  # type: ignore[arg-type]


def test_unreadable_and_truncated_files(tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    noise.write_bytes(b"this is no image")
    with pytest.raises(ValueError, match="cannot read"):
        load_image(noise)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(ValueError, match="complete"):
        load_image(cut)


def test_lists_name_the_invalid_image() -> None:
    with pytest.raises(ValueError, match="empty list"):
        load_images([])
    with pytest.raises(ValueError, match="image 1: .*no image file"):
        load_images([ARRAY, "missing.png"])
    assert len(load_images(torch.rand(2, 3, 4, 5))) == 2


def test_features_of_an_image_processor_name_their_tensor() -> None:
    with pytest.raises(TypeError, match=r"features\['pixel_values'\]"):
        load_images({"pixel_values": torch.rand(1, 3, 8, 8)})  # type: ignore[arg-type]
