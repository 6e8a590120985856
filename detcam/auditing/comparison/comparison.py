"""Comparison of two audits of the same images."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detcam.auditing.comparison.bootstrap import Bootstrapped, paired_delta_ap
from detcam.auditing.comparison.causes import CauseChange, CauseStatus, compare_causes
from detcam.auditing.comparison.paired import interval
from detcam.auditing.comparison.pairs import Change, ErrorPair, pair_errors
from detcam.auditing.comparison.record import AuditLike, AuditRecord, check_comparable, distinct_names
from detcam.auditing.errors import ERROR_TYPES, ErrorType
from detcam.utils.console import plural
from detcam.utils.files import json_value, with_home

CHANGES: tuple[Change, ...] = ("new", "fixed", "unchanged")


@dataclass(frozen=True)
class TypeChange:
    """The errors of a type in two audits.

    Attributes:
        type: TIDE's error type.
        old_count: number of relevant errors in the old audit.
        new_count: the same in the new audit.
        old_delta_ap: increase of the old average precision when all errors of the type are corrected, also those with
            low scores; NaN if their classes have no objects.
        new_delta_ap: the same for the new average precision.
        delta_ap_interval: 95 % interval of ``new_delta_ap - old_delta_ap`` by a paired bootstrap over images.
    """

    type: ErrorType
    old_count: int
    new_count: int
    old_delta_ap: float
    new_delta_ap: float
    delta_ap_interval: tuple[float, float]


@dataclass(frozen=True, repr=False)
class AuditComparison:
    """The difference of two audits of the same images.

    Attributes:
        old_model: name of the old model, with the folder of its audit if both models have the same name.
        new_model: name of the new model, likewise.
        image_count: number of images.
        old_average_precision: COCO's average precision at the audits' IoU threshold, in [0, 1]; NaN without objects.
        new_average_precision: the same of the new audit.
        average_precision_interval: 95 % interval of the difference, new minus old, by a paired bootstrap over images.
        pairs: errors that are fixed, new or unchanged.
        causes: causes of the explained errors.
        types: errors by type.
        explained: number of errors that are explained, and number of all that count, of the old and the new audit.
        report: path of the report's ``index.html``, or None.
    """

    old_model: str
    new_model: str
    image_count: int
    old_average_precision: float
    new_average_precision: float
    average_precision_interval: tuple[float, float]
    pairs: tuple[ErrorPair, ...] = field(repr=False)
    causes: tuple[CauseChange, ...]
    types: tuple[TypeChange, ...]
    explained: tuple[tuple[int, int], tuple[int, int]]
    report: Path | None = None

    def __repr__(self) -> str:
        return f"AuditComparison({' '.join(self.headline())})"

    @property
    def delta_average_precision(self) -> float:
        """Average precision of the new audit minus that of the old one; NaN without objects."""
        return self.new_average_precision - self.old_average_precision

    def errors(self, change: Change) -> list[ErrorPair]:
        """The errors with this change."""
        return [pair for pair in self.pairs if pair.change == change]

    def causes_with(self, status: CauseStatus) -> list[CauseChange]:
        """The causes with this status."""
        return [change for change in self.causes if change.status == status]

    def headline(self) -> list[str]:
        """Summarize the comparison in sentences, the most important first."""
        counts = Counter(pair.change for pair in self.pairs)
        lines = [
            f"{plural(counts['fixed'], 'error')} fixed, {counts['new']} new, {counts['unchanged']} unchanged.",
            _precision_sentence(self),
        ]
        statuses = Counter(change.status for change in self.causes)
        named = [f"{statuses[status]} {status}" for status in ("new", "gone", "grown", "shrunk") if statuses[status]]
        lines.append(f"Causes: {', '.join(named)}." if named else "No cause changed significantly.")
        for name, (explained, total) in zip(("old", "new"), self.explained, strict=True):
            if explained < total:
                lines.append(f"The {name} audit explains {explained} of its {total} errors; the causes count these.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of ``comparison.json``."""
        return {
            "schema": "detcam/comparison",
            "version": 2,
            "old_model": self.old_model,
            "new_model": self.new_model,
            "image_count": self.image_count,
            "old_average_precision": json_value(self.old_average_precision),
            "new_average_precision": json_value(self.new_average_precision),
            "average_precision_interval": json_value(self.average_precision_interval),
            "headline": self.headline(),
            "explained": json_value(self.explained),
            "counts": {change: len(self.errors(change)) for change in CHANGES},
            "types": [json_value(asdict(change)) for change in self.types],
            "causes": [{**json_value(asdict(change)), "name": change.cause.name} for change in self.causes],
            "errors": [
                {
                    "change": pair.change,
                    "image_id": pair.shown.image_id,
                    "file_name": pair.shown.file_name,
                    "type": pair.shown.type,
                    "name": pair.shown.name,
                    "old_id": None if pair.old is None else pair.old.id,
                    "new_id": None if pair.new is None else pair.new.id,
                    "old_score": None if pair.old is None else json_value(pair.old.score),
                    "new_score": None if pair.new is None else json_value(pair.new.score),
                    "iou": json_value(pair.iou),
                }
                for pair in self.pairs
            ],
        }


