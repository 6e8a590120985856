"""The data files of the report page, which it loads as it needs them.

A page that is opened from disk can load scripts, not other files. A data file is therefore a script that hands one JSON
text to the page. There are three kinds: ``summary``, the results of the audit as a whole; ``rows``, what the list shows
of each case, by column; and ``details``, the explanations of cases. Files have a bounded size. The page loads the
explanation of a case when it is opened, and errors below the score threshold only on request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from detcam.auditing.case import AuditCase
from detcam.auditing.case_table import case_columns, explained_cases
from detcam.auditing.report import images, layout
from detcam.auditing.report.causes import top_causes
from detcam.auditing.report.curves import confusions
from detcam.auditing.report.files import ReportFiles
from detcam.auditing.report.rows import RowTable
from detcam.auditing.report.summary import ReportSummary
from detcam.utils.files import json_value, replace_file

MAX_ROWS = 10_000
"""Maximum number of cases in a file of rows."""
MAX_FILE_CHARACTERS = 1_000_000
"""Size of the text from which a data file takes no further case."""
MAX_DETAIL_CHARACTERS = 250_000
"""The same for a file of explanations, which is loaded when a case is opened."""
MAX_LISTED = 20_000
"""Maximum number of cases that the page loads at the start."""
MAX_GROUPS = 500
"""Maximum number of groups on the page."""
MAX_CAUSES = 1000
"""Maximum number of causes on the page."""
MAX_GROUP_IMAGES = 6
MAX_ISSUES = 200
MAX_OBJECTS = 1000
"""Maximum number of ground-truth objects that the page draws on an image."""
MAX_TEXT = 1000
"""Maximum length of a text on the page; names of a data set can be of any length."""
UNCLIPPED = ("id", "case_ids", "thumbnail", "run")


class PageData:
    """Writes the data files of the page.

    Args:
        files: files of the report.
        run: hexadecimal digits that tell apart the files of different audits.
    """

    def __init__(self, files: ReportFiles, run: str) -> None:
        self.files = files
        self.run = run
        self.folder = files.out / layout.DATA
        self.written: set[str] = set()
        self._objects = lru_cache(maxsize=32)(self._read_objects)

    def write(self, summary: ReportSummary) -> dict[str, Any]:
        """Write all data files.

        Returns:
            What the page must know to load them: ``run``; ``rows``, the number of cases of each file of rows; and
            ``start``, the number of these files that it loads at the start.
        """
        order, listed_count = rank_cases(summary.cases, summary.score_threshold)
        explained = explained_cases(summary.cases)
        ranked_first = order[: sum(bool(case.method) for case in explained.values())].tolist()
        details = self._write_details([explained[index] for index in ranked_first])
        starts: list[int] = []
        counts: list[int] = []
        for first, last in ((0, listed_count), (listed_count, len(order))):
            ranked = (summary.cases[int(index)] for index in order[first:last])
            starts.append(len(counts))
            counts += self._write_rows(ranked, details)
        listed_files = np.cumsum([0, *counts[: starts[1]]])
        self._write("summary", summary_data(summary, self.files))
        return {
            "run": self.run,
            "rows": counts,
            "start": int((listed_files[:-1] < MAX_LISTED).sum()),
            "listed": listed_count,
        }

    def remove_others(self) -> None:
        """Remove the data files of earlier audits, which the page no longer loads."""
        for path in self.folder.iterdir():
            if layout.DATA_FILE.fullmatch(path.name) and path.name not in self.written:
                path.unlink()

    def _write_rows(self, cases: Iterator[AuditCase], details: Mapping[str, int]) -> Iterator[int]:
        """Write rows in files; yield the number of cases of each."""
        table = RowTable()
        for case in cases:
            table.add(case, self.files, details.get(case.id))
            if len(table) == MAX_ROWS or table.characters > MAX_FILE_CHARACTERS:
                self._write_table(table)
                yield len(table)
                table = RowTable()
        if len(table):
            self._write_table(table)
            yield len(table)

    def _write_table(self, table: RowTable) -> None:
        number = sum(name.startswith("rows-") for name in self.written)
        self._write(f"rows-{number}", table.to_json())

    def _write_details(self, cases: Sequence[AuditCase]) -> dict[str, int]:
        """Write the explanations of cases; return the number of the file by case id."""
        numbers: dict[str, int] = {}
        entries: dict[str, Any] = {}
        objects: dict[str, Any] = {}
        size = number = 0
        for case in cases:
            entry = self._detail(case)
            image = entry["files"].get("image")
            new_objects = {} if image is None or image in objects else {image: self._objects(image)}
            objects |= new_objects
            entries[case.id] = entry
            numbers[case.id] = number
            size += len(json.dumps(entry)) + len(json.dumps(new_objects))
            if size > MAX_DETAIL_CHARACTERS:
                self._write(f"details-{number}", {"cases": entries, "objects": objects})
                entries, objects, size, number = {}, {}, 0, number + 1
        if entries:
            self._write(f"details-{number}", {"cases": entries, "objects": objects})
        return numbers

    def _detail(self, case: AuditCase) -> dict[str, Any]:
        """The entry of ``audit.json``, without empty fields, and outlines of the regions."""
        files = self.files.of_case(case)
        outlines = {}
        for kind in ("evidence", "needed", "control"):
            path, evidence = files[kind], files["evidence"]
            if path is not None:
                without = self.files.out / evidence if kind == "needed" and evidence is not None else None
                outlines[kind] = images.region_outline(self.files.out / path, case.image_size_hw, without)
        present = {kind: path for kind, path in files.items() if path is not None}
        fields = {name: value for name, value in clip(case.to_json()).items() if value not in (None, "", [], {})}
        return fields | {"files": present, "outlines": outlines}

    def _read_objects(self, image: str) -> list[dict[str, Any]]:
        return clip(self.files.describe_image(image)["objects"][:MAX_OBJECTS])

    def _write(self, name: str, content: object) -> None:
        file = layout.data_file(name, self.run)
        text = script_json(json.dumps(content, separators=(",", ":"), allow_nan=False))
        replace_file(self.folder / file, f'detcamData("{name}",{text});\n'.encode("ascii"))
        self.written.add(file)


def rank_cases(cases: Sequence[AuditCase], score_threshold: float) -> tuple[np.ndarray, int]:
    """Order cases for the page: the explained ones, then the relevant ones, then the others, each by score.

    Relevant are missed objects and detections with at least the threshold's score.

    Returns:
        The order, (n,) int64 indices; and the number of cases that are explained or relevant.
    """
    columns = case_columns(cases)
    listed = columns.is_explained | columns.is_relevant(score_threshold)
    return np.lexsort((-columns.score, ~listed, ~columns.is_explained)), int(listed.sum())


def summary_data(summary: ReportSummary, files: ReportFiles) -> dict[str, Any]:
    """Return what the page shows of the audit as a whole."""
    content = summary.to_json()
    del content["groups"]
    issues = content.pop("issues")
    unlabeled = bool(summary.settings.get("unlabeled"))
    return clip(
        {
            **content,
            "top_causes": _top_causes(summary, files),
            "confusions": None if unlabeled else confusions(summary.cases, summary.score_threshold),
            "figures": _figures(summary),
            "tallies": _tallies(list(explained_cases(summary.cases).values())),
            "groups": _groups(summary, files),
            "group_count": len(summary.groups),
            "causes": _causes(content["causes"]),
            "issues": issues[:MAX_ISSUES],
            "issue_count": len(issues),
        }
    )


def _figures(summary: ReportSummary) -> dict[str, int]:
    """Return the numbers of cases that the page begins with."""
    columns, explained = case_columns(summary.cases), explained_cases(summary.cases).values()
    return {
        "false_positives": int((columns.is_false_positive & (columns.score >= summary.score_threshold)).sum()),
        "missed": int(columns.is_missed.sum()),
        "explained": int(columns.is_explained.sum()),
        "confirmed": sum(case.confirmed for case in explained),
        "strong": sum(case.verdict == "strong" for case in explained),
    }


def _tallies(cases: Sequence[AuditCase]) -> dict[str, dict[str, int]]:
    """Count explained cases by verdict and background type, and confirmed ones by evidence location and proposal."""
    explained = [case for case in cases if case.method]
    confirmed = [case for case in explained if case.confirmed]
    # A proposal without a confirmed case counts 0, so that the list can be filtered by it.
    proposals = dict.fromkeys((case.proposal for case in explained if case.proposal), 0)
    return {
        "verdict": Counter(case.verdict for case in explained),
        "background_type": Counter(case.background_type for case in explained if case.background_type),
        "evidence_location": Counter(case.evidence_location for case in confirmed if case.evidence_location),
        "proposal": proposals | Counter(case.proposal for case in confirmed if case.proposal),
    }


def _groups(summary: ReportSummary, files: ReportFiles) -> list[dict[str, Any]]:
    """Return the first groups."""
    ordered = sorted(summary.groups, key=lambda group: group.number)[:MAX_GROUPS]
    wanted = {case_id for group in ordered for case_id in group.case_ids[:MAX_GROUP_IMAGES]}
    explained = explained_cases(summary.cases).values()
    thumbnails = {case.id: files.case_file(case, "thumbnail") for case in explained if case.id in wanted}
    entries = []
    for group in ordered:
        entry = json_value(vars(group))
        ids = entry.pop("case_ids")
        shown = [{"id": case_id, "thumbnail": thumbnails[case_id]} for case_id in ids[:MAX_GROUP_IMAGES]]
        entries.append(entry | {"size": len(ids), "cases": shown})
    return entries


def _top_causes(summary: ReportSummary, files: ReportFiles) -> list[dict[str, Any]]:
    """Return the causes that the page begins with."""
    explained = {case.id: case for case in explained_cases(summary.cases).values() if case.method}
    noun = "detection" if summary.settings.get("unlabeled") else "error"
    return [
        top.to_json() | {"example": {"id": top.example.id, "thumbnail": files.case_file(top.example, "thumbnail")}}
        for top in top_causes(summary.causes, explained, noun)
    ]


def _causes(causes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first causes of the hierarchy, with the number of their cases in place of their ids."""
    return [
        {name: value for name, value in cause.items() if name != "case_ids"} | {"size": len(cause["case_ids"])}
        for cause in causes[:MAX_CAUSES]
    ]


def clip(value: Any) -> Any:
    """Shorten the long texts in JSON values, except for ids and file names, which must stay whole."""
    if isinstance(value, dict):
        return {key: inner if key in UNCLIPPED else clip(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clip(inner) for inner in value]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[:MAX_TEXT] + "\u2026"
    return value


def script_json(data: object) -> str:
    """Convert data to JSON for a script element: ASCII without ``<``, ``>`` and ``&``."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
