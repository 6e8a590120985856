"""The frame of the boxes of images that EXIF rotates: the stored pixels, or the image set upright."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from detcam.data.coco_boxes import plain_box, to_xywh, without_frame
from detcam.data.exif import ImageSize
from detcam.data.issues import DataIssue
from detcam.utils.console import plural


@dataclass(frozen=True)
class ImageEntry:
    """An image of a COCO file.

    Attributes:
        image_id: its id.
        file_name: its name in the file.
        path: the file it stands for.
        size: the file's size.
        as_stored: whether boxes are in the frame of the stored pixels; else in that of the upright image.
    """

    image_id: int | str
    file_name: str
    path: Path
    size: ImageSize
    as_stored: bool

    @property
    def drawn_hw(self) -> tuple[int, int]:
        """Height and width of the frame of its boxes."""
        return self.size.stored_hw if self.as_stored else self.size.upright_hw


Images = dict[int | str, ImageEntry]


class Fit(Enum):
    """The frame in which no box ends outside: the one whose size the file states, only the other one, or both."""

    STATED, OTHER, BOTH = range(3)


def settle_frames(images: Images, annotations: list[Any], box_format: str | None, issues: list[DataIssue]) -> Images:
    """Decide in which frame the boxes of rotated images are, and report what is not certain.

    `box_format` may say it (``"xywh-upright"``, ``"xywh-stored"``). Otherwise it is the frame whose size the file
    states, unless boxes end outside of it and none outside of the other.
    """
    box_format = box_format or "xywh"
    numbers = without_frame(box_format)
    rotated = {key: image for key, image in images.items() if image.size.orientation != 1}
    if numbers != box_format:
        return images | _in_frame(rotated, box_format.endswith("-stored"))
    for as_stored in (True, False):
        group = {key: image for key, image in rotated.items() if image.as_stored == as_stored}
        fit = _fit(group, annotations, numbers)
        images = images | (_in_frame(group, not as_stored) if fit is Fit.OTHER else {})
        if message := _message(group, as_stored, fit, numbers):
            issues.append(DataIssue("boxes of rotated images", message))
    return images


def _in_frame(images: Images, as_stored: bool) -> Images:
    return {key: replace(image, as_stored=as_stored) for key, image in images.items()}


def _fit(images: Images, annotations: list[Any], box_format: str) -> Fit:
    """Return in which frame no box ends outside."""
    by_text = {str(key): image for key, image in images.items()}
    count = outside = outside_other = 0
    for entry in annotations:
        image = by_text.get(str(entry.get("image_id"))) if isinstance(entry, Mapping) else None
        box = plain_box(entry.get("bbox")) if image else None
        if image is None or box is None:
            continue
        other = replace(image, as_stored=not image.as_stored)
        count += 1
        outside += _ends_outside(box, box_format, image.drawn_hw)
        outside_other += _ends_outside(box, box_format, other.drawn_hw)
    if outside_other or not count:
        return Fit.STATED
    return Fit.OTHER if outside else Fit.BOTH


def _ends_outside(box: list[float], box_format: str, size_hw: tuple[int, int]) -> bool:
    x, y, width, height = to_xywh(box, box_format, size_hw)
    return x + width > size_hw[1] + 1 or y + height > size_hw[0] + 1


def _message(group: Images, as_stored: bool, fit: Fit, box_format: str) -> str:
    """Return what is reported about a group of rotated images; nothing where their frame is certain."""
    if as_stored and group:
        count = plural(len(group), "image")
        start = f"{count} rotated by EXIF, beside the size before the rotation: their boxes are "
        if fit is Fit.OTHER:
            return start + "taken as drawn upright, since some do not fit otherwise"
        return (
            start
            + f"rotated with them. If they are drawn upright, pass box_format='{box_format}-upright' (--box-format)"
        )
    if fit is Fit.OTHER:
        count = plural(len(group), "image")
        return (
            f"{count} rotated by EXIF: the boxes are taken as drawn on the stored pixels, since some do not fit upright"
        )
    same_size = [image for image in group.values() if image.size.stored_hw == image.size.upright_hw]
    if fit is Fit.BOTH and len(same_size) < len(group):
        start = (
            f"{plural(len(group), 'image')} rotated by EXIF, whose boxes fit the stored pixels, too: they are taken "
        )
    elif same_size:
        start = f"{plural(len(same_size), 'image')} rotated by EXIF to an image of the same size: the boxes are taken "
    else:
        return ""
    return (
        f"{start}as drawn upright. If they are drawn on the stored pixels, pass box_format='{box_format}-stored' "
        "(--box-format)"
    )
