"""Writes explanations to disk: an overlay and a heatmap per target, and an index, ``explanations.json``.

Files of an image ``dog.jpg`` explained by GradCAM, whose second target is a cat::

    dog.gradcam.2.cat.png           the overlay with outline, caption and color bar, 8-bit RGB
    dog.gradcam.2.cat.heatmap.png   the heatmap, 16-bit gray, of the image's size: value / 65535 is in [0, 1];
                                    of a volume a TIFF file with a page for each slice
    explanations.json               the index

Of an image above four megapixels the overlay is a JPEG file, and the heatmap is stored at 1/2, 1/3, ... of the image's
size, each pixel the mean of a block. Heatmaps have the resolution of a feature map, so that hardly anything is lost;
``read_heatmap(path, (height, width))`` resizes it to the image. Above 67 megapixels, the overlay too is drawn at a
fraction of the size, at most 34 megapixels, and the heatmap is computed at its stored size.

``explanations.json``, version 2, UTF-8; numbers that are not finite are null. In version 1, ``images`` was
``pictures``::

    schema    "detcam/explanations"
    version   2
    detcam    version of detcam that wrote the file
    images    list with an entry per image, model, method, target layers and smoothing:
        path           absolute path of the image, or null for an image in memory
        name           file name, or image-1, image-2, ...
        digest         SHA-256 of the pixels if path is null, else null
        width, height  pixels, after the rotation that the file asks for; of a volume also depth
        model          name of the model, or its class
        adapter        family of the adapter
        method         name of the method
        target_layers  names of the layers
        smoothing      list of "aug_smooth", "eigen_smooth", or empty
        sampling       null, or passes: number of perturbed images that were scored; seed: seed of the sampling; and
                       agreement: per target in [-1, 1], similarity of the maps of two halves of the samples
        stem           first part of the names of its files
        targets        list with an entry per target:
            kind            class of the target
            caption         description and value
            label, name     class index and class name, or null
            score           score of the prediction in [0, 1], or null if the target is not a prediction
            box_xyxy        pixels of the image, half-open, or null
            quantity        score, logit, objectness, a coordinate, mask, edges, or the name of a registered quantity;
                            null for a target that declares none
            against         index of the class that it is compared with, or null
            value           value of the target
            reach           null, or fraction: part of the image in [0, 1] that the gradient covers, and box_xyxy: its
                            bounding box
            saliency_range  minimum and maximum of the raw signed saliency, before it is scaled to [0, 1]
            overlay, heatmap  file names in this folder

Every file is written under a temporary name and renamed. The index is written at the end, also if the run is
interrupted, and lists existing files only.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detcam.detections import class_name
from detcam.explanation.reduction import draw_overlay, drawn_image, heatmap_at, reduced_size
from detcam.outputs import DetectionTarget, as_target
from detcam.rendering import HeatmapArray
from detcam.runs import lock_folder
from detcam.utils.files import (
    json_document,
    json_number,
    read_json,
    remove_temporary_files,
    replace_file,
    slug,
    with_home,
)
from detcam.utils.opencv import cv2, decode_image, start_threads
from detcam.utils.version import __version__
from detcam.visualize.convert import TensorLike, as_array, encode_png, to_jpeg_bytes
from detcam.visualize.overlay import DEFAULT_COLORMAP

if TYPE_CHECKING:
    from detcam.adapters.transformers.prompts import WordHeat
    from detcam.explanation.result import Explanation

EXPLANATIONS_SCHEMA = "detcam/explanations"
EXPLANATIONS_VERSION = 2
EXPLANATIONS_FILE = "explanations.json"
HEATMAP_MAXIMUM = 65535
_KEY_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "model", "method", "stem"), (str,)),
    **dict.fromkeys(("path", "digest"), (str, type(None))),
    **dict.fromkeys(("target_layers", "smoothing", "targets"), (list,)),
}
_FILES = ("overlay", "heatmap")
MAX_FULL_PIXELS = 2**22
"""Pixels of an image whose overlays are lossless and whose heatmaps are stored at its size."""
MAX_JPEG_SIDE = 65_000
"""Longest side of an overlay that is written as JPEG."""
MAX_WRITERS = min(4, os.cpu_count() or 1)
"""Targets of an image that are drawn and encoded at the same time."""
MAX_PIXELS_AT_ONCE = 48_000_000
"""Pixels of the targets that are drawn at the same time; each takes about 15 bytes."""
WRITER_NICENESS = 5
"""Niceness of the threads that draw and encode, relative to the process: the network runs beside them."""


class ExplanationIndex:
    """The index of a folder of explanations, ``explanations.json``; the lock of the folder is held.

    Args:
        folder: the folder. Entries of other runs stay in the index.

    Attributes:
        path: path of the index.

    Raises:
        ValueError: the folder has an ``explanations.json`` that detcam did not write.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / EXPLANATIONS_FILE
        self._previous = {_identity(entry): entry for entry in read_index(self.path)}
        self._stems = {_stem_key(name) for name in os.listdir(folder)}
        self._stems |= {_stem_key(entry["stem"]) for entry in self._previous.values()}

    def choose_stem(self, entry: Mapping[str, Any]) -> str:
        """Return the first part of the names of an entry's files: that of the entry which it replaces, or a free one.

        Args:
            entry: the fields that identify an entry, and ``name``.
        """
        previous = self._previous.get(_identity(entry))
        if previous is not None:
            return str(previous["stem"])
        stem = free = f"{slug(Path(entry['name']).stem)}.{entry['method']}"
        count = 1
        while _stem_key(free) in self._stems:
            count += 1
            free = f"{stem}-{count}"
        self._stems.add(_stem_key(free))
        return free

    def write(self, entries: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Write the index with new entries, and remove the files of those which they replace.

        Args:
            entries: function that returns the new entries, which need not fit into memory.
        """
        replaced: dict[tuple[Any, ...], set[str]] = {}
        for entry in entries():
            identity = _identity(entry)
            if identity in self._previous:
                replaced[identity] = set(files_of(self._previous[identity])) - set(files_of(entry))
        kept = (entry for identity, entry in self._previous.items() if identity not in replaced)
        header = {"schema": EXPLANATIONS_SCHEMA, "version": EXPLANATIONS_VERSION, "detcam": __version__}
        replace_file(self.path, json_document(header, images=chain(kept, entries())), flush_folder=True)
        for stale in replaced.values():
            for name in stale:
                (self.path.parent / name).unlink(missing_ok=True)


def save_explanations(
    folder: str | Path, explanations: Iterable[Explanation], *, colormap: str | int = DEFAULT_COLORMAP
) -> Path:
    """Write explanations and their index into a folder; if interrupted, the index has those that are complete.

    Returns:
        The path of the index.

    Raises:
        ValueError: the folder has an ``explanations.json`` that detcam did not write.
        RuntimeError: another process works in the folder.
    """
    with lock_folder(folder) as locked:
        remove_temporary_files(locked)  # of a process that was killed
        index = ExplanationIndex(locked)
        entries: list[dict[str, Any]] = []
        try:
            for explanation in explanations:
                stem = index.choose_stem(_describe_image(explanation, None))
                entries.append(write_explanation(locked, explanation, stem, colormap=colormap))
        finally:
            index.write(lambda: entries)
    return index.path


def write_explanation(
    folder: Path,
    explanation: Explanation,
    stem: str,
    *,
    colormap: str | int = DEFAULT_COLORMAP,
    model_name: str | None = None,
) -> dict[str, Any]:
    """Write the overlays and heatmaps of one image.

    Args:
        folder: folder for the files.
        explanation: the explanation.
        stem: first part of the names of the files.
        colormap: colormap of the overlays.
        model_name: name of the model in the entry; None takes its class name.

    Returns:
        The entry of the index.
    """
    entry = _describe_image(explanation, model_name)
    entry["stem"] = stem
    height, width = explanation.image.shape[:2]
    stored_size = reduced_size((height, width), MAX_FULL_PIXELS)
    image = drawn_image(explanation.image)
    is_compact = height * width > MAX_FULL_PIXELS and max(image.shape[:2]) <= MAX_JPEG_SIDE
    overlay_suffix = "jpg" if is_compact else "png"
    encode = to_jpeg_bytes if is_compact else encode_png
    for index in range(len(explanation)):
        target = describe_target(explanation, index)
        prefix = f"{stem}.{index + 1}.{slug(target['name'] or target['kind'])}"
        suffix = "tif" if "depth" in entry else "png"
        target["overlay"], target["heatmap"] = f"{prefix}.{overlay_suffix}", f"{prefix}.heatmap.{suffix}"
        entry["targets"].append(target)

    def write(index: int) -> None:
        target = entry["targets"][index]
        if image is explanation.image:
            one = explanation.rendered(index)
            heatmap, overlay = reduced(one.heatmap(), stored_size), one.overlay(colormap=colormap)
        else:
            caption = explanation.full_caption(index)
            heatmap = heatmap_at(explanation, index, stored_size)
            overlay = draw_overlay(explanation, index, image, caption=caption, colormap=colormap)
        replace_file(folder / target["heatmap"], encode_heatmap(heatmap))
        replace_file(folder / target["overlay"], encode(overlay))

    writers = max(min(MAX_WRITERS, MAX_PIXELS_AT_ONCE // (image.shape[0] * image.shape[1])), 1)
    start_threads()  # here, because those that a writer starts would keep its low priority
    # Drawing and encoding run outside of Python's lock.
    with ThreadPoolExecutor(writers, initializer=_leave_processor_to_network) as pool:
        list(pool.map(write, range(len(explanation))))
    return entry


def _leave_processor_to_network() -> None:
    """Lower the priority of this thread, where threads have their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # it only takes longer
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + WRITER_NICENESS)


