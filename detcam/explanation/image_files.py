"""The image files of a run: those in files, folders and patterns, without what detcam wrote itself.

PyTorch is imported once a folder is searched, so that a wrong path is an error at once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from detcam.data.opening import IMAGE_SUFFIXES, MAX_SHOWN_NAME, check_search
from detcam.utils.console import shorten
from detcam.utils.files import is_audit, is_file, is_folder, with_home

STAGE = "explanations"
"""Name of the stage of `detcam.explanation.batch`."""


def find_images(paths: Iterable[str]) -> list[Path]:
    """Find image files in files, folders and patterns with ``*``, ``?`` or ``[...]``.

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
        path = with_home(text)
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
    from detcam.explanation.writer import EXPLANATIONS_FILE, files_of, read_index
    from detcam.runs import MANIFEST, RUN_FOLDER, SHARDS, read_shards

    for folder, subfolders, files in os.walk(root):
        if Path(folder) != root and _is_output(Path(folder)):
            subfolders.clear()
            continue
        is_run = Path(folder, RUN_FOLDER, MANIFEST).is_file()
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and not (is_run and n == RUN_FOLDER))
        entries = read_index(Path(folder, EXPLANATIONS_FILE)) if EXPLANATIONS_FILE in files else []
        written = {name for entry in entries for name in files_of(entry)}
        plan = Path(folder, RUN_FOLDER, STAGE, SHARDS)  # of a run that was killed
        stems = {stem for shard in read_shards(plan) for _, stem in shard} if plan.is_file() else set()
        for name in sorted(files):
            is_written = name in written or ".".join(name.split(".")[:2]) in stems
            if not is_written and not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder, name)


def _is_output(folder: Path) -> bool:
    """Whether a folder holds a benchmark or an audit, whose figures are not explained."""
    from detcam.runs import RUN_FOLDER

    is_benchmark = (folder / "settings.json").is_file() and (folder / "cells").is_dir()
    return is_benchmark or (folder / RUN_FOLDER).is_dir() or is_audit(folder)
