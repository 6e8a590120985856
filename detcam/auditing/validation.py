"""Validation of an audit's annotations, and a digest that identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from detcam.adapters import Adapter
from detcam.data.annotations import Annotations
from detcam.trace import guarded

LOSS_ISSUES = (
    "unreadable annotation",
    "annotation of an unlisted image",
    "category not in the file",
    "unreadable box",
    "box of zero size",
    "box outside the image",
)
"""Kinds of data issues that remove an object."""


def prepare_annotations(
    adapter: Adapter, annotations: Annotations, class_map: Mapping[str | int, str | int] | None
) -> Annotations:
    """Convert annotations to the model's class indices.

    Objects of categories that the model does not know are kept: a detection on one of them is an error of class.

    Args:
        adapter: the detector.
        annotations: annotations with the category ids of their file.
        class_map: category name (or id) to the model's class name (or index), where they differ.

    Raises:
        ValueError: no image or object can be used, or a category is ambiguous.
    """
    issues = " ".join(annotations.issues.summary().split())
    if not len(annotations):
        raise ValueError(
            f"none of the images of {annotations.path} can be used. Are its file names relative to the folder of "
            f"images? {issues}"
        )
    loses_objects = any(annotations.issues.of(kind) for kind in LOSS_ISSUES)
    if loses_objects and not any(len(image) for image in annotations):
        raise ValueError(f"none of the objects of {annotations.path} can be used: {issues}")
    annotations = annotations.for_classes(adapter.names, class_map, first_label=adapter.first_label, keep_unknown=True)
    if not adapter.names:
        _check_class_indices(adapter, annotations)
    return annotations


def _check_class_indices(adapter: Adapter, annotations: Annotations) -> None:
    """Check the class indices of annotations for a model without class names."""
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([torch.full((adapter.channels, *annotations[0].image_size_hw), 0.5)])
        class_count = adapter.outputs(adapter.forward(batch), batch)[0].classes
    unknown = [label for label in annotations.labels if not 0 <= label < class_count]
    if unknown:
        raise ValueError(
            f"the model has no class names and {class_count} classes, from 0; the file's categories "
            f"{', '.join(map(str, unknown))} are none of them. Pass the model's class names (names=, --names), or "
            'class_map={"category": class index} (--class-map)'
        )


def annotations_digest(annotations: Annotations) -> str:
    """A digest of images and objects: an audit does not resume after either changes."""
    digest = hashlib.sha256(repr((sorted(annotations.names.items()), annotations.labels)).encode())
    for image in annotations:
        size = image.path.stat().st_size if image.path.is_file() else -1
        digest.update(repr((image.image_id, image.file_name, size, image.image_size_hw)).encode())
        digest.update(repr([image.labels.tolist(), image.crowd.tolist(), image.area.tolist()]).encode())
        digest.update(image.boxes_xywh.tobytes())
        digest.update(repr(image.segmentations).encode())
    return digest.hexdigest()[:16]
