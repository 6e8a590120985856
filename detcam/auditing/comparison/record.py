"""An audit as a comparison reads it: from the folder of a report, or from an `Audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from detcam.auditing.case import AuditCase
from detcam.auditing.report.evaluation import Evaluation
from detcam.auditing.report.layout import AUDIT
from detcam.auditing.report.summary import AUDIT_SCHEMA, AUDIT_VERSION
from detcam.auditing.result import Audit
from detcam.utils.files import check_report, checked_fields, read_json, with_home

AuditLike: TypeAlias = "Audit | str | Path"
"""An audit, or the folder of its report."""


@dataclass(frozen=True)
class AuditRecord:
    """The cases of an audit and the detections behind its average precision.

    Attributes:
        model: name of the model.
        cases: all errors.
        evaluation: the counted detections and the objects.
        score_threshold: minimum score of a relevant detection.
        iou_threshold: minimum IoU of a true positive; NaN if it is unknown.
        folder: folder of the report; None if there is none.
        files: files of each case by its id and kind, relative to `folder`.
    """

    model: str
    cases: Sequence[AuditCase]
    evaluation: Evaluation
    score_threshold: float
    iou_threshold: float
    folder: Path | None
    files: dict[str, dict[str, str | None]]

    @classmethod
    def of(cls, audit: AuditLike) -> AuditRecord:
        """Read an audit.

        Raises:
            TypeError: it is neither an audit nor a path.
            ValueError: the folder has no report of this version.
        """
        if isinstance(audit, Audit):
            if audit.report is not None:
                return cls._from_folder(audit.report.parent)
            evaluation = Evaluation.from_analysis(audit.analysis)
            return cls("model", audit.cases, evaluation, audit.score_threshold, float("nan"), None, {})
        if not isinstance(audit, (str, Path)):
            raise TypeError(f"expected an Audit or the folder of a report; got {type(audit).__name__}")
        return cls._from_folder(with_home(audit))

    @classmethod
    def _from_folder(cls, folder: Path) -> AuditRecord:
        check_report(folder)
        data = read_json(folder / AUDIT, AUDIT_SCHEMA, AUDIT_VERSION)
        with checked_fields(folder / AUDIT, "run the audit again"):
            return cls(
                model=data["model"],
                cases=tuple(AuditCase.from_json(entry) for entry in data["cases"]),
                evaluation=Evaluation.load(folder),
                score_threshold=data["settings"]["score_threshold"],
                iou_threshold=data["iou_threshold"],
                folder=folder,
                files={entry["id"]: entry["files"] for entry in data["cases"]},
            )

    def counts(self, case: AuditCase) -> bool:
        """Whether a case is an error that a comparison counts: relevant false positives and missed objects."""
        return case.type == "missed" or (case.is_false_positive and case.score >= self.score_threshold)


def distinct_names(old: AuditRecord, new: AuditRecord) -> tuple[str, str]:
    """Names of two models; with the folders of their audits, from where these differ, if the models have one name."""
    if old.model != new.model or old.folder is None or new.folder is None:
        return old.model, new.model
    first, second = old.folder.resolve().parts, new.folder.resolve().parts
    for depth in range(1, max(len(first), len(second)) + 1):
        if first[-depth:] != second[-depth:]:
            return f"{old.model} ({'/'.join(first[-depth:])})", f"{new.model} ({'/'.join(second[-depth:])})"
    return old.model, new.model


def check_comparable(old: AuditRecord, new: AuditRecord) -> None:
    """Check that two audits are of the same annotated images with the same thresholds.

    Raises:
        ValueError: they are not.
    """
    for name in ("score_threshold", "iou_threshold"):
        values = getattr(old, name), getattr(new, name)
        if values[0] != values[1] and values[0] == values[0] and values[1] == values[1]:
            raise ValueError(
                f"the audits have different thresholds: {name} {values[0]:g} and {values[1]:g}; audit both models "
                "with the same"
            )
    images = set(old.evaluation.image_ids), set(new.evaluation.image_ids)
    if images[0] != images[1]:
        raise ValueError(
            f"expected two audits of the same images; {len(images[0] - images[1])} of {len(images[0])} are in the old "
            f"audit alone and {len(images[1] - images[0])} of {len(images[1])} in the new one alone"
        )
    objects = old.evaluation.object_counts(), new.evaluation.object_counts()
    if objects[0] != objects[1]:
        image, name = next(key for key in {**objects[0], **objects[1]} if objects[0].get(key) != objects[1].get(key))
        raise ValueError(
            f"expected two audits with the same annotations; image {image!r} has {objects[0].get((image, name), 0)} "
            f"objects of class {name!r} in the old audit and {objects[1].get((image, name), 0)} in the new one. Audit "
            "both models with the same file, and with the same class names (names=, --names)"
        )
