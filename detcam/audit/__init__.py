"""What a detector got wrong on annotated pictures: matched, named, and what each error costs."""

from detcam.audit.analysis import ClassSummary, ErrorAnalysis, analyze_errors
from detcam.audit.average_precision import Ranking, average_precision
from detcam.audit.errors import ERROR_TYPES, ErrorCase, ErrorType
from detcam.audit.matching import Match, match, overlaps
from detcam.audit.oracle import ApLost

__all__ = [
    "ERROR_TYPES",
    "ApLost",
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
