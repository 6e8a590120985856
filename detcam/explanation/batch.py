"""Many images, a few at a time: found on disk, explained, written at once, and the bad ones passed over."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.base import Target
from detcam.data.images import load_image
from detcam.explanation.explain import Explanation, Method, explain
from detcam.explanation.writer import INDEX, ExplanationWriter, files_of, read_index
from detcam.utils.files import is_audit

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

TargetsFor = Callable[[Tensor], list[Target]]
"""From an image (3, H, W) to what is to be explained in it."""


def find_images(places: Iterable[str]) -> list[Path]:
    """ImageArray files from files, folders (searched to the bottom, hidden ones left out) and patterns with ``*``.

    Each file once, in the order given, a folder's by name. What detcam itself wrote into a folder is left out.

    Raises:
        ValueError: a file, a folder's images or a pattern's files are not there.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_file():
            here: Iterable[Path] = [path]
        elif path.is_dir():
            here = _images_below(path)
        elif glob.has_magic(place):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            here = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        else:
            raise ValueError(f"no file or folder at {place}; check the path")
        here = list(here)
        if not here:
            raise ValueError(f"no images in {place}; expected files such as .jpg and .png")
        found.update(dict.fromkeys(here))
    return list(found)


def _images_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if Path(place) != folder and _is_written_by_us(Path(place)):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        own = (
            {name for entry in read_index(Path(place, INDEX)) for name in files_of(entry)} if INDEX in files else set()
        )
        for name in sorted(files):
            if name not in own and not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(place, name)


def _is_written_by_us(folder: Path) -> bool:
    """Whether a folder holds a benchmark or an audit: its figures are nobody's images."""
    compared = (folder / "settings.json").is_file() and (folder / "cells").is_dir()
    return compared or (folder / "unfinished" / "settings.json").is_file() or is_audit(folder)


def explain_files(
    adapter: Adapter,
    paths: Sequence[Path],
    writer: ExplanationWriter,
    method: Method,
    *,
    batch_size: int,
    done: Callable[[Path, Explanation | Exception, list[Path]], None],
    targets_for: TargetsFor | None = None,
    **options: Any,
) -> None:
    """Explain images and write each at once, so that memory holds one batch.

    Args:
        adapter: the model.
        paths: image files.
        writer: takes the explanations.
        method: as in `explain`.
        batch_size: images read, explained and written together.
        done: told of every image: its path, its explanation or what was wrong, and its overlays' paths.
        targets_for: what to explain in an image; None takes what the model finds, as the options choose.
        **options: as in `explain`.
    """
    for start in range(0, len(paths), batch_size):
        read: list[tuple[Path, Tensor]] = []
        for path in paths[start : start + batch_size]:
            try:
                read.append((path, load_image(path)))
            except ValueError as error:
                done(path, error, [])
        for path, result in _explain_batch(adapter, read, method, targets_for, batch_size=batch_size, **options):
            done(path, result, writer.add(result) if isinstance(result, Explanation) else [])


def _explain_batch(
    adapter: Adapter,
    image_list: Sequence[tuple[Path, Tensor]],
    method: Method,
    targets_for: TargetsFor | None,
    **options: Any,
) -> Iterator[tuple[Path, Explanation | Exception]]:
    """Explain images together; where that fails, one by one, so that one image's trouble stays its own."""
    if not image_list:
        return
    images = [pixels for _, pixels in image_list]
    try:
        targets = None if targets_for is None else [targets_for(image) for image in images]
        explanations = explain(adapter, images, method, targets, **options)
    except (ValueError, RuntimeError) as error:
        if len(image_list) == 1:
            yield image_list[0][0], error
            return
        for one in image_list:
            yield from _explain_batch(adapter, [one], method, targets_for, **options)
        return
    for (path, _), explanation in zip(image_list, explanations, strict=True):
        yield path, replace(explanation, path=path, name=path.name)
