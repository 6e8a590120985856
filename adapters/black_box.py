"""Models that run outside of PyTorch: plain functions, and files that another runtime executes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.utils.modules import all_modules

DEFAULT_CLASSES = 100
"""Number of class indices of a model that tells labels only, where no names are given."""


class BlackBox(nn.Module):
    """A model without layers and gradients, as a module.

    A subclass implements `forward`, from a (B, C, H, W) tensor to tensors.

    Attributes:
        in_channels: number of channels of the input.
        max_batch_size: maximum number of images per call; None where any number is accepted.
        obstacle: why it has neither gradients nor layers, as the end of a sentence.
        remedy: what to explain instead where a method needs them.
    """

    obstacle: ClassVar[str]
    in_channels: int = 3
    max_batch_size: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    @property
    def remedy(self) -> str:
        return "explain a PyTorch model"


def gradient_obstacle(model: nn.Module) -> tuple[str, str] | None:
    """Return why a model has no gradients, and what to explain instead; None for a model that may have them."""
    if isinstance(model, BlackBox):
        return model.obstacle, model.remedy
    if any(".quantized." in f"{type(module).__module__}." for module in all_modules(model)):
        return "is quantized (int8)", "explain the float model"
    return None


def check_gradients(model: nn.Module, method: str, needed: str) -> None:
    """Check that a model has gradients, for a method that needs them, or layers that are found by them.

    Args:
        model: the network.
        method: name of the method's class.
        needed: what the method needs, in words.

    Raises:
        TypeError: the model has no gradients; the message says what to explain instead.
    """
    obstacle = gradient_obstacle(model)
    if obstacle is not None:
        reason, remedy = obstacle
        raise TypeError(
            f"{type(model).__name__} {reason} and {method} needs {needed}: {remedy}, or use a method that changes the "
            "image, such as rise, occlusion or drise"
        )


def class_vectors(labels: Tensor, scores: Tensor, classes: int) -> Tensor:
    """Return class scores (..., C) with the score of each detection at its label and 0 elsewhere.

    Args:
        labels: (...) class indices, of any dtype.
        scores: (...) in [0, 1].
        classes: the number C of class indices.

    Raises:
        ValueError: a label is not in 0 .. C - 1.
    """
    index = labels.long()
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < classes:
        raise ValueError(
            f"expected labels from 0 to {classes - 1}; got labels from {int(index.min())} to {int(index.max())}. Pass "
            "names=, the name of each class index, which tells the number of classes"
        )
    vectors = scores.new_zeros((*scores.shape, classes))
    return vectors.scatter_(-1, index[..., None], scores[..., None])


def count_classes(names: Any) -> int:
    """Return the number of class indices that names have; `DEFAULT_CLASSES` without names."""
    if not names:
        return DEFAULT_CLASSES
    return max(names) + 1 if isinstance(names, dict) else len(names)


def pad_rows(rows: list[Tensor]) -> Tensor:
    """Stack tensors (N_i, C) to (B, N, C), with zeros where an image has fewer rows."""
    stacked = rows[0].new_zeros((len(rows), max(len(row) for row in rows), rows[0].shape[1]))
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked


def pixels(inputs: Tensor) -> list[Any]:
    """Return a batch (B, C, H, W) in [0, 1] as images (H, W, C) uint8, NumPy arrays."""
    whole = (inputs.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return [image.permute(1, 2, 0).contiguous().numpy() for image in whole]
