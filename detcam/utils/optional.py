"""Errors about optional packages that are not installed."""

from __future__ import annotations

PACKAGES = {
    "onnx": "onnxruntime",
    "smp": "segmentation-models-pytorch",
    "timm": "timm",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
}


def missing_package_error(extra: str, error: ImportError) -> ImportError:
    """Return an ImportError that names the extra to install."""
    return ImportError(
        f"{PACKAGES[extra]} cannot be imported ({error}); install it with: pip install 'detcam[{extra}]'"
    )
