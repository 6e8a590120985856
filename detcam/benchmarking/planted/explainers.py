"""Explainers: functions from outside the package that the planted benchmark measures."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from detcam.benchmarking.planted.cases import CaseTarget

PlantedExplainer: TypeAlias = Callable[[nn.Module, npt.NDArray[np.uint8], CaseTarget], npt.ArrayLike | Tensor]
"""``explain(model, image, target)``: from a detector in evaluation mode, an (H, W, 3) uint8 RGB image and the target to
an (H, W) heatmap in image pixels. Negative values count as zero."""


def load_explainer(spec: str) -> PlantedExplainer:
    """Import an explainer from text such as ``my_module:my_function``.

    The module is searched in the current folder too.

    Raises:
        ValueError: the text has another form, or there is no such module or function.
    """
    module_name, colon, function_name = spec.partition(":")
    if not colon or not module_name or not function_name:
        raise ValueError(f"expected an explainer as module:function; got {spec!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import the explainer {spec!r}: {error}") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"expected a function {function_name!r} in {module_name}; got {function!r}")
    explain: PlantedExplainer = function
    return explain


def check_heatmap(heatmap: npt.ArrayLike | Tensor, size_hw: tuple[int, int], name: str) -> Tensor:
    """Validate what an explainer returns.

    Returns:
        The heatmap (H, W) float32 without its negative values.

    Raises:
        ValueError: it has another shape, or values that are not finite.
    """
    values = torch.as_tensor(np.asarray(heatmap) if not isinstance(heatmap, Tensor) else heatmap.detach().cpu())
    if tuple(values.shape) != size_hw:
        raise ValueError(
            f"expected {name} to return a heatmap of the image's size {size_hw}; got shape {tuple(values.shape)}. "
            "Resize it to image pixels and return one array (H, W)"
        )
    if not bool(torch.isfinite(values.float()).all()):
        raise ValueError(f"expected {name} to return finite values; got NaN or infinity")
    return values.float().clamp(min=0)
