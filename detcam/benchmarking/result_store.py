"""Results on disk, one file for each image and method, so that an interrupted benchmark goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detcam.adapters.base import Adapter
from detcam.explanation.writer import encode_heatmap, read_heatmap
from detcam.utils.files import number, replace_file, slug
from detcam.utils.hashing import adapter_digest, weights_digest

SETTINGS, CELLS = "settings.json", "cells"


class ResultStore:
    """Keeps what was found for an image and a method.

    Args:
        folder: made where it is absent; None keeps everything in memory.
        settings: all that results depend on beside image and method, as plain JSON values.

    Raises:
        ValueError: the folder holds results of other settings, or something else's settings.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._memory: dict[tuple[str, str], dict[str, Any]] = {}
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        if folder is None:
            return
        file = folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if file.is_file():
            _check_settings(file, wanted)
        else:
            (folder / CELLS).mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(wanted, indent=1).encode())

    def get(self, image: str, name: str) -> dict[str, Any] | None:
        """What is kept for an image (by its key) and a name; None where nothing is, or a file that is damaged."""
        if self.folder is None:
            return self._memory.get((image, name))
        file = self._file(image, name, "json")
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return content if isinstance(content, dict) and content.get("name") == name else None

    def put(self, image: str, name: str, content: Mapping[str, Any]) -> None:
        """Keep something; nobody ever sees half of it."""
        content = {"name": name, **content}
        if self.folder is None:
            self._memory[image, name] = content
            return
        file = self._file(image, name, "json")
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(content, allow_nan=False).encode())

    def put_map(self, image: str, name: str, heatmap: np.ndarray) -> None:
        """Keep a heatmap (H, W) in [0, 1] for the figure."""
        if self.folder is None:
            self._maps[image, name] = heatmap
            return
        file = self._file(image, name, "png")
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, encode_heatmap(heatmap))

    def get_map(self, image: str, name: str) -> np.ndarray | None:
        """A heatmap that was kept, or None."""
        if self.folder is None:
            return self._maps.get((image, name))
        file = self._file(image, name, "png")
        try:
            return read_heatmap(file) if file.is_file() else None
        except (OSError, ValueError):  # damaged: it is made again
            return None

    def _file(self, image: str, name: str, suffix: str) -> Path:
        if self.folder is None:
            raise RuntimeError("this store keeps everything in memory and has no files")
        short = hashlib.sha256(name.encode()).hexdigest()[:8]  # two names may have one slug
        return self.folder / CELLS / image / f"{slug(name)[:60]}-{short}.{suffix}"


def image_key(name: str, content: bytes) -> str:
    """A folder name for an image: its own name, and what its content hashes to."""
    return f"{slug(Path(name).stem)[:60]}-{hashlib.sha256(content).hexdigest()[:16]}"


def fingerprint(adapter: Adapter) -> str:
    """A hash of the model's weights and of what the adapter says about itself."""
    names = repr(sorted(adapter.names.items()))
    whole = f"{adapter_digest(adapter)} {names} {weights_digest(adapter.model)}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def plain(values: Any) -> list[float | None]:
    """Numbers for JSON; None where one is not finite."""
    return [number(value) for value in values]


def _check_settings(file: Path, wanted: Mapping[str, Any]) -> None:
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); move it away, or choose another folder") from error
    if not isinstance(there, dict) or there.get("schema") != wanted.get("schema"):
        raise ValueError(f"{file} was not written by a benchmark of this version of detcam; choose another folder")
    differing = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if differing:
        words = "; ".join(
            f"{name} was {there.get(name)!r:.80} and is now {wanted.get(name)!r:.80}" for name in differing
        )
        raise ValueError(
            f"{file.parent} holds results of other settings, which must not be mixed: {words}. Choose another folder, "
            "or run with the settings of before"
        )
