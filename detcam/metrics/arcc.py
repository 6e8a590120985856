"""ARCC and its parts, under the module name of ``pytorch_grad_cam``."""

from __future__ import annotations

from detcam.metrics.complexity import ARCC, Coherency, Complexity

__all__ = ["ARCC", "Coherency", "Complexity"]
