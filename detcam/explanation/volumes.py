"""Explanations of volumes: heatmaps of (D, H, W), drawn as slices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from detcam.explanation.result import Explanation
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import DEFAULT_COLORMAP, grid, overlay_heatmap, render

MAX_SLICES = 16
"""Number of slices in a montage."""


@dataclass(frozen=True, eq=False, repr=False)
class VolumeExplanation(Explanation):
    """The explanation of one volume; heatmaps are (N, D, H, W).

    Attributes:
        image: (H, W, 3) uint8, a montage of slices.
        slices: (D, H, W, 3) uint8, the volume as it is drawn.

    Example:
        >>> import detcam, torch
        >>> from torch import nn
        >>> body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, stride=2), nn.ReLU())
        >>> model = nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> explanation = detcam.explain(model, torch.rand(1, 1, 12, 40, 40), "gradcam")[0]
        >>> explanation.heatmaps.shape
        (1, 12, 40, 40)
    """

    slices: ImageArray = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))

    @property
    def size(self) -> dict[str, int]:
        depth, height, width = self.slices.shape[:3]
        return {"width": width, "height": height, "depth": depth}

    def overlay(
        self,
        index: int = 0,
        *,
        colormap: str | int = DEFAULT_COLORMAP,
        caption: bool = True,
        shared_scale: bool = False,
        depth: int | None = None,
    ) -> ImageArray:
        """Draw one target's heatmap over the volume's slices.

        Args:
            index: index of the target.
            colormap: name or OpenCV number.
            caption: whether to draw the caption.
            shared_scale: whether all targets share one scale, as in `Explanation.overlay`.
            depth: index of the slice that is drawn; None draws a montage of slices at equal distances.

        Returns:
            HxWx3 uint8.
        """
        heat = self.heatmap(index) * (self._scale(index) if shared_scale else 1)
        text = self.captions[index] if caption else ""
        if depth is not None:
            return render(self.slices[depth], heat[depth], caption=f"{text} slice {depth}".strip(), colormap=colormap)
        chosen = montage_slices(len(heat))
        panels = [overlay_heatmap(self.slices[row], heat[row], colormap=colormap) for row in chosen]
        figure = grid(panels, titles=[f"slice {row}" for row in chosen])
        return grid([figure], titles=[text]) if text else figure


def montage_slices(depth: int) -> list[int]:
    """Return the slices of a montage: all, or `MAX_SLICES` at equal distances."""
    return np.unique(np.linspace(0, depth - 1, min(depth, MAX_SLICES)).round().astype(int)).tolist()


def montage(slices: ImageArray) -> ImageArray:
    """Draw slices (D, H, W, 3) of a volume beside each other."""
    chosen = montage_slices(len(slices))
    return grid(list(slices[chosen]), titles=[f"slice {row}" for row in chosen])
