"""Audits of detectors: errors on annotated images, their explanations, and the verification of the explanations."""

from detcam.auditing.analysis import ClassSummary, ErrorAnalysis, analyze_errors
from detcam.auditing.average_precision import Ranking, average_precision
from detcam.auditing.case import AuditCase, CaseMaps, ErrorGroup, GroundTruthObject, Trial
from detcam.auditing.errors import ERROR_TYPES, DetectionError, ErrorType
from detcam.auditing.grouping.hierarchy import CauseNode
from detcam.auditing.grouping.inventory import CauseShare
from detcam.auditing.matching import Match, match, overlaps
from detcam.auditing.oracle import DeltaAP
from detcam.auditing.pipeline import audit
from detcam.auditing.result import Audit
from detcam.auditing.settings import AuditSettings

__all__ = [
    "ERROR_TYPES",
    "Audit",
    "AuditCase",
    "AuditSettings",
    "CaseMaps",
    "CauseNode",
    "CauseShare",
    "ClassSummary",
    "DeltaAP",
    "DetectionError",
    "ErrorAnalysis",
    "ErrorGroup",
    "ErrorType",
    "GroundTruthObject",
    "Match",
    "Ranking",
    "Trial",
    "analyze_errors",
    "audit",
    "average_precision",
    "match",
    "overlaps",
]
