"""Reads the JSON of COCO files in any encoding, and finds the image that a file name means."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from detcam.data.opening import IMAGE_SUFFIXES, MAX_SHOWN_NAME
from detcam.utils.console import shorten
from detcam.utils.files import is_file, is_in_folder

MAX_NEAR_FILES = 3
"""Number of files that a message names as near to a missing one."""
MAX_INTEGER_DIGITS = 400
"""Digits of an integer beyond which it fits in no float."""
OTHER_ENCODINGS = ("cp1252", "gb18030", "cp932", "cp949", "big5", "cp1251", "latin-1")
"""Encodings of files that are not UTF-8, on Windows in Western Europe, China, Japan, Korea, Taiwan, and Russia."""


def read_json_text(path: Path, images_dir: Path | None = None) -> tuple[str, str]:
    """Return the text of a JSON file and a note about its encoding, empty for UTF-8.

    Files in UTF-16 begin with a byte order mark. Other bytes that are not UTF-8 are read in the encoding of
    `OTHER_ENCODINGS` in which the most names of images occur in them; as latin-1 if none does.

    Args:
        path: the file.
        images_dir: the folder of the images that it names.
    """
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), "the file is in UTF-16"
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        encoding = _encoding_of_names(content, images_dir) if images_dir else ""
        note = "" if encoding else ": names may be wrong"
        encoding = encoding or "latin-1"
        return content.decode(encoding), f"the file is not UTF-8 and was read as {encoding}{note}"


def _encoding_of_names(content: bytes, images_dir: Path) -> str:
    """Return the encoding in which the most file names that are not ASCII are in a text; none if there are no such."""
    names = {path.name for path in images_dir.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    names = {name for name in names if not name.isascii()}
    counts: dict[str, int] = {}
    for encoding in OTHER_ENCODINGS:
        try:
            text = unicodedata.normalize("NFC", content.decode(encoding))
        except UnicodeDecodeError:
            continue
        counts[encoding] = sum(unicodedata.normalize("NFC", name) in text for name in names)
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else ""


def read_coco_json(path: Path, images_dir: Path | None = None) -> tuple[dict[str, list[Any]], str]:
    """Return the lists of a COCO file, and a note about its encoding.

    Raises:
        ValueError: no file, not JSON, or another format; the message names the format if it is known.
    """
    if path.is_dir():
        raise ValueError(f"expected an annotation file; got the folder {path}. Pass a COCO file or a data.yaml")
    if not path.is_file():
        raise ValueError(f"no annotation file at {path}; check the path")
    try:
        text, note = read_json_text(path, images_dir)
        data = _parse(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); is the file complete?") from error
    shape = 'a COCO file: {"images": [...], "annotations": [...], "categories": [...]}'
    if not isinstance(data, dict):
        hint = " (results of a detector, without the images and categories)" if _is_results(data) else ""
        raise ValueError(f"{path}: expected {shape}; got a {type(data).__name__} at the top{hint}")
    lists: dict[str, Any] = {name: data.get(name) for name in ("images", "annotations", "categories")}
    lists["categories"] = lists["categories"] or []  # a file of one class may do without
    for name, value in lists.items():
        if not isinstance(value, list):
            got = "nothing" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{path}: expected {shape}; got {got} under {name!r}{_known_format(data)}")
    return lists, note


def _parse(text: str) -> Any:
    """The content of a JSON text; an integer of more digits than Python converts is infinite."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= MAX_INTEGER_DIGITS else math.inf)


def _is_results(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "score" in data[0]


def _known_format(data: dict[str, Any]) -> str:
    if any(str(key).startswith("_via") for key in data):
        return ". This is a project of the VGG Image Annotator: export it as COCO"
    if "shapes" in data and "imagePath" in data:
        return ". This is a file of labelme, of one image: convert the folder to COCO (labelme2coco)"
    return ""


class ImageFinder:
    """Finds the files that the names in an annotation file mean.

    Args:
        folder: the folder of images.
        inside: whether only files below the folder are taken, so that a name cannot lead to other files of the user:
            neither with ``..``, nor as an absolute path, nor through a link.
    """

    def __init__(self, folder: Path, *, inside: bool = True) -> None:
        self.folder = folder
        self.inside = inside

    def find(self, name: str) -> tuple[Path | None, str]:
        """Find an image.

        Tried are, in turn: the name as a path below the folder; the same with backslashes, percent signs, Unicode
        normal forms or the case of letters written otherwise; and the only file of the folder with that name.

        Returns:
            The path, or None; and a note: how a name was read that does not exist as it is written, or which files are
            near.
        """
        path, shown = self.folder / name, self.folder / shorten(name, MAX_SHOWN_NAME)
        if self._is_image(path):
            return path, ""
        for spelling in _spellings(name):
            if self._is_image(other := self.folder / spelling):
                return other, ""
            same = self._by_path.get(_key(spelling), [])
            if len(same) == 1:
                return same[0], ""
        last = _key(PurePosixPath(list(_spellings(name))[-1]).name)
        same = self._by_name.get(last, [])
        if len(same) == 1:
            return same[0], f"no image file at {shown}; {same[0]} is taken, the only one of that name"
        if same:
            some = ", ".join(str(path.relative_to(self.folder)) for path in same[:MAX_NEAR_FILES])
            return None, f"no image file at {shown}; {len(same)} files have that name: {some}"
        stem = last.rpartition(".")[0]
        near = [path for key, paths in self._by_name.items() if key.rpartition(".")[0] == stem for path in paths]
        hint = f"; did you mean {near[0].relative_to(self.folder)}?" if near else ""
        if is_file(path):
            return None, f"{shown} leads out of the image folder{hint}"
        return None, f"no image file at {shown}{hint}"

    def _is_image(self, path: Path) -> bool:
        return is_file(path) and (not self.inside or is_in_folder(path, self.folder))

    @cached_property
    def _files(self) -> list[Path]:
        files = (path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return sorted(path for path in files if self._is_image(path))

    @cached_property
    def _by_path(self) -> dict[str, list[Path]]:
        return _grouped((_key(path.relative_to(self.folder).as_posix()), path) for path in self._files)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((_key(path.name), path) for path in self._files)


def _spellings(name: str) -> Iterator[str]:
    """Other spellings of a file name, each with the changes of the one before."""
    slashed = name.replace("\\", "/")
    yield slashed
    plain = slashed.partition("?d=")[2] or slashed  # label-studio's local files
    if "://" in plain:
        with suppress(ValueError):  # no valid URL
            plain = urlsplit(plain).path.lstrip("/")
    plain = unquote(plain)
    yield plain
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, plain)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _grouped(pairs: Iterator[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for key, path in pairs:
        groups.setdefault(key, []).append(path)
    return groups
