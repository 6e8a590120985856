"""Where a report's files lie and what they are called, whatever the names in the data set.

The page, the JSON file and the tables lie in the folder itself; images and cases in a folder of their own each. Names
hold only small Latin letters, digits, ``_`` and ``-``, so that they are the same on every file system and in a link.
"""

from __future__ import annotations

import hashlib
import re

INDEX = "index.html"
AUDIT = "audit.json"
TABLE = "false_positives.csv"
COCO = "false_positives.coco.json"
IMAGES = "images"
CASES = "cases"
CASE_FILES = {
    "thumbnail": ".thumbnail.jpg",
    "heatmap": ".heatmap.png",
    "evidence": ".evidence.png",
    "control": ".control.png",
}
LONGEST_STEM = 60
PLAIN = re.compile(r"[a-z0-9_-]{1,80}")


def case_stem(case_id: str) -> str:
    """What the names of a case's files begin with: its id, or for unusual ids what is left of it and a digest."""
    return case_id if PLAIN.fullmatch(case_id) else _stem(case_id, case_id)


def image_stem(image_id: int | str, file_name: str) -> str:
    """What the names of an image's files begin with: images of one name in two folders differ."""
    last = re.split(r"[\\/]", file_name)[-1]
    return _stem(last.rsplit(".", 1)[0], f"{image_id!r} {file_name}")


def _stem(text: str, identity: str) -> str:
    left = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:LONGEST_STEM] or "unnamed"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{left}-{digest[:10]}"
