"""Mapping of a file's categories to a model's class indices: by name, by a class map, or by number without names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detcam.data.annotations import FIRST_UNKNOWN_LABEL, Annotations


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "Traffic Light"}, {"id": 4, "name": "dog"}]
    objects = [{"id": i, "image_id": 7, "category_id": i, "bbox": [2, 3, 10, 5]} for i in (1, 3, 4)]
    path = tmp_path / "labels.json"
    images = [{"id": 7, "file_name": "a.png"}]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return Annotations.load(path, tmp_path)


@pytest.mark.parametrize("first", [0, 1])
def test_names_match_regardless_of_numbering_case_and_spaces(annotations: Annotations, first: int) -> None:
    names = dict(enumerate(["dog", "traffic_light", "CAT "], start=first))
    mapped = annotations.for_classes(names)
    assert mapped[0].labels.tolist() == [first + 2, first + 1, first]
    assert mapped[0].category_ids.tolist() == [1, 3, 4]
    assert mapped[0].name(1) == "traffic_light" and mapped.names == names
    assert annotations[0].labels.tolist() == [1, 3, 4]  # the original is as it was
    assert annotations.for_classes(["dog", "traffic_light", "CAT "])[0].labels.tolist() == [2, 1, 0]


def test_categories_unknown_to_the_model_are_left_out_and_counted(annotations: Annotations) -> None:
    with pytest.warns(UserWarning, match="1 x category unknown to the model: category 'cat'"):
        mapped = annotations.for_classes(["dog", "traffic light"])
    assert mapped[0].labels.tolist() == [1, 0] and mapped[0].ids.tolist() == [3, 4]
    assert mapped.issues.counts() == {"category unknown to the model": 1}
    assert not annotations.issues


def test_categories_unknown_to_the_model_are_kept_as_other_classes(annotations: Annotations) -> None:
    with pytest.warns(UserWarning, match="'cat' is none of the model's classes: an object of another class"):
        mapped = annotations.for_classes(["dog", "traffic light"], keep_unknown=True)
    assert mapped[0].labels.tolist() == [FIRST_UNKNOWN_LABEL, 1, 0] and mapped[0].ids.tolist() == [1, 3, 4]
    assert mapped.labels == (0, 1) and mapped[0].name(0) == "cat" and mapped.names[0] == "dog"
    assert mapped.issues.counts() == {"category unknown to the model": 1}
    none = annotations.for_classes(["background", "a", "b"], first_label=1, keep_unknown=True)
    assert none.labels == (1, 2), "all classes of the model are evaluated"
    assert [none[0].name(index) for index in range(3)] == ["cat", "Traffic Light", "dog"]


def test_a_class_map_precedes_names(annotations: Annotations) -> None:
    names = ["animal", "traffic light", "dog"]
    mapped = annotations.for_classes(names, {"cat": "Animal", "dog": 0})
    assert mapped[0].labels.tolist() == [0, 1, 0]
    for key in (1, "1", "cat", "CAT"):
        for name in (0, "0", "animal"):
            assert annotations.for_classes(names, {key: name})[0].labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no category 'horse' in the file; it has cat, Traffic Light, dog"):
        annotations.for_classes(names, {"horse": "animal"})
    with pytest.raises(ValueError, match="no class named 'horse'"):
        annotations.for_classes(names, {"cat": "horse"})
    with pytest.raises(ValueError, match="no class 9"):
        annotations.for_classes(names, {"cat": 9})


def test_a_model_without_matching_classes_is_refused(annotations: Annotations) -> None:
    with pytest.raises(ValueError, match=r"none of the categories cat, Traffic Light, dog; its classes are a, b"):
        annotations.for_classes(["a", "b"])


def test_ambiguous_classes_are_refused(annotations: Annotations) -> None:
    with pytest.raises(ValueError, match="'Traffic Light' could be any of the model's classes 0, 2"):
        annotations.for_classes(["traffic light", "cat", "traffic_light", "dog"])
    exact = annotations.for_classes(["traffic light", "cat", "Traffic Light", "dog"])
    assert exact[0].labels.tolist() == [1, 2, 3]


def test_without_names_ids_are_indices_with_a_warning(annotations: Annotations) -> None:
    with pytest.warns(UserWarning, match=r"category ids are taken as its class indices \(1 = cat, 3 = Traffic Light"):
        mapped = annotations.for_classes({})
    assert mapped[0].labels.tolist() == [1, 3, 4] and mapped[0].name(0) == "cat"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbered = annotations.for_classes({}, {"cat": 0, "Traffic Light": 2, 4: 3})
    assert numbered[0].labels.tolist() == [0, 2, 3] and numbered[0].name(2) == "dog"


def test_images_are_counted_and_limited(annotations: Annotations) -> None:
    assert len(annotations) == 1 and len(annotations[:0]) == 0
    assert [image.image_id for image in annotations[:1]] == [7]


def test_a_file_without_categories_is_matched_by_number(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    objects = [{"id": i, "image_id": 7, "category_id": i, "bbox": [2, 3, 10, 5]} for i in (0, 5)]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}], "annotations": objects}))
    annotations = Annotations.load(path, tmp_path)
    assert annotations[0].labels.tolist() == [0, 5] and not annotations.issues
    with pytest.raises(ValueError, match="none of the categories class 0, class 5; its classes are cat, dog"):
        annotations.for_classes(["cat", "dog"])
    mapped = annotations.for_classes(["cat", "dog"], {0: "dog", 5: 0})
    assert mapped[0].labels.tolist() == [1, 0] and mapped.labels == (0, 1)
