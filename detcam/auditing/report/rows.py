"""Tables of what the list of the report page shows, stored by column."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from detcam.auditing.case import AuditCase
from detcam.auditing.report.files import ReportFiles
from detcam.utils.files import json_number

MAX_ROW_TEXT = 400
"""Maximum length of a text in the list."""
ROW_CHARACTERS = 130
"""Approximate length of a row without its texts."""
CODED = ("type", "verdict", "evidence_kind", "evidence_location", "background_type", "proposal", "method", "sentence")
"""Texts that many cases share: a column holds their numbers in a list of different texts."""
COLUMNS = ("id", "image", "class", "score", "delta_ap", "is_false_positive", "box_xyxy", "ground_truth", *CODED)
SPARSE = ("effect", "trust", "group", "thumbnail", "detail")
"""Fields that most cases lack: stored by row number."""


class RowTable:
    """Rows of cases, by column.

    Attributes:
        characters: approximate length of the table as text.
    """

    def __init__(self) -> None:
        self.characters = 0
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._sparse: dict[str, dict[int, Any]] = {name: {} for name in SPARSE}
        self._codes: dict[str, dict[Hashable, int]] = {name: {} for name in ("image", "class", *CODED)}
        self._images: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._columns["id"])

    def add(self, case: AuditCase, files: ReportFiles, detail: int | None) -> None:
        """Add a case.

        Args:
            case: the case.
            files: files of the report.
            detail: number of the file with its explanation; None if it is not explained.
        """
        optional = {
            "effect": json_number(case.effect),
            "trust": json_number(case.trust),
            "group": case.group,
            "thumbnail": files.case_file(case, "thumbnail"),
            "detail": detail,
        }
        for name, value in optional.items():
            if value is not None:
                self._sparse[name][len(self)] = value
        row: dict[str, Any] = {
            "id": case.id,
            "image": self._image(case, files),
            "class": self._code("class", (case.label, _clip(case.name))),
            "score": json_number(case.score),
            "delta_ap": json_number(case.delta_ap),
            "is_false_positive": int(case.is_false_positive),
            "box_xyxy": [_pixels(value) for value in case.box_xyxy],
            "ground_truth": self._ground_truth(case),
            **{name: self._code(name, _clip(getattr(case, name) or "")) for name in CODED},
        }
        for name, value in row.items():
            self._columns[name].append(value)
        self.characters += ROW_CHARACTERS + len(case.id)

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of a data file."""
        texts = {name: list(codes) for name, codes in self._codes.items() if name != "image"}
        return {"columns": self._columns, "sparse": self._sparse, "texts": texts, "images": self._images}

    def _code(self, name: str, value: Hashable) -> int:
        codes = self._codes[name]
        if value not in codes:
            codes[value] = len(codes)
            self.characters += len(str(value))
        return codes[value]

    def _image(self, case: AuditCase, files: ReportFiles) -> int:
        number = self._code("image", (case.image_id, case.file_name))
        if number == len(self._images):
            image = {
                "image_id": case.image_id,
                "file_name": _clip(case.file_name),
                "image_size_hw": case.image_size_hw,
                "file": files.image(case),
            }
            self._images.append(image)
        return number

    def _ground_truth(self, case: AuditCase) -> list[Any] | None:
        """The object that an error concerns."""
        truth = case.ground_truth
        if truth is None:
            return None
        box = [_pixels(value) for value in truth.box_xyxy]
        known = self._code("class", (truth.label, _clip(truth.name)))
        return [known, int(truth.is_known), json_number(truth.iou), truth.annotation_id, box]


def _clip(text: str) -> str:
    return text if len(text) <= MAX_ROW_TEXT else text[:MAX_ROW_TEXT] + "\u2026"


def _pixels(value: float) -> float | None:
    """A coordinate with a hundredth of a pixel."""
    number = json_number(value)
    return None if number is None else round(number, 2)
