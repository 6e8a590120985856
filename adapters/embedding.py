"""Feature extractors: images to vectors, explained by their similarity to a concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import DEFAULT_BATCH_SIZE, Adapter, Batch, Target, Task
from detcam.adapters.classification import FixedSizeAdapter
from detcam.adapters.contract import check_options, plain_module
from detcam.adapters.target_layers import layer_name, resolve_layers
from detcam.adapters.transformers.model import has_head
from detcam.data.images import ImageLike
from detcam.detections import Detections
from detcam.inputs import read_request
from detcam.layers import all_paths_pass, find_target_layers, first_tensor, infer_reshape, probe_image
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.model_lock import exclusive


@dataclass(frozen=True)
class Tap:
    """The tensor that is the embedding: a module's output or its input.

    Attributes:
        module: the module.
        takes_input: whether the embedding is the module's input rather than its output.
    """

    module: nn.Module
    takes_input: bool = False


class EmbeddingAdapter(FixedSizeAdapter):
    """Explains any module from an image to a feature vector, or a classifier by the vector before its head.

    Also named `embedder`. A target is called with the vector (D,) of one image. Maps and patch tokens are averaged over
    their positions, without class tokens. Images are prepared as in `FixedSizeAdapter`.

    Args:
        model: a feature extractor or classifier.
        layer: the module, or its dotted name, whose output is the embedding; pass the model to use its output. None
            uses the input of the last linear layer if the model ends with it, and the model's output otherwise.
        **options: further arguments of `FixedSizeAdapter`, such as `image_size` and `target_layers`.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the embedding cannot be found; the message says which argument to pass.

    Example:
        >>> import detcam, torch
        >>> from torchvision.models import resnet18
        >>> from detcam.adapters import embed, embedder
        >>> from detcam.targets import SimilarityToConceptTarget
        >>> adapter = embedder(resnet18().eval(), image_size=64)
        >>> concept = embed(adapter, torch.rand(2, 3, 64, 64)).mean(0)
        >>> heatmaps = detcam.GradCAM(adapter)(torch.rand(1, 3, 64, 64), targets=[SimilarityToConceptTarget(concept)])
    """

    family = "embedding"
    task: ClassVar[Task] = "embedding"
    fixed_options = frozenset({"names"})

    def __init__(self, model: nn.Module, *, layer: nn.Module | str | None = None, **options: Any) -> None:
        model = plain_module(model)
        check_options(type(self), options)
        self.given_layer = layer
        super().__init__(model, **options)
        self.embedding_name = ("input of " if self.tap.takes_input else "") + layer_name(model, self.tap.module)

    @cached_property
    def tap(self) -> Tap:
        """The module whose output or input is the embedding."""
        if self.given_layer is not None:
            return Tap(resolve_layers(self.model, self.given_layer)[0])
        if has_head(self.model, "ModelWithProjection"):  # CLIP's towers: the projection is part of the embedding
            return Tap(self.model)
        return find_embedding(self.model, self.image_size, self.device, self.dtype)

    def default_target_layers(self) -> Sequence[nn.Module]:
        with exclusive(self.model), self._tapped() as tensors:
            size = self.image_size
            return find_target_layers(
                self.model, size, self.device, self.dtype, lambda _: self._vectors(tensors, size, 1)
            )

    def forward(self, batch: Batch) -> Tensor:
        """Embeddings (B, D)."""
        with self._tapped() as tensors:
            super().forward(batch)
        return self._vectors(tensors, (batch.inputs.shape[-2], batch.inputs.shape[-1]), len(batch.inputs))

    def outputs(self, raw: Tensor, batch: Batch) -> list[Tensor]:
        return list(raw)

    def detections(self, outputs: Sequence[Tensor], batch: Batch) -> list[Detections]:
        raise ValueError(
            "an embedding has no classes: pass targets=, e.g. "
            "[SimilarityToConceptTarget(embed(adapter, images_of_the_concept))] for each image"
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        raise ValueError("an embedding has no classes: pass targets such as SimilarityToConceptTarget, not detections")

    @contextmanager
    def _tapped(self) -> Iterator[list[Any]]:
        """Collect copies of the tensors at the tap; copies, since following layers may work in place."""
        tensors: list[Any] = []
        module = self.tap.module
        if self.tap.takes_input:
            hooks = active_hooks(before=[(module, lambda m, inputs: tensors.append(inputs[0].clone()))])
        else:
            hooks = active_hooks([(module, lambda m, i, out: tensors.append(first_tensor(out).clone()))])
        with hooks:
            yield tensors

    def _vectors(self, tensors: Sequence[Tensor], input_size_hw: tuple[int, int], count: int) -> Tensor:
        name = layer_name(self.model, self.tap.module)
        if len(tensors) != 1:
            raise RuntimeError(f"layer {name} ran {len(tensors)} times in one pass; choose a layer= that runs once")
        vectors = tensors[0]
        if vectors.ndim in (3, 4):
            vectors = infer_reshape(self.model, input_size_hw).to_map(vectors).mean((2, 3))
        if vectors.ndim != 2 or len(vectors) != count:
            raise ValueError(
                f"expected an embedding of shape ({count}, D), or a map or tokens to average, at {name}; got "
                f"{tuple(tensors[0].shape)}. Choose another layer="
            )
        return vectors

    def __repr__(self) -> str:
        model = type(self.model).__name__
        return f"{type(self).__name__}({model}, layer={self.embedding_name!r}, target_layers={self.layer_names})"


def find_embedding(model: nn.Module, input_size_hw: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tap:
    """Find a model's embedding: the input of the linear layer that ends it, else its output.

    Raises:
        ValueError: the output depends on other layers beside the last linear one (several heads).
    """
    ran: list[tuple[nn.Module, Any]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        ran.append((module, output.grad_fn if isinstance(output, Tensor) else None))

    leaves = [m for m in model.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
    with guarded(model, gradients=True), active_hooks((leaf, hook) for leaf in leaves):
        output = first_tensor(model(probe_image(model, input_size_hw, device, dtype)))
    last, node = ran[-1] if ran else (None, None)
    if not isinstance(last, nn.Linear) or model is last:
        return Tap(model)
    if not all_paths_pass(output.grad_fn, node):
        raise ValueError(
            f"{layer_name(model, last)} is only one of the layers that the output of {type(model).__name__} comes "
            "from; pass layer=, the module whose output is the embedding (the model itself for what it returns)"
        )
    return Tap(last, takes_input=True)


def embed(
    model: EmbeddingAdapter | nn.Module, images: ImageLike | Sequence[ImageLike], *, batch_size: int | None = None
) -> Tensor:
    """Return the embeddings of images, e.g. of a concept for `SimilarityToConceptTarget`.

    Args:
        model: an `EmbeddingAdapter`, or a module, which is passed to `embedder`.
        images: one image or a list of them, or a normalized (B, C, H, W) tensor, as in a method's call.
        batch_size: number of images per forward pass; None takes 16.

    Returns:
        (B, D) float32 on the CPU.

    Raises:
        TypeError: `model` is an adapter of another kind.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from detcam.adapters import embed
        >>> embed(resnet18(), torch.rand(3, 64, 48)).shape
        torch.Size([1, 512])
    """
    if isinstance(model, Adapter) and not isinstance(model, EmbeddingAdapter):
        raise TypeError(f"expected a module or the result of embedder(...); got {type(model).__name__}")
    adapter = model if isinstance(model, EmbeddingAdapter) else embedder(model)
    request = read_request(adapter, images, None, None)
    vectors = []
    for group in request.groups(adapter, DEFAULT_BATCH_SIZE if batch_size is None else batch_size):
        with guarded(adapter.model, gradients=False):
            vectors.append(adapter.forward(request.batch(adapter, group)).float().cpu())
    return torch.cat(vectors)


embedder = EmbeddingAdapter
"""Makes a feature extractor explainable: ``embedder(model, layer=...)``."""