def compare_audits(old: AuditLike, new: AuditLike, *, out: str | Path | None = None) -> AuditComparison:
    """Compare two audits of the same annotated images: what a new model or a new training changed.

    Errors are matched one to one by image, class and IoU. Causes are those of the audits' hierarchies: kind of
    evidence, classes and error type. A cause is called new, gone, grown or shrunk if an exact sign-flip test over
    images finds its number of errors changed, with at most 5 % probability that any cause is called changed by chance.
    Intervals are 95 % intervals of a paired bootstrap over images: they cover the choice of the images, not the
    randomness of training.

    Args:
        old: an audit, or the folder of its report.
        new: an audit of the same images with the same thresholds, or the folder of its report.
        out: folder of the comparison's report, which shows the heatmaps of both audits side by side; None writes none.

    Returns:
        Errors that are fixed, new and unchanged, causes that changed, and the differences of average precision.

    Raises:
        TypeError: an argument is neither an audit nor a path.
        ValueError: a folder has no report, the audits are of other images, annotations or thresholds, or `out` contains
            files of another program.
        RuntimeError: another process works in `out`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import detcam
        >>> from detcam.demo.labels import write_coco
        >>> from detcam.demo.model import load_demo_detector
        >>> from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
        >>> folder = Path(tempfile.mkdtemp())
        >>> labels = write_coco(folder, [draw_scene(1_000_000)])
        >>> options = {"names": DEMO_NAMES, "explain": 1, "explain_missed": 0, "score_threshold": 0.5}
        >>> found = detcam.audit(load_demo_detector(), folder / "images", labels, **options)
        >>> comparison = detcam.compare_audits(found, found)
        >>> len(comparison.errors("new")), comparison.delta_average_precision
        (0, 0.0)
    """
    records = AuditRecord.of(old), AuditRecord.of(new)
    check_comparable(*records)
    first, second = Bootstrapped.pair(*records)
    difference = second.average_precision - first.average_precision
    names = distinct_names(*records)
    comparison = AuditComparison(
        old_model=names[0],
        new_model=names[1],
        image_count=len(first.image_ids),
        old_average_precision=float(first.average_precision[0]),
        new_average_precision=float(second.average_precision[0]),
        average_precision_interval=interval(difference[1:]),
        pairs=tuple(pair_errors(*records)),
        causes=tuple(compare_causes(first, second)),
        types=tuple(_compare_types(first, second)),
        explained=(_count_explained(records[0]), _count_explained(records[1])),
    )
    if out is None:
        return comparison
    from detcam.auditing.comparison.writer import write_comparison

    return write_comparison(comparison, *records, with_home(out))


def _compare_types(old: Bootstrapped, new: Bootstrapped) -> list[TypeChange]:
    changes = []
    for kind in ERROR_TYPES:
        sides = [[case for case in side.record.cases if case.type == kind] for side in (old, new)]
        costs = paired_delta_ap((old, new), sides)
        counts = [
            sum(side.record.counts(case) for case in cases) for side, cases in zip((old, new), sides, strict=True)
        ]
        change = interval(costs[1][1:] - costs[0][1:])
        changes.append(TypeChange(kind, counts[0], counts[1], float(costs[0][0]), float(costs[1][0]), change))
    return changes


def _count_explained(record: AuditRecord) -> tuple[int, int]:
    counted = [case for case in record.cases if record.counts(case)]
    return sum(bool(case.method) for case in counted), len(counted)


def _precision_sentence(comparison: AuditComparison) -> str:
    if math.isnan(comparison.delta_average_precision):
        return "Average precision is undefined, because there are no ground-truth objects."
    low, high = comparison.average_precision_interval
    return (
        f"Average precision was {comparison.old_average_precision:.3f} and is {comparison.new_average_precision:.3f} "
        f"({comparison.delta_average_precision:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
    )
