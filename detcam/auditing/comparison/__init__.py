"""Comparison of two audits of the same images: errors and causes that are new, gone or unchanged."""

from detcam.auditing.comparison.causes import CauseChange
from detcam.auditing.comparison.comparison import AuditComparison, TypeChange, compare_audits
from detcam.auditing.comparison.pairs import ErrorPair
from detcam.auditing.grouping.hierarchy import Cause

__all__ = ["AuditComparison", "Cause", "CauseChange", "ErrorPair", "TypeChange", "compare_audits"]
