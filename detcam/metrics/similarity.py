"""How alike two maps are: structural similarity, rank correlation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SMALLEST_SSIM = 7  # pixels: the side of the window in which structure is compared


def ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity of two maps (H, W) in [0, 1]; 1 where they are equal.

    Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, IEEE TIP 2004, as
    scikit-image has it, with a window of 7 pixels.

    Raises:
        ValueError: maps of different size, smaller than 7 pixels, or with NaN.
    """
    from skimage.metrics import structural_similarity

    maps = _pair(one, other)
    if min(one.shape) < SMALLEST_SSIM:
        raise ValueError(f"expected maps of at least 7 x 7 pixels to compare; got {tuple(one.shape)}")
    return float(structural_similarity(*maps, data_range=1.0, win_size=SMALLEST_SSIM))


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two maps (H, W), in [-1, 1]; ties share their mean rank, a flat map scores 0.

    Raises:
        ValueError: maps of different size, or with NaN.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values.ravel()) for values in _pair(one, other)]
    ranks = [rank - rank.mean() for rank in ranks]
    size = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / size if size > 0 else 0.0


def check_maps(heatmaps: Tensor) -> Tensor:
    """Maps (N, H, W), float and finite.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(heatmaps, Tensor) or heatmaps.ndim != 3:
        got = tuple(heatmaps.shape) if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise ValueError(f"expected heatmaps as a tensor of shape (N, H, W); got {got}")
    if not torch.isfinite(heatmaps).all():
        raise ValueError("a heatmap holds NaN or infinity; it cannot be judged")
    return heatmaps.float()


def _pair(one: Tensor, other: Tensor) -> list[np.ndarray]:
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"expected two maps (H, W) of one size; got {tuple(one.shape)} and {tuple(other.shape)}")
    return [check_maps(one_map[None])[0].double().cpu().numpy() for one_map in (one, other)]
