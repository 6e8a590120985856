"""What torchvision's detectors share: the transform, the pyramid, and scores with a local backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import Batch, DetectorAdapter
from detcam.geometry import Geometry
from detcam.guided_relu import guided

REGIONS_AT_ONCE = 64
"""How many regions go through a head together, so that memory stays bounded for any number of boxes."""


class TorchvisionDetector(DetectorAdapter):
    """Prepares images with the model's own `GeneralizedRCNNTransform` and runs its backbone."""

    model: Any  # nn.Module types every attribute as Tensor | Module

    def default_target_layers(self) -> Sequence[nn.Module]:
        """The pyramid that the heads read.

        Measured on detectors of blood cells (60 boxes each, 48 for Faster R-CNN; a box takes 5 percent of its image
        on average): share of ODAM's map inside the box, and share of maps whose peak lies there.

        ============  ===========  =====================  ===================
        family        pyramid      backbone, last stages  backbone, stride 16
        ============  ===========  =====================  ===================
        Faster R-CNN  0.87, 0.94   0.62, 0.90             0.86, 1.00
        RetinaNet     0.84, 1.00   0.46, 0.95             0.75, 0.92
        FCOS          0.92, 0.98   0.11, 1.00             0.90, 1.00
        SSD           0.91, 0.98   0.83, 1.00             0.74, 0.90
        ============  ===========  =====================  ===================

        The pyramid needs no knowledge of the backbone, and only the level that made a box takes part. What it cannot
        do is show far context: its gradient reaches 3 to 17 percent of the image (all of it where the head
        normalises over the map), an earlier layer's most of it. GradCAM's and GradCAM++'s spatially averaged weights
        mark every object of a kind, at any layer: 0.03 to 0.22 of the map in the box. For one box, take ODAM,
        HiResCAM or LayerCAM.
        """
        return [self.model.backbone]

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of class indices, background (0) included where the family has one."""

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        moved = [image.to(self.device, self.dtype) for image in images]
        transformed, _ = self.model.transform(moved)
        canvas = (transformed.tensors.shape[-2], transformed.tensors.shape[-1])
        geometries = []
        for image, (height, width) in zip(images, transformed.image_sizes, strict=True):
            size = (image.shape[-2], image.shape[-1])
            geometries.append(Geometry(size, canvas, (width / size[1], height / size[0])))
        return Batch(transformed.tensors, tuple(geometries))

    def prepare_tensor(self, batch: Tensor) -> Batch:
        return self.prepare(list(batch))

    def pyramid(self, inputs: Tensor) -> OrderedDict[str, Tensor]:
        """The backbone's levels (B, C, h, w) by name; a backbone with a single map has one, named ``"0"``."""
        features = self.model.backbone(inputs)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else OrderedDict(features)


def input_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the resized image on the canvas, without padding."""
    height, width = geometry.image_size_hw
    return round(height * geometry.scale_xy[1]), round(width * geometry.scale_xy[0])


def at_least_float(tensor: Tensor) -> Tensor:
    """Half precision widened, for non-maximum suppression, which the CPU does not know in half."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scores_of_regions(regions: Sequence[Tensor], scalars: Callable[[Tensor, slice], Sequence[Tensor]]) -> list[Tensor]:
    """One scalar per region of a feature map, with exact gradients and backward passes that never meet.

    A scalar depends on the image through its own region alone. The head runs once for many regions and is
    differentiated once down to them; a scalar's backward pass then hands its region that gradient, and visits nothing
    of the head. Where a second derivative is wanted, the head runs again for the region that is asked.

    Args:
        regions: per scalar (1, ...), all of one shape, connected to the graph of the target layers.
        scalars: from regions (n, ...) and where they stand in the list to their n scalars.
    """
    scores: list[Tensor] = []
    for start in range(0, len(regions), REGIONS_AT_ONCE):
        part = slice(start, min(start + REGIONS_AT_ONCE, len(regions)))
        own = regions[part]
        if not any(region.requires_grad for region in own):
            scores.extend(scalars(torch.cat(list(own)), part))
            continue
        leaf = torch.cat([region.detach() for region in own]).requires_grad_(True)
        values = scalars(leaf.clone(), part)  # a clone, because a head may begin with an in-place operation
        total = torch.stack(list(values)).sum()
        with guided(total):
            (gradients,) = torch.autograd.grad(total, leaf)
        for position, (value, region) in enumerate(zip(values, own, strict=True)):
            alone = partial(_alone, scalars, start + position)
            scores.append(_Score.apply(region, value.detach(), gradients[position : position + 1], alone))
    return scores


def _alone(scalars: Callable[[Tensor, slice], Sequence[Tensor]], position: int, region: Tensor) -> Tensor:
    """The scalar of one region, from the head run on that region."""
    return scalars(region.clone(), slice(position, position + 1))[0]


class _Score(torch.autograd.Function):
    """A scalar that is known with its gradient at its region."""

    @staticmethod
    def forward(ctx: Any, region: Tensor, value: Tensor, gradient: Tensor, alone: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(region, gradient)
        ctx.alone = alone
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor, None, None, None]:
        region, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # the graph of the gradient is wanted
            (gradient,) = torch.autograd.grad(ctx.alone(region), region, create_graph=True)
        return received[0] * gradient, None, None, None


def coco_names(classes: int, *, keypoints: bool = False) -> Mapping[int, str]:
    """Names by class index for a head of torchvision's reference size; empty for any other head."""
    from torchvision.models.detection import (
        FasterRCNN_ResNet50_FPN_Weights,
        KeypointRCNN_ResNet50_FPN_Weights,
    )

    weights = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1 if keypoints else FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    known = dict(enumerate(names)) if len(names) == classes else {}
    return {index: name for index, name in known.items() if name != "N/A"}
