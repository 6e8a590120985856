"""Class targets for classifiers; names and meanings as in pytorch_grad_cam."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from detcam.detections import class_name, label_index
from detcam.outputs import BaseTarget, Target


def _class_score(output: Tensor, category: int) -> Tensor:
    """Return the entry of a class in (C,) or (B, C) scores."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a class target needs logits, a tensor of shape (C,); this model's output is {type(output).__name__}. For "
            "one of several outputs pass output_key= to detcam.adapt; for a detector use BoxTarget, for a segmenter "
            "MaskTarget"
        )
    classes = output.shape[-1] if output.ndim else 0
    if not -classes <= category < classes:
        known = f"a class index from 0 to {classes - 1}" if classes else "a target for a single number, without a class"
        raise ValueError(f"expected {known}; got {category}")
    return output[..., category]


class ClassifierOutputTarget(BaseTarget):
    """The logit of one class.

    Args:
        category: class index; a method also takes its name.

    Example:
        >>> import torch
        >>> from detcam.targets import ClassifierOutputTarget
        >>> ClassifierOutputTarget(2)(torch.tensor([0.5, -1.0, 3.0]))
        tensor(3.)
    """

    quantity: str | None = "logit"

    def __init__(self, category: int | str) -> None:
        self.category: Any = category if isinstance(category, str) else int(category)
        self.label: Any = self.category

    def named(self, names: Mapping[int, str]) -> Self:
        if not isinstance(self.category, str):
            return self
        named = copy.copy(self)
        named.category = named.label = label_index(names, self.category)
        return named

    def __call__(self, model_output: Tensor) -> Tensor:
        return _class_score(model_output, self.category)


class ClassTarget(ClassifierOutputTarget):
    """The logit of one class, by the labels of `predict`; for a single logit z, z for class 1 and -z for class 0."""

    def __call__(self, model_output: Tensor) -> Tensor:
        if isinstance(model_output, Tensor) and model_output.numel() == 1 and self.category in (0, 1):
            return model_output.reshape(()) * (1 if self.category else -1)
        return super().__call__(model_output)


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The softmax probability of one class."""

    quantity = "score"

    def __call__(self, model_output: Tensor) -> Tensor:
        _class_score(model_output, self.category)
        return torch.softmax(model_output, dim=-1)[..., self.category]


class ClassifierOutputReST(ClassifierOutputTarget):
    """Logit plus log-probability of one class: z_c + log softmax(z)_c (https://arxiv.org/abs/2501.06261)."""

    quantity = None

    def __call__(self, model_output: Tensor) -> Tensor:
        logit = _class_score(model_output, self.category)
        return logit + torch.log_softmax(model_output, dim=-1)[..., self.category]


class BinaryClassifierOutputTarget(BaseTarget):
    """A single logit, unchanged for class 1 and negated for class 0.

    Args:
        category: 0 or 1.
    """

    def __init__(self, category: int) -> None:
        if category not in (0, 1):
            raise ValueError(f"expected category 0 or 1 of a binary classifier; got {category}")
        self.category = self.label = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output if self.category == 1 else -model_output


class SoftmaxOutputTarget(BaseTarget):
    """All softmax probabilities, for metrics that compare whole outputs."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return torch.softmax(model_output, dim=-1)


class RawScoresOutputTarget(BaseTarget):
    """The output itself, for metrics that compare whole outputs and for models with a single number."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output


def reads_raw_output(target: Target) -> bool:
    """Return whether a target reads the model's own output: a plain function does, a class target reads logits.

    Args:
        target: the target.

    Returns:
        Whether it gets the model's own output instead of logits (C,).

    Example:
        >>> from detcam.targets import ClassTarget, reads_raw_output
        >>> reads_raw_output(ClassTarget(1)), reads_raw_output(lambda output: output.sum())
        (False, True)
    """
    return not isinstance(target, BaseTarget) or isinstance(target, RawScoresOutputTarget)


class FinerWeightedTarget(BaseTarget):
    """Finer-CAM's target: the difference of a class from similar classes (https://arxiv.org/abs/2501.11309).

    sum_d p_d (z_c - alpha z_d) / sum_d p_d over the comparison classes d, with p the softmax. ``pytorch_grad_cam`` adds
    1e-9 to the divisor, so that the value vanishes where the class c is certain.

    Args:
        main_category: class index c.
        comparison_categories: class indices d.
        alpha: strength of the comparison; 0 gives the plain logit.
    """

    quantity = "logit"

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        if not len(comparison_categories):
            raise ValueError("expected at least one comparison category; got none")
        self.main_category = self.label = int(main_category)
        self.comparison_categories = [int(category) for category in comparison_categories]
        self.against = self.comparison_categories[0]
        self.alpha = float(alpha)

    def describe(self, names: Mapping[int, str]) -> str:
        others = ", ".join(class_name(names, other) for other in self.comparison_categories)
        return f"{class_name(names, self.main_category)} rather than {others}"

    def __call__(self, model_output: Tensor) -> Tensor:
        _class_score(model_output, self.main_category)
        model_output = model_output.to(torch.promote_types(model_output.dtype, torch.float32))
        main = _class_score(model_output, self.main_category)
        others = torch.stack([_class_score(model_output, category) for category in self.comparison_categories], -1)
        weights = torch.softmax(others, dim=-1)  # of these alone: beside a certain class, their probabilities vanish
        return (weights * (main[..., None] - self.alpha * others)).sum(-1)
