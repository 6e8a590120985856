"""What an audit is given: annotations that a detector can be judged by, and short names to know its inputs again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from detcam.adapters import Adapter
from detcam.data.annotations import Annotations
from detcam.trace import guarded

LOST = (
    "unreadable annotation",
    "annotation of an unlisted image",
    "category not in the file",
    "unreadable box",
    "box of zero size",
    "box outside the image",
)
"""DataIssues by which an object is lost that the file meant to be there."""


def judged(adapter: Adapter, truth: Annotations, class_map: Mapping[str | int, str | int] | None) -> Annotations:
    """The annotations in the model's class indices.

    Raises:
        ValueError: nothing of them can be judged: no image is there, no object fits one, or no class of the model.
    """
    if not len(truth):
        raise ValueError(
            f"none of the images of {truth.path} can be used. Do its file names start from the folder of images? "
            f"{' '.join(truth.issues.summary().split())}"
        )
    if any(truth.issues.of(kind) for kind in LOST) and not any(len(image) for image in truth):
        raise ValueError(f"none of the objects of {truth.path} can be used: {' '.join(truth.issues.summary().split())}")
    truth = truth.for_classes(adapter.names, class_map)
    if not adapter.names:
        with guarded(adapter.model, gradients=False):
            batch = adapter.prepare([torch.full((3, *truth[0].image_size_hw), 0.5)])
            classes = adapter.outputs(adapter.forward(batch), batch)[0].classes
        beyond = [label for label in truth.labels if not 0 <= label < classes]
        if beyond:
            raise ValueError(
                f"the model has no class names and {classes} classes, from 0; the file's categories "
                f"{', '.join(map(str, beyond))} are none of them. Give the model's names (names=, --names), or "
                'class_map={"category": class index} (--class-map)'
            )
    return truth


def truth_digest(truth: Annotations) -> str:
    """A short name for what is to be found and in which images: an audit is not gone on with after either changed."""
    found = hashlib.sha256(repr((sorted(truth.names.items()), truth.labels)).encode())
    for image in truth:
        size = image.path.stat().st_size if image.path.is_file() else -1
        found.update(repr((image.image_id, image.file_name, size, image.image_size_hw)).encode())
        found.update(repr([image.labels.tolist(), image.crowd.tolist(), image.area.tolist()]).encode())
        found.update(image.boxes_xywh.tobytes())
        found.update(repr(image.segmentations).encode())
    return found.hexdigest()[:16]
