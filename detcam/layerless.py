"""Methods that look at no layer: their map is made of the picture, or of the gradient at the network's input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.trace import ReshapeTransform


class LayerlessCAM(BaseCAM):
    """A method without target layers.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
    """

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        whole = [""]  # the network itself: no layer is looked for, so none has to be found
        super().__init__(model, target_layers if isinstance(model, Adapter) else whole, reshape_transform)
        self.adapter = self.adapter.without_layers()
        self.target_layers = self.adapter.target_layers


def to_pixels(maps: Tensor, geometry: Geometry) -> Tensor:
    """Maps as fine as the network's input (N, H, W) in the pixels of the original picture.

    Where the input is finer than the picture, each pixel takes the mean of what falls into it: single lines of such
    maps would otherwise be hit or missed by chance.
    """
    kernel = [2 * int(scale / 2 + 0.25) + 1 for scale in reversed(geometry.scale_xy)]
    if max(kernel) > 1:
        around = [side // 2 for side in kernel]
        maps = F.avg_pool2d(maps[:, None], kernel, 1, around, count_include_pad=False)[:, 0]
    return geometry.to_image(maps)
