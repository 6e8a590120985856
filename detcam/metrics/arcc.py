"""ARCC and its parts, where ``pytorch_grad_cam`` has them."""

from __future__ import annotations

from detcam.metrics.complexity import ARCC, Coherency, Complexity

__all__ = ["ARCC", "Coherency", "Complexity"]