def read_index(path: Path) -> list[dict[str, Any]]:
    """Read the entries of an ``explanations.json``; return an empty list if the file does not exist.

    Raises:
        ValueError: the file is not JSON, or has another schema or version.
    """
    if not path.exists():
        return []
    entries = read_json(path, EXPLANATIONS_SCHEMA, EXPLANATIONS_VERSION).get("images")
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"{path} has entries that are not of this version; move it away, or choose another folder")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether an entry of an index, which may be somebody else's, has the right keys, and names within the folder."""
    if not isinstance(entry, dict) or not _KEY_TYPES.keys() <= entry.keys():
        return False
    if not all(isinstance(entry[key], types) for key, types in _KEY_TYPES.items()):
        return False
    texts = [*entry["target_layers"], *entry["smoothing"], entry["stem"]]
    texts += [target.get(kind) if isinstance(target, dict) else None for target in entry["targets"] for kind in _FILES]
    return all(isinstance(text, str) for text in texts) and Path(entry["stem"]).name == entry["stem"]


def encode_heatmap(heatmap: TensorLike) -> bytes:
    """Encode a heatmap (H, W) in [0, 1] as a 16-bit gray PNG, and one of a volume (D, H, W) as TIFF."""
    levels = np.rint(np.clip(as_array(heatmap, "heatmap"), 0, 1) * HEATMAP_MAXIMUM).astype(np.uint16)
    if levels.ndim == 2:
        return encode_png(levels)
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, levels, photometric="minisblack", compression="zlib")
    return file.getvalue()


