"""A small RT-DETR of transformers with its own training loss."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detcam.adapters.transformers.model import auto_class
from detcam.utils.optional import needs_extra

MEAN, STD = 0.5, 0.25
"""Normalization of the pixels."""
WIDTH = 64
"""Channels of encoder and decoder."""
STAGE_CHANNELS = (24, 48, 80, 96)
"""Channels of the backbone at strides 4 to 32."""


def build_rt_detr(names: Sequence[str], image_size_hw: tuple[int, int]) -> nn.Module:
    """Build an RT-DETR with random weights.

    Args:
        names: class names.
        image_size_hw: size of the network's input, which adapters read from the saved image processor.

    Raises:
        ImportError: transformers is not installed.
    """
    with needs_extra("transformers"):
        import transformers
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=STAGE_CHANNELS[0],
        hidden_sizes=list(STAGE_CHANNELS),
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        id2label=dict(enumerate(names)),
        d_model=WIDTH,
        encoder_hidden_dim=WIDTH,
        encoder_in_channels=list(STAGE_CHANNELS[1:]),
        encoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        decoder_in_channels=[WIDTH] * 3,
        decoder_ffn_dim=2 * WIDTH,
        decoder_layers=2,
        decoder_attention_heads=4,
        hidden_expansion=0.5,
        num_queries=20,
        num_denoising=20,
        anchor_image_size=None,
    )
    model: nn.Module = transformers.RTDetrForObjectDetection(config)
    untyped: Any = model
    untyped.name_or_path = processor_folder(image_size_hw)
    return model


@cache
def processor_folder(image_size_hw: tuple[int, int]) -> str:
    """Save the image processor in a temporary folder, which is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="detcam-planted-")
    _FOLDERS.append(folder)
    size = {"height": image_size_hw[0], "width": image_size_hw[1]}
    auto_class("RTDetrImageProcessor")(
        size=size, do_normalize=True, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(folder.name)
    return folder.name


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def rt_detr_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Compute the training loss.

    Args:
        model: model from `build_rt_detr`, in training mode.
        images: (3, H, W) in [0, 1], all of one size.
        targets: per image ``boxes``, (N, 4) xyxy pixels, and ``labels``, (N,) from 0.
    """
    height, width = images[0].shape[-2:]
    scale = torch.tensor([width, height, width, height])
    labels = [
        {"class_labels": target["labels"], "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / scale}
        for target in targets
    ]
    loss: Tensor = model(pixel_values=(torch.stack(list(images)) - MEAN) / STD, labels=labels).loss
    return loss
