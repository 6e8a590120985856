"""Explanations on disk: an overlay and a heatmap per target, and one index of them, ``explanations.json``.

Files of an image ``dog.jpg`` explained by GradCAM, whose second finding is a cat::

    dog.gradcam.2.cat.png           the overlay with outline, caption and colour bar, 8-bit RGB
    dog.gradcam.2.cat.heatmap.png   the heatmap, 16-bit grey, of the image's size: value / 65535 is in [0, 1]
    explanations.json               what stands in which file

``explanations.json``, version 1, UTF-8; numbers that are not finite are null::

    schema    "detcam/explanations"
    version   1
    detcam    the version that wrote it
    images  a list, one entry for each image, model, method, choice of layers and smoothing:
        path          absolute path of the image, or null where it came from memory
        name          its file name, or image-1 and so on
        digest        SHA-256 of its pixels where path is null, else null
        width, height pixels, after the file's own rotation
        model         the model's name, else its class
        adapter       the family that explained it
        method        a name in detcam.methods.METHODS
        target_layers names of the layers
        smoothing     a list of "aug_smooth", "eigen_smooth", empty where neither was asked for
        sampling      null, or passes: how many changed versions of the image were scored, seed: what drew them, and
                      agreement: per target in [-1, 1], how alike the maps of two halves of them are
        stem          what the names of its files begin with
        targets       a list, one entry for each target:
            kind            the target's class
            caption         what it is and its value, in words
            label, name     class index and class name, or null
            score           the finding's score in [0, 1], or null where no finding stands behind the target
            box_xyxy        pixels of the image, half-open, or null
            quantity        what was explained: score, logit, ..., mask; null for a target of the user's own
            against         class index that it was compared with, or null
            value           the number that was explained
            reach           null, or fraction in [0, 1] of the image from which evidence could show, and box_xyxy
                            around it
            saliency_range  least and greatest raw signed saliency, before it was scaled to [0, 1]
            overlay, heatmap  file names in this folder

Every file is written under another name and renamed, so that it is never seen half written. The index is written at
intervals and at the end, also when the run is interrupted, and lists files that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import unicodedata
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from detcam.detections import class_name
from detcam.outputs import DetectionTarget, as_target
from detcam.utils.files import number, replace_file, slug
from detcam.utils.opencv import cv2
from detcam.utils.version import __version__
from detcam.visualize.convert import to_png_bytes
from detcam.visualize.overlay import DEFAULT_COLORMAP

if TYPE_CHECKING:
    from detcam.explanation.result import Explanation

SCHEMA = "detcam/explanations"
VERSION = 1
INDEX = "explanations.json"
HEATMAP_MAXIMUM = 65535
SECONDS_BETWEEN_INDICES = 2.0


class ExplanationWriter:
    """Writes explanations into a folder, one at a time, and keeps ``explanations.json`` valid throughout.

    Args:
        folder: made where it is absent; what other runs wrote into it stays listed.
        colormap: of the overlays.
        model_name: what the index calls the model; None takes its class.

    Attributes:
        index: path of ``explanations.json``.

    Raises:
        ValueError: the folder holds an ``explanations.json`` that is not one of detcam's.
    """

    def __init__(
        self, folder: str | Path, *, colormap: str | int = DEFAULT_COLORMAP, model_name: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.index = self.folder / INDEX
        self.colormap = colormap
        self.model_name = model_name
        self._entries = {_identity(entry): entry for entry in read_index(self.index)}
        self._stems: set[str] = set()
        self._due = 0.0

    def __enter__(self) -> ExplanationWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stems = {_stem_key(name) for name in os.listdir(self.folder)}
        self._stems |= {_stem_key(entry["stem"]) for entry in self._entries.values()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_index()

    def add(self, explanation: Explanation) -> list[Path]:
        """Write one image's files.

        Returns:
            The overlays' paths, in the order of the targets.
        """
        entry = _describe_image(explanation, self.model_name)
        identity = _identity(entry)
        before = self._entries.get(identity)
        wanted = f"{slug(Path(explanation.name).stem)}.{explanation.method}"
        entry["stem"] = before["stem"] if before else self._free_stem(wanted)
        overlays = []
        for index in range(len(explanation)):
            target = describe_target(explanation, index)
            begin = f"{entry['stem']}.{index + 1}.{slug(target['name'] or target['kind'])}"
            target["overlay"], target["heatmap"] = f"{begin}.png", f"{begin}.heatmap.png"
            overlay = explanation.overlay(index, colormap=self.colormap)
            overlays.append(replace_file(self.folder / target["overlay"], to_png_bytes(overlay)))
            replace_file(self.folder / target["heatmap"], encode_heatmap(explanation.heatmaps[index].numpy()))
            entry["targets"].append(target)
        self._entries[identity] = entry
        stale = set(files_of(before)) - set(files_of(entry)) if before else set()
        if stale or time.monotonic() >= self._due:
            self._write_index()
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        return overlays

    def _free_stem(self, wanted: str) -> str:
        """The wanted beginning of file names, or it with a number where other files have it already."""
        stem, count = wanted, 1
        while _stem_key(stem) in self._stems:
            count += 1
            stem = f"{wanted}-{count}"
        self._stems.add(_stem_key(stem))
        return stem

    def _write_index(self) -> None:
        started = time.monotonic()
        content = {
            "schema": SCHEMA,
            "version": VERSION,
            "detcam": __version__,
            "images": list(self._entries.values()),
        }
        replace_file(self.index, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False).encode())
        finished = time.monotonic()
        # A long index takes long to write: it never costs more than a twentieth of the time.
        self._due = finished + max(SECONDS_BETWEEN_INDICES, 20 * (finished - started))


def read_index(path: Path) -> list[dict[str, Any]]:
    """The entries of an ``explanations.json``; none where there is no such file.

    Raises:
        ValueError: not JSON, or not of this schema and version.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); move it away, or choose another folder") from error
    if not isinstance(content, dict) or (content.get("schema"), content.get("version")) != (SCHEMA, VERSION):
        raise ValueError(
            f"{path} was not written by this version of detcam (expected {SCHEMA} version {VERSION}); "
            "move it away, or choose another folder"
        )
    entries: list[dict[str, Any]] = content["images"]
    needed = {"path", "name", "digest", "model", "method", "target_layers", "smoothing", "stem", "targets"}
    if not all(isinstance(entry, dict) and needed <= entry.keys() for entry in entries):
        raise ValueError(f"{path} was changed by something else; move it away, or choose another folder")
    return entries


