"""Warnings that point at the user's line, however deep in detcam the reason is found."""

from __future__ import annotations

import sys
import warnings

INTERNAL_PACKAGES = ("detcam", "contextlib", "torch")
"""Packages and modules whose frames are not the user's: detcam, and what may stand between two frames of it."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn of the innermost line that is not in detcam."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