def reduced(heatmap: HeatmapArray, size_hw: tuple[int, int]) -> HeatmapArray:
    """Return a heatmap (H, W) at a smaller size, each pixel the mean of a block; a volume is not reduced."""
    if heatmap.shape == size_hw or heatmap.ndim != 2:
        return heatmap
    return np.asarray(cv2.resize(heatmap, size_hw[::-1], interpolation=cv2.INTER_AREA))


def read_heatmap(path: str | Path, size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Read a saved heatmap.

    Args:
        path: file of the heatmap.
        size_hw: height and width of the image, to which the heatmap of a large image is resized. None leaves it as it
            is stored.

    Returns:
        (H, W) float32 in [0, 1], of a volume (D, H, W); it differs from the heatmap that was saved by at most
        1/131070, unless the image has more than four megapixels.

    Raises:
        ValueError: the file is not a 16-bit gray PNG, or TIFF with a page for each slice.
    """
    path = with_home(path)
    if path.suffix == ".tif":
        import tifffile

        try:
            pages: np.ndarray = tifffile.imread(path)
        except (tifffile.TiffFileError, ValueError, IndexError, TypeError, KeyError, struct.error) as error:
            raise ValueError(f"{path} is not a heatmap that detcam saved (16-bit gray TIFF)") from error
        return pages.astype(np.float32) / HEATMAP_MAXIMUM
    levels = decode_image(path.read_bytes())
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise ValueError(f"{path} is not a heatmap that detcam saved (16-bit gray PNG)")
    heatmap: np.ndarray = levels.astype(np.float32) / HEATMAP_MAXIMUM
    if size_hw is not None and heatmap.shape != tuple(size_hw):
        heatmap = cv2.resize(heatmap, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
    return heatmap


def describe_target(explanation: Explanation, index: int) -> dict[str, Any]:
    """Return one target's entry in ``explanations.json``, without its files."""
    target, detections = explanation.targets[index], explanation.detections
    facts = as_target(target)
    label = facts.label
    is_prediction = detections is not None and label == int(detections.labels[index])
    box = target.box_xyxy if isinstance(target, DetectionTarget) else None
    ranges = [(float(level[index].min()), float(level[index].max())) for level in explanation.saliency]
    reach = explanation.reach[index] if explanation.reach else None
    words = explanation.words[index] if explanation.words else None
    return {
        "kind": type(target).__name__,
        "caption": explanation.captions[index],
        "label": label,
        "name": None if label is None else class_name(explanation.names, label),
        "score": json_number(detections.scores[index]) if is_prediction and detections is not None else None,
        "box_xyxy": None if box is None else [json_number(value) for value in box],
        "quantity": facts.quantity,
        "against": facts.against,
        "value": json_number(explanation.scores[index]),
        "reach": None
        if reach is None
        else {"fraction": json_number(reach.fraction), "box_xyxy": [json_number(value) for value in reach.box_xyxy]},
        **({} if words is None else {"words": describe_words(words)}),
        "saliency_range": [json_number(min(low for low, _ in ranges)), json_number(max(high for _, high in ranges))],
    }


def describe_words(words: WordHeat) -> list[dict[str, Any]]:
    """Return the words of a prompt as plain numbers, for JSON."""
    rows = zip(words.words, words.heat, words.drops, strict=True)
    return [{"word": word, "heat": json_number(heat), "drop": json_number(drop)} for word, heat, drop in rows]


def _describe_image(explanation: Explanation, model_name: str | None) -> dict[str, Any]:
    path = explanation.path
    return {
        "path": None if path is None else str(path.absolute()),
        "name": explanation.name,
        "digest": hashlib.sha256(explanation.image.tobytes()).hexdigest() if path is None else None,
        **explanation.size,
        "model": model_name or explanation.model,
        "adapter": explanation.family,
        "method": explanation.method,
        "target_layers": list(explanation.layers),
        "smoothing": list(explanation.smoothing),
        "sampling": None if explanation.sampling is None else asdict(explanation.sampling),
        "stem": "",
        "targets": [],
    }


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key of an entry; a new entry replaces the one with the same key."""
    image = entry["path"] or (entry["name"], entry["digest"])
    return image, entry["model"], entry["method"], tuple(entry["target_layers"]), tuple(entry["smoothing"])


def files_of(entry: dict[str, Any]) -> list[str]:
    """Return the files of an entry, without names that lead out of the folder."""
    names = [target[kind] for target in entry["targets"] for kind in _FILES]
    return [name for name in names if Path(name).name == name]


def _stem_key(name: str) -> str:
    """Return the part of a file name up to its second dot, normalized as on file systems that ignore case."""
    return ".".join(unicodedata.normalize("NFC", name).casefold().split(".")[:2])
