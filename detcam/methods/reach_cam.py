"""ReachCAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike, Target
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.methods.common.feature_path import FeaturePath
from detcam.methods.common.layer_search import with_context_layers
from detcam.methods.common.level_product import product_of_levels
from detcam.outputs import DetectorOutput
from detcam.results import Measured, Pass, Reach, levels_of, value_of, values_of
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform, Trace
from detcam.utils.pca import first_principal_component
from detcam.utils.precision import work_dtype

MIN_RIVAL_SCORE = 0.1
"""Minimum score of a rival class, relative to the explained class's score, if scores are independent."""
LEVEL_SMOOTHING = 0.5
"""Standard deviation of the smoothing, in cells of the coarsest layer."""


class ReachCAM(BaseCAM):
    r"""Gradients integrated along a short path in feature space, at layers whose gradients cover the whole scene.

    .. math:: L = \sum_k (A^k - \bar A^k) \odot \frac{1}{S} \sum_{s=1}^{S}
        \frac{\partial y}{\partial A^k}\Big|_{\bar A + t_s (A - \bar A)}, \quad t_s = \frac{s - 1/2}{S}

    with :math:`A^k` channel k of the target layer's activation, :math:`\bar A^k` its mean over the image's cells, the
    start of the path, S the number of midpoints, and y the target's score. The signed map sums to
    :math:`y(A) - y(\bar A)` (completeness): exactly if the network is quadratic after the layer, else up to the
    error `ImageHeatmaps.convergence_delta`. The heatmap is the product of the layers' positive parts, each smoothed by
    a Gaussian of half a cell of the coarsest layer: layers differ in their noise and agree in their evidence.

    After Sundararajan et al., *Axiomatic Attribution for Deep Networks*, ICML 2017,
    https://arxiv.org/abs/1703.01365, applied to features instead of pixels.

    Use it to find evidence outside the box.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`; None takes the layers whose measured reach covers the scene.
        reshape_transform: as in `BaseCAM`; it may only select and rearrange values.
        steps: number S of midpoints; each costs a forward pass per layer, shared by all targets.
        contrast: if True, a box's class score is explained as its logit, because a saturated score hides its reasons,
            minus the logit of the strongest other class: always under a softmax (background included), because only
            differences of its logits are meaningful; else if that class has at least a tenth of the score. False
            explains every target unchanged.
    """

    name = "reachcam"
    paper = "after Sundararajan et al., Integrated Gradients, ICML 2017, https://arxiv.org/abs/1703.01365"
    cost = "4 forwards and backwards per layer"
    use = "evidence outside the box: integrated gradients at layers that cover the scene; reports the convergence delta"
    checks_convergence: ClassVar[bool] = True
    """Whether the map's sum is compared with the difference of the scores: one forward pass per layer."""

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        steps: int = 4,
        contrast: bool = True,
    ) -> None:
        if steps < 1:
            raise ValueError(f"expected steps of at least 1; got {steps}")
        super().__init__(model, target_layers, reshape_transform)
        adapter = with_context_layers(self.adapter)
        self.covers_receptive_field = adapter is not self.adapter
        self.adapter = adapter
        self.steps = steps
        self.contrast = contrast

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Each channel's part of one midpoint's map, from activations minus channel means, and gradients."""
        return activations * gradients

    def measure(self, run: Pass) -> Measured:
        counts = [len(row) for row in run.targets]
        activations = levels_of(run.trace, len(counts))
        if not any(counts):
            empty = [[level.new_zeros((0, *level.shape[-2:])) for _ in counts] for level in activations]
            return Measured(
                empty,
                [[] for _ in counts],
                [[] for _ in counts],
                [torch.zeros(0, len(run.adapter.target_layers)) for _ in counts] if self.checks_convergence else None,
            )
        scalars = run.adapter.score(run.outputs, run.targets)
        values = values_of(scalars)
        if self.contrast:
            targets = [contrast_targets(*pair) for pair in zip(run.outputs, run.targets, strict=True)]
            run = replace(run, targets=targets)
            scalars = run.adapter.score(run.outputs, run.targets)
        run.trace.check_depends([scalar for row in scalars for scalar in row])
        end_values = values_of(scalars)
        maps: list[list[Tensor]] = []
        supports: list[list[Tensor]] = []
        errors: list[list[Tensor]] = [[] for _ in counts]
        for index in range(len(run.adapter.target_layers)):
            integral = _PathIntegral(run, index)
            for step in range(self.steps):
                integral.add_midpoint((step + 0.5) / self.steps, 1 / self.steps, self.contributions)
            if self.checks_convergence:
                for image, delta in enumerate(integral.convergence_deltas(end_values)):
                    errors[image].append(delta)
            maps += integral.maps()
            supports += integral.supports
        reach = [
            [Reach.measure([level[i][k] for level in supports], geometry) for k in range(counts[i])]
            for i, geometry in enumerate(run.batch.geometries)
        ]
        deltas = [torch.stack(layers, 1) for layers in errors] if self.checks_convergence else None
        return Measured(maps, values, reach, deltas)

    @staticmethod
    def combine(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Multiply the levels' smoothed positive parts; levels without saliency are left out."""
        return product_of_levels(levels, geometry, LEVEL_SMOOTHING)


