"""Feature extractors: images to vectors, explained by their likeness to a concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Batch, Target, Task, layer_name, resolve_layers
from detcam.adapters.classification import FixedSizeAdapter
from detcam.adapters.registry import unwrap
from detcam.detections import Detections
from detcam.inputs import read_request
from detcam.layers import all_paths_pass, find_target_layers, first_tensor, infer_reshape, probe_image
from detcam.smoothing import View
from detcam.trace import ReshapeTransform, guarded
from detcam.utils.model_lock import exclusive


@dataclass(frozen=True)
class Tap:
    """Where in the model the embedding is read: what a module puts out, or what it takes in."""

    module: nn.Module
    takes_input: bool = False


class EmbeddingAdapter(FixedSizeAdapter):
    """Any module from an image to a feature vector, or a classifier of which the vector before its head is taken.

    A target is called with one image's vector (D,). Maps and patch tokens are averaged over their places, class
    tokens left out. Images and further arguments as in `FixedSizeAdapter`.

    Args:
        model: the module.
        layer: the module, or its dotted name, that puts out the embedding; the model itself for what it returns.
            None takes what the last linear layer reads where that layer ends the model, else what the model returns.
    """

    family = "embedding"
    task: ClassVar[Task] = "embedding"

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: nn.Module | str | None = None,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.given_layer = layer
        super().__init__(
            model,
            target_layers=target_layers,
            reshape_transform=reshape_transform,
            names={},
            image_size=image_size,
            mean=mean,
            std=std,
        )
        self.embedding_name = ("input of " if self.tap.takes_input else "") + layer_name(model, self.tap.module)

    @cached_property
    def tap(self) -> Tap:
        """Where the embedding is read."""
        if self.given_layer is not None:
            return Tap(resolve_layers(self.model, self.given_layer)[0])
        return find_embedding(self.model, self.image_size, self.device, self.dtype)

    def default_target_layers(self) -> Sequence[nn.Module]:
        with exclusive(self.model), self._held() as held:
            return find_target_layers(
                self.model, self.image_size, self.device, self.dtype, lambda _: self._vectors(held, self.image_size, 1)
            )

    def forward(self, batch: Batch) -> Tensor:
        """Embeddings (B, D)."""
        with self._held() as held:
            super().forward(batch)
        return self._vectors(held, (batch.inputs.shape[-2], batch.inputs.shape[-1]), len(batch.inputs))

    def outputs(self, raw: Tensor, batch: Batch) -> list[Tensor]:
        return list(raw)

    def default_targets(self, outputs: Sequence[Tensor], batch: Batch) -> tuple[list[Detections], list[list[Target]]]:
        raise ValueError(
            "an embedding has no classes of its own: pass targets=, e.g. "
            "[SimilarityToConceptTarget(embed(adapter, images_of_the_concept))] for each image"
        )

    def targets_of(self, detections: Detections) -> list[Target]:
        raise ValueError("an embedding has no classes: pass targets such as SimilarityToConceptTarget, not detections")

    @contextmanager
    def _held(self) -> Iterator[list[Any]]:
        """Collects what passes the tap, while open; copied, since what follows may work in place."""
        held: list[Any] = []
        if self.tap.takes_input:
            handle = self.tap.module.register_forward_pre_hook(lambda m, inputs: held.append(inputs[0].clone()))
        else:
            handle = self.tap.module.register_forward_hook(lambda m, i, out: held.append(first_tensor(out).clone()))
        try:
            yield held
        finally:
            handle.remove()

    def _vectors(self, held: Sequence[Tensor], input_size_hw: tuple[int, int], count: int) -> Tensor:
        name = layer_name(self.model, self.tap.module)
        if len(held) != 1:
            raise RuntimeError(f"layer {name} ran {len(held)} times in one pass; choose a layer= that runs once")
        found = held[0]
        if found.ndim in (3, 4):
            found = infer_reshape(self.model, input_size_hw).one(found).mean((2, 3))
        if found.ndim != 2 or len(found) != count:
            raise ValueError(
                f"expected an embedding of shape ({count}, D), or a map or tokens to average, at {name}; got "
                f"{tuple(held[0].shape)}. Choose another layer="
            )
        return found

    def __repr__(self) -> str:
        model = type(self.model).__name__
        return f"{type(self).__name__}({model}, layer={self.embedding_name!r}, target_layers={self.layer_names})"


def find_embedding(model: nn.Module, input_size_hw: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tap:
    """Where a model's embedding is: the input of the linear layer that ends it, else what it returns.

    Raises:
        ValueError: the last linear layer has only a part in the output (several heads), so the user must choose.
    """
    ran: list[tuple[nn.Module, Any]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        ran.append((module, output.grad_fn if isinstance(output, Tensor) else None))

    leaves = [m for m in model.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
    with guarded(model, gradients=True):
        handles = [leaf.register_forward_hook(hook) for leaf in leaves]
        try:
            output = first_tensor(model(probe_image(model, input_size_hw, device, dtype)))
        finally:
            for handle in handles:
                handle.remove()
    last, node = ran[-1] if ran else (None, None)
    if not isinstance(last, nn.Linear) or model is last:
        return Tap(model)
    if not all_paths_pass(output.grad_fn, node):
        raise ValueError(
            f"{layer_name(model, last)} is only one of the layers that the output of {type(model).__name__} comes "
            "from; pass layer=, the module whose output is the embedding (the model itself for what it returns)"
        )
    return Tap(last, takes_input=True)


def embedder(model: nn.Module, **options: Any) -> EmbeddingAdapter:
    """Make a feature extractor explainable: `EmbeddingAdapter`, with its arguments.

    Args:
        model: a feature extractor, or a classifier whose features are meant.
        **options: `layer`, `target_layers`, `reshape_transform`, `image_size`, `mean`, `std`.

    Raises:
        TypeError: not a module.
        ValueError: the embedding cannot be found; the message says what to pass.

    Example:
        >>> adapter = embedder(resnet18())
        >>> concept = embed(adapter, ["dog1.jpg", "dog2.jpg"])
        >>> heatmaps = GradCAM(adapter)(["scene.jpg"], targets=[SimilarityToConceptTarget(concept)])
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module; got {type(model).__name__}")
    return EmbeddingAdapter(model, **options)


def embed(model: EmbeddingAdapter | nn.Module, images: Any, *, batch_size: int = 16) -> Tensor:
    """Embeddings of images, e.g. of a concept for `SimilarityToConceptTarget`.

    Args:
        model: what `embedder` made, or a module, for which it is asked.
        images: one image or a list of them, or a normalised (B, C, H, W) tensor, as in a method's call.
        batch_size: images per forward pass.

    Returns:
        (B, D) float32 on the CPU.
    """
    if isinstance(model, Adapter) and not isinstance(model, EmbeddingAdapter):
        raise TypeError(f"expected a module or what embedder(...) made; got {type(model).__name__}")
    adapter = model if isinstance(model, EmbeddingAdapter) else embedder(model)
    request = read_request(adapter, images, None, None)
    found = []
    for group in request.groups(adapter, batch_size):
        with guarded(adapter.model, gradients=False):
            found.append(adapter.forward(request.batch(adapter, group, View())).float().cpu())
    return torch.cat(found)
