"""Classifiers of timm by name; the classification adapter explains them."""

from __future__ import annotations

from typing import Any

from torch import nn

from detcam.utils.console import did_you_mean
from detcam.utils.optional import needs_extra


def available() -> list[str]:
    """Return the names of all architectures."""
    with needs_extra("timm"):
        import timm
    names: list[str] = timm.list_models()
    return names


def create_timm_model(name: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build a model by its name in timm, such as ``tf_efficientnet_lite0`` or ``resnet50.a1_in1k``.

    Args:
        name: as `timm.create_model` takes it.
        num_classes: number of classes; None takes that of the published weights.
        pretrained: whether to load the published weights, from the cache or by download.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no model of this name.
        OSError: the weights are not in the cache and cannot be downloaded.
    """
    with needs_extra("timm"):
        import timm
    head = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **head)
    except RuntimeError as error:
        if "Unknown model" in str(error) or "Invalid pretrained tag" in str(error):
            near = did_you_mean(name.partition(".")[0], available())
            raise ValueError(f"timm has no model {name!r}: {error}{near}") from error
        raise
    return model


def published_file(model: nn.Module) -> str:
    """Return a description of the location of a model's published weights."""
    config: Any = getattr(model, "pretrained_cfg", {})
    if config.get("hf_hub_id"):
        return f"model.safetensors of {config['hf_hub_id']} on the Hugging Face hub"
    return str(config.get("url") or "the published weights")
