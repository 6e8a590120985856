"""Similarity of two heatmaps: structural similarity and rank correlation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detcam.metrics.metric_input import MapArray

SSIM_WINDOW = 7
"""Side in pixels of the window that structural similarity compares."""


def ssim(first: MapArray, second: MapArray) -> float:
    """Structural similarity of two maps (H, W) in [0, 1]; 1 for equal maps.

    Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, IEEE TIP 2004, as
    implemented in scikit-image, with a window of 7 x 7 pixels.

    Raises:
        ValueError: the maps differ in size, are smaller than the window, or hold NaN.
    """
    from skimage.metrics import structural_similarity

    maps = _read_pair(first, second)
    if min(maps[0].shape) < SSIM_WINDOW:
        raise ValueError(f"expected maps of at least 7 x 7 pixels to compare; got {maps[0].shape}")
    return float(structural_similarity(*maps, data_range=1.0, win_size=SSIM_WINDOW))


def rank_correlation(first: MapArray, second: MapArray) -> float:
    """Spearman's rank correlation of two maps (H, W), in [-1, 1].

    Equal pixels share their mean rank. The correlation with a constant map is 0.

    Raises:
        ValueError: the maps differ in size, or hold NaN.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values.ravel()) for values in _read_pair(first, second)]
    ranks = [rank - rank.mean() for rank in ranks]
    norm = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else 0.0


def check_maps(heatmaps: MapArray) -> Tensor:
    """Heatmaps (N, H, W) as a finite float tensor.

    Raises:
        ValueError: the shape differs, or a value is NaN or infinite.
    """
    if not isinstance(heatmaps, (Tensor, np.ndarray)) or heatmaps.ndim != 3:
        got = tuple(heatmaps.shape) if isinstance(heatmaps, (Tensor, np.ndarray)) else type(heatmaps).__name__
        raise ValueError(f"expected heatmaps as a tensor or an array of shape (N, H, W); got {got}")
    maps = torch.as_tensor(heatmaps)
    if not torch.isfinite(maps).all():
        raise ValueError("a heatmap holds NaN or infinity; it cannot be compared")
    return maps.float()


def _read_pair(first: MapArray, second: MapArray) -> list[np.ndarray]:
    if first.shape != second.shape or first.ndim != 2:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"expected two maps (H, W) of one size; got {got}")
    return [check_maps(each[None])[0].cpu().double().numpy() for each in (first, second)]
