"""Base class of torchvision's detectors: transform, pyramid, and scores with a local backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detcam.adapters.base import Batch
from detcam.adapters.detection import DetectorAdapter
from detcam.adapters.torchvision.sampling import sample_bilinear
from detcam.data.images import MAX_FLOAT_PIXELS, as_float
from detcam.geometry import Geometry
from detcam.trace import gradients_of
from detcam.utils.batching import batch_slices
from detcam.utils.guided_relu import guided_backward

MAX_REGIONS_PER_PASS = 64
"""Maximum number of regions per pass through a head, which bounds the memory for any number of boxes."""


class TorchvisionDetector(DetectorAdapter, abstract=True):
    """Base class that prepares images with the model's `GeneralizedRCNNTransform` and runs its backbone."""

    first_label = 1
    takes_bytes = True
    model: Any  # nn.Module types every attribute as Tensor | Module

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the backbone, whose output is the pyramid that the heads read.

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

        The pyramid does not depend on the backbone's architecture, and only the level of a box takes part. It cannot
        show distant context: its gradient reaches 3 to 17 percent of the image (all of it where the head normalizes
        over the map), that of an earlier layer most of it. GradCAM and GradCAM++ average their weights over the map and
        mark every object of a class, at any layer: 0.03 to 0.22 of the map in the box. For one box, use ODAM, HiResCAM
        or LayerCAM.
        """
        return [self.model.backbone]

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of class indices, background (0) included where the family has one."""

    @property
    def model_score_threshold(self) -> float:
        """The model's own minimum score of a detection (``score_thresh``), which applies beside any other."""
        return float(getattr(self.model, "roi_heads", self.model).score_thresh)

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        transformed = self._transformed(images)
        canvas = (transformed.tensors.shape[-2], transformed.tensors.shape[-1])
        geometries = []
        for image, (height, width) in zip(images, transformed.image_sizes, strict=True):
            size = (image.shape[-2], image.shape[-1])
            geometries.append(Geometry(size, canvas, (width / size[1], height / size[0])))
        return Batch(transformed.tensors, tuple(geometries))

    def _transformed(self, images: Sequence[Tensor]) -> ImageList:
        """Normalize and resize images as the model does; of large images, only the pixels that resizing reads.

        A transform of the user's own gets whole images.
        """
        transform: Any = self.model.transform
        is_small = all(image.is_floating_point() and image[0].numel() <= MAX_FLOAT_PIXELS for image in images)
        if is_small or type(transform) is not GeneralizedRCNNTransform:
            moved = [self._thickened(as_float(image).to(self.device, self.dtype)) for image in images]
            result: ImageList = transform(moved)[0]
            return result
        resized = [self._sampled(image) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
        return ImageList(transform.batch_images(resized, transform.size_divisible), sizes)

    def _sampled(self, image: Tensor) -> Tensor:
        """Normalize and resize one image, possibly in 8 bits."""
        transform: Any = self.model.transform
        shape_alone = torch.empty(image.shape, device="meta", dtype=self.dtype)
        height, width = transform.resize(self._thickened(shape_alone))[0].shape[-2:]
        result: Tensor = transform.normalize(sample_bilinear(image, (height, width)).to(self.device, self.dtype))
        return result

    def _thickened(self, image: Tensor) -> Tensor:
        """Stretch the short side of a long image that would have no pixel left in the network's input."""
        height, width = image.shape[-2:]
        transform: Any = self.model.transform
        least = -(-max(height, width) // transform.max_size)
        if transform.fixed_size is not None or min(height, width) >= least:
            return image
        return F.interpolate(image[None], (max(height, least), max(width, least)))[0]

    def prepare_tensor(self, batch: Tensor) -> Batch:
        return self.prepare(list(batch))

    def pyramid(self, inputs: Tensor) -> OrderedDict[str, Tensor]:
        """Return the backbone's levels (B, C, h, w) by name; a single map is the level ``"0"``."""
        features = self.model.backbone(inputs)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else OrderedDict(features)


def resized_size(geometry: Geometry) -> tuple[int, int]:
    """Return the height and width of the resized image on the network's input, without padding."""
    height, width = geometry.image_size_hw
    return round(height * geometry.scale_xy[1]), round(width * geometry.scale_xy[0])


def at_least_float(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; non-maximum suppression on the CPU does not support half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scores_of_regions(regions: Sequence[Tensor], scalars: Callable[[Tensor, slice], Sequence[Tensor]]) -> list[Tensor]:
    """Compute one scalar per region of a feature map, with exact gradients and independent backward passes.

    A scalar depends on the image through its region alone. The head runs once for many regions and is differentiated
    once with respect to them; the backward pass of a scalar then passes that gradient to its region without visiting
    the head. For a second derivative, the head runs again for that region.

    Args:
        regions: per scalar (1, ...), all of one shape, connected to the graph of the target layers.
        scalars: from regions (n, ...) and their slice of the list to their n scalars.
    """
    scores: list[Tensor] = []
    for part in batch_slices(len(regions), MAX_REGIONS_PER_PASS):
        chunk = regions[part]
        if not any(region.requires_grad for region in chunk):
            scores.extend(scalars(torch.cat(list(chunk)), part))
            continue
        leaf = torch.cat([region.detach() for region in chunk]).requires_grad_(True)
        values = scalars(leaf.clone(), part)  # a clone, because a head may begin with an in-place operation
        total = torch.stack(list(values)).sum()
        with guided_backward(total):
            (found,) = gradients_of(total, [leaf], retain_graph=False)
        gradients = torch.zeros_like(leaf) if found is None else found
        for position, (value, region) in enumerate(zip(values, chunk, strict=True)):
            alone = partial(_alone, scalars, part.start + position)
            scores.append(_Score.apply(region, value.detach(), gradients[position : position + 1], alone))
    return scores


def _alone(scalars: Callable[[Tensor, slice], Sequence[Tensor]], position: int, region: Tensor) -> Tensor:
    """The scalar of one region, from the head run on that region."""
    return scalars(region.clone(), slice(position, position + 1))[0]


class _Score(torch.autograd.Function):
    """A scalar with a known gradient with respect to its region."""

    @staticmethod
    def forward(ctx: Any, region: Tensor, value: Tensor, gradient: Tensor, alone: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(region, gradient)
        ctx.alone = alone
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor, None, None, None]:
        region, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative
            (gradient,) = torch.autograd.grad(ctx.alone(region), region, create_graph=True)
        return received[0] * gradient, None, None, None


def coco_names(classes: int, *, keypoints: bool = False) -> Mapping[int, str]:
    """Return the COCO names of a head with torchvision's reference number of classes; empty for other heads."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, KeypointRCNN_ResNet50_FPN_Weights

    weights = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1 if keypoints else FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    known = dict(enumerate(names)) if len(names) == classes else {}
    return {index: name for index, name in known.items() if name != "N/A"}
