"""Files of models, as far as they are known without PyTorch: their suffixes, whether they exist, and class names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from detcam.utils.files import is_file, with_home

SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors", ".tar"})
"""Suffixes of checkpoints."""
ULTRALYTICS_NAME = re.compile(r"(yolo|rtdetr)[\w-]*(\.pt|\.yaml)?", re.IGNORECASE)
LIBRARIES = ("torchvision", "timm", "smp", "ultralytics", "hf")
"""Prefixes of model names, before a colon."""
RANDOM = "none"
"""Value of `weights` for random weights, e.g. to inspect the layers of a model."""


def with_home_after_library(name: str) -> str:
    """Return a model's name with ``~`` at the beginning of its path replaced by the home folder.

    Example:
        >>> from detcam.models.files import with_home_after_library
        >>> with_home_after_library("resnet18"), with_home_after_library("hf:~/detr").endswith("~/detr")
        ('resnet18', False)
    """
    library, colon, path = name.partition(":")
    return library + colon + os.path.expanduser(path) if library in LIBRARIES else os.path.expanduser(name)


def check_files(name: str, weights: str | None) -> None:
    """Check that the file of a model and that of its weights exist, before anything is loaded.

    Args:
        name: name or file of the model.
        weights: file of its weights, `RANDOM`, or None.

    Raises:
        ValueError: a file does not exist.
    """
    name = with_home_after_library(name)
    is_path = Path(name).suffix in SUFFIXES and name.partition(":")[0] not in LIBRARIES
    if is_path and not ULTRALYTICS_NAME.fullmatch(name) and not is_file(Path(name)):
        raise ValueError(f"no model file at {name}; check the path")
    if weights not in (None, RANDOM) and not is_file(with_home(weights)):
        raise ValueError(f"no checkpoint file at {with_home(weights)}; check the path")


def read_names(text: str) -> dict[int, str] | list[str]:
    """Read class names from a text such as ``cat,dog`` or from a file.

    Args:
        text: names separated by commas; or the path of a JSON file (a list, or an object from index to name) or of a
            text file with one name per line.

    Raises:
        ValueError: the file does not exist or has another format.
    """
    path = with_home(text)
    if not is_file(path):  # many names together are too long for a path
        if "," not in text and path.suffix in (".txt", ".json", ".names"):
            raise ValueError(f"no file of class names at {path}; check the path")
        return [name.strip() for name in text.split(",")]
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in content.splitlines() if line.strip()]
    try:
        names = json.loads(content)
        return (
            {int(key): str(value) for key, value in names.items()} if isinstance(names, dict) else list(map(str, names))
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a JSON list of names, or an object from index to name ({error})") from error
