"""What a detector got wrong on annotated pictures: matched, named, and what each error costs."""

from detcam.audit.analysis import ClassSummary, ErrorAnalysis, analyze_errors
from detcam.audit.average_precision import Ranking, average_precision
from detcam.audit.case import Case, Group, Maps, Trial, Truth
from detcam.audit.errors import ERROR_TYPES, ErrorCase, ErrorType
from detcam.audit.matching import Match, match, overlaps
from detcam.audit.oracle import ApLost
from detcam.audit.run import Audit, audit

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
