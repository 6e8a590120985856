"""Finds the adapter of a model among the families that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from detcam.adapters.base import Adapter
from detcam.trace import ReshapeTransform

FAMILIES: dict[str, str] = {
    "torchvision two-stage": "detcam.adapters.two_stage:TwoStageAdapter",
    "torchvision RetinaNet": "detcam.adapters.one_stage:RetinaNetAdapter",
    "torchvision FCOS": "detcam.adapters.one_stage:FCOSAdapter",
    "torchvision SSD": "detcam.adapters.ssd:SSDAdapter",
    "ultralytics": "detcam.adapters.ultralytics:UltralyticsAdapter",
    "ultralytics rt-detr": "detcam.adapters.ultralytics_rtdetr:UltralyticsQueryAdapter",
    "ultralytics classification": "detcam.adapters.ultralytics_classify:UltralyticsClassificationAdapter",
    "torchvision segmentation": "detcam.adapters.segmentation:TorchvisionSegmentationAdapter",
    "segmentation-models-pytorch": "detcam.adapters.smp:SmpAdapter",
    "classification": "detcam.adapters.classification:ClassificationAdapter",
}
"""Every adapter by family, in the order in which they are asked; the last one takes any module."""


def adapter_class(family: str) -> type[Adapter]:
    """An adapter class by its family's name."""
    module, name = FAMILIES[family].split(":")
    found: type[Adapter] = getattr(import_module(module), name)
    return found


def adapt(
    model: Any,
    *,
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    reshape_transform: ReshapeTransform | None = None,
    names: Mapping[int, str] | Sequence[str] | None = None,
    **options: Any,
) -> Adapter:
    """Find the adapter for a model. `repr` of the result says which one it is and which target layers it chose.

    Args:
        model: a detector, segmentation network, classifier or feature extractor of a supported family; an adapter is
            handed through, with other target layers where those are given.
        target_layers: modules or dotted names; None takes the family's measured default.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.
        names: class index to name; None takes what the model knows.
        **options: further arguments of that family's adapter, such as `image_size`.

    Raises:
        TypeError: not a module, or a scripted or quantised one.
        ValueError: a target layer that is not in the model.
    """
    if isinstance(model, Adapter):
        return model.with_layers(target_layers, reshape_transform)
    model = unwrap(model)
    for family in FAMILIES:
        found = adapter_class(family)
        if found.supports(model):
            return found(
                model, target_layers=target_layers, reshape_transform=reshape_transform, names=names, **options
            )
    raise TypeError(
        f"expected a torch.nn.Module (detector, segmenter, classifier) or an adapter; got {type(model).__name__}"
    )


def unwrap(model: Any) -> Any:
    """The plain module inside DataParallel or torch.compile, with a clear error for modules without hooks."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap(model.module)
    if hasattr(model, "_orig_mod"):  # torch.compile: hooks would force a recompilation at every call
        return unwrap(model._orig_mod)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("a scripted model has no hooks on its layers; pass the torch.nn.Module it was scripted from")
    return model
