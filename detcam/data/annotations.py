"""Annotated images in COCO's format, with labels as a model's class indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch

from detcam.data.coco import read_coco
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssue, DataIssues, DataWarning
from detcam.detections import NamesLike, as_names, class_name, label_index
from detcam.utils.files import with_home
from detcam.utils.packed import Packed

__all__ = ["Annotations", "GroundTruth"]

FIRST_UNKNOWN_LABEL = 1_000_000
"""Class index of the first category that a model does not know, beyond the classes of any model."""


@dataclass(frozen=True)
class Annotations:
    """A folder of images and the objects annotated in each.

    Attributes:
        path: the annotation file.
        images: one entry per image that exists and has the stated size, in the file's order; entries of a file are made
            when they are read.
        categories: category id to name.
        names: class index to name: the categories, or after `for_classes` the model's classes (and kept categories).
        labels: the class indices of the file's categories: the classes that can be evaluated with this file; all
            classes of the model if it knows none of the annotated categories.
        issues: problems of the file and the images, and the entries left out because of them.
    """

    path: Path
    images: Sequence[GroundTruth]
    categories: Mapping[int, str]
    names: Mapping[int, str]
    labels: tuple[int, ...]
    issues: DataIssues

    @classmethod
    def load(
        cls, path: str | Path, images_dir: str | Path | None = None, *, box_format: str | None = None
    ) -> Annotations:
        """Read a COCO file (``images``, ``annotations``, ``categories``) and the sizes of its images.

        A ``.yaml`` file is read as a data set of ultralytics, with text files of labels beside its folders of images.

        Boxes and masks are in the frame whose size the file states for the image. This is the upright image, as in
        annotation tools and in the training code of most detectors. If width and height in the file are those of the
        stored pixels instead (as torchvision's `CocoDetection` reads them), boxes and masks are rotated with the image.
        Boxes that fit only the other frame are read in that. A rotation that keeps width and height is not detectable;
        the upright frame is assumed.

        Problems are collected in `issues` and summarized in one warning.

        Args:
            path: the JSON file, or a data.yaml.
            images_dir: the folder to which its file names are relative; None takes the file's own folder, or the
                folders that a data.yaml names.
            box_format: the format of a COCO file's boxes: ``"xywh"``, ``"xyxy"`` or ``"cxcywh"``, in pixels or, with
                ``"-fractions"`` appended, as fractions of the image; None takes ``"xywh"``, and refuses boxes that are
                certainly not. ``"-upright"`` or ``"-stored"`` appended, as in ``"xywh-upright"``, says how the boxes
                of images that EXIF rotates are drawn.

        Raises:
            ValueError: the file or folder does not exist, or the file is not JSON in COCO's format.
        """
        path = with_home(path)
        folder = None if images_dir is None else with_home(images_dir)
        if path.suffix.lower() in (".yaml", ".yml"):
            from detcam.data.yolo_labels import read_yolo

            images, categories, issues = read_yolo(path, folder)
        else:
            images, categories, issues = read_coco(path, path.parent if folder is None else folder, box_format)
        _warn(issues, path)
        return cls(path, images, categories, categories, tuple(sorted(categories)), issues)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[GroundTruth]:
        return iter(self.images)

    @overload
    def __getitem__(self, index: int) -> GroundTruth: ...

    @overload
    def __getitem__(self, index: slice) -> Annotations: ...

    def __getitem__(self, index: int | slice) -> GroundTruth | Annotations:
        """Return the objects of one image, or the annotations of several images."""
        return replace(self, images=self.images[index]) if isinstance(index, slice) else self.images[index]

    @property
    def paths(self) -> list[Path]:
        """The files of the images, in order."""
        return [image.path for image in self.images]

    def for_classes(
        self,
        names: NamesLike,
        class_map: Mapping[str | int, str | int] | None = None,
        *,
        first_label: int = 0,
        keep_unknown: bool = False,
    ) -> Annotations:
        """Return a copy with labels as a model's class indices.

        A category in ``class_map`` maps to the class given there, any other category to the class of the same name,
        where case, spaces, ``_`` and ``-`` are ignored. For a model without names, category ids are used as class
        indices, with a warning. Objects of categories without a class are counted in `issues`, and left out unless
        `keep_unknown` is True.

        Args:
            names: the model's class names, by class index or in class order; empty for a model without names.
            class_map: category name or id to class name or index.
            first_label: the model's first class index; 1 where 0 is the background.
            keep_unknown: whether objects of categories without a class are kept, with class indices from
                `FIRST_UNKNOWN_LABEL` on.

        Raises:
            ValueError: a category would be the background, the model has none of the categories (and they are not
                kept), a category matches two classes, or ``class_map`` has an unknown category or class.
        """
        names = as_names(names)
        used = sorted({int(i) for image in self.images for i in image.category_ids.tolist()})
        labels = _labels_of(self.categories, used, names, class_map or {})
        below = [i for i in used if labels.get(i, first_label) < first_label]
        if below:
            listed = _listed(f"{i} = {class_name(self.categories, i)}" for i in below)
            shifted = {i + first_label - min(used): class_name(self.categories, i) for i in used}
            raise ValueError(
                f"categories count from {min(used)} and the model's classes from {first_label}, since class 0 is the "
                f"background: {listed} would be the background. Pass the model's class names, such as names={shifted}"
            )
        knows_none = bool(used) and not any(category in labels for category in used)
        if knows_none and not keep_unknown:
            raise ValueError(
                f"the model knows none of the categories {_listed(class_name(self.categories, i) for i in used)}; its "
                f'classes are {_listed(names.values())}. Name them in class_map={{"category": "class"}}'
            )
        known = sorted({label for label in names if label >= first_label} if knows_none else set(labels.values()))
        shown = dict(names or {labels[i]: name for i, name in self.categories.items() if i in labels})
        unknown = [i for i in used if i not in labels]
        unknown_labels = {i: FIRST_UNKNOWN_LABEL + number for number, i in enumerate(unknown)} if keep_unknown else {}
        shown |= {label: class_name(self.categories, i) for i, label in unknown_labels.items()}
        issues: list[DataIssue] = []
        images = Packed(_relabel(image, labels, unknown_labels, shown, issues) for image in self.images)
        new_issues = DataIssues(issues)
        _warn(new_issues, self.path)
        return replace(self, images=images, names=shown, labels=tuple(known), issues=self.issues + new_issues)


def _labels_of(
    categories: Mapping[int, str],
    used: Sequence[int],
    names: Mapping[int, str],
    class_map: Mapping[str | int, str | int],
) -> dict[int, int]:
    """Category id to class index, of the categories that are classes of the model."""
    chosen: dict[int, int] = {}
    for category, name in class_map.items():
        label = label_index(names, name)
        if names and label not in names:
            raise ValueError(f"class_map: the model has no class {name!r}; its classes are {_listed(names.values())}")
        chosen[_category_id(categories, used, category)] = label
    ids = [i for i in {**categories, **dict.fromkeys(used)} if i not in chosen]
    if not names:
        if ids:
            warnings.warn(
                "the model has no class names: the file's category ids are taken as its class indices "
                f"({_listed(f'{i} = {class_name(categories, i)}' for i in ids)}). If they differ, "
                'pass its class names, or class_map={"category": class index}',
                stacklevel=3,
            )
        return chosen | {i: i for i in ids}
    for i in ids:
        same = _classes_called(categories[i], names) if i in categories else []
        if len(same) > 1:
            raise ValueError(
                f"category {categories[i]!r} could be any of the model's classes {_listed(f'{k}' for k in same)} "
                f'({_listed(names[k] for k in same)}); say which in class_map={{"{categories[i]}": class index}}'
            )
        if same:
            chosen[i] = same[0]
    return chosen


def _category_id(categories: Mapping[int, str], used: Sequence[int], category: str | int) -> int:
    """The id of a category name or id; a text of digits that is not a name is an id."""
    message = f"class_map: no category {category!r} in the file; it has {_listed(categories.values())}"
    try:
        category_id = label_index(categories, category)
    except ValueError as error:
        raise ValueError(message) from error
    if category_id not in categories and category_id not in used:
        raise ValueError(message)
    return category_id


def _classes_called(name: str, names: Mapping[int, str]) -> list[int]:
    exact = [i for i, other in names.items() if other == name]
    return exact or [i for i, other in names.items() if _plain(other) == _plain(name)]


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _relabel(
    image: GroundTruth,
    labels: Mapping[int, int],
    unknown_labels: Mapping[int, int],
    names: Mapping[int, str],
    issues: list[DataIssue],
) -> GroundTruth:
    ids = image.category_ids.tolist()
    treatment = "an object of another class, neither missed nor in average precision" if unknown_labels else "left out"
    for category, annotation in zip(ids, image.ids.tolist(), strict=True):
        if category not in labels:
            message = f"category {class_name(image.names, category)!r} is none of the model's classes: {treatment}"
            issues.append(DataIssue("category unknown to the model", message, image.image_id, annotation))
    kept_labels = {**unknown_labels, **labels}
    kept = image[torch.tensor([category in kept_labels for category in ids], dtype=torch.bool)]
    new = torch.tensor([kept_labels[i] for i in kept.category_ids.tolist()], dtype=torch.int64)
    return replace(kept, labels=new, names=names)


def _listed(names: Iterable[str], limit: int = 12) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "") or "none"


def _warn(issues: DataIssues, path: Path) -> None:
    if issues:
        text = f"{path.name}: {len(issues)} problem{'s' * (len(issues) > 1)}\n{issues.summary()}"
        warnings.warn(text, DataWarning, stacklevel=3)
