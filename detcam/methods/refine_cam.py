"""RefineCAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.methods.common.level_product import product_of_levels
from detcam.methods.grad_cam_plusplus import GradCAMPlusPlus
from detcam.results import Measured, Pass
from detcam.trace import ReshapeTransform


class RefineCAM(BaseCAM):
    r"""Maps of several layers multiplied: early layers' detail where deep layers agree.

    .. math:: L = \prod_l \mathrm{norm}\big(\mathrm{ReLU}(L_l)\big)

    with the maps L_l of another method, each resized to the image. A level that says nothing for a target (of a
    pyramid, those that the box does not come from) is left out of its product.

    *How to Evaluate and Refine your CAM*, 2026, https://arxiv.org/abs/2605.14641.

    Args:
        model: as in `BaseCAM`.
        target_layers: several layers; with one, this is the base method.
        reshape_transform: as in `BaseCAM`.
        base_method: whose maps are multiplied.
        **options: further arguments of the base method.
    """

    name = "refinecam"
    paper = "How to Evaluate and Refine your CAM, 2026, https://arxiv.org/abs/2605.14641"
    cost = "1 forward, 1 backward a target"
    use = "finer maps from several layers together"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.base = base_method(self.adapter, **options)
        self.uses_gradients = self.base.uses_gradients  # type: ignore[misc]
        self.class_discriminative = self.base.class_discriminative  # type: ignore[misc]

    def measure(self, run: Pass) -> Measured:
        return self.base.measure(run)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return product_of_levels(levels, geometry)
