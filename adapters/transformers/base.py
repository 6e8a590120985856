"""Base class of the adapters of transformers' models: images by the model's own image processor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Batch
from detcam.adapters.transformers.layers import token_reshape
from detcam.adapters.transformers.model import accepts, check_input, find_processor, stored_names
from detcam.adapters.transformers.processor import ImagePreparation, is_whole, pixel_mask
from detcam.adapters.transformers.sizes import check_input_size
from detcam.trace import ReshapeTransform


class TransformersModel(Adapter, abstract=True):
    """What adapters of transformers' models share: preparation by the image processor, class names, maps of tokens.

    Attributes:
        preparation: the image processor and the positions of images on the input.
    """

    preparation: ImagePreparation
    takes_bytes = True

    def use_processor(self, model: nn.Module, processor: Any, image_size: int | tuple[int, int] | None) -> None:
        """Set the image processor: the given one, else the one that belongs to the model."""
        check_input(model)
        self.preparation = ImagePreparation(find_processor(model, processor), image_size)
        self.mean, self.std = self.preparation.mean, self.preparation.std

    def default_names(self) -> Mapping[int, str]:
        return stored_names(self.model)

    def reshape_for(self, batch: Batch) -> ReshapeTransform:
        size = (batch.inputs.shape[-2], batch.inputs.shape[-1])
        return self.reshape_transform or token_reshape(self.model, size)

    def group_key(self, image_size_hw: tuple[int, int]) -> Hashable:
        return self.preparation.geometry(image_size_hw).input_size_hw

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        items = [self.preparation.prepare(image) for image in images]
        for _, geometry in items:
            check_input_size(self.model, geometry.input_size_hw)
        inputs = torch.stack([pixel_values for pixel_values, _ in items]).to(self.device, self.dtype)
        return Batch(inputs, tuple(geometry for _, geometry in items))

    def forward(self, batch: Batch) -> Any:
        settings = {**self.call_settings(batch), **batch.model_kwargs}
        return self.model(*batch.extra_inputs, pixel_values=batch.inputs, **settings)

    def call_settings(self, batch: Batch) -> dict[str, Any]:
        """Return keyword arguments of the forward pass of a batch, beside the images."""
        settings: dict[str, Any] = {"return_dict": True}
        if accepts(self.model, "pixel_mask") and any(not is_whole(geometry) for geometry in batch.geometries):
            settings["pixel_mask"] = torch.stack([pixel_mask(geometry) for geometry in batch.geometries]).to(
                self.device
            )
        return settings
