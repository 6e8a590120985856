"""Cases of an audit as a pandas data frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detcam.auditing.case import AuditCase
from detcam.utils.optional import needs_extra

FIELDS = (
    *("id", "image_id", "file_name", "type", "label", "name", "score", "is_false_positive", "delta_ap", "question"),
    *("method", "proposal", "evidence_kind", "evidence_location", "evidence_object", "evidence_form"),
    *("evidence_fraction", "minimal_region_fraction", "verdict", "effect", "compared_controls", "error_rate", "reason"),
    *("failure_stage", "evidence_comparison", "background_type", "typicality", "trust"),
    *("group", "forward_passes", "sentence"),
)
"""Fields of a case that are columns under the same name."""


def cases_frame(cases: Sequence[AuditCase]) -> Any:
    """Convert cases to a data frame, one row each.

    Beside `FIELDS`: ``left``, ``top``, ``right`` and ``bottom`` of the box; ``true_name``, ``true_iou`` and
    ``annotation_id`` of the object that the error concerns; and ``share: ...`` of the evidence at each location.

    Raises:
        ImportError: pandas is not installed.
    """
    with needs_extra("pandas"):
        import pandas

    rows = []
    for case in cases:
        truth = case.ground_truth
        rows.append(
            {name: getattr(case, name) for name in FIELDS}
            | dict(zip(("left", "top", "right", "bottom"), case.box_xyxy, strict=True))
            | {
                "true_name": None if truth is None else truth.name,
                "true_iou": None if truth is None else truth.iou,
                "annotation_id": None if truth is None else truth.annotation_id,
            }
            | {f"share: {location}": share for location, share in (case.evidence_shares or {}).items()}
        )
    return pandas.DataFrame(rows)
