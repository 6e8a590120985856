"""Annotated images in COCO's format: what is truly in each, in a model's own class indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch

from detcam.data.coco import read_coco
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssue, DataIssues
from detcam.detections import class_name, label_index

__all__ = ["Annotations", "GroundTruth"]


@dataclass(frozen=True)
class Annotations:
    """A folder of images and what is truly in each.

    Attributes:
        path: the annotation file.
        images: one entry per image that is there and whose size fits, in the file's order.
        categories: category id to name.
        names: class index to name: the categories' until `for_classes`, then the model's.
        labels: the class indices that the file's categories stand for: what of a model can be judged by this file.
        issues: what was wrong with the file or the images, and what was left out.
    """

    path: Path
    images: tuple[GroundTruth, ...]
    categories: Mapping[int, str]
    names: Mapping[int, str]
    labels: tuple[int, ...]
    issues: DataIssues

    @classmethod
    def load(cls, path: str | Path, images_dir: str | Path) -> Annotations:
        """Read a COCO file (``images``, ``annotations``, ``categories``) and look at its images' sizes.

        Boxes and masks are taken in the frame whose size the file states for the image: the upright one, as
        annotation programs and most detectors' training code show it; or, where width and height in the file are
        those of the stored pixels and not of the upright image, the stored one (as torchvision's `CocoDetection`
        reads it), and then they are turned with the image. A rotation that leaves width and height as they are
        cannot be told; the upright frame is taken.

        What is wrong is counted in `issues`, and one warning sums it up.

        Args:
            path: the JSON file.
            images_dir: the folder that its file names start from.

        Raises:
            ValueError: no such file or folder, not JSON, or not of COCO's shape.
        """
        path = Path(path)
        images, categories, issues = read_coco(path, Path(images_dir))
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
        """One image's objects, or some images' annotations."""
        return replace(self, images=self.images[index]) if isinstance(index, slice) else self.images[index]

    @property
    def paths(self) -> list[Path]:
        """The images' files, in order."""
        return [image.path for image in self.images]

    def for_classes(
        self, names: Mapping[int, str] | Sequence[str], class_map: Mapping[str | int, str | int] | None = None
    ) -> Annotations:
        """The same with labels in a model's class indices.

        A category named in ``class_map`` becomes the class given there. Any other becomes the class of the same
        name, whatever the case, spaces, ``_`` and ``-``; whether the model or the file counts from 0 or 1 then does
        not matter. A model without names takes category ids as its class indices, and a warning says so. Objects of
        categories that the model does not know are left out and counted.

        Args:
            names: the model's class names, by class index or in class order; empty for a model without names.
            class_map: category name (or id) to class name (or index).

        Raises:
            ValueError: the model knows none of the categories, two of its classes could be meant, or ``class_map``
                names a category or class that does not exist.
        """
        names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        used = sorted({int(i) for image in self.images for i in image.category_ids.tolist()})
        labels = _labels_of(self.categories, used, names, class_map or {})
        if used and not any(category in labels for category in used):
            raise ValueError(
                f"the model knows none of the categories {_listed(class_name(self.categories, i) for i in used)}; its "
                f'classes are {_listed(names.values())}. Name them in class_map={{"category": "class"}}'
            )
        shown = names or {labels[i]: name for i, name in self.categories.items() if i in labels}
        issues: list[DataIssue] = []
        images = tuple(_relabel(image, labels, shown, issues) for image in self.images)
        found = DataIssues(issues)
        _warn(found, self.path)
        known = tuple(sorted(set(labels.values())))
        return replace(self, images=images, names=shown, labels=known, issues=self.issues + found)


def _labels_of(
    categories: Mapping[int, str],
    used: Sequence[int],
    names: Mapping[int, str],
    class_map: Mapping[str | int, str | int],
) -> dict[int, int]:
    """Category id to class index, of the categories that the model knows."""
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
                f"({_listed(f'{i} = {class_name(categories, i)}' for i in ids)}). Where the model counts otherwise, "
                'give its class names, or class_map={"category": class index}',
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
    exact = [i for i, own in names.items() if own == name]
    return exact or [i for i, own in names.items() if _plain(own) == _plain(name)]


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _relabel(
    image: GroundTruth, labels: Mapping[int, int], names: Mapping[int, str], issues: list[DataIssue]
) -> GroundTruth:
    ids = image.category_ids.tolist()
    for category, annotation in zip(ids, image.ids.tolist(), strict=True):
        if category not in labels:
            message = f"category {class_name(image.names, category)!r} is none of the model's classes: left out"
            issues.append(DataIssue("category unknown to the model", message, image.image_id, annotation))
    kept = image[torch.tensor([category in labels for category in ids], dtype=torch.bool)]
    new = torch.tensor([labels[i] for i in kept.category_ids.tolist()], dtype=torch.int64)
    return replace(kept, labels=new, names=names)


def _listed(names: Any, most: int = 12) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "none"


def _warn(issues: DataIssues, path: Path) -> None:
    if issues:
        warnings.warn(f"{path.name}: {len(issues)} problem{'s' * (len(issues) > 1)}\n{issues.summary()}", stacklevel=3)
