"""What a detector got wrong on annotated images: matched, named, and what each error costs."""

from detcam.auditing.analysis import ClassSummary, ErrorAnalysis, analyze_errors
from detcam.auditing.average_precision import Ranking, average_precision
from detcam.auditing.case import AuditCase, CaseMaps, ErrorGroup, GroundTruthObject, Trial
from detcam.auditing.errors import ERROR_TYPES, DetectionError, ErrorType
from detcam.auditing.matching import Match, match, overlaps
from detcam.auditing.oracle import DeltaAP
from detcam.auditing.pipeline import Audit, audit

__all__ = [
    "ERROR_TYPES",
    "DeltaAP",
    "Audit",
    "AuditCase",
    "ErrorGroup",
    "CaseMaps",
    "Trial",
    "GroundTruthObject",
    "audit",
    "ClassSummary",
    "ErrorAnalysis",
    "DetectionError",
    "ErrorType",
    "Match",
    "Ranking",
    "analyze_errors",
    "average_precision",
    "match",
    "overlaps",
]
