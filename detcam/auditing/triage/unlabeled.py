"""Images without annotations as the data of an audit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detcam.adapters.base import Adapter
from detcam.data.annotations import Annotations
from detcam.data.exif import image_size
from detcam.data.ground_truth import GroundTruth
from detcam.data.images import expand_paths
from detcam.data.issues import DataIssue, DataIssues
from detcam.utils.files import with_home
from detcam.utils.packed import Packed


def unlabeled_images(adapter: Adapter, images: str | Path | Sequence[str | Path]) -> Annotations:
    """List images without objects, with the classes of a model.

    Args:
        adapter: the detector.
        images: a folder, a file, or a list of these. Ids are counted from 1; file names are relative to the folder that
            contains all images.

    Raises:
        ValueError: there is no image that can be read.
    """
    listed = [images] if isinstance(images, (str, Path)) else list(images)
    # Absolute paths have a common folder, unless they lie on two drives of Windows.
    paths = [with_home(path).absolute() for path in expand_paths([str(path) for path in listed])]
    if not paths:
        raise ValueError("expected images: a folder, a file, or a list of these; got an empty list")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    found = Packed[GroundTruth]()
    issues: list[DataIssue] = []
    for number, path in enumerate(paths, 1):
        try:
            size = image_size(path).upright_hw
        except ValueError as error:
            issues.append(DataIssue("unreadable image", f"{error} Left out", number))
            continue
        name = path.relative_to(root).as_posix()
        found.append(GroundTruth.without_objects(number, name, path, size, adapter.names))
    if not found:
        raise ValueError(f"expected images; none of the {len(paths)} files can be read: {issues[0].message}")
    labels = tuple(sorted(label for label in adapter.names if label >= adapter.first_label))
    categories = {label: adapter.names[label] for label in labels}
    return Annotations(root, found, categories, adapter.names, labels, DataIssues(issues))
