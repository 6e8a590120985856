"""RefineCAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.methods.common.level_product import product_of_levels
from detcam.methods.common.wrapper import WrapperCAM
from detcam.methods.grad_cam_plusplus import GradCAMPlusPlus
from detcam.results import Measured, Pass
from detcam.trace import ReshapeTransform


class RefineCAM(WrapperCAM):
    r"""Product of the maps of several layers: the detail of early layers where deep layers agree.

    .. math:: L = \prod_l \mathrm{norm}\big(\mathrm{ReLU}(L_l)\big)

    with :math:`L_l` the map of the base method at layer l, resized to the image, and norm the scaling to [0, 1]. A
    level without saliency for a target (pyramid levels that do not produce the box) is left out of its product.

    *How to Evaluate and Refine your CAM*, 2026, https://arxiv.org/abs/2605.14641.

    Use it for finer maps, with several target layers.

    Args:
        model: as in `BaseCAM`.
        target_layers: several layers; with one, the map is that of the base method.
        reshape_transform: as in `BaseCAM`.
        base_method: class of the method whose maps are multiplied.
        **options: further arguments of the base method.
    """

    name = "refinecam"
    paper = "How to Evaluate and Refine your CAM, 2026, https://arxiv.org/abs/2605.14641"
    cost = "1 forward, 1 backward per target"
    use = "finer maps from several layers together"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.wrap(base_method, options)

    def measure(self, run: Pass) -> Measured:
        return self.base.measure(run)

    @staticmethod
    def combine(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return product_of_levels(levels, geometry)
