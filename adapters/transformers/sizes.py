"""Sizes of the input that detectors of transformers can take."""

from __future__ import annotations

import math
from typing import Any


def check_input_size(model: Any, size_hw: tuple[int, int]) -> None:
    """Check that a network can take an input of a size, where its configuration tells.

    RT-DETR and its kin add maps of successive levels, which have to be twice as large each. LW-DETR and RF-DETR divide
    the grid of patches into windows.

    Raises:
        ValueError: it cannot.
    """
    step, fits = _requirement(model.config)
    if fits is None or all(fits(side) for side in size_hw):
        return
    near = " x ".join(str(max(math.floor(side / step + 0.5), 1) * step) for side in size_hw)
    raise ValueError(
        f"{type(model).__name__} takes inputs whose sides are multiples of {step}; got {size_hw[0]} x {size_hw[1]}. "
        f"Pass image_size= (--image-size), such as {near}, or a processor of such a size"
    )


def _requirement(config: Any) -> tuple[int, Any]:
    """The number of pixels of which sides should be multiples, and the exact condition; None without one."""
    strides = getattr(config, "feat_strides", None)
    if strides and hasattr(config, "encoder_in_channels"):
        return max(strides), lambda side: len({math.ceil(side / stride) * stride for stride in strides}) == 1
    backbone: Any = getattr(config, "backbone_config", None)
    windows, patch = getattr(backbone, "num_windows", None), getattr(backbone, "patch_size", None)
    if isinstance(windows, int) and isinstance(patch, int):
        along = math.isqrt(windows) if backbone.model_type == "lw_detr_vit" else windows  # in all, or along a side
        return patch * along, lambda side: side >= patch and (side // patch) % along == 0
    return 1, None
