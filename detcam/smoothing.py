"""Test-time views of images and their targets for `aug_smooth`, and their inverse for maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detcam.geometry import Geometry
from detcam.outputs import Target, as_target


@dataclass(frozen=True)
class View:
    """A view of an image: mirrored or not, times a factor."""

    mirrored: bool = False
    factor: float = 1.0

    def image(self, image: Tensor) -> Tensor:
        """Return the image (..., H, W) in this view."""
        image = image.flip(-1) if self.mirrored else image
        return image if self.factor == 1.0 else image * self.factor

    def target(self, target: Target, geometry: Geometry) -> Target:
        """Return the target in this view; box, mask and source are mirrored with the image."""
        return as_target(target).hflip(geometry.image_size_hw[1]) if self.mirrored else target

    def undo(self, maps: Tensor) -> Tensor:
        """Map maps (N, h, w) of this view back to the plain image."""
        return maps.flip(-1) if self.mirrored else maps


def views(smooth: bool) -> list[View]:
    """Return the plain view, or all six: plain and mirrored, times 1, 0.9 and 1.1, the plain view first."""
    if not smooth:
        return [View()]
    return [View(mirrored, factor) for mirrored in (False, True) for factor in (1.0, 0.9, 1.1)]
