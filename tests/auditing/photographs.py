"""Boxes of the reference photographs, drawn by hand for these tests."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

OBJECTS: dict[str, list[tuple[str, tuple[int, int, int, int]]]] = {
    "baseball.jpg": [
        ("person", (172, 0, 236, 118)),
        ("person", (370, 206, 438, 408)),
        ("person", (284, 276, 468, 446)),
        ("person", (270, 300, 376, 434)),
        ("baseball bat", (398, 184, 458, 224)),
    ],
    "bus.jpg": [
        ("bus", (50, 80, 592, 424)),
        ("person", (6, 250, 50, 362)),
        ("person", (312, 188, 382, 248)),
        ("traffic light", (56, 10, 72, 40)),
    ],
    "cat_mirror.jpg": [("cat", (124, 148, 628, 416)), ("cat", (0, 184, 170, 416))],
    "dog_cat.png": [("dog", (78, 14, 165, 148)), ("cat", (44, 119, 200, 224))],
    "dogs.png": [
        ("dog", (29, 128, 82, 275)),
        ("dog", (80, 124, 137, 274)),
        ("dog", (136, 112, 192, 277)),
        ("dog", (178, 117, 229, 273)),
        ("dog", (223, 114, 272, 273)),
        ("dog", (265, 138, 323, 277)),
    ],
    "frisbee.jpg": [
        ("person", (42, 65, 163, 298)),
        ("person", (160, 136, 250, 263)),
        ("person", (232, 134, 300, 282)),
        ("person", (292, 143, 500, 293)),
        ("frisbee", (90, 150, 137, 194)),
        ("frisbee", (184, 197, 214, 230)),
        ("frisbee", (215, 186, 250, 222)),
        ("frisbee", (253, 165, 295, 206)),
    ],
    "horses.jpg": [("horse", (161, 122, 206, 160)), ("horse", (263, 129, 339, 187))],
    "living_room.jpg": [
        ("person", (78, 90, 266, 478)),
        ("person", (152, 80, 218, 342)),
        ("person", (252, 66, 334, 372)),
        ("person", (356, 52, 492, 428)),
        ("couch", (218, 196, 414, 366)),
        ("remote", (226, 258, 266, 282)),
        ("remote", (372, 140, 398, 166)),
        ("bottle", (516, 244, 530, 284)),
        ("bottle", (540, 244, 556, 286)),
        ("backpack", (0, 402, 88, 480)),
    ],
    "puppies.jpg": [
        ("dog", (20, 512, 432, 868)),
        ("dog", (400, 560, 700, 812)),
        ("dog", (600, 434, 920, 806)),
        ("dog", (900, 562, 1240, 812)),
        ("dog", (1190, 506, 1600, 892)),
    ],
}
"""File name to class names and boxes, left, top, right, bottom in pixels."""


def write_labels(path: Path, photos: Path) -> Path:
    """The boxes as a COCO file for the images in a folder."""
    names = sorted({name for objects in OBJECTS.values() for name, _ in objects})
    images, annotations = [], []
    for number, (file_name, objects) in enumerate(OBJECTS.items(), 1):
        width, height = Image.open(photos / file_name).size
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for name, (left, top, right, bottom) in objects:
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
