"""Explanations during training."""

from detcam.auditing.monitoring.monitor import MonitorEntry, TrainingMonitor

__all__ = ["MonitorEntry", "TrainingMonitor"]
