"""Contact sheets: the box of an error beside the most similar annotated objects of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.feature import hog

from detcam.auditing.case import AuditCase, Box
from detcam.auditing.remedies.datasets import encode_jpeg
from detcam.auditing.report.report_data import ReportData, ReportImage, ReportObject
from detcam.utils.opencv import cv2

DEFAULT_NEIGHBORS = 4
"""Objects beside each error."""
MAX_OBJECTS = 400
"""Maximum number of objects of a class that are compared."""
TILE, MARGIN, TITLE = 168, 8, 20
DESCRIPTOR_SIDE = 32


@dataclass(frozen=True)
class Neighbor:
    """An annotated object that resembles an error.

    Attributes:
        image: its image.
        item: the object.
        similarity: cosine of the descriptors of the two boxes, in [-1, 1].
    """

    image: ReportImage
    item: ReportObject
    similarity: float


@dataclass(frozen=True)
class ObjectIndex:
    """Descriptors of the annotated objects of a class.

    Attributes:
        entries: (image, object) of each.
        descriptors: (n, D) rows of length 1: colors and oriented gradients of the box.
    """

    entries: tuple[tuple[ReportImage, ReportObject], ...]
    descriptors: np.ndarray

    @classmethod
    def of_class(cls, data: ReportData, name: str) -> ObjectIndex:
        """Describe the objects of a class in the images of a report, at most `MAX_OBJECTS`."""
        entries: list[tuple[ReportImage, ReportObject]] = []
        rows: list[np.ndarray] = []
        for image in data.images.values():
            objects = [item for item in image.objects if item.name == name and not item.crowd]
            objects = objects[: MAX_OBJECTS - len(entries)]
            if objects:
                pixels = data.pixels(image)
                for item in objects:
                    entries.append((image, item))
                    rows.append(describe(crop(pixels, item.box_xyxy, 0.0)))
        return cls(tuple(entries), np.stack(rows) if rows else np.zeros((0, 1)))

    def nearest(self, patch: np.ndarray, count: int = DEFAULT_NEIGHBORS) -> list[Neighbor]:
        """Find the objects that resemble a patch (h, w, 3) most."""
        if not self.entries:
            return []
        similarity = self.descriptors @ describe(patch)
        order = np.argsort(-similarity, kind="stable")[:count].tolist()
        return [
            Neighbor(image, item, float(value))
            for (image, item), value in ((self.entries[index], similarity[index]) for index in order)
        ]


def crop(pixels: np.ndarray, box: Box, margin: float) -> np.ndarray:
    """Cut a box with a margin, relative to its sides, out of an image; at least one pixel."""
    height, width = pixels.shape[:2]
    side_x, side_y = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    left, top = (int(np.floor(max(value, 0))) for value in (box[0] - side_x, box[1] - side_y))
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = min(int(np.ceil(box[2] + side_x)), width), min(int(np.ceil(box[3] + side_y)), height)
    return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def describe(patch: np.ndarray) -> np.ndarray:
    """Describe a patch (h, w, 3) uint8 by colors and oriented gradients: (D,) of length 1."""
    small = cv2.resize(patch, (DESCRIPTOR_SIDE, DESCRIPTOR_SIDE), interpolation=cv2.INTER_AREA)
    gradients = hog(small, orientations=8, pixels_per_cell=(8, 8), cells_per_block=(1, 1), channel_axis=-1)
    colors = cv2.resize(small, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float64).ravel() / 255 - 0.5
    parts = [part / max(float(np.linalg.norm(part)), 1e-9) for part in (gradients - gradients.mean(), colors)]
    row = np.concatenate(parts)
    return row / max(float(np.linalg.norm(row)), 1e-9)


def contact_sheet(data: ReportData, case: AuditCase, neighbors: Sequence[Neighbor]) -> bytes:
    """Draw the box of an error and, to its right, annotated objects, as JPEG."""
    tiles = [(f"{case.name} {case.score:.2f}", data.images[case.image_id], case.box_xyxy)]
    tiles += [(f"{each.item.name}, annotated", each.image, each.item.box_xyxy) for each in neighbors]
    width = len(tiles) * (TILE + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, TILE + TITLE + 2 * MARGIN), (247, 247, 245))
    draw = ImageDraw.Draw(sheet)
    for number, (title, image, box) in enumerate(tiles):
        patch = Image.fromarray(crop(data.pixels(image), box, 0.25))
        scale = TILE / max(patch.size)
        patch = patch.resize((max(round(patch.width * scale), 1), max(round(patch.height * scale), 1)))
        left = MARGIN + number * (TILE + MARGIN)
        text = title.encode("ascii", "replace").decode()[:26]
        draw.text((left, MARGIN), text, (90, 30, 20) if number == 0 else (30, 90, 40), ImageFont.load_default())
        sheet.paste(patch, (left + (TILE - patch.width) // 2, MARGIN + TITLE + (TILE - patch.height) // 2))
    return encode_jpeg(np.asarray(sheet))
