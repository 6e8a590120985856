"""Default target layers of transformers' models, and the layout of their tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from detcam.adapters.transformers.model import model_type
from detcam.adapters.transformers.tokens import TokenReshape
from detcam.layers import last_axis_channels

VISION_TRANSFORMERS = frozenset({"owlvit", "owlv2"})
"""Detectors whose queries are the patches of a ViT."""


def decoder_inputs(model: Any) -> list[nn.Module]:
    """Return the layers whose outputs the decoder of a known architecture reads; empty for an unknown one."""
    if model_type(model) in VISION_TRANSFORMERS:
        return [getattr(model, model_type(model)).vision_model.encoder.layers[-1].layer_norm1]
    body = getattr(model, "detr", model)
    while hasattr(body, "model"):  # a detector inside a segmentation network
        body = body.model
    body = body if body is not model else model.base_model
    projections = getattr(body, "decoder_input_proj", None)
    if projections is not None:  # one map per level
        return list(projections)
    projector = getattr(getattr(body, "backbone", None), "projector", None)
    if projector is not None:
        return list(getattr(projector, "scale_layers", [projector]))
    pixel_module = getattr(body, "pixel_level_module", None)
    if pixel_module is not None:
        encoder = getattr(pixel_module.decoder, "encoder", None)
        return [body.transformer_module.input_projection] if encoder is None else [encoder.layers[-1]]
    if model_type(model).startswith("eomt"):  # the last block without queries
        return [body.layers[-1 - model.config.num_blocks]]
    encoder = getattr(body, "encoder", None)
    blocks = getattr(encoder, "layers", None) or getattr(encoder, "layer", None)
    if blocks is None:
        return []
    last = getattr(blocks[-1], "deformable_layer", blocks[-1])  # Grounding DINO's layers also return the text
    return [getattr(last, "layernorm_before", last)]


def token_levels(model: Any) -> int:
    """Return the number of levels of the encoder's tokens."""
    config = model.config
    if model_type(model) in ("mask2former", "oneformer"):
        return 3  # Mask2Former and OneFormer encode the strides 8, 16 and 32
    scales = getattr(config, "projector_scale_factors", None)
    return len(scales) if scales else int(getattr(config, "num_feature_levels", 1) or 1)


def token_reshape(model: Any, input_size_hw: tuple[int, int]) -> TokenReshape:
    """Return the reshape transform of a model for an input size."""
    config = model.config
    detection_tokens = getattr(config, "num_detection_tokens", 0)
    prefix = 1 if detection_tokens or model_type(model) in VISION_TRANSFORMERS else 0
    if model_type(model).startswith("eomt"):
        prefix = 1 + getattr(config, "num_register_tokens", 0)
    return TokenReshape(
        input_size_hw,
        levels=token_levels(model),
        prefix=prefix,
        suffix=detection_tokens,
        coarse_first=model_type(model) in ("mask2former", "oneformer"),
        last_axis_channels=last_axis_channels(model),
    )
