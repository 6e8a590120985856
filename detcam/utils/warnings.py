"""Warnings that point at the user's line instead of a line inside detcam."""

from __future__ import annotations

import sys
import warnings

INTERNAL_PACKAGES = ("detcam", "contextlib", "torch")
"""Packages whose frames are skipped: detcam, and those that may lie between two frames of it."""


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost line outside `INTERNAL_PACKAGES`."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
