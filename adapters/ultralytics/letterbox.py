"""The place of images on the input of ultralytics' networks: scaled to fit and padded, or stretched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detcam.data.decoding import STRIP_PIXELS
from detcam.geometry import Geometry
from detcam.utils.batching import batch_slices


@dataclass(frozen=True)
class Letterbox:
    """Scales images to fit a size, and pads them with gray 114 to the next multiple of the stride.

    Attributes:
        size_hw: height and width that images are fitted into.
        stride: the sides of the result are multiples of this.
        stretches: whether images are stretched to the size instead.
    """

    size_hw: tuple[int, int]
    stride: int
    stretches: bool = False

    def geometry(self, size_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Geometry:
        """Return the geometry of the letterbox, whose sides and padding are rounded to whole pixels."""
        if self.stretches:
            return Geometry.resize(size_hw, canvas_hw)
        ratio = min(self.size_hw[0] / size_hw[0], self.size_hw[1] / size_hw[1])
        height, width = (max(round(side * ratio), 1) for side in size_hw)
        top, left = (round((canvas - side) / 2 - 0.1) for canvas, side in zip(canvas_hw, (height, width), strict=True))
        return Geometry(size_hw, canvas_hw, (width / size_hw[1], height / size_hw[0]), (left, top))

    def check(self, batch: Tensor, channels: int) -> None:
        """Check a (B, C, H, W) tensor of the user: RGB in [0, 1], with sides that are multiples of the stride.

        Raises:
            ValueError: it has another shape or other values.
        """
        if batch.shape[1] != channels or any(side % self.stride for side in batch.shape[-2:]):
            raise ValueError(
                f"expected a (B, {channels}, H, W) tensor with sides that are multiples of {self.stride}; got "
                f"{tuple(batch.shape)}. Pass a list of images instead: they are letterboxed"
            )
        low, high = float(batch.min()), float(batch.max())
        if low < -1e-3 or high > 2:  # aug_smooth brightens by 1.1
            raise ValueError(f"expected RGB pixels in [0, 1]; got values from {low:.3g} to {high:.3g}. Divide by 255")


def image_array(image: Tensor) -> np.ndarray:
    """Return an (H, W, C) array in 0..255: uint8 if the image has 8 bits, since resizing then rounds, else float."""
    pixels = image.detach()
    if pixels.dtype == torch.uint8:
        return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    channels, height, width = pixels.shape
    whole = torch.empty((height, width, channels), dtype=torch.uint8)
    for part in batch_slices(height, max(STRIP_PIXELS // width, 1)):  # large images fill the memory
        scaled = pixels[:, part].float().cpu() * 255
        rounded = scaled.round()
        low, high = torch.aminmax(rounded)
        least, most = torch.aminmax(scaled.sub_(rounded))
        if not (-1e-3 < least and most < 1e-3 and low >= 0 and high <= 255):
            return (pixels.float().cpu() * 255).permute(1, 2, 0).contiguous().numpy()
        whole[part] = rounded.byte().permute(1, 2, 0)
    return whole.numpy()
