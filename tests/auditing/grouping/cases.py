"""Made-up errors of an audit."""

from __future__ import annotations

from typing import Any

from detcam.auditing.case import AuditCase


def make_case(**changes: Any) -> AuditCase:
    """A confirmed background error, with other values in some fields."""
    plain: dict[str, Any] = {
        "id": "",
        "image_id": 1,
        "file_name": "a.png",
        "image_size_hw": (100, 100),
        "type": "background",
        "label": 0,
        "name": "boat",
        "score": 0.9,
        "box_xyxy": (0, 0, 10, 10),
        "is_false_positive": True,
        "ground_truth": None,
        "delta_ap": 0.001,
        "verdict": "strong",
    }
    return AuditCase(**{**plain, **changes})
