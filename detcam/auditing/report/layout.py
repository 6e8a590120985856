"""Names of the files of a report.

The page, the JSON file and the tables are in the folder of the report; images, case files and the data files of the
page are in subfolders. File names contain only lower-case Latin letters, digits, ``_`` and ``-``, whatever the names in
the data set, so that they are valid on every file system and in links.
"""

from __future__ import annotations

import hashlib
import re

INDEX = "index.html"
AUDIT = "audit.json"
TABLE = "false_positives.csv"
COCO = "false_positives.coco.json"
ERRORS = "errors.parquet"
IMAGES = "images"
CASES = "cases"
DATA = "data"
DATA_FILE = re.compile(r"[a-z]+(-\d+)?-[0-9a-f]{10}\.js")
CASE_FILES = {
    "thumbnail": ".thumbnail.jpg",
    "heatmap": ".heatmap.png",
    "overlay": ".overlay.png",
    "evidence": ".evidence.png",
    "needed": ".needed.png",
    "control": ".control.png",
}
MAX_STEM_LENGTH = 60
SAFE_NAME = re.compile(r"[a-z0-9_-]{1,80}")


def case_stem(case_id: str) -> str:
    """Return the stem of a case's file names: its id if that is a safe name, else its safe characters and a digest."""
    return case_id if SAFE_NAME.fullmatch(case_id) else _stem(case_id, case_id)


def image_stem(image_id: int | str, file_name: str) -> str:
    """Return the stem of an image's file names. It differs for images of the same name in different folders."""
    base_name = re.split(r"[\\/]", file_name)[-1]
    return _stem(base_name.rsplit(".", 1)[0], f"{image_id!r} {file_name}")


def _stem(text: str, identity: str) -> str:
    safe = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:MAX_STEM_LENGTH] or "unnamed"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe}-{digest[:10]}"


def data_file(name: str, run: str) -> str:
    """Return the name of a data file of the page; `run` tells apart the files of different audits."""
    return f"{name}-{run}.js"
