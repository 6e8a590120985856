"""Classifiers: any module that returns logits or an object with ``.logits``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from detcam.adapters.base import IMAGENET_MEAN, IMAGENET_STD, Adapter, AdapterOptions, Batch, Target, Task
from detcam.detections import Detections, LabelsLike, Source, label_indices
from detcam.geometry import Geometry
from detcam.layers import find_target_layers
from detcam.outputs import check_label
from detcam.targets import ClassTarget


class FixedSizeAdapter(Adapter, abstract=True):
    """Base class for networks that take images of one size.

    The whole image is resized to `image_size`, without keeping its aspect ratio, so that every pixel can be explained
    (a centre crop would hide the borders), and normalised. A (B, C, H, W) tensor is taken as it is.

    Args:
        model: the network.
        image_size: height and width of the network's input, or one number for both; None takes the size that the model
            stores, else 224.
        mean: per channel, of pixels in [0, 1]; None takes the values that the model stores, else ImageNet's.
        std: as `mean`.
        **options: `target_layers`, `reshape_transform` and `names`, as in `Adapter`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        stored = stored_config(model)
        size = stored_size(model, stored) if image_size is None else image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.mean = tuple(stored.get("mean") or IMAGENET_MEAN) if mean is None else tuple(mean)
        self.std = tuple(stored.get("std") or IMAGENET_STD) if std is None else tuple(std)
        if min(self.image_size) < 1 or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                "expected a positive image_size, and mean and std of one length with std above 0; got "
                f"{self.image_size}, {self.mean}, {self.std}"
            )
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, nn.Module)

    def group_key(self, image_size_hw: tuple[int, int]) -> int:
        return 0

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.mean, self.std))
        resized = [
            F.interpolate(image[None].to(self.device), self.image_size, mode="bilinear", antialias=True)
            for image in images
        ]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        geometries = tuple(Geometry.resize(size, self.image_size) for size in sizes)
        return Batch(((torch.cat(resized) - mean) / std).to(self.dtype), geometries)


class ClassificationAdapter(FixedSizeAdapter):
    """Explains any module from an image to class scores.

    Several logits are exclusive classes with softmax scores. A head with a single logit separates class 1 from class 0
    and has sigmoid scores. Images and arguments as in `FixedSizeAdapter`; by default, the target layer is the last one
    with a map that the output depends on, found with a probe (`detcam.layers.find_target_layers`).
    """

    family = "classification"
    task: ClassVar[Task] = "classification"

    def default_target_layers(self) -> Sequence[nn.Module]:
        return find_target_layers(self.model, self.image_size, self.device, self.dtype)

    def default_names(self) -> Mapping[int, str]:
        return imagenet_names(self.model)

    def outputs(self, raw: object, batch: Batch) -> list[Any]:
        logits = getattr(raw, "logits", raw)
        if isinstance(logits, Mapping) and "logits" in logits:
            logits = logits["logits"]
        if not isinstance(logits, Tensor) or len(logits) != len(batch.inputs):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(
                f"expected logits of shape ({len(batch.inputs)}, C) from {type(self.model).__name__}; got "
                f"{got}. For another kind of model use detcam.adapters.detector(model, decode=...) or "
                "segmenter(...)"
            )
        return list(logits)

    def detections(self, outputs: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """The top class of each image, as a detection that covers the image."""
        return [self.ranked(o, g.image_size_hw, top_k=1) for o, g in zip(outputs, batch.geometries, strict=True)]

    def select(
        self,
        detections: Detections,
        output: Tensor,
        *,
        score_threshold: float | None = None,
        top_k: int | None = None,
        labels: LabelsLike | None = None,
    ) -> Detections:
        """Select classes of one image: the top class, unless `top_k` or `labels` is given."""
        if top_k is None and labels is None:
            top_k = 1
        ranked = self.ranked(output, detections.image_size_hw, labels=labels, top_k=top_k)
        return ranked.filter(score_threshold=score_threshold)

    def ranked(
        self,
        logits: Tensor,
        image_size_hw: tuple[int, int],
        *,
        labels: LabelsLike | None = None,
        top_k: int | None = None,
    ) -> Detections:
        """Rank the classes of one image, as detections that cover the image.

        Args:
            logits: (C,), or (1,) or a scalar of a binary head.
            image_size_hw: height and width of the image.
            labels: names or indices of the classes to rank; None takes all.
            top_k: maximum number of classes; None takes all.

        Raises:
            ValueError: the logits are not class scores, or the model has no such class.
        """
        scores = class_scores(logits)
        indices = list(range(len(scores))) if labels is None else label_indices(self.names, labels)
        for label in indices:
            check_label(label, self.names, len(scores))
        chosen = torch.tensor(indices, dtype=torch.int64)
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)][:top_k]
        height, width = image_size_hw
        return Detections(
            torch.tensor([[0.0, 0.0, width, height]]).expand(len(chosen), 4),
            chosen,
            scores[chosen],
            image_size_hw,
            (Source("image"),) * len(chosen),
            names=self.names,
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        return [ClassTarget(label) for label in detections.labels.tolist()]


def class_scores(logits: Tensor) -> Tensor:
    """Return class scores (C,) in [0, 1] of one image, on the CPU: softmax, or sigmoid of a single logit.

    Args:
        logits: (C,), or (1,) or a scalar of a binary head, whose scores are those of class 0 and class 1.

    Raises:
        ValueError: there is more than one value per class.
    """
    if logits.ndim > 1:
        raise ValueError(
            f"expected class scores of shape (C,) per image; got {tuple(logits.shape)}. Pass targets= that read this "
            "output (e.g. SemanticSegmentationTarget), or explain the model through detcam.adapters.segmenter(model) "
            "or detcam.adapters.detector(model, decode=...)"
        )
    values = logits.detach().float().cpu().reshape(-1)
    if len(values) == 1:
        values = torch.cat([-values, values]) / 2  # softmax of (-z/2, z/2) is (sigmoid(-z), sigmoid(z))
    return values.softmax(-1)


def stored_config(model: nn.Module) -> Mapping[str, Any]:
    """Return the input configuration of a timm model (``input_size``, ``mean``, ``std``); empty for other models."""
    config = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, Mapping) else {}


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
    published = {weights.transforms.keywords.get("crop_size") for weights in _torchvision_weights(model)}
    agreed = published.pop() if len(published) == 1 else None
    return agreed if isinstance(agreed, int) else 224


def imagenet_names(model: nn.Module) -> Mapping[int, str]:
    """Return ImageNet's class names for a model of torchvision or timm with 1000 classes; empty for other models."""
    if not type(model).__module__.startswith(("timm.", "torchvision.models.")):
        return {}
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1:]
    outputs = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in last]
    if getattr(model, "num_classes", *outputs) != 1000:
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
