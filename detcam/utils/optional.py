"""Errors about optional packages that are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = {
    "fiftyone": "fiftyone",
    "lightning": "pytorch-lightning",
    "onnx": "onnxruntime",
    "pandas": "pandas",
    "ray": "ray",
    "smp": "segmentation-models-pytorch",
    "supervision": "supervision",
    "timm": "timm",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "wandb": "wandb",
}


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Name the extra to install where an import in the block fails.

    Raises:
        ImportError: a package of the extra cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{PACKAGES[extra]} cannot be imported ({error}); install it with: pip install 'detcam[{extra}]'"
        ) from error
