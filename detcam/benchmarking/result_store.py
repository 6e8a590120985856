"""Results on disk, one file per image and method, so that an interrupted benchmark resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detcam.adapters.base import Adapter
from detcam.benchmarking.specs import RESERVED_NAME
from detcam.explanation.writer import encode_heatmap, read_heatmap
from detcam.utils.files import (
    check_same_settings,
    checked_fields,
    json_bytes,
    json_number,
    read_json,
    remove_temporary_files,
    replace_file,
    slug,
)
from detcam.utils.hashing import adapter_digest, weights_digest
from detcam.utils.precision import autocast_precision

SETTINGS_FILE, TABLE_FILE, CELLS_FOLDER = "settings.json", "table.json", "cells"
MAX_NAME_LENGTH = 60


class ResultStore:
    """Keeps the results of each image and method on disk.

    Args:
        folder: folder of the results.
        settings: everything that the results depend on apart from image and method, as plain JSON values. It has the
            keys ``schema`` and ``version``.

    Raises:
        ValueError: the folder contains results of other settings or of another version.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.schema, self.version = settings["schema"], settings["version"]
        file = folder / SETTINGS_FILE
        settings = json.loads(json.dumps({**settings, "autocast": autocast_precision()}))
        if file.is_file():
            stored = read_json(file, settings["schema"], settings["version"])
            check_same_settings(file.parent, stored, settings)
        else:
            (folder / CELLS_FOLDER).mkdir(exist_ok=True)
            replace_file(file, json.dumps(settings, indent=1).encode())
        for cells in (folder, *(folder / CELLS_FOLDER).glob("*/")):
            remove_temporary_files(cells)

    def read_table(self) -> tuple[dict[str, str], list[str]]:
        """Read what the folder's table compares: the definition of each row by name, and the names of the images."""
        file = self.folder / TABLE_FILE
        if not file.is_file():
            return {}, []
        content = read_json(file, self.schema, self.version)
        with checked_fields(file, "move it away, or choose another folder"):
            return {str(name): str(row) for name, row in content["rows"].items()}, list(map(str, content["images"]))

    def write_table(self, rows: Mapping[str, str], images: Iterable[str]) -> None:
        """Write what the folder's table compares."""
        content = {"schema": self.schema, "version": self.version, "rows": dict(rows), "images": list(images)}
        replace_file(self.folder / TABLE_FILE, json_bytes(content, indent=1))

    def get(self, image_key: str, name: str) -> dict[str, Any] | None:
        """Read the result of an image under a name; None if there is none or its file is damaged."""
        file = self._file(image_key, name, "json")
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return None
        is_whole = _is_record if name == RESERVED_NAME else _is_cell
        return content if isinstance(content, dict) and content.get("name") == name and is_whole(content) else None

    def put(self, image_key: str, name: str, content: Mapping[str, Any]) -> None:
        """Write the result of an image under a name, atomically."""
        content = {"name": name, **content}
        file = self._file(image_key, name, "json")
        file.parent.mkdir(exist_ok=True)
        replace_file(file, json.dumps(content, allow_nan=False).encode())

    def put_heatmap(self, image_key: str, name: str, heatmap: np.ndarray) -> None:
        """Write a heatmap (H, W) in [0, 1] for the figure."""
        file = self._file(image_key, name, "png")
        file.parent.mkdir(exist_ok=True)
        replace_file(file, encode_heatmap(heatmap))

    def get_heatmap(self, image_key: str, name: str) -> np.ndarray | None:
        """Read a heatmap (H, W) in [0, 1]; None if there is none or its file is damaged."""
        file = self._file(image_key, name, "png")
        try:
            return read_heatmap(file) if file.is_file() else None
        except (OSError, ValueError):
            return None

    def _file(self, image_key: str, name: str, suffix: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # two names may have the same slug
        return self.folder / CELLS_FOLDER / image_key / f"{slug(name)[:MAX_NAME_LENGTH]}-{digest}.{suffix}"


def _is_record(content: Mapping[str, Any]) -> bool:
    """Whether an image's own record has the fields that are read."""
    return all(isinstance(content.get(field), list) for field in ("targets", "scores"))


def _is_cell(content: Mapping[str, Any]) -> bool:
    """Whether the measurements of a method have the fields that are read."""
    values = content.get("values")
    numbers = [content.get(field, "") for field in ("passes", "backward", "seconds", "peak_mib")]
    if not isinstance(values, dict) or not all(isinstance(each, list) for each in values.values()):
        return False
    numbers += [number for each in values.values() for number in each]
    if not all(number is None or isinstance(number, (int, float)) for number in numbers):
        return False
    return isinstance(content.get("warnings"), list) and {"error", "definition"} <= content.keys()


def make_image_key(name: str, content: bytes) -> str:
    """Make a folder name for an image from its name and a hash of its content."""
    return f"{slug(Path(name).stem)[:MAX_NAME_LENGTH]}-{hashlib.sha256(content).hexdigest()[:16]}"


def model_digest(adapter: Adapter) -> str:
    """Hash a model's weights, its class names and the settings of its adapter."""
    names = repr(sorted(adapter.names.items()))
    text = f"{adapter_digest(adapter)} {names} {weights_digest(adapter.model)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_numbers(values: Iterable[Any]) -> list[float | None]:
    """Convert numbers for JSON, with None for those that are not finite."""
    return [json_number(value) for value in values]
