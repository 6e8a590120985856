"""Semantic segmentation networks: the base class, and torchvision's FCN, DeepLabV3 and LR-ASPP."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.models.segmentation.deeplabv3 import DeepLabV3
from torchvision.models.segmentation.fcn import FCN
from torchvision.models.segmentation.lraspp import LRASPP
from typing_extensions import Unpack

from detcam.adapters.base import Adapter, AdapterOptions, Batch, Target, Task
from detcam.adapters.normalization import IMAGENET, Normalization, fit_normalization
from detcam.adapters.output_heads import OutputHead
from detcam.data.images import as_float
from detcam.detections import Detections
from detcam.geometry import Geometry, checked_size
from detcam.layers import input_channels
from detcam.outputs import ModelOutput
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import MaskTarget


class SegmentationAdapter(Adapter, abstract=True):
    """Base class for semantic segmentation networks: (B, C, h, w) logits, one detection per class that is present.

    An image keeps its size unless `image_size` is given, and is padded below and on the right with the mean color to
    a multiple of `multiple` pixels. A (B, C, H, W) tensor is taken as already resized and normalized.

    One channel is the logit of the foreground, class 1, present where its sigmoid exceeds 0.5. Several channels are
    exclusive classes (argmax of the logits resized to the image), or independent ones (sigmoid above 0.5) with
    `multilabel`.

    Args:
        model: the network.
        image_size: (height, width) that every image is stretched to, or one number for both; None keeps its size.
        mean: per channel, of pixels in [0, 1]; None takes the values that the model stores, else ImageNet's.
        std: as `mean`.
        multilabel: whether the classes of a head with several channels are independent; None takes the value that the
            model stores, else False.
        background: index of the class that is not reported; ``"auto"`` takes the class named background, if there is
            one; None reports every class. `MaskTarget` explains any class.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`.

    Attributes:
        multiple: the height and width of the network's input are multiples of this many pixels.
        output_head: how the network's output relates to logits.
    """

    task: ClassVar[Task] = "segmentation"
    takes_bytes = True
    multiple: int = 1
    output_head: OutputHead = OutputHead()
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        multilabel: bool | None = None,
        background: int | Literal["auto"] | None = "auto",
        **options: Unpack[AdapterOptions],
    ) -> None:
        self.image_size = checked_size(image_size)
        super().__init__(model, **options)
        normalization, self.normalization_is_known = fit_normalization(
            input_channels(model), (mean, std), self.default_normalization
        )
        self.mean, self.std = normalization.mean, normalization.std
        self.multilabel = self.default_multilabel() if multilabel is None else multilabel
        self.background = _background(self.names) if background == "auto" else background

    def default_normalization(self) -> Normalization:
        """Return the normalization of pixels in [0, 1] where the user does not give it."""
        return IMAGENET

    def default_multilabel(self) -> bool:
        """Return whether the model stores that its classes are independent."""
        return False

    def logits(self, raw: ModelOutput) -> Tensor:
        """Return the (B, C, h, w) maps in the model's raw output: logits, or what `output_head` turns into logits."""
        return raw

    def forward(self, batch: Batch) -> Any:
        with self.output_head.recording():
            return super().forward(batch)

    def resized(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of an image on the network's input."""
        if self.image_size is None:
            return image_size_hw
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def canvas(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the network's input for an image, padding included."""
        height, width = self.resized(image_size_hw)
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def group_key(self, image_size_hw: tuple[int, int]) -> Hashable:
        return self.canvas(image_size_hw)

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        canvas = self.canvas(sizes[0])
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        inputs, geometries = [], []
        for image, size in zip(images, sizes, strict=True):
            height, width = target = self.resized(size)
            image = as_float(image).to(self.device)
            if target != size:
                image = F.interpolate(image[None], target, mode="bilinear", antialias=True)[0]
            inputs.append(F.pad((image - mean) / std, (0, canvas[1] - width, 0, canvas[0] - height)))
            geometries.append(Geometry(size, canvas, (width / size[1], height / size[0])))
        return Batch(torch.stack(inputs).to(self.dtype), tuple(geometries))

    def outputs(self, raw: object, batch: Batch) -> list[SegmenterOutput]:
        maps = self.logits(raw)
        return [
            SegmenterOutput(item, geometry, binary=len(item) == 1, multilabel=self.multilabel, raw=own)
            for item, own, geometry in zip(self.output_head.logits(maps), maps, batch.geometries, strict=True)
        ]

    def detections(self, outputs: Sequence[SegmenterOutput], batch: Batch) -> list[Detections]:
        return [output.detections(self.names, background=self.background) for output in outputs]

    def targets_of(self, detections: Detections) -> list[Target]:
        if detections.masks is None:
            raise ValueError(
                "expected detections with masks, as predict() returns; got boxes only. Explain a box of a "
                "segmentation network with MaskTarget(label, mask)"
            )
        labels = detections.labels.tolist()
        return [MaskTarget(label, mask) for label, mask in zip(labels, detections.masks, strict=True)]

    def score(self, outputs: Sequence[SegmenterOutput], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        for output, row in zip(outputs, targets, strict=True):
            for target in row:
                if isinstance(target, MaskTarget):
                    target.check(output.geometry.image_size_hw, self.names, output.classes)
        return super().score(outputs, targets)

    def __repr__(self) -> str:
        text = super().__repr__()
        described = self.output_head.describe()
        return f"{text[:-1]}, {described})" if described else text


class TorchvisionSegmentationAdapter(SegmentationAdapter):
    """torchvision's FCN, DeepLabV3 and LR-ASPP, with any backbone.

    As in torchvision's presets, one number as `image_size` is the image's shorter side (520 for the published weights)
    and the aspect ratio is kept. Models with 21 classes have the names of VOC, with class 0 as background.

    The default target layer is the backbone's last: all paths to the head pass through it, and its gradient covers
    context. LR-ASPP reads two of the backbone's maps, and both are taken.
    """

    family = "torchvision segmentation"

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, (FCN, DeepLabV3, LRASPP))

    def default_target_layers(self) -> Sequence[nn.Module]:
        backbone: Any = self.model.backbone
        returned = getattr(backbone, "return_layers", {})  # layer to output name
        return [backbone[layer] for layer, name in returned.items() if name in ("out", "low", "high")] or [backbone]

    def default_names(self) -> Mapping[int, str]:
        categories = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
        classifier: Any = self.model.classifier
        heads = [module for module in classifier.modules() if isinstance(module, nn.Conv2d)]
        return dict(enumerate(categories)) if heads and heads[-1].out_channels == len(categories) else {}

    def resized(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        if not isinstance(self.image_size, int):
            return super().resized(image_size_hw)
        height, width = image_size_hw
        short = min(height, width)
        return int(self.image_size * height / short), int(self.image_size * width / short)

    def logits(self, raw: Mapping[str, Tensor]) -> Tensor:
        return raw["out"]


def _background(names: Mapping[int, str]) -> int | None:
    return next((index for index, name in names.items() if name.strip("_ ").casefold() == "background"), None)
