"""Annotation files that are wrong on purpose: a bad entry costs itself alone, and no name leads out of the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detcam.data.annotations import Annotations
from detcam.data.coco_boxes import run_lengths

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 30], "area": 600, "iscrowd": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "images" / "a.png")
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "outside.png")
    return tmp_path


def load(folder: Path, annotations: Any = (), images: Any = (), categories: Any = (), text: str = "") -> Annotations:
    """The good image with its good object, and entries that are not."""
    content = {
        "images": [{"id": 1, "width": 64, "height": 48, "file_name": "a.png"}, *images],
        "annotations": [GOOD, *annotations],
        "categories": [{"id": 1, "name": "cell"}, *categories],
    }
    path = folder / "x.json"
    path.write_text(json.dumps(content).replace('"NUMBER"', text))
    return Annotations.load(path, folder / "images")


BAD_SHAPES: dict[str, dict[str, Any]] = {
    "400 digits": {"bbox": [10**400, 0, 5, 5]},
    "400 digits in an area": {"bbox": [1, 1, 5, 5], "area": 10**400, "segmentation": None},
    "box of 1e30": {"bbox": [0, 0, 1e30, 1e30]},
    "box of 1e308": {"bbox": [-1e308, 0, 1e308, 5]},
    "box as text of many digits": {"bbox": "[" + "9" * 5000 + ",1,1,1]"},
    "far polygon": {"segmentation": [[0, 0, 1e12, 0, 1e12, 1e12]]},
    "polygon of 1e8": {"segmentation": [[0, 0, 1e8, 0, 1e8, 1e8]]},
    "polygon of 400 digits": {"segmentation": [[0, 0, 10**400, 0, 5, 5]]},
    "polygon in nests": {"segmentation": [[[[[0, 0]]]]]},
    "run lengths of another size": {"segmentation": {"size": [10**9, 10**9], "counts": "0"}},
    "run lengths without end": {"segmentation": {"size": [48, 64], "counts": "o" * 10**6}},
    "category of 400 digits": {"bbox": [1, 1, 5, 5], "category_id": 10**400},
    "category as text of 5000 digits": {"bbox": [1, 1, 5, 5], "category_id": "9" * 5000},
    "category as a list": {"bbox": [1, 1, 5, 5], "category_id": [1]},
}


@pytest.mark.parametrize("shape", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_bad_annotation_costs_itself_alone(folder: Path, shape: dict[str, Any]) -> None:
    annotations = load(folder, [{"id": 2, "image_id": 1, "category_id": 1, **shape}])
    truth = annotations[0]
    truth.masks()
    assert truth.ids.tolist()[:1] == [1]
    assert annotations.issues or truth.area.tolist()[1] == 25


def test_the_message_of_a_long_id_is_short(folder: Path) -> None:
    image = {"id": "y" * 20_000, "file_name": "z" * 20_000}
    loaded = load(folder, [GOOD | {"id": 2, "image_id": "x" * 20_000}], [image])
    assert len(loaded.issues) == 2 and all(len(issue.message) <= 400 for issue in loaded.issues)


def test_a_polygon_far_outside_is_left_out_and_its_box_kept(folder: Path) -> None:
    far = [[0, 0, 1e12, 0, 1e12, 1e12]]
    annotations = load(folder, [{"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": far}])
    assert annotations[0].ids.tolist() == [1, 2] and int(annotations[0].mask(1).sum()) == 25
    assert "farther outside" in annotations.issues.summary()


def test_a_polygon_partly_outside_is_kept(folder: Path) -> None:
    partly = [[-10, -10, 30, -10, 30, 30, -10, 30]]
    truth = load(folder, [{"id": 2, "image_id": 1, "category_id": 1, "segmentation": partly}])[0]
    assert int(truth.mask(1).sum()) == 900


def test_an_integer_of_5000_digits_costs_itself_alone(folder: Path) -> None:
    bad = {"id": 2, "image_id": 1, "category_id": 1, "bbox": ["NUMBER", 0, 5, 5]}
    annotations = load(folder, [bad], text="9" * 5000)
    assert annotations[0].ids.tolist() == [1]
    assert annotations.issues.counts() == {"unreadable box": 1}


@pytest.mark.parametrize("name", [None, ["cell"], {"a": 1}])
def test_a_category_without_a_name_is_left_out(folder: Path, name: Any) -> None:
    annotations = load(folder, [{**GOOD, "id": 2, "category_id": 7}], categories=[{"id": 7, "name": name}])
    assert annotations.categories == {1: "cell"} and annotations[0].ids.tolist() == [1]
    assert annotations.issues.counts() == {"unreadable category": 1, "category not in the file": 1}


def test_run_lengths_refuse_numbers_of_many_characters() -> None:
    assert run_lengths("o" * 10**6 + "0") is None
    assert run_lengths("o" * 20) is None
    assert run_lengths("PPj`1") is None or run_lengths("06") == [0, 6]


def outside(folder: Path) -> dict[str, str]:
    link, fifo = folder / "images" / "link.png", folder / "images" / "pipe.png"
    link.symlink_to(folder / "outside.png")
    os.mkfifo(fifo)
    return {
        "parent": "../outside.png",
        "absolute": str(folder / "outside.png"),
        "backslash": "..\\outside.png",
        "percent": "%2e%2e/outside.png",
        "url": "file://host/../outside.png",
        "link": "link.png",
        "pipe": "pipe.png",
        "NUL": "a\0.png",
        "long": "x" * 300 + ".png",
        "very long": "y/" * 5000 + ".png",
        "surrogate": "caf\udce9.png",
        "broken url": "http://[x/outside.png",
        "device": "/dev/zero",
        "empty": "",
        "folder": ".",
    }


def test_no_file_name_leads_out_of_the_folder(folder: Path) -> None:
    names = outside(folder)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names.values(), 10)]
    annotations = load(folder, images=images)
    assert [image.file_name for image in annotations] == ["a.png"]
    counts = annotations.issues.counts()
    assert counts == {"image is missing": len(names)}
    assert "leads out of the image folder" in annotations.issues.summary()
    assert max(len(issue.message) for issue in annotations.issues) < 500


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "images" / "b.png").symlink_to(folder / "images" / "a.png")
    moved = folder.with_name(folder.name + "-link")
    moved.symlink_to(folder)
    annotations = load(moved, images=[{"id": 2, "file_name": "b.png"}])
    assert [image.file_name for image in annotations] == ["a.png", "b.png"]


BAD_YAML = {
    "names as a list of lists": "names: [[a], b]\nval: images\n",
    "names without numbers": "names: {a: b}\nval: images\n",
    "broken": "names: [a\nval: {",
    "folder with NUL": 'names: [a]\nval: "a\\0b"\n',
    "folder of a long name": f"names: [a]\nval: {'x' * 300}\n",
    "whole file system": "names: [a]\npath: /\nval: .\n",
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_a_bad_data_yaml_is_a_value_error_that_names_it(folder: Path, text: str) -> None:
    path = folder / "data.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml|whole file system"):
        Annotations.load(path)


def test_a_bad_label_line_costs_itself_alone(folder: Path) -> None:
    (folder / "data.yaml").write_text("names: [a]\nval: images\n")
    (folder / "labels").mkdir()
    lines = [b"0 .5 .5 .2 .2", b"caf\xe9 1 2 3 4", b"0 nan .5 .2 .2", b"1e400 .5 .5 .2 .2", b"1e300 .5 .5 .2 .2"]
    (folder / "labels" / "a.txt").write_bytes(b"\n".join(lines))
    annotations = Annotations.load(folder / "data.yaml")
    assert len(annotations[0]) == 1
    assert annotations.issues.counts() == {"unreadable label": 3, "category not in the file": 1}