def contrast_targets(output: DetectorOutput, targets: Sequence[Target]) -> list[Target]:
    """Replace class scores of boxes by logits contrasted with the strongest rival class (see `ReachCAM`)."""
    class_targets = [t for t in targets if isinstance(t, BoxTarget) and t.quantity in ("score", "logit")]
    if not class_targets:
        return list(targets)
    with torch.no_grad():
        table = output.candidates(class_targets).class_scores
    contrasted: dict[int, BoxTarget] = {}
    for target, scores in zip(class_targets, table, strict=True):
        others = scores.clone()
        others[target.label] = -1
        against = target.against
        has_rival = output.background is not None or others.max() >= MIN_RIVAL_SCORE * scores[target.label]
        if against is None and has_rival:
            against = int(others.argmax())
        contrasted[id(target)] = replace(target, quantity="logit", against=against)
    return [contrasted.get(id(target), target) for target in targets]


class _PathIntegral:
    """Sums the contributions of midpoints of the path at one layer, for all targets of all images.

    Attributes:
        supports: per level, per image, (N_i, h, w) bool: True where the gradient of any midpoint is not 0.
    """

    def __init__(self, run: Pass, index: int) -> None:
        self.run = run
        self.index = index
        self.reshape = run.adapter.reshape_for(run.batch)
        self.path = FeaturePath(run.trace, index, run.batch.geometries, self.reshape)
        self.differences = [level.to(work_dtype(level)) for level in self.path.differences]
        counts = [len(row) for row in run.targets]

        def zeros(like: Tensor, n: int) -> Tensor:  # the principal component needs separate channels
            return like.new_zeros((n, *(like.shape[1:] if run.eigen_smooth else like.shape[2:])))

        self.sums = [[zeros(level, n) for n in counts] for level in self.differences]
        self.supports = [
            [torch.zeros((n, *level.shape[2:]), dtype=torch.bool, device=level.device) for n in counts]
            for level in self.differences
        ]

    def scores(self, t: float) -> tuple[Trace, list[list[Tensor]]]:
        """Run a pass with the layer's output at t of the path, and return its trace and every target's scalar."""
        adapter, index = self.run.adapter, self.index
        trace = Trace(
            [adapter.target_layers[index]],
            [adapter.layer_names[index]],
            gradients=torch.is_grad_enabled(),
            reshape_transform=self.reshape,
            replace=lambda layer, run, output: self.path.point(run, t),
        )
        with trace:
            raw = trace.output = adapter.forward(self.run.batch)
        return trace, adapter.score(adapter.outputs(raw, self.run.batch), self.run.targets)

    def add_midpoint(self, t: float, weight: float, contributions: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add one midpoint; one backward pass for the k-th target of all images."""
        trace, scalars = self.scores(t)
        rounds = max(len(row) for row in scalars)
        for k in range(rounds):
            images = [i for i, row in enumerate(scalars) if len(row) > k and row[k].requires_grad]
            if not images:
                continue
            total = torch.stack([scalars[image][k].reshape(()) for image in images]).sum()
            (gradients,) = trace.gradients(total, retain_graph=k + 1 < rounds)
            for level, gradient in enumerate(gradients):
                if not torch.isfinite(gradient).all():
                    raise RuntimeError(f"the gradient at {', '.join(trace.names)} is NaN or infinite; use float32")
                for image in images:
                    difference, g = self.differences[level][image], gradient[image]
                    part = contributions(difference[None], g[None].to(difference.dtype))[0] * weight
                    self.sums[level][image][k] += part if self.run.eigen_smooth else part.sum(0)
                    self.supports[level][image][k] |= (g != 0).any(0)

    def maps(self) -> list[list[Tensor]]:
        """Per level, per image, (N_i, h, w)."""
        if not self.run.eigen_smooth:
            return self.sums
        return [
            [first_principal_component(image) if len(image) else image.sum(1) for image in level] for level in self.sums
        ]

    def convergence_deltas(self, end_values: list[list[float]]) -> list[Tensor]:
        """Per image, (N_i,): the difference between each map's sum and y(A) - y(mean A), relative to the latter."""
        with torch.no_grad():
            _, starts = self.scores(0.0)
        errors = []
        for image, row in enumerate(end_values):
            end = torch.tensor(row, dtype=torch.float64)
            expected = end - torch.tensor([value_of(start) for start in starts[image]], dtype=torch.float64)
            total = sum(level[image].flatten(1).sum(1).cpu().double() for level in self.sums)
            errors.append((total - expected).abs() / torch.maximum(expected.abs(), 0.01 * end.abs()).clamp(min=1e-12))
        return errors
