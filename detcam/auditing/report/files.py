"""The files that cases and images have in a report's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detcam.auditing.case import AuditCase
from detcam.auditing.report import layout


class ReportFiles:
    """The image and case files in the folder of a report, listed once.

    Args:
        out: folder of the report.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.names = {
            f"{folder}/{entry.name}" for folder in (layout.IMAGES, layout.CASES) for entry in os.scandir(out / folder)
        }

    def of_case(self, case: AuditCase) -> dict[str, str | None]:
        """Return the files of a case by kind, relative to the folder: its image, and maps only if it is explained."""
        files = {"image": self.image(case)}
        for kind in layout.CASE_FILES:
            files[kind] = self.case_file(case, kind) if case.method or kind == "thumbnail" else None
        return files

    def case_file(self, case: AuditCase, kind: str) -> str | None:
        """Return a file of a case, relative to the folder; None if there is none."""
        return self._existing(f"{layout.CASES}/{layout.case_stem(case.id)}{layout.CASE_FILES[kind]}")

    def image(self, case: AuditCase) -> str | None:
        """Return the image of a case, relative to the folder; None if it is not written."""
        return self._existing(f"{layout.IMAGES}/{layout.image_stem(case.image_id, case.file_name)}.jpg")

    def describe_image(self, image: str) -> dict[str, Any]:
        """Read the entry of an image: its size and ground truth.

        Raises:
            ValueError: the file is damaged.
        """
        path = (self.out / image).with_suffix(".json")
        try:
            description: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged; delete it and run the audit again") from error
        return description

    def images(self, cases: Iterable[AuditCase]) -> Iterator[dict[str, Any]]:
        """Yield the entries of the written images, in the order of their cases."""
        described: set[str] = set()
        for case in cases:
            image = self.image(case)
            if image is not None and image not in described:
                described.add(image)
                yield self.describe_image(image)

    def _existing(self, name: str) -> str | None:
        return name if name in self.names else None