def encode_heatmap(heatmap: np.ndarray) -> bytes:
    """A heatmap (H, W) in [0, 1] as a 16-bit grey PNG."""
    levels = np.rint(np.clip(heatmap, 0, 1) * HEATMAP_MAXIMUM).astype(np.uint16)
    return bytes(cv2.imencode(".png", levels)[1])


def read_heatmap(path: str | Path) -> np.ndarray:
    """A heatmap that was saved: (H, W) float32 in [0, 1], to 1/131070 of what it was."""
    levels = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise ValueError(f"{path} is not a heatmap that detcam saved (16-bit grey PNG)")
    heatmap: np.ndarray = levels.astype(np.float32) / HEATMAP_MAXIMUM
    return heatmap


def describe_target(explanation: Explanation, index: int) -> dict[str, Any]:
    """One target's entry in ``explanations.json``, without its files."""
    target, found = explanation.targets[index], explanation.detections
    facts = as_target(target)
    label = facts.label
    known = found is not None and label == int(found.labels[index])
    box = target.box_xyxy if isinstance(target, DetectionTarget) else None
    ranges = [(float(level[index].min()), float(level[index].max())) for level in explanation.saliency]
    reach = explanation.reach[index] if explanation.reach else None
    return {
        "kind": type(target).__name__,
        "caption": explanation.captions[index],
        "label": label,
        "name": None if label is None else class_name(explanation.names, label),
        "score": number(found.scores[index]) if known and found is not None else None,
        "box_xyxy": None if box is None else [number(value) for value in box],
        "quantity": facts.quantity,
        "against": facts.against,
        "value": number(explanation.scores[index]),
        "reach": None
        if reach is None
        else {"fraction": number(reach.fraction), "box_xyxy": [number(value) for value in reach.box_xyxy]},
        "saliency_range": [number(min(low for low, _ in ranges)), number(max(high for _, high in ranges))],
    }


def _describe_image(explanation: Explanation, model_name: str | None) -> dict[str, Any]:
    path = explanation.path
    height, width = explanation.image.shape[:2]
    return {
        "path": None if path is None else str(path.absolute()),
        "name": explanation.name,
        "digest": hashlib.sha256(explanation.image.tobytes()).hexdigest() if path is None else None,
        "width": width,
        "height": height,
        "model": model_name or explanation.model,
        "adapter": explanation.family,
        "method": explanation.method,
        "target_layers": list(explanation.layers),
        "smoothing": list(explanation.smoothing),
        "sampling": None if explanation.sampling is None else asdict(explanation.sampling),
        "stem": "",
        "targets": [],
    }


def _identity(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two entries the same: the later one then replaces the earlier one."""
    image = entry["path"] or (entry["name"], entry["digest"])
    return image, entry["model"], entry["method"], tuple(entry["target_layers"]), tuple(entry["smoothing"])


def files_of(entry: dict[str, Any]) -> list[str]:
    """The entry's files; a name that leads out of the folder is none of detcam's."""
    names = [target[kind] for target in entry["targets"] for kind in ("overlay", "heatmap")]
    return [name for name in names if Path(name).name == name]


def _stem_key(name: str) -> str:
    """Equal for file names with one stem, on file systems that ignore case too; stems hold one dot."""
    return ".".join(unicodedata.normalize("NFC", name).casefold().split(".")[:2])
