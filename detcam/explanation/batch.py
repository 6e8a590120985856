"""Explanations of image files: finds the files, explains and writes a few at a time, and skips those that fail."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.base import Target
from detcam.data.decoding import IMAGE_SUFFIXES, check_search
from detcam.data.opening import MAX_SHOWN_NAME
from detcam.explanation.explain import Explanation, MethodLike, explain
from detcam.explanation.writer import EXPLANATIONS_FILE, ExplanationWriter, files_of, read_index
from detcam.targets import BoxTarget, MaskTarget, with_quantity
from detcam.utils.batching import batches
from detcam.utils.console import shorten
from detcam.utils.files import is_audit, is_file, is_folder

DEFAULT_IMAGES_IN_MEMORY = 4
"""Images that are read, explained and written together by default: their heatmaps are in memory at the same time."""

TargetsFor: TypeAlias = Callable[[Tensor], "list[Target]"]
"""A function from an image (3, H, W) to its targets."""
OnImage: TypeAlias = Callable[[Path, "Explanation | Exception", "list[Path]"], None]
"""A callback for each image: its path, its explanation or the error, and the paths of its overlays."""


def find_images(paths: Iterable[str]) -> list[Path]:
    """Find image files in files, folders and patterns with ``*``.

    Folders are searched recursively, without hidden files and without files that detcam wrote.

    Args:
        paths: files, folders and patterns.

    Returns:
        Each file once, in the order of `paths`; the files of a folder are sorted by name.

    Raises:
        ValueError: a file does not exist, or a folder or pattern has no images.
    """
    images: dict[Path, None] = {}
    for text in paths:
        path = Path(text).expanduser()
        if is_file(path):
            files = [path]
        elif text and is_folder(path):
            check_search(path)
            files = list(_images_below(path))
        elif glob.has_magic(text):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        else:
            raise ValueError(f"no file or folder at {shorten(text, MAX_SHOWN_NAME) or repr(text)}; check the path")
        if not files:
            raise ValueError(f"no images in {text}; expected files such as .jpg and .png")
        images.update(dict.fromkeys(files))
    return list(images)


def _images_below(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        if Path(folder) != root and _is_output(Path(folder)):
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        entries = read_index(Path(folder, EXPLANATIONS_FILE)) if EXPLANATIONS_FILE in files else []
        written = {name for entry in entries for name in files_of(entry)}
        for name in sorted(files):
            if name not in written and not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder, name)


def _is_output(folder: Path) -> bool:
    """Whether a folder holds a benchmark or an audit, whose figures are not explained."""
    is_benchmark = (folder / "settings.json").is_file() and (folder / "cells").is_dir()
    return is_benchmark or (folder / "unfinished" / "settings.json").is_file() or is_audit(folder)


def explain_files(
    adapter: Adapter,
    paths: Sequence[Path],
    writer: ExplanationWriter,
    method: MethodLike,
    *,
    on_progress: OnImage,
    targets_for: TargetsFor | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Explain image files and write each explanation as soon as it is computed, so that memory holds one batch.

    Args:
        adapter: the model.
        paths: image files.
        writer: writes the explanations.
        method: as in `explain`.
        on_progress: called after each image, also after one that failed.
        targets_for: function from an image to its targets; None explains the model's predictions.
        batch_size: images that are read, explained and written together; None takes `DEFAULT_IMAGES_IN_MEMORY` and
            keeps the method's own number of images per forward pass.
        **options: as in `explain`.
    """
    for batch in batches(paths, DEFAULT_IMAGES_IN_MEMORY if batch_size is None else batch_size):
        images: list[tuple[Path, Tensor]] = []
        for path in batch:
            try:
                images.append((path, adapter.reader.read(path)))
            except (TypeError, ValueError) as error:
                on_progress(path, error, [])
        for path, result in _explain_batch(adapter, images, method, targets_for, batch_size=batch_size, **options):
            on_progress(path, result, writer.add(result) if isinstance(result, Explanation) else [])


def _explain_batch(
    adapter: Adapter,
    images: Sequence[tuple[Path, Tensor]],
    method: MethodLike,
    targets_for: TargetsFor | None,
    **options: Any,
) -> Iterator[tuple[Path, Explanation | Exception]]:
    """Explain images together; if that fails, one by one, so that an image that fails does not affect the others."""
    if not images:
        return
    pixels = [image for _, image in images]
    try:
        targets = None if targets_for is None else [targets_for(image) for image in pixels]
        explanations = explain(adapter, pixels, method, targets, **options)
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError) as error:
        if len(images) == 1:
            yield images[0][0], error
            return
        for image in images:
            yield from _explain_batch(adapter, [image], method, targets_for, **options)
        return
    for (path, _), explanation in zip(images, explanations, strict=True):
        yield path, replace(explanation, path=path, name=path.name)


def box_targets(
    adapter: Adapter,
    image: Tensor,
    *,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    quantity: str = "score",
    against: int | None = None,
) -> list[Target]:
    """Return targets for boxes that the user gives: boxes of a detector, or regions of a segmentation network.

    Args:
        adapter: the model.
        image: (3, H, W).
        boxes: xyxy in pixels of the image.
        labels: one class index per box.
        quantity: as in `explain`.
        against: class index to compare with, or None.

    Raises:
        ValueError: the model has neither boxes nor regions, or a box lies outside the image.
    """
    height, width = image.shape[-2:]
    targets: list[Target] = []
    for box, label in zip(boxes, labels, strict=True):
        x1, y1, x2, y2 = (round(value) for value in box)
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(f"the box {box} lies outside the image, which is {width} x {height} pixels")
        if adapter.task == "detection":
            targets.append(with_quantity(BoxTarget(box, label), quantity, against))
        elif adapter.task == "segmentation":
            region = torch.zeros(height, width, dtype=torch.bool)
            region[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)] = True
            targets.append(with_quantity(MaskTarget(label, region), quantity, against))
        else:
            raise ValueError(
                f"--box is for detectors and segmentation networks; the task of this model is {adapter.task}"
            )
    return targets
