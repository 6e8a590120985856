"""Damaged files for every parser: what can be read, or a ValueError, and nothing else."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from detcam.benchmarking.result_store import ResultStore
from detcam.benchmarking.specs import parse_metric
from detcam.cli.explain import parse_box
from detcam.cli.options import parse_class_map, parse_numbers, parse_size
from detcam.data.annotations import Annotations
from detcam.data.exif import image_size
from detcam.data.images import load_image
from detcam.explanation.writer import read_heatmap, read_index
from detcam.methods.spec import parse_method
from detcam.models.checkpoints import read_checkpoint, state_dict_of
from detcam.models.files import read_names
from detcam.utils.memory import parse_bytes
from tests.fuzz.counts import check, counts


def quietly(run: Callable[[], Any], *allowed: type[Exception]) -> Any:
    """Run a parser; None where it raises ValueError, or another type that its documentation names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run()
        except (ValueError, *allowed) as error:
            assert str(error), repr(error)
            return None


@st.composite
def damaged(draw: Any, contents: list[bytes]) -> bytes:
    """One of some files, with bytes changed, left out, repeated or inserted."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 12))
        kind = draw(st.sampled_from(["change", "cut", "remove", "repeat", "insert"]))
        if kind == "change":
            content[position : position + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del content[position:]
        elif kind == "remove":
            del content[position : position + length]
        elif kind == "repeat":
            content[position:position] = content[position : position + length]
        else:
            content[position:position] = draw(st.binary(max_size=12))
    return bytes(content)


def image_files() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image, exif, files = Image.fromarray(pixels), Image.Exif(), []
    exif[0x0112], exif[0x010F] = 6, "maker"
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    image.convert("L").save(buffer, "TIFF", save_all=True, append_images=[image.convert("L")], compression="tiff_lzw")
    return [*files, buffer.getvalue()]


@counts(200, 5000)
def test_images(count: int, tmp_path: Path) -> None:
    def read(content: bytes, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        image, size = quietly(lambda: load_image(path)), quietly(lambda: image_size(path))
        if image is not None:
            assert image.dtype == torch.float32 and image.shape[0] == 3 and 0 <= image.min() <= image.max() <= 1
            assert size is None or tuple(image.shape[1:]) == size.upright_hw

    check(count, read, content=damaged(image_files()), suffix=st.sampled_from([".png", ".jpg", ".tif"]))


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 100),
    st.sampled_from([2**31, -(2**63), 2**64, 10**400, 1e8, 1e30, 1e308, -1e-300, float("nan"), float("inf")]),
    st.floats(-100, 200),
    st.sampled_from(
        ["a.png", "../a.png", "/etc/passwd", "b.png", "", "\0", "x" * 300, "1", "[1, 2, 3, 4]", "cell", "e"]
    ),
    st.text(max_size=8),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner))
points = st.lists(st.one_of(st.floats(-80, 140), leaves), min_size=5, max_size=10)
shapes = st.one_of(
    st.lists(points, max_size=2),
    st.fixed_dictionaries({"size": st.sampled_from([[48, 64], [64, 48], [], [10**9, 10**9]]), "counts": values}),
    st.text("0123Pjo`_1", max_size=30).map(lambda text: {"size": [48, 64], "counts": text}),
    st.lists(st.integers(-1, 3072), max_size=5).map(lambda runs: {"size": [48, 64], "counts": runs}),
)


def entry(**keys: Any) -> Any:
    """An entry with the usual keys, most of them with usual values, or any other value."""
    return st.one_of(st.fixed_dictionaries({}, optional=keys), values)


coco = st.fixed_dictionaries(
    {
        "images": st.lists(
            entry(
                id=st.one_of(st.integers(0, 3), leaves),
                file_name=st.one_of(st.just("a.png"), leaves),
                width=st.one_of(st.just(64), leaves),
                height=st.one_of(st.just(48), leaves),
            ),
            max_size=3,
        ),
        "annotations": st.lists(
            entry(
                id=st.one_of(st.integers(0, 3), leaves),
                image_id=st.one_of(st.integers(0, 3), leaves),
                category_id=st.one_of(st.integers(0, 2), leaves),
                bbox=st.one_of(st.lists(st.floats(-10, 70), min_size=4, max_size=4), values),
                segmentation=st.one_of(shapes, values),
                area=leaves,
                iscrowd=leaves,
            ),
            max_size=4,
        ),
        "categories": st.lists(entry(id=st.one_of(st.integers(0, 2), leaves), name=leaves), max_size=2),
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.png")
    return tmp_path


def check_annotations(annotations: Annotations | None, folder: Path) -> None:
    for truth in annotations or ():
        assert truth.path.resolve().is_relative_to((folder / "images").resolve())
        assert truth.masks().shape == (len(truth), 48, 64)
        assert torch.isfinite(truth.boxes_xyxy).all() and np.isfinite(truth.boxes_xywh).all()
        assert (truth.boxes_xyxy.abs() < 1e8).all()


@counts(80, 5000)
def test_coco_files(count: int, folder: Path) -> None:
    path = folder / "x.json"

    def read(content: Any) -> None:
        path.write_text(json.dumps(content), errors="surrogatepass")
        annotations = quietly(lambda: Annotations.load(path, folder / "images"))
        check_annotations(annotations, folder)
        if annotations is not None and annotations.categories:
            quietly(lambda: annotations.for_classes(["cell", "1", "e"]))

    check(count, read, content=st.one_of(coco, coco, coco, values))


@counts(80, 2500)
def test_coco_text(count: int, folder: Path) -> None:
    good = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 9, 2, 9, 9]]}
    images, categories = [{"id": 1, "file_name": "a.png"}], [{"id": 1, "name": "cell"}]
    content = json.dumps({"images": images, "annotations": [good], "categories": categories}).encode()
    path = folder / "x.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_annotations(quietly(lambda: Annotations.load(path, folder / "images")), folder)

    check(count, read, content=damaged([content, content.decode().encode("utf-16")]))


@counts(60, 2500)
def test_yolo_labels_and_settings(count: int, folder: Path) -> None:
    settings = b"path: .\nval: images\nnames:\n  0: cell\n  1: e\n"
    lines = b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9\n"

    def read(settings: bytes, labels: bytes) -> None:
        (folder / "data.yaml").write_bytes(settings)
        (folder / "labels" / "a.txt").write_bytes(labels)
        check_annotations(quietly(lambda: Annotations.load(folder / "data.yaml")), folder)

    check(
        count,
        read,
        settings=st.one_of(st.just(settings), damaged([settings])),
        labels=st.one_of(damaged([lines]), st.binary(max_size=60)),
    )


@counts(60, 2500)
def test_results(count: int, tmp_path: Path) -> None:
    target = {"overlay": "a.png", "heatmap": "b.png"}
    one = {"path": None, "name": "a", "digest": "0", "model": "m", "method": "odam", "stem": "a.odam"}
    one |= {"target_layers": ["x"], "smoothing": [], "targets": [target]}
    index = json.dumps({"schema": "detcam/explanations", "version": 2, "images": [one]}).encode()
    (tmp_path / "store").mkdir()
    store = ResultStore(tmp_path / "store", {"schema": "s", "version": 1})
    store.put("key", "odam", {"values": {}, "error": None})
    store.put_heatmap("key", "odam", np.zeros((4, 5)))
    (cell,), (heatmap,) = (tmp_path / "store" / "cells").rglob("*.json"), (tmp_path / "store" / "cells").rglob("*.png")
    settings, cell_content, png = tmp_path / "store" / "settings.json", cell.read_bytes(), heatmap.read_bytes()
    settings_content = settings.read_bytes()

    def read(index: bytes, cell_bytes: bytes, png_bytes: bytes, settings_bytes: bytes) -> None:
        (tmp_path / "explanations.json").write_bytes(index)
        for entry in quietly(lambda: read_index(tmp_path / "explanations.json")) or []:
            assert Path(entry["stem"]).name == entry["stem"]
        cell.write_bytes(cell_bytes)
        heatmap.write_bytes(png_bytes)
        assert isinstance(store.get("key", "odam"), (dict, type(None)))
        found = store.get_heatmap("key", "odam")
        assert found is None or found.ndim == 2
        quietly(lambda: read_heatmap(heatmap))
        settings.write_bytes(settings_bytes)
        quietly(lambda: ResultStore(tmp_path / "store", {"schema": "s", "version": 1}))

    check(
        count,
        read,
        index=damaged([index]),
        cell_bytes=damaged([cell_content]),
        png_bytes=damaged([png]),
        settings_bytes=damaged([settings_content]),
    )


@counts(50, 2500)
def test_checkpoints(count: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"a": torch.zeros(3), "b": torch.ones(2, 2)}}, path)
    zipped = path.read_bytes()
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    contents = [zipped, path.read_bytes()]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = quietly(lambda: read_checkpoint(path, trust=False))
        if found is not None:
            quietly(lambda: state_dict_of(found, path))

    check(count, read, content=damaged(contents))


texts = st.one_of(st.text(max_size=12), st.text("0123456789,.x=:-+eE aNinf[]()\"'GM", max_size=16))


@counts(150, 5000)
def test_settings_as_text(count: int, tmp_path: Path) -> None:
    names = tmp_path / "names.json"

    def read(text: str) -> None:
        for parse in (parse_size, parse_box, parse_bytes):
            quietly(lambda parse=parse: parse(text))
        quietly(lambda: parse_numbers(text, "--value-range", (2,), float))
        quietly(lambda: parse_numbers(text, "--show-bands", (1, 3), int))
        quietly(lambda: parse_class_map([text]))
        for name in ("rise:passes=", "occlusion:", ""):
            quietly(lambda name=name: parse_method(name + text))
        quietly(lambda: parse_metric(text), TypeError)
        names.write_text(text, encoding="utf-8", errors="replace")
        quietly(lambda: read_names(str(names)))
        quietly(lambda: read_names(text))

    check(count, read, text=texts)
