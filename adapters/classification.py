"""Classifiers: any module that returns logits, or an object with ``.logits``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Batch, Target, Task
from detcam.data.images import ImageLike, load_images
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.layers import find_target_layers
from detcam.outputs import check_label
from detcam.targets import ClassTarget
from detcam.trace import ReshapeTransform, guarded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FixedSizeAdapter(Adapter):
    """What networks share that take images of one size.

    The whole image is resized to `image_size`, proportions not kept, so that every pixel of it can be
    explained (a centre crop would hide the borders), and normalised. A (B, C, H, W) tensor is taken as it is.

    Args:
        model: the module.
        target_layers: as in `Adapter`; None takes the last layer with a map that the output depends on, found
            by a probe (`detcam.layers.find_target_layers`).
        reshape_transform: as in `Adapter`.
        names: class index to name.
        image_size: height and width of the network's input; None takes what the model declares, else 224.
        mean: per channel, of pixels in [0, 1]; None takes what the model declares, else ImageNet's.
        std: likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        declared = declared_config(model)
        size = declared_size(model, declared) if image_size is None else image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.mean = tuple(declared.get("mean") or IMAGENET_MEAN) if mean is None else tuple(mean)
        self.std = tuple(declared.get("std") or IMAGENET_STD) if std is None else tuple(std)
        if min(self.image_size) < 1 or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                "expected a positive image_size, and mean and std of one length with std above 0; got "
                f"{self.image_size}, {self.mean}, {self.std}"
            )
        super().__init__(model, target_layers=target_layers, reshape_transform=reshape_transform, names=names)

    @classmethod
    def supports(cls, model: Any) -> bool:
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

    def forward(self, batch: Batch) -> Any:
        return self.model(batch.inputs, *batch.extra_inputs, **batch.model_kwargs)


class ClassificationAdapter(FixedSizeAdapter):
    """Any module from an image to class scores.

    Several logits are exclusive classes and score by softmax. A head with a single logit tells class 1 from
    class 0 and scores by sigmoid. Images and arguments as in `FixedSizeAdapter`.
    """

    family = "classification"
    task: ClassVar[Task] = "classification"

    def default_target_layers(self) -> Sequence[nn.Module]:
        return find_target_layers(self.model, self.image_size, self.device, self.dtype)

    def default_names(self) -> Mapping[int, str]:
        return imagenet_names(self.model)

    def outputs(self, raw: Any, batch: Batch) -> list[Any]:
        logits = getattr(raw, "logits", raw)
        if isinstance(logits, Mapping) and "logits" in logits:
            logits = logits["logits"]
        if not isinstance(logits, Tensor) or len(logits) != len(batch.inputs):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(
                f"expected logits of shape ({len(batch.inputs)}, C) from {type(self.model).__name__}; got "
                f"{got}. For a detector or segmenter of your own use detcam.adapters.detector(model, decode=...) or "
                "segmenter(...)"
            )
        return list(logits)

    def default_targets(self, outputs: Sequence[Tensor], batch: Batch) -> tuple[list[Detections], list[list[Target]]]:
        found = [self.ranked(o, g.image_size_hw) for o, g in zip(outputs, batch.geometries, strict=True)]
        return found, [self.targets_of(detections) for detections in found]

    def ranked(
        self,
        logits: Tensor,
        image_size_hw: tuple[int, int],
        *,
        labels: Sequence[int] | None = None,
        top_k: int | None = 1,
    ) -> Detections:
        """Classes of one image as findings that fill it: the best ones, or the best of the given ones.

        Args:
            logits: (C,), or (1,) or a scalar of a binary head.
            image_size_hw: of the image.
            labels: the classes to choose from; None takes all.
            top_k: at most so many; None takes all.

        Raises:
            ValueError: not scores of classes, or a label that the model does not have.
        """
        scores = class_scores(logits)
        for label in labels or ():
            check_label(label, self.names, len(scores))
        wanted = torch.arange(len(scores)) if labels is None else torch.tensor(list(labels)).long()
        wanted = wanted[scores[wanted].argsort(descending=True, stable=True)][:top_k]
        height, width = image_size_hw
        return Detections(
            torch.tensor([[0.0, 0.0, width, height]]).expand(len(wanted), 4),
            wanted,
            scores[wanted],
            image_size_hw,
            (Source("image"),) * len(wanted),
            names=self.names,
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        return [ClassTarget(label) for label in detections.labels.tolist()]

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        score_threshold: float = 0.0,
        top_k: int | None = None,
        labels: Sequence[int] | None = None,
        batch_size: int = 16,
    ) -> list[Detections]:
        """Classes of each image, best first: the top class, or what the arguments ask for.

        Args:
            images: one image or a list of them; sizes are free.
            score_threshold: every class of at least this score, in [0, 1].
            top_k: at most so many classes per image.
            labels: class indices to report, whether or not they came first.
            batch_size: images per forward pass.
        """
        if top_k is None and labels is None and score_threshold <= 0:
            top_k = 1
        tensors = load_images(images)
        found: list[Detections] = []
        for group in self.groups(tensors, batch_size):  # one size for all, so the groups come in order
            with guarded(self.model, gradients=False):
                batch = self.prepare([tensors[i] for i in group])
                outputs = self.outputs(self.forward(batch), batch)
            for output, geometry in zip(outputs, batch.geometries, strict=True):
                ranked = self.ranked(output, geometry.image_size_hw, labels=labels, top_k=top_k)
                found.append(ranked.filter(score_threshold=score_threshold))
        return found


