"""YOLO classifiers. The package is not imported, since its preprocessing is torchvision's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.ultralytics.network import (
    fresh_attributes,
    head_names,
    inner_module,
    is_ultralytics,
    network_input_size,
)
from detcam.data.images import as_float
from detcam.detections import as_names
from detcam.geometry import Geometry
from detcam.layers import input_channels


class UltralyticsClassificationAdapter(ClassificationAdapter):
    """YOLO classifiers. Explains the logits; scores are the softmax, as the model reports them.

    Images are resized by their shorter side and cropped at the center, as `YOLO.predict` does.

    Args:
        model: a `YOLO` object, or the module inside one.
        image_size: side of the network's input, or height and width; None takes the model's `imgsz`, else 224.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`. By default, the target layer is
            the convolution before the pooling.
    """

    family = "ultralytics classification"
    takes_bytes = True
    fixed_options = frozenset({"mean", "std", "output", "output_key", "decode"})

    def __init__(
        self, model: object, *, image_size: int | tuple[int, int] | None = None, **options: Unpack[AdapterOptions]
    ) -> None:
        module = inner_module(model)
        size = network_input_size(model, image_size, 224, 1)
        stored: Any = getattr(module, "transforms", None)
        steps = [type(step).__name__ for step in getattr(stored, "transforms", ())]
        usable = steps == ["Resize", "CenterCrop", "ToTensor", "Normalize"] and tuple(stored.transforms[1].size) == size
        self.transforms: Any = stored if usable else default_transforms(size)
        normalize = self.transforms.transforms[-1]
        super().__init__(
            module,
            output="logits",  # `forward` returns them
            image_size=size,
            mean=[float(value) for value in normalize.mean] if input_channels(module) == 3 else None,
            std=[float(value) for value in normalize.std] if input_channels(module) == 3 else None,
            **options,
        )

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_ultralytics(model) and "Classify" in head_names(model)

    @property
    def head(self) -> Any:
        """The classification head."""
        layers: Any = self.model.model
        return layers[-1]

    def default_names(self) -> Mapping[int, str]:
        return as_names(self.model.names)  # type: ignore[arg-type]

    def default_target_layers(self) -> Sequence[nn.Module]:
        return [self.head.conv]

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        if self.channels != 3:  # the same steps on tensors, without the normalization of RGB
            resize, crop = self.transforms.transforms[:2]
            inputs = torch.stack([crop(resize(as_float(image))) for image in images])
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
            return Batch(inputs.to(self.device, self.dtype), tuple(self._geometry(size) for size in sizes))
        arrays = [(as_float(image).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images]
        inputs = torch.stack([self.transforms(Image.fromarray(array)) for array in arrays])
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return Batch(inputs.to(self.device, self.dtype), tuple(self._geometry(size) for size in sizes))

    def _geometry(self, size_hw: tuple[int, int]) -> Geometry:
        """The geometry of resizing and center crop; the parts of the image outside the crop are not on the input."""
        target = self.transforms.transforms[0].size
        if isinstance(target, int):
            short = min(size_hw)
            resized = tuple(target if side == short else int(target * side / short) for side in size_hw)
        else:
            resized = tuple(target)
        top, left = (-round((side - kept) / 2) for side, kept in zip(resized, self.image_size, strict=True))
        scale = (resized[1] / size_hw[1], resized[0] / size_hw[0])
        return Geometry(size_hw, self.image_size, scale, (left, top))

    def forward(self, batch: Batch) -> Tensor:
        with fresh_attributes(self.head):
            _, logits = self.model(batch.inputs)
        return logits


def default_transforms(size_hw: tuple[int, int]) -> transforms.Compose:
    """Return the preprocessing of ultralytics for a model that does not store its own."""
    height, width = size_hw
    return transforms.Compose(
        [
            transforms.Resize(height if height == width else (height, width)),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ]
    )
