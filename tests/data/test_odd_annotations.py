"""COCO files as tools write them, and label folders of ultralytics."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from detcam.data.annotations import Annotations, GroundTruth

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

BOX = [4, 6, 20, 30]
POLYGON = [[4, 6, 24, 6, 24, 36, 4, 36]]
MASK = np.zeros((48, 64), np.uint8)
MASK[6:36, 4:24] = 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a b.jpg", "1/c\u00e9.jpg", "1/twice.jpg", "2/twice.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "gray").save(tmp_path / "images" / name)
    return tmp_path


def load(root: Path, image: Any = None, encoding: str = "utf-8", **thing: Any) -> Annotations:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 600, "iscrowd": 0, **thing}
    images = [{"id": 1, "width": 64, "height": 48, "file_name": "images/a b.jpg", **(image or {})}]
    data = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "cell"}]}
    path = root / "x.json"
    path.write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
    return Annotations.load(path, root)


def one(annotations: Annotations) -> GroundTruth:
    assert len(annotations) == 1 and len(annotations[0]) == 1, annotations.issues
    return annotations[0]


NAMES = {
    "backslash": "images\\a b.jpg",
    "percent": "images/a%20b.jpg",
    "label-studio": "/data/local-files/?d=images/a b.jpg",
    "other case": "images/A B.JPG",
    "decomposed": unicodedata.normalize("NFD", "images/1/c\u00e9.jpg"),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_spellings_of_a_file_name(root: Path, name: str) -> None:
    annotations = load(root, {"file_name": name})
    assert one(annotations).path.is_file() and not annotations.issues


@pytest.mark.parametrize(
    "name", ["images/1/a b.jpg", "/home/me/a b.jpg", "..\\upload\\4\\a b.jpg", "https://host/x/a%20b.jpg"]
)
def test_the_only_file_of_a_name_is_taken_and_told(root: Path, name: str) -> None:
    annotations = load(root, {"file_name": name})
    assert one(annotations).path.name == "a b.jpg"
    assert annotations.issues.counts() == {"image found elsewhere": 1}


def test_a_missing_file_has_near_ones(root: Path) -> None:
    assert "2 files have that name: images/1/twice.jpg" in load(root, {"file_name": "x/twice.jpg"}).issues.summary()
    assert "did you mean images/a b.jpg?" in load(root, {"file_name": "images/a b.png"}).issues.summary()


@pytest.mark.parametrize(
    ("encoding", "told"), [("utf-8-sig", False), ("utf-16", True), ("latin-1", True)], ids=["BOM", "utf-16", "latin-1"]
)
def test_encodings(root: Path, encoding: str, told: bool) -> None:
    annotations = load(root, {"file_name": "images/1/c\u00e9.jpg"}, encoding)
    assert one(annotations).path.name == "c\u00e9.jpg"
    assert bool(annotations.issues.of("encoding")) == told


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gbk", "\u65e5\u672c"),
        ("cp932", "\u304b\u308b"),
        ("cp949", "\ud55c\uae00"),
        ("cp1251", "\u043c\u043e\u0440\u0435"),
    ],
)
def test_encodings_are_told_by_the_names_of_files(root: Path, encoding: str, name: str) -> None:
    Image.new("RGB", (64, 48), "gray").save(root / "images" / f"{name}.jpg")
    annotations = load(root, {"file_name": f"images/{name}.jpg"}, encoding)
    assert one(annotations).path.name == f"{name}.jpg"
    assert "the file is not UTF-8 and was read as" in annotations.issues.summary()


def test_sizes_and_ids_as_text(root: Path) -> None:
    annotations = load(root, {"id": "000001", "width": "64", "height": "48"}, category_id="cell")
    assert one(annotations).labels.tolist() == [1]
    exchanged = load(root, {"width": 48, "height": 64}).issues.summary()
    assert "width and height exchanged?" in exchanged


SHAPES: dict[str, dict[str, Any]] = {
    "no box": {"bbox": None, "segmentation": POLYGON},
    "empty box": {"bbox": [], "segmentation": POLYGON},
    "zeros": {"bbox": [0, 0, 0, 0], "segmentation": POLYGON},
    "text": {"bbox": ["4", "6", "20", "30"]},
    "one text": {"bbox": "[4, 6, 20, 30]"},
    "mapping": {"bbox": {"x": 4, "y": 6, "width": 20, "height": 30}},
    "pairs": {"bbox": [], "segmentation": [[4, 6], [24, 6], [24, 36], [4, 36]]},
    "nested pairs": {"bbox": [], "segmentation": [[[4, 6], [24, 6], [24, 36], [4, 36]]]},
    "polygon as text": {"bbox": [], "segmentation": json.dumps(POLYGON)},
    "run lengths in a list": {"bbox": [], "segmentation": [{"size": [48, 64], "counts": "RLE"}]},
    "run lengths as bytes": {"bbox": [], "segmentation": {"size": [48.0, 64.0], "counts": "b'RLE'"}},
    "area 0": {"area": 0},
    "crowd as text": {"iscrowd": "false"},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_odd_forms_of_one_object(root: Path, shape: dict[str, Any]) -> None:
    counts = coco_masks.encode(np.asfortranarray(MASK))["counts"].decode()
    annotations = load(root, **json.loads(json.dumps(shape).replace("RLE", json.dumps(counts)[1:-1])))
    found = one(annotations)
    assert found.boxes_xywh.tolist() == [BOX] and found.area.tolist() == [600] and not found.crowd.any()
    assert np.array_equal(found.masks()[0].numpy(), MASK.astype(bool)) and not annotations.issues


FORMATS = {
    "xyxy, by area": ("xyxy", {"bbox": [4, 6, 24, 36]}),
    "xyxy, by polygon": ("xyxy", {"bbox": [4, 6, 24, 36], "segmentation": POLYGON, "area": None}),
    "xyxy, by the border": ("xyxy", {"bbox": [40, 20, 60, 40], "area": None}),
    "fractions": ("xywh-fractions", {"bbox": [4 / 64, 6 / 48, 20 / 64, 30 / 48]}),
}


@pytest.mark.parametrize(("box_format", "thing"), FORMATS.values(), ids=FORMATS)
def test_other_box_formats_are_refused_with_their_name(root: Path, box_format: str, thing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"look like {box_format}. Pass box_format='{box_format}' .--box-format"):
        load(root, **thing)
    found = Annotations.load(root / "x.json", root, box_format=box_format)[0].boxes_xyxy[0].tolist()
    assert found == ([40, 20, 60, 40] if thing["bbox"][0] == 40 else [4, 6, 24, 36])
    with pytest.raises(ValueError, match="box_format to be one of xywh, xyxy"):
        Annotations.load(root / "x.json", root, box_format="yolo")


def test_upright_boxes_beside_stored_sizes(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "gray").save(root / "r.jpg", exif=exif)
    upright = load(root, {"file_name": "r.jpg"}, bbox=[10, 50, 10, 12], area=None)
    assert one(upright).boxes_xywh.tolist() == [[10, 50, 10, 12]]
    assert "taken as drawn upright" in upright.issues.summary()
    stored = load(root, {"file_name": "r.jpg"}, bbox=[10, 20, 10, 12], area=None)
    assert one(stored).boxes_xywh.tolist() == [[16, 10, 12, 10]]
    assert "are rotated with them. If they are drawn upright, pass box_format='xywh-upright'" in stored.issues.summary()
    for suffix, expected in (("upright", [10, 20, 10, 12]), ("stored", [16, 10, 12, 10])):
        told = Annotations.load(root / "x.json", root, box_format=f"xywh-{suffix}")
        assert one(told).boxes_xywh.tolist() == [expected] and not told.issues
    with pytest.raises(ValueError, match="also with -upright or -stored appended"):
        Annotations.load(root / "x.json", root, box_format="xywh-turned")


def test_stored_boxes_beside_upright_sizes(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "gray").save(root / "r.jpg", exif=exif)
    found = load(root, {"file_name": "r.jpg", "width": 48, "height": 64}, bbox=[50, 20, 10, 12], area=None)
    assert one(found).boxes_xywh.tolist() == [[16, 50, 12, 10]]
    assert "taken as drawn on the stored pixels" in found.issues.summary()


def test_boxes_that_fit_both_frames_are_told_once(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    entry = {"width": 48, "height": 64}
    images = [{"id": number, "file_name": f"r{number}.jpg", **entry} for number in (1, 2)]
    for image in images:
        Image.new("RGB", (64, 48), "gray").save(root / image["file_name"], exif=exif)
    boxes = [{"id": number, "image_id": number, "category_id": 1, "bbox": [10, 20, 10, 12]} for number in (1, 2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}

    def issues(**options: str) -> list[str]:
        (root / "x.json").write_text(json.dumps(content))
        return [issue.message for issue in Annotations.load(root / "x.json", root, **options).issues]

    assert issues() == [
        "2 images rotated by EXIF, whose boxes fit the stored pixels, too: they are taken as drawn upright. If they "
        "are drawn on the stored pixels, pass box_format='xywh-stored' (--box-format)"
    ]
    assert issues(box_format="xywh-stored") == issues(box_format="xywh-upright") == []
    boxes[1]["bbox"] = [10, 50, 10, 12]  # ends outside of the stored pixels
    assert issues() == []


def test_rotations_that_keep_the_size_are_told(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (64, 48), "gray").save(root / "r.jpg", exif=exif)
    upright = load(root, {"file_name": "r.jpg"}, bbox=[10, 20, 10, 12], area=None)
    assert one(upright).boxes_xywh.tolist() == [[10, 20, 10, 12]]
    assert "pass box_format='xywh-stored'" in upright.issues.summary()
    stored = Annotations.load(root / "x.json", root, box_format="xywh-stored")
    assert one(stored).boxes_xywh.tolist() == [[44, 16, 10, 12]] and not stored.issues


KNOWN = {
    "results": ([{"image_id": 1, "score": 0.5}], "results of a detector"),
    "VIA": ({"_via_settings": {}}, "VGG Image Annotator"),
    "labelme": ({"shapes": [], "imagePath": "a.jpg"}, "labelme"),
}


@pytest.mark.parametrize(("content", "message"), KNOWN.values(), ids=KNOWN)
def test_other_files_are_named(root: Path, content: Any, message: str) -> None:
    (root / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Annotations.load(root / "x.json", root)


def test_categories_from_zero_beside_a_background(root: Path) -> None:
    load(root, category_id=0)
    data = json.loads((root / "x.json").read_text()) | {"categories": [{"id": 0, "name": "cell"}]}
    (root / "x.json").write_text(json.dumps(data))
    annotations = Annotations.load(root / "x.json", root)
    with pytest.raises(ValueError, match=r"0 = cell would be the background.*names=\{1: 'cell'\}"):
        annotations.for_classes({}, first_label=1)
    assert annotations.for_classes({}).labels == (0,)
    assert annotations.for_classes({1: "cell"}, first_label=1).labels == (1,)


class TestUltralytics:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        for name in ("a", "b", "c"):
            (tmp_path / "images" / "val").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), "gray").save(tmp_path / "images" / "val" / f"{name}.jpg")
        labels = tmp_path / "labels" / "val"
        labels.mkdir(parents=True)
        points = " ".join(str(v / (48 if i % 2 else 64)) for i, v in enumerate(POLYGON[0]))
        (labels / "a.txt").write_text(f"1 {14 / 64} {21 / 48} {20 / 64} {30 / 48}\n0 {points}\n")
        (labels / "b.txt").write_text("0 0.5 0.5\n\n1 0.5 0.5 1 1\n")
        (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: RBC, 1: WBC}\n")
        return tmp_path / "data.yaml"

    def test_boxes_and_polygons(self, data: Path) -> None:
        annotations = Annotations.load(data)
        assert [image.path.name for image in annotations] == ["a.jpg", "b.jpg", "c.jpg"]
        first, second, third = annotations
        np.testing.assert_allclose(first.boxes_xywh, [BOX, BOX], atol=1e-6)
        assert first.labels.tolist() == [1, 0] and np.array_equal(first.masks()[1].numpy(), MASK.astype(bool))
        assert second.boxes_xyxy.tolist() == [[0, 0, 64, 48]] and len(third) == 0
        assert annotations.categories == {0: "RBC", 1: "WBC"}
        assert annotations.issues.counts() == {"unreadable label": 1, "empty ground truth": 1}

    def test_a_folder_of_images_may_be_given(self, data: Path) -> None:
        assert len(Annotations.load(data, data.parent / "images" / "val")) == 3
        (data.parent / "none").mkdir()
        with pytest.raises(ValueError, match="no images below"):
            Annotations.load(data, data.parent / "none")
        data.write_text("train: images/train")
        with pytest.raises(ValueError, match="data.yaml of ultralytics with names"):
            Annotations.load(data)