def class_scores(logits: Tensor) -> Tensor:
    """Scores (C,) in [0, 1] of one image, on the CPU: softmax; for a single logit, of class 0 and class 1.

    Raises:
        ValueError: not one value per class.
    """
    if logits.ndim > 1:
        raise ValueError(
            f"expected class scores of shape (C,) per image; got {tuple(logits.shape)}: say what to explain "
            "with targets=, e.g. SemanticSegmentationTarget"
        )
    values = logits.detach().float().cpu().reshape(-1)
    if len(values) == 1:
        values = torch.cat([-values, values]) / 2  # softmax of (-z/2, z/2) is (sigmoid(-z), sigmoid(z))
    return values.softmax(-1)


def declared_config(model: nn.Module) -> Mapping[str, Any]:
    """What a timm model says about its input (``input_size``, ``mean``, ``std``); empty for others."""
    declared = getattr(model, "pretrained_cfg", None)
    return declared if isinstance(declared, Mapping) else {}


def declared_size(model: nn.Module, declared: Mapping[str, Any]) -> int | tuple[int, int]:
    """The input size that a model was built for or declares, or on which its published weights agree; else 224."""
    for module in model.modules():
        built = getattr(module, "image_size", None) or getattr(module, "img_size", None)
        if isinstance(built, int):
            return built
        if isinstance(built, (tuple, list)) and len(built) == 2 and all(isinstance(side, int) for side in built):
            return built[0], built[1]
    if declared.get("input_size"):
        return int(declared["input_size"][-2]), int(declared["input_size"][-1])
    published = {weights.transforms.keywords.get("crop_size") for weights in _torchvision_weights(model)}
    agreed = published.pop() if len(published) == 1 else None
    return agreed if isinstance(agreed, int) else 224


def imagenet_names(model: nn.Module) -> Mapping[int, str]:
    """ImageNet's class names for a model of torchvision or timm with 1000 classes; empty for any other."""
    if not type(model).__module__.startswith(("timm.", "torchvision.models.")):
        return {}
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1:]
    outputs = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in last]
    if getattr(model, "num_classes", *outputs) != 1000:
        return {}
    from torchvision.models import ResNet18_Weights

    return dict(enumerate(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))


def _torchvision_weights(model: nn.Module) -> list[Any]:
    """Every set of weights that torchvision publishes for models of this kind."""
    from torchvision.models import WeightsEnum

    module = type(model).__module__
    if not module.startswith("torchvision.models."):
        return []
    members = vars(sys.modules[module]).values()
    kinds: list[Any] = [kind for kind in members if isinstance(kind, type) and issubclass(kind, WeightsEnum)]
    return [weights for kind in kinds for weights in kind]
