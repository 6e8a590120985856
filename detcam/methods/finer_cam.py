"""Finer-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.base import Batch, ModelLike, Target
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.inputs import View
from detcam.layers import LayersLike
from detcam.methods.common.wrapper import WrapperCAM
from detcam.methods.grad_cam import GradCAM
from detcam.outputs import Candidates
from detcam.rendering import Combine, DeferredHeatmaps
from detcam.results import Measured, Pass, values_of
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import BoxTarget, ClassifierOutputTarget, ClassTarget, FinerWeightedTarget, MaskTarget
from detcam.trace import ReshapeTransform


class FinerCAM(WrapperCAM):
    r"""Map, by a base method, of the difference between a class and the classes most similar to it.

    .. math:: y = \frac{\sum_d p_d\, (z_c - \alpha z_d)}{\sum_d p_d}

    replaces the logit :math:`z_c` of class c, with d the classes of the nearest logits, :math:`p_d` their softmax
    probabilities, and :math:`\alpha` the strength of the comparison. The logits of a box are those of its source, the
    logits of a region are means over it. Targets of other kinds are explained unchanged.

    Zhang et al., *Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation*, CVPR 2025,
    https://arxiv.org/abs/2501.11309.

    Use it for fine-grained classes, and for the confusion of two classes.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        base_method: class of the method that makes the map.
        alpha: strength of the comparison; 0 explains the logit alone.
        comparisons: maximum number of classes to compare with.
        **options: further arguments of the base method.
    """

    name = "finercam"
    paper = "Zhang et al., Finer-CAM, CVPR 2025, https://arxiv.org/abs/2501.11309"
    cost = "1 forward, 1 backward per target"
    use = "what distinguishes a class from the most similar ones"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[BaseCAM] = GradCAM,
        *,
        alpha: float = 1.0,
        comparisons: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if comparisons < 1:
            raise ValueError(f"expected comparisons of at least 1; got {comparisons}")
        if not base_method.class_discriminative:
            raise ValueError(f"{base_method.__name__} ignores the target, so there is nothing to compare; try GradCAM")
        self.wrap(base_method, options)
        self.alpha = alpha
        self.comparisons = comparisons

    def recording(self, batch: Batch) -> AbstractContextManager[Any]:
        return self.base.recording(batch)

    def measure(self, run: Pass) -> Measured:
        values = values_of(run.adapter.score(run.outputs, run.targets))
        finer = [
            [self._comparison_of(output, target) for target in row]
            for output, row in zip(run.outputs, run.targets, strict=True)
        ]
        return replace(self.base.measure(replace(run, targets=finer)), values=values)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return self.base.combine(levels, geometry)

    def _rendered(
        self, combine: Combine, levels: Sequence[Tensor], geometry: Geometry, view: View
    ) -> Tensor | DeferredHeatmaps:
        return self.base._rendered(self.base.combine if combine == self.combine else combine, levels, geometry, view)

    def _comparison_of(self, output: Any, target: Target) -> Target:
        """The comparison for a target; the target itself if it has no class to compare."""
        if type(target) in (ClassifierOutputTarget, ClassTarget) and isinstance(output, Tensor):
            return self._compare(output, target.category)  # type: ignore[attr-defined]
        if isinstance(target, MaskTarget) and isinstance(output, SegmenterOutput) and target.against is None:
            return _FinerMaskTarget(target, self._compare(_region_logits(output, target.mask), target.label))
        if isinstance(target, BoxTarget) and target.quantity in ("score", "logit") and target.against is None:
            with torch.no_grad():
                logits = output.candidates([target]).class_logits[0]
            comparison = self._compare(logits, target.label)
            return _FinerBoxTarget(target.box_xyxy, target.label, target.source, "logit", comparison=comparison)
        return target

    def _compare(self, logits: Tensor, label: int) -> Target:
        """A target that compares the class with those of the nearest logits."""
        if logits.numel() < 2:
            return ClassTarget(label)
        values = logits.detach().flatten()
        distance = (values - values[label]).abs()
        distance[label] = float("inf")
        others = distance.argsort()[: min(self.comparisons, len(values) - 1)].tolist()
        return FinerWeightedTarget(label % len(values), others, self.alpha)


def _region_logits(output: SegmenterOutput, mask: Any) -> Tensor:
    """(C,) mean logits of all classes over a region."""
    return torch.stack([MaskTarget(label, mask)(output) for label in range(output.classes)])


@dataclass(frozen=True)
class _FinerBoxTarget(BoxTarget):
    """Comparison of a box's class, at the source of the box."""

    comparison: Any = None

    def value(self, candidates: Candidates, row: int) -> Tensor:
        return self.comparison(candidates.class_logits[row])


@dataclass(frozen=True)
class _FinerMaskTarget:
    """Comparison of a region's class."""

    target: MaskTarget
    comparison: Target

    def __call__(self, output: SegmenterOutput) -> Tensor:
        return self.comparison(_region_logits(output, self.target.mask))
