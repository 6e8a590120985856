"""What to say where an optional package is missing."""

from __future__ import annotations

PACKAGES = {"smp": "segmentation-models-pytorch", "timm": "timm", "ultralytics": "ultralytics"}


def missing(extra: str, error: ImportError) -> ImportError:
    """The error that names the extra to install."""
    return ImportError(
        f"{PACKAGES[extra]} cannot be imported ({error}); install it with: pip install 'detcam[{extra}]'"
    )
