"""FinerCAM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Batch, Target
from detcam.cam import BaseCAM, value_of
from detcam.geometry import Geometry
from detcam.methods.grad_cam import GradCAM
from detcam.outputs import Candidates, SegmenterOutput
from detcam.results import Measured, Pass
from detcam.targets import BoxTarget, ClassifierOutputTarget, ClassTarget, FinerWeightedTarget, MaskTarget
from detcam.trace import ReshapeTransform


class FinerCAM(BaseCAM):
    r"""Another method's map of what tells a class from the classes most like it, rather than of the class alone.

    .. math:: y = \frac{\sum_d p_d\, (z_c - \alpha z_d)}{\sum_d p_d}

    is explained instead of the logit z_c, with d the classes whose logits are nearest to it and p the softmax. A box's
    logits are those of its source, a region's the means over it. Targets of other kinds are explained as they are.

    Zhang et al., *Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation*, CVPR 2025,
    https://arxiv.org/abs/2501.11309.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        base_method: makes the map.
        alpha: strength of the comparison; 0 explains the logit alone.
        comparisons: how many classes to compare with, if there are so many.
        **options: further arguments of the base method.
    """

    name = "finercam"
    paper = "Zhang et al., Finer-CAM, CVPR 2025, https://arxiv.org/abs/2501.11309"
    cost = "1 forward, 1 backward a target"
    use = "what tells a class from the ones most like it"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[BaseCAM] = GradCAM,
        alpha: float = 1.0,
        comparisons: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if comparisons < 1:
            raise ValueError(f"expected comparisons of at least 1; got {comparisons}")
        if not base_method.class_discriminative:
            raise ValueError(f"{base_method.__name__} ignores the target, so there is nothing to compare; try GradCAM")
        self.base = base_method(self.adapter, **options)
        self.uses_gradients = self.base.uses_gradients  # type: ignore[misc]
        self.alpha = alpha
        self.comparisons = comparisons

    def watching(self, batch: Batch) -> AbstractContextManager[Any]:
        return self.base.watching(batch)

    def measure(self, run: Pass) -> Measured:
        scores = run.adapter.score(run.outputs, run.targets)
        finer = [
            [self._finer(output, target) for target in row]
            for output, row in zip(run.outputs, run.targets, strict=True)
        ]
        found = self.base.measure(replace(run, targets=finer))
        return replace(found, values=[[value_of(score) for score in row] for row in scores])

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return self.base.combine(levels, geometry)

    def _finer(self, output: Any, target: Target) -> Target:
        """The comparison that belongs to a target; the target itself where it names no class."""
        if type(target) in (ClassifierOutputTarget, ClassTarget) and isinstance(output, Tensor):
            return self._against(output, target.category)  # type: ignore[attr-defined]
        if isinstance(target, MaskTarget) and isinstance(output, SegmenterOutput) and target.against is None:
            return _FinerMask(target, self._against(_region_logits(output, target.mask), target.label))
        if isinstance(target, BoxTarget) and target.quantity in ("score", "logit") and target.against is None:
            with torch.no_grad():
                logits = output.candidates([target]).class_logits[0]
            comparison = self._against(logits, target.label)
            return _FinerBox(target.box_xyxy, target.label, target.source, "logit", comparison=comparison)
        return target

    def _against(self, logits: Tensor, label: int) -> Any:
        """The class against those whose logits are nearest to its own."""
        if logits.numel() < 2:
            return ClassTarget(label)
        values = logits.detach().flatten()
        distance = (values - values[label]).abs()
        distance[label] = float("inf")
        others = distance.argsort()[: min(self.comparisons, len(values) - 1)].tolist()
        return FinerWeightedTarget(label % len(values), others, self.alpha)


def _region_logits(output: SegmenterOutput, mask: Any) -> Tensor:
    """(C,) mean logits of every class over a region."""
    return torch.stack([MaskTarget(label, mask)(output) for label in range(output.classes)])


@dataclass(frozen=True)
class _FinerBox(BoxTarget):
    """A box's class compared with others, read where the box comes from."""

    comparison: Any = None

    def of(self, candidates: Candidates, row: int) -> Tensor:
        value: Tensor = self.comparison(candidates.class_logits[row])
        return value


@dataclass(frozen=True)
class _FinerMask:
    """A region's class compared with others."""

    target: MaskTarget
    comparison: Any

    def __call__(self, output: SegmenterOutput) -> Tensor:
        value: Tensor = self.comparison(_region_logits(output, self.target.mask))
        return value
