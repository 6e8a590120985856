"""The report of an audit: one page that opens from disk, a JSON file, a table and a COCO file."""

from detcam.auditing.report.summary import ReportSummary
from detcam.auditing.report.writer import ReportWriter

__all__ = ["ReportWriter", "ReportSummary"]
