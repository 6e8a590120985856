"""What a detector got wrong on annotated pictures: matched, named, and what each error costs."""

from detcam.auditing.analysis import ClassSummary, ErrorAnalysis, analyze_errors
from detcam.auditing.average_precision import Ranking, average_precision
from detcam.auditing.case import Case, Group, Maps, Trial, Truth
from detcam.auditing.errors import ERROR_TYPES, ErrorCase, ErrorType
from detcam.auditing.matching import Match, match, overlaps
from detcam.auditing.oracle import ApLost
from detcam.auditing.pipeline import Audit, audit

__all__ = [
    "ERROR_TYPES",
    "ApLost",
    "Audit",
    "Case",
    "Group",
    "Maps",
    "Trial",
    "Truth",
    "audit",
    "ClassSummary",
    "ErrorAnalysis",
    "ErrorCase",
    "ErrorType",
    "Match",
    "Ranking",
    "analyze_errors",
    "average_precision",
    "match",
    "overlaps",
]
