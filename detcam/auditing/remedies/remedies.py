"""Remedies for the errors of an audit: a recommended action for each group, and the files to act on it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detcam.auditing.case import AuditCase
from detcam.auditing.grouping.actions import REASONS, Action, choose_action
from detcam.auditing.grouping.hierarchy import Cause
from detcam.auditing.remedies.contact_sheets import ObjectIndex, contact_sheet, crop
from detcam.auditing.remedies.counterfactuals import DEFAULT_TRANSPLANTS, TrainingImage, make_counterfactuals
from detcam.auditing.remedies.datasets import write_training_set
from detcam.auditing.remedies.relabel import BOXES, CLASSES, MISSING, write_relabel_queue
from detcam.auditing.report.layout import case_stem
from detcam.auditing.report.report_data import ReportData
from detcam.auditing.result import Audit
from detcam.runs.lock import LOCK, lock_folder
from detcam.utils.console import plural
from detcam.utils.files import json_bytes, json_value, remove_temporary_files, replace_file, with_home
from detcam.utils.markdown import plain_line

REPAIR, README = "repair.json", "README.md"
FOLDERS: dict[Action, str] = {
    "relabel": "relabel",
    "counterfactual pairs": "counterfactual",
    "hard negatives": "hard-negatives",
    "review boxes": "boxes",
    "review classes": "classes",
    "add images": "missed",
}
"""Folder of the files of each action; the action ``look at the cases`` has none."""


@dataclass(frozen=True)
class GroupRemedy:
    """The recommended action for a group of errors, or for a single case.

    Attributes:
        group: number of the group in the report; None for a case that resembles no other.
        cause: the most frequent cause of its cases, as in the report and in comparisons; empty if none is confirmed.
        action: the action.
        reason: why, and what to do.
        sentence: summary of the group.
        delta_ap: increase of average precision when the group's errors are corrected; NaN where it is undefined.
        case_ids: ids of its cases.
        suppressors: of missed objects, what their detection is suppressed by and how often; else empty.
        folder: folder of the files, relative to that of the repair; empty if there are none.
    """

    group: int | None
    cause: str
    action: Action
    reason: str
    sentence: str
    delta_ap: float
    case_ids: tuple[str, ...]
    suppressors: dict[str, int]
    folder: str


@dataclass(frozen=True, repr=False)
class Repair:
    """The remedies of an audit.

    Attributes:
        remedies: one per group, in the order of the report.
        files: number of cases, images or objects in the files of each action.
        out: folder of the files.
    """

    remedies: tuple[GroupRemedy, ...]
    files: dict[Action, int]
    out: Path

    def __repr__(self) -> str:
        parts = ", ".join(f"{plural(len(self.with_action(action)), 'group')}: {action}" for action in self.files)
        return f"Repair({parts}, out: {self.out})"

    def with_action(self, action: Action) -> list[GroupRemedy]:
        """The remedies with this action."""
        return [remedy for remedy in self.remedies if remedy.action == action]


def repair(
    report: Audit | str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    transplants: int = DEFAULT_TRANSPLANTS,
    seed: int = 0,
) -> Repair:
    """Write what it takes to repair the errors of an audit: a recommended action for each group, and its files.

    * possible missing annotations: a relabel queue as COCO, CVAT and Label Studio files, highest gain first;
    * evidence that is not the object (context, marks, textures): counterfactual training pairs, in which the evidence
      is filled, or transplanted into other images, and the labels are kept;
    * look-alikes: the images with their labels as hard negatives, and each error beside the most similar true objects;
    * wrong boxes of right classes, and duplicates; and wrong classes without a known cause: queues with the detections
      and the annotations, highest gain first;
    * missed objects: their annotations by failure stage, and pairs without the region that suppresses them.

    Training sets are written in COCO's and YOLO's format and can be added to training as they are. They contain the
    audited images: audit the repaired model on others.

    Args:
        report: an audit with a report, or the folder of the report.
        out: folder of the files.
        images: folder of the original images; None takes those of the report, JPEG files of at most 1600 pixels.
        transplants: number of images into which the evidence of each error is transplanted; 0 for none.
        seed: seed of the images and positions of transplants.

    Returns:
        The remedies.

    Raises:
        TypeError: `report` is neither an audit nor a path.
        ValueError: the report is missing, an argument is invalid, or `out` has files of another program.
        RuntimeError: another process works in `out`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import detcam
        >>> from detcam.demo.labels import write_coco
        >>> from detcam.demo.model import load_demo_detector
        >>> from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
        >>> folder = Path(tempfile.mkdtemp())
        >>> labels = write_coco(folder, [draw_scene(1_000_000), draw_scene(1_000_001)])
        >>> options = {"names": DEMO_NAMES, "explain": 2, "explain_missed": 0, "score_threshold": 0.5}
        >>> model = load_demo_detector()
        >>> found = detcam.audit(model, folder / "images", labels, out=folder / "report", **options)
        >>> repaired = detcam.repair(found, folder / "repair")
        >>> repaired.remedies[0].action
        'counterfactual pairs'
        >>> (folder / "repair" / "counterfactual" / "data.yaml").exists()
        True
    """
    if isinstance(report, Audit):
        if report.report is None:
            raise ValueError("expected an audit with a report; run it with a folder: detcam.audit(..., out=...)")
        report = report.report.parent
    if not isinstance(report, (str, Path)):
        raise TypeError(f"expected an Audit or the folder of a report; got {type(report).__name__}")
    if transplants < 0:
        raise ValueError(f"expected transplants of at least 0; got {transplants}")
    data = ReportData.load(with_home(report), None if images is None else with_home(images))
    out = with_home(out)
    data.check_annotated()
    with lock_folder(out):
        if not (out / REPAIR).exists() and any(file.name != LOCK for file in out.iterdir()):
            raise ValueError(f"{out} has files that no repair wrote; choose a new folder (out=, --out)")
        return _write_repair(out, str(report), data, transplants, seed)


def _write_repair(out: Path, report: str, data: ReportData, transplants: int, seed: int) -> Repair:
    """Write the files of a repair into a folder that is locked."""
    remove_temporary_files(out)  # of a process that was killed
    remedies = tuple(_remedy(data, group) for group in [*data.content["groups"], *_single_cases(data)])
    writers: dict[Action, Callable[[Path, ReportData, Sequence[AuditCase]], int]] = {
        "relabel": _write_relabel,
        "counterfactual pairs": partial(_write_counterfactuals, transplants=transplants, seed=seed),
        "hard negatives": _write_hard_negatives,
        "review boxes": partial(_write_relabel, description=BOXES),
        "review classes": partial(_write_relabel, description=CLASSES),
        "add images": _write_missed,
    }
    files: dict[Action, int] = {}
    content: dict[str, Any] = {"schema": "detcam/repair", "version": 1, "finished": False, "report": report}
    content |= {"files": files, "remedies": [json_value(asdict(remedy)) for remedy in remedies]}
    replace_file(out / REPAIR, json_bytes(content, indent=1))  # so that an interrupted repair can run again
    for action, write in writers.items():
        shutil.rmtree(out / FOLDERS[action], ignore_errors=True)  # of an earlier repair
        cases = [data.cases[name] for remedy in remedies if remedy.action == action for name in remedy.case_ids]
        if cases:
            files[action] = write(out / FOLDERS[action], data, cases)
    repaired = Repair(remedies, files, out)
    replace_file(out / README, readme(repaired).encode("utf-8", "backslashreplace"))
    replace_file(out / REPAIR, json_bytes({**content, "finished": True}, indent=1))
    return repaired


def _single_cases(data: ReportData) -> list[dict[str, Any]]:
    """The explained cases that resemble no other, as groups without a number, those of the largest cost first."""
    singles = [
        {"number": None, "case_ids": [entry["id"]], "sentence": entry["sentence"], "delta_ap": entry["delta_ap"]}
        for entry in data.content["cases"]
        if entry["method"] and entry["group"] is None
    ]
    return sorted(singles, key=lambda single: -(single["delta_ap"] or 0.0))


def _remedy(data: ReportData, group: dict[str, Any]) -> GroupRemedy:
    cases = [data.cases[name] for name in group["case_ids"]]
    action = choose_action(cases)
    suppressors: dict[str, int] = {}
    for case in cases if action == "add images" else ():
        what = f"{case.failure_stage or 'unknown stage'}"
        if case.confirmed:
            what += (
                ": absent context"
                if case.needs_context
                else f": {case.evidence_object or 'a region'} ({case.evidence_location})"
            )
        suppressors[what] = suppressors.get(what, 0) + 1
    delta_ap = float("nan") if group["delta_ap"] is None else group["delta_ap"]
    folder = FOLDERS.get(action, "")
    case_ids = tuple(group["case_ids"])
    names = Counter(cause.name for case in cases if (cause := Cause.of(case)) is not None)
    most_frequent = names.most_common(1)[0][0] if names else ""
    return GroupRemedy(
        group["number"],
        most_frequent,
        action,
        REASONS[action],
        group["sentence"],
        delta_ap,
        case_ids,
        suppressors,
        folder,
    )


def _write_relabel(folder: Path, data: ReportData, cases: Sequence[AuditCase], description: str = MISSING) -> int:
    write_relabel_queue(folder, data, cases, description)
    return len(cases)


def _write_counterfactuals(
    folder: Path, data: ReportData, cases: Sequence[AuditCase], transplants: int, seed: int
) -> int:
    return write_training_set(folder, data, make_counterfactuals(data, cases, transplants, seed))


def _write_hard_negatives(folder: Path, data: ReportData, cases: Sequence[AuditCase]) -> int:
    """The images with their labels, and each error beside the true objects that it resembles."""
    by_image: dict[int | str, list[str]] = {}
    for case in cases:
        if case.image_id in data.images:
            by_image.setdefault(case.image_id, []).append(case.id)
    images = (
        TrainingImage("original", data.images[key], data.pixels(data.images[key]), data.images[key].objects, tuple(ids))
        for key, ids in by_image.items()
    )
    count = write_training_set(folder, data, images)
    (folder / "beside").mkdir(exist_ok=True)
    indices: dict[str, ObjectIndex] = {}
    entries = []
    for case in cases:
        if case.image_id not in data.images:
            continue
        index = indices.setdefault(case.name, ObjectIndex.of_class(data, case.name))
        nearest = index.nearest(crop(data.pixels(data.images[case.image_id]), case.box_xyxy, 0.0))
        name = f"beside/{case_stem(case.id)}.jpg"
        replace_file(folder / name, contact_sheet(data, case, nearest))
        neighbors = [
            {
                "file_name": each.image.file_name,
                "annotation_id": each.item.annotation_id,
                "similarity": json_value(each.similarity),
            }
            for each in nearest
        ]
        entries.append({"case": case.id, "file": name, "score": json_value(case.score), "nearest": neighbors})
    replace_file(folder / "hard-negatives.json", json.dumps(entries, indent=1).encode())
    return count


def _write_missed(folder: Path, data: ReportData, cases: Sequence[AuditCase]) -> int:
    """The missed objects by failure stage, and pairs without the regions that suppress them."""
    confirmed = [case for case in cases if case.confirmed]
    folder.mkdir(parents=True, exist_ok=True)
    if confirmed:
        write_training_set(folder, data, make_counterfactuals(data, confirmed, 0))
    entries = [
        {
            "case": case.id,
            "file_name": case.file_name,
            "name": case.name,
            "annotation_id": None if case.ground_truth is None else case.ground_truth.annotation_id,
            "box_xyxy": json_value(case.box_xyxy),
            "failure_stage": case.failure_stage,
            "score": json_value(case.score),
            "suppressed_by": case.evidence_object or case.evidence_location
            if case.confirmed and not case.needs_context
            else None,
        }
        for case in sorted(cases, key=lambda case: (case.failure_stage, -case.score))
    ]
    replace_file(folder / "missed.json", json.dumps(entries, indent=1).encode())
    return len(entries)


def readme(repaired: Repair) -> str:
    """Describe the files and the action of each group."""
    lines = ["# Remedies", "", "Groups first, then single cases; largest delta AP first.", ""]
    for remedy in repaired.remedies:
        cost = f", delta AP {remedy.delta_ap:.3f}" if remedy.delta_ap == remedy.delta_ap else ""
        sentence = plain_line(remedy.sentence)
        where = f" Files: `{remedy.folder}/`." if remedy.folder else ""
        title = "Single case" if remedy.group is None else f"Group {remedy.group}"
        cause = f" Cause: {plain_line(remedy.cause)}." if remedy.cause else ""
        lines.append(f"* {title}{cost}: **{remedy.action}**. {sentence}.{cause}{where}")
        for what, count in sorted(remedy.suppressors.items(), key=lambda item: -item[1]):
            lines.append(f"  * {count}: {plain_line(what)}")
    lines += ["", "## Actions", ""]
    for action in dict.fromkeys(remedy.action for remedy in repaired.remedies):
        lines.append(f"* **{action}**: {REASONS[action]}.")
    lines += [
        "",
        "Training sets have `annotations.json` (COCO) and `data.yaml` with `labels/` (YOLO). They are made of the "
        "audited images: after training with them, audit on other images.",
        "",
    ]
    return "\n".join(lines)
