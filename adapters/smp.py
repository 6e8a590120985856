"""segmentation-models-pytorch: every architecture with every encoder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from detcam.adapters.base import Batch
from detcam.adapters.normalization import IMAGENET, Normalization
from detcam.adapters.segmentation import SegmentationAdapter
from detcam.geometry import Geometry
from detcam.layers import InferredReshape, all_paths_pass, infer_reshape
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.optional import needs_extra
from detcam.utils.text import parse_value

logger = logging.getLogger("detcam")


class SmpAdapter(SegmentationAdapter):
    """Explains any `segmentation_models_pytorch` model.

    Explains the logits, also where the head ends in an activation; if that is a sigmoid, several classes are
    independent (`multilabel`). An image keeps its size and is padded to the multiple that the architecture needs (Unet:
    none); for a ViT encoder with a fixed size it is stretched to that size. Mean and standard deviation are those of
    the encoder: timm's for ``tu-`` encoders, else those stored with the encoder's weights, else ImageNet's. An
    auxiliary classification head is ignored.
    """

    family = "segmentation-models-pytorch"

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.multiple = _multiple(model)
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return any(
            kind.__name__ == "SegmentationModel" and kind.__module__.startswith("segmentation_models_pytorch.")
            for kind in type(model).__mro__
        )

    def resized(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        fixed = _fixed_size(self.model.encoder) if self.image_size is None else None
        return fixed or super().resized(image_size_hw)

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the decoder, or the encoder's last layer where the decoder only reads that one.

        Measured on a U-Net trained on blood cells: GradCAM at the bottleneck finds nothing (the relevant features take
        the skip connections), at the decoder's output it finds every class. PSPNet and DeepLabV3 have no skip
        connections: all paths pass through the encoder's last features, whose gradient covers context.
        """
        encoder: Any = self.model.encoder
        decoder: Any = self.model.decoder
        channels = next(module.in_channels for module in encoder.modules() if isinstance(module, nn.Conv2d))
        size = self.canvas((8 * encoder.output_stride, 8 * encoder.output_stride))
        noise = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
        batch = Batch(noise.to(self.device, self.dtype), (Geometry.identity(size),))
        seen: list[tuple[nn.Module, Tensor]] = []
        hooks = active_hooks(
            (module, lambda module, _, output: seen.append((module, output))) for module in encoder.modules()
        )
        with guarded(self.model, gradients=True), hooks:
            batch.inputs.requires_grad_(True)
            total = self.logits(self.forward(batch)).float().square().sum()
            deepest = [level for level in flatten_tensors(seen.pop()[1]) if level.ndim == 4][-1]
        if all_paths_pass(total.grad_fn, deepest.grad_fn):
            return [_producer(seen, deepest, infer_reshape(encoder, size))]
        return [decoder]

    def default_normalization(self) -> Normalization:
        encoder: Any = self.model.encoder
        stored = getattr(getattr(encoder, "model", None), "pretrained_cfg", None)
        if not stored:
            stored = _stored_with_weights(getattr(self.model, "config", None) or {})
        if not stored:
            logger.info("the encoder does not store the normalization of its input; using ImageNet's mean and std")
        return Normalization(tuple(stored.get("mean", IMAGENET.mean)), tuple(stored.get("std", IMAGENET.std)))

    def default_multilabel(self) -> bool:
        activation = self._activation()
        return activation is not None and isinstance(activation.activation, nn.Sigmoid)

    def forward(self, batch: Batch) -> Any:
        """Run the model and return its raw output, or the logits before the head's activation if there is one."""
        activation = self._activation()
        if activation is None or isinstance(activation.activation, nn.Identity):
            return super().forward(batch)
        seen: list[Tensor] = []
        with active_hooks(before=[(activation, lambda module, inputs: seen.append(inputs[0]))]):
            super().forward(batch)
        return seen[-1]

    def logits(self, raw: object) -> Tensor:
        return super().logits(raw[0] if isinstance(raw, tuple) else raw)

    def _activation(self) -> Any:
        """The head's activation module, or None where a custom head has none."""
        from segmentation_models_pytorch.base.modules import Activation

        head: Any = self.model.segmentation_head
        activations = [module for module in head.modules() if isinstance(module, Activation)]
        return activations[-1] if activations else None


def _producer(seen: Sequence[tuple[nn.Module, Any]], level: Tensor, reshape: InferredReshape) -> nn.Module:
    """The last module whose output is this level, or has its shape where the level was reshaped afterwards."""
    same = [module for module, output in seen if output is level]
    same_shape = [
        module for module, output in seen if isinstance(output, Tensor) and _shape(output, reshape) == level.shape
    ]
    return (same or same_shape)[-1]


def _shape(output: Tensor, reshape: InferredReshape) -> torch.Size | None:
    return reshape.to_map(output).shape if reshape.fits(output) else None


def _multiple(model: Any) -> int:
    """The number of pixels of which the sides of the network's input are multiples."""
    if not model.requires_divisible_input_shape:
        return 1
    stages = len(getattr(model.encoder, "output_strides", ()))
    # A ViT's stages all have the patch's stride; DPT's decoder brings them to strides 4, 8, 16, 32.
    return math.lcm(int(model.encoder.output_stride), 2 ** (stages + 1) if stages else 1)


def _fixed_size(encoder: Any) -> tuple[int, int] | None:
    """The only input size that a transformer's patch embedding takes, or None."""
    for module in encoder.modules():
        size = getattr(module, "img_size", None)
        if getattr(module, "strict_img_size", False) and size is not None:
            return int(size[0]), int(size[1])
    return None


def _stored_with_weights(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The normalization of a pretrained encoder's input, from the local cache of its weights; never downloads."""
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders.get(config.get("encoder_name"), {}).get("pretrained_settings", {})
    weights = settings.get(config.get("encoder_weights") or "imagenet")
    if weights is None:
        return {}
    path = try_to_load_from_cache(weights["repo_id"], "config.json", revision=weights["revision"])
    if not isinstance(path, str):
        return {}
    return json.loads(Path(path).read_text(encoding="utf-8"))


def create_smp_model(spec: str, *, num_classes: int | None = None) -> nn.Module:
    """Build a network with random weights from ``Unet?encoder=resnet34&classes=4&decoder_channels=96,64,48,32,16``.

    Args:
        spec: the architecture and, after ``?``, its arguments; ``encoder`` stands for ``encoder_name``.
        num_classes: overrides ``classes=`` in `spec`.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
        ValueError: unknown architecture, encoder or argument.
    """
    with needs_extra("smp"):
        import segmentation_models_pytorch as smp
    architecture, _, query = spec.partition("?")
    options: dict[str, Any] = {key: parse_value(value) for key, value in parse_qsl(query)}
    encoder = options.pop("encoder", options.pop("encoder_name", "resnet34"))
    if num_classes is not None:
        options["classes"] = num_classes
    try:
        model: nn.Module = smp.create_model(architecture, encoder, encoder_weights=None, **options)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ValueError(f"cannot build smp:{spec}: {reason[:300]}") from error
    return model
