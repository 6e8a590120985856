"""The report of an audit: an HTML page that opens from disk, a JSON file, a CSV table and a COCO file."""

from detcam.auditing.report.summary import ReportSummary
from detcam.auditing.report.writer import ReportWriter

__all__ = ["ReportSummary", "ReportWriter"]
