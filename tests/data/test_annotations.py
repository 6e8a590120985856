"""Annotated images: every shape of COCO file that people have, and every way in which one can be wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from detcam.data.annotations import Annotations, GroundTruth
from detcam.data.coco_boxes import run_lengths
from detcam.data.images import load_image

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "traffic light"}]


def make_image(folder: Path, name: str = "a.png", size_hw: tuple[int, int] = (20, 30)) -> dict[str, Any]:
    Image.fromarray(np.full((*size_hw, 3), 99, np.uint8)).save(folder / name)
    return {"id": 7, "file_name": name, "height": size_hw[0], "width": size_hw[1]}


def thing(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 5], "area": 50, "iscrowd": 0, **fields}


def load(
    folder: Path, annotations: list[Any], images: list[Any] | None = None, categories: list[Any] | None = None
) -> Annotations:
    images = [make_image(folder)] if images is None else images
    categories = CATEGORIES if categories is None else categories
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Annotations.load(path, folder)


def only(annotations: Annotations) -> GroundTruth:
    (image,) = annotations
    return image


def test_boxes_classes_crowds_and_areas(tmp_path: Path) -> None:
    found = only(load(tmp_path, [thing(), thing(id=5, category_id=3, iscrowd=1, area=12.5, bbox=[0.1, 0, 4.25, 5])]))
    assert found.boxes_xyxy.dtype == torch.float32
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[2, 3, 12, 8], [0.1, 0, 4.35, 5]]))
    assert found.boxes_xywh[1].tolist() == [0.1, 0, 4.25, 5]  # not one digit lost
    assert found.labels.tolist() == [1, 3] and found.labels.dtype == torch.int64
    assert found.crowd.tolist() == [False, True]
    assert found.area.tolist() == [50, 12.5]
    assert found.ids.tolist() == [1, 5]
    assert (found.image_id, found.image_size_hw, found.name(1)) == (7, (20, 30), "traffic light")
    assert found.path == tmp_path / "a.png"
    assert found[found.crowd].ids.tolist() == [5] and found[[1, 0]].ids.tolist() == [5, 1] and len(found[0]) == 1


def test_masks_from_every_kind_of_segmentation(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 11:17] = 1
    counts = [11 * 20 + 4, *([5, 15] * 5), 5]
    counts.append(600 - sum(counts))
    compressed = coco_masks.encode(np.asfortranarray(mask))
    shapes = [
        [[11, 4, 17, 4, 17, 9, 11, 9]],
        {"size": [20, 30], "counts": counts},
        {"size": [20, 30], "counts": compressed["counts"].decode()},
        [[11, 4, 14, 4, 14, 9, 11, 9], [14, 4, 17, 4, 17, 9, 14, 9]],
        None,
    ]
    things = [thing(id=i, segmentation=shape, bbox=[11, 4, 6, 5]) for i, shape in enumerate(shapes)]
    annotations = load(tmp_path, things)
    assert not annotations.issues
    masks = only(annotations).masks()
    assert masks.shape == (5, 20, 30) and masks.dtype == torch.bool
    for kind, found in enumerate(masks.numpy()):
        assert np.array_equal(found, mask.astype(bool)), kind
    assert only(load(tmp_path, [])).masks().shape == (0, 20, 30)


def test_the_box_is_taken_from_the_segmentation_and_the_area_from_the_box(tmp_path: Path) -> None:
    bare = {"id": 1, "image_id": 7, "category_id": 1}
    found = only(load(tmp_path, [{**bare, "segmentation": [[11, 4, 17, 4, 17, 9, 11, 9]]}]))
    assert found.boxes_xyxy.tolist() == [[11, 4, 17, 9]]
    assert found.area.tolist() == [30] and found.crowd.tolist() == [False]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_boxes_and_masks_fit_rotated_images(tmp_path: Path, orientation: int, frame: str) -> None:
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[3:8, 2:12] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "r.png", exif=exif)
    shown = load_image(tmp_path / "r.png")[0] > 0.5
    rows, columns = torch.nonzero(shown.any(1))[:, 0], torch.nonzero(shown.any(0))[:, 0]
    upright = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    stored_is_known = frame == "stored" and orientation >= 5  # else width and height say upright
    left, top, right, bottom = [2, 3, 12, 8] if stored_is_known else upright
    height, width = (20, 30) if stored_is_known else shown.shape
    polygon = [[left, top, right, top, right, bottom, left, bottom]]
    entry = {"id": 7, "file_name": "r.png", "height": height, "width": width}
    box = [left, top, right - left, bottom - top]
    annotations = load(tmp_path, [thing(bbox=box, segmentation=polygon), thing(id=2, bbox=box)], [entry])
    fits_both_frames = orientation >= 2 and bottom <= 20 and right <= 30  # the size says which, if it changes
    is_told = stored_is_known or fits_both_frames
    assert set(annotations.issues.counts()) == ({"boxes of rotated images"} if is_told else set())
    found = only(annotations)
    assert found.image_size_hw == tuple(shown.shape)
    for index in range(2):
        assert found.boxes_xyxy[index].tolist() == upright
        assert torch.equal(found.masks()[index], shown)


def test_images_of_every_kind_have_the_reported_size(tmp_path: Path) -> None:
    gray = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(gray).save(tmp_path / "deep.png")
    Image.fromarray((gray >> 8).astype(np.uint8)).save(tmp_path / "gray.png")
    Image.new("CMYK", (30, 20), (10, 20, 30, 0)).save(tmp_path / "cmyk.jpg")
    names = ["deep.png", "gray.png", "cmyk.jpg"]
    annotations = load(tmp_path, [], [{"id": name, "file_name": name} for name in names])
    assert [image.image_id for image in annotations] == names
    for image in annotations:
        assert load_image(image.path).shape == (3, *image.image_size_hw) == (3, 20, 30)
    assert annotations.paths == [tmp_path / name for name in names]


def test_a_truncated_image_is_listed_and_raises_when_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    image = only(load(tmp_path, [], [{"id": 1, "file_name": "cut.jpg"}]))
    with pytest.raises(ValueError, match=r"cut\.jpg.*complete"):
        load_image(image.path)


WRONG = {
    "duplicate annotation id": [thing(), thing()],
    "annotation of an unlisted image": [thing(), thing(id=2, image_id=99)],
    "category not in the file": [thing(), thing(id=2, category_id=2)],
    "box of zero size": [thing(), thing(id=2, bbox=[1, 1, 0, 4])],
    "box outside the image": [thing(), thing(id=2, bbox=[30, 1, 5, 4])],
    "unreadable box": [thing(), thing(id=2, bbox=[1, 2, float("nan"), 4]), thing(id=3, bbox=None)],
    "unreadable annotation": [thing(), {"bbox": [1, 2, 3, 4]}, "nonsense"],
}


@pytest.mark.parametrize("kind", WRONG)
def test_invalid_annotations_are_skipped_counted_and_reported(tmp_path: Path, kind: str) -> None:
    annotations = load(tmp_path, WRONG[kind])
    assert only(annotations).ids.tolist() == [1]
    assert annotations.issues.counts() == {kind: len(WRONG[kind]) - 1}
    assert all("left out" in issue.message for issue in annotations.issues)
    with pytest.warns(UserWarning, match=f"labels.json: .* problems?\n.* x {kind}"):
        Annotations.load(annotations.path, tmp_path)


def test_unusual_annotations_are_kept_and_reported(tmp_path: Path) -> None:
    beyond = thing(bbox=[25, 1, 10, 4])
    same_id = thing(bbox=[1, 1, 3, 3], iscrowd=0)
    wrong_rle = thing(id=4, segmentation={"size": [5, 5], "counts": [25]})
    short = thing(id=5, segmentation=[[1, 1, 2, 2]])
    torn = [thing(id=6 + i, segmentation={"size": [20, 30], "counts": text}) for i, text in enumerate(["0", "~~", "o"])]
    annotations = load(tmp_path, [beyond, same_id, wrong_rle, short, *torn])
    assert only(annotations).boxes_xyxy.tolist()[:2] == [[25, 1, 35, 5], [1, 1, 4, 4]]
    assert only(annotations).masks()[2:].flatten(1).sum(1).tolist() == [50] * 5
    assert annotations.issues.counts() == {
        "unreadable segmentation": 5,
        "box partly outside the image": 1,
        "duplicate annotation id": 1,
    }


def test_invalid_images_are_skipped_with_their_annotations(tmp_path: Path) -> None:
    good = make_image(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    images = [
        good,
        {"id": 8, "file_name": "gone.png"},
        {"id": 9, "file_name": "text.png"},
        {**make_image(tmp_path, "other.png"), "id": 10, "height": 40, "width": 60},
        {**good, "file_name": "other.png"},
        {**good, "id": 11},
        {"id": 12},
    ]
    annotations = load(tmp_path, [thing(id=i, image_id=i) for i in range(7, 13)], images)
    assert only(annotations).ids.tolist() == [7]
    assert list(annotations.issues.counts())[-2] == "annotation of an image left out"  # after its causes
    assert annotations.issues.counts() == {
        "annotation of an image left out": 4,
        "image is missing": 1,
        "unreadable image": 1,
        "size differs from the file's": 1,
        "duplicate image id": 1,
        "image listed twice": 1,
        "unreadable image entry": 1,
        "annotation of an unlisted image": 1,
    }
    assert "40" in annotations.issues.of("size differs from the file's")[0].message


def test_an_image_without_objects_is_kept_and_reported(tmp_path: Path) -> None:
    annotations = load(tmp_path, [])
    assert len(only(annotations)) == 0 and only(annotations).boxes_xyxy.shape == (0, 4)
    assert annotations.issues.counts() == {"empty ground truth": 1}
    assert len(load(tmp_path, [], [])) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got a list at the top"),
        ('{"annotations": []}', "got nothing under 'images'"),
        ('{"images": [], "annotations": {}}', "got a dict under 'annotations'"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Annotations.load(tmp_path / "labels.json", tmp_path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no annotation file at"):
        Annotations.load(tmp_path / "gone.json", tmp_path)
    with pytest.raises(ValueError, match="got the folder .*a data.yaml"):
        Annotations.load(tmp_path, tmp_path)
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match="no folder of images at"):
        Annotations.load(tmp_path / "labels.json", tmp_path / "gone")


def test_a_box_mask_covers_pixels_by_their_centers(tmp_path: Path) -> None:
    mask = only(load(tmp_path, [thing(bbox=[1.4, 2, 2.2, 1.4])])).masks()[0]
    assert torch.nonzero(mask).tolist() == [[2, 1], [2, 2], [2, 3]]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_compressed_run_lengths_are_read_as_pycocotools_wrote_them(density: float) -> None:
    mask = np.random.default_rng(0).random((37, 41)) < density
    text = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    runs = run_lengths(text)
    assert runs is not None and sum(runs) == mask.size
    drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape, order="F")
    assert np.array_equal(drawn, mask)


def test_ids_of_several_formats_are_read(tmp_path: Path) -> None:
    """Floats from pandas, text where the image has a number, text for categories; and crowds as text."""
    objects = [
        thing(id=1.0, image_id=7.0, category_id=3.0, iscrowd="0"),
        thing(id=2, image_id="7", category_id="3", iscrowd="1"),
        thing(id=2**63, iscrowd=True),
        thing(id=9, iscrowd=None),
    ]
    loaded = load(tmp_path, objects, categories=[{"id": "1", "name": "cat"}, {"id": 3.0, "name": "traffic light"}])
    found = only(loaded)
    assert found.labels.tolist() == [3, 3, 1, 1] and dict(loaded.categories) == {1: "cat", 3: "traffic light"}
    assert found.crowd.tolist() == [False, True, True, False]
    assert found.ids.tolist()[:2] == [1, 2] and found.ids[2] < 0 and len(set(found.ids.tolist())) == 4
    assert not loaded.issues


def test_an_invalid_crowd_flag_is_reported(tmp_path: Path) -> None:
    loaded = load(tmp_path, [thing(iscrowd="yes")])
    assert only(loaded).crowd.tolist() == [False]
    assert "iscrowd 0 or 1; got 'yes'" in loaded.issues.of("unreadable crowd flag")[0].message


def test_a_number_and_its_text_are_one_image(tmp_path: Path) -> None:
    other = {**make_image(tmp_path, "b.png"), "id": "7"}
    loaded = load(tmp_path, [thing()], images=[make_image(tmp_path), other])
    assert only(loaded).file_name == "a.png" and loaded.issues.of("duplicate image id")
