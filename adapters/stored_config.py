"""What known classifiers store about their input and classes: timm's and torchvision's, alone or inside a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from detcam.adapters.normalization import Normalization
from detcam.adapters.transformers.model import pretrained_bases
from detcam.adapters.transformers.processor import stored_preparation
from detcam.utils.warnings import warn


@dataclass(frozen=True)
class Wrapped:
    """A known network inside a module.

    Attributes:
        network: the network.
        name: its dotted name in the wrapper.
        normalization: how the wrapper normalizes the image before the network, or None.
    """

    network: nn.Module
    name: str
    normalization: Normalization | None = None


def is_known_classifier(module: object) -> bool:
    """Return whether a module is a classifier of timm, or one that torchvision publishes by name."""
    kind = type(module)
    if isinstance(getattr(module, "pretrained_cfg", None), dict):
        return True
    public = getattr(sys.modules.get(kind.__module__), "__all__", ())
    return kind.__module__.startswith("torchvision.models.") and kind.__name__ in public


def wrapped_networks(model: nn.Module, is_known: Callable[[object], bool]) -> Iterator[Wrapped]:
    """Find the outermost known networks inside a module."""
    stack = [(name, child) for name, child in model.named_children()][::-1]
    while stack:
        name, module = stack.pop()
        if is_known(module):
            yield Wrapped(module, name)
        else:
            stack += [(f"{name}.{inner}", child) for inner, child in module.named_children()][::-1]


def stored_config(model: nn.Module) -> Mapping[str, Any]:
    """Return the input configuration (``input_size``, ``mean``, ``std``) that a model of timm or transformers stores.

    It is empty for other models. A module with timm's networks inside has theirs, where they agree.
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping):
        return config
    if pretrained_bases(model):
        return stored_preparation(model)
    inner = [item.network for item in wrapped_networks(model, is_known_classifier)]
    configs = [config for module in inner if isinstance(config := getattr(module, "pretrained_cfg", None), Mapping)]
    if len({str([config.get(key) for key in ("mean", "std", "input_size")]) for config in configs}) > 1:
        warn(
            f"{type(model).__name__} contains networks with different mean, std or input size; ImageNet's are taken. "
            "Pass mean=, std= and image_size=",
            UserWarning,
        )
        return {}
    return configs[0] if configs else {}


def stored_size(model: nn.Module, config: Mapping[str, Any]) -> int | tuple[int, int]:
    """Return the input size of a model.

    This is the size that one of its modules stores, else that of its configuration, else that of its published weights
    where these agree, else 224.
    """
    for module in model.modules():
        size = getattr(module, "image_size", None) or getattr(module, "img_size", None)
        if isinstance(size, int):
            return size
        if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) for side in size):
            return size[0], size[1]
    if config.get("input_size"):
        return int(config["input_size"][-2]), int(config["input_size"][-1])
    networks = [model, *(item.network for item in wrapped_networks(model, is_known_classifier))]
    published = {
        weights.transforms.keywords.get("crop_size")
        for network in networks
        for weights in _torchvision_weights(network)
    }
    agreed = published.pop() if len(published) == 1 else None
    return agreed if isinstance(agreed, int) else 224


def imagenet_names(model: nn.Module) -> Mapping[int, str]:
    """Return ImageNet's class names for a model of torchvision or timm with 1000 classes; empty for other models."""
    if not type(model).__module__.startswith(("timm.", "torchvision.models.")):
        return {}
    counts = [getattr(m, "out_features", getattr(m, "out_channels", None)) for m in model.modules()]
    last = [count for count in counts if isinstance(count, int)][-1:]  # int8 layers are none of nn's classes
    if getattr(model, "num_classes", last[0] if last else None) != 1000:
        return {}
    from torchvision.models import ResNet18_Weights

    return dict(enumerate(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))


def _torchvision_weights(model: nn.Module) -> list[Any]:
    """The weights that torchvision publishes for models of this module."""
    from torchvision.models import WeightsEnum

    module = type(model).__module__
    if not module.startswith("torchvision.models."):
        return []
    members = vars(sys.modules[module]).values()
    kinds: list[Any] = [kind for kind in members if isinstance(kind, type) and issubclass(kind, WeightsEnum)]
    return [weights for kind in kinds for weights in kind]
