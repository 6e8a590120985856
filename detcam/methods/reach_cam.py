"""ReachCAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM, levels_of, value_of
from detcam.geometry import Geometry
from detcam.methods.common.feature_path import FeaturePath
from detcam.methods.common.layer_search import with_reaching_layers
from detcam.methods.common.level_product import product_of_levels
from detcam.outputs import work_dtype
from detcam.results import Measured, Pass, Reach
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform, Trace
from detcam.utils.pca import first_principal_component

RIVAL = 0.1
"""Least score of a rival class, as a share of the explained class's own, where scores are independent."""
SMOOTHING = 0.5
"""Standard deviation of the smoothing, in cells of the coarsest layer."""


class ReachCAM(BaseCAM):
    r"""Gradients integrated along a short path in feature space, at layers whose gradients reach the whole scene.

    .. math:: L = \sum_k (A^k - \bar A^k) \odot \frac{1}{S} \sum_{s=1}^{S}
        \frac{\partial y}{\partial A^k}\Big|_{\bar A + t_s (A - \bar A)}, \quad t_s = \frac{s - 1/2}{S}

    with the channel means over the image's cells as the start of the path. The signed map sums to what the score
    owes to the image, y(A) - y(mean A): completeness, exact for a network that is quadratic behind the layer, and
    otherwise reported as `ImageHeatmaps.completeness`. The heatmap is the product of the layers' positive parts, each
    smoothed by a Gaussian of half a cell of the coarsest: layers disagree in their noise and agree in their evidence.

    After Sundararajan et al., *Axiomatic Attribution for Deep Networks*, ICML 2017,
    https://arxiv.org/abs/1703.01365, moved from pixels to features.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`; None takes the layers whose measured reach covers the scene.
        reshape_transform: as in `BaseCAM`; it may only pick and rearrange values.
        steps: midpoints S of the path; each costs a forward pass per layer, shared by all targets.
        contrast: walk a box's class score as its logit, for a saturated score would hide its reasons, minus the logit
            of the strongest other class: under a softmax, background included, always, since only differences of its
            logits mean anything; else where that class scores at least a tenth as much. False walks every target as
            it is.
    """

    name = "reachcam"
    paper = "after Sundararajan et al., Integrated Gradients, ICML 2017, https://arxiv.org/abs/1703.01365"
    cost = "4 forwards and backwards a layer"
    owes_sum: ClassVar[bool] = True
    """Whether the map's sum is compared with what the score owes to the image: a forward pass per layer."""
    use = "causes beyond the box: integrated, at layers that see the scene; tells how complete it is"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        steps: int = 4,
        contrast: bool = True,
    ) -> None:
        if steps < 1:
            raise ValueError(f"expected steps of at least 1; got {steps}")
        super().__init__(model, target_layers, reshape_transform)
        chosen = with_reaching_layers(self.adapter)
        self.reaches_all = chosen is not self.adapter
        self.adapter = chosen
        self.target_layers = self.adapter.target_layers
        self.steps = steps
        self.contrast = contrast

    def contributions(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Each channel's part of one midpoint's map, from activations minus channel means, and gradients there."""
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
                [torch.zeros(0, len(run.adapter.target_layers)) for _ in counts] if self.owes_sum else None,
            )
        scalars = run.adapter.score(run.outputs, run.targets)
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        if self.contrast:
            run = replace(run, targets=[contrasted(*both) for both in zip(run.outputs, run.targets, strict=True)])
            scalars = run.adapter.score(run.outputs, run.targets)
        run.trace.check_depends([scalar for row in scalars for scalar in row])
        ends = [[value_of(scalar) for scalar in row] for row in scalars]
        maps: list[list[Tensor]] = []
        supports: list[list[Tensor]] = []
        errors: list[list[Tensor]] = [[] for _ in counts]
        for index in range(len(run.adapter.target_layers)):
            walk = _Walk(run, index)
            for step in range(self.steps):
                walk.step((step + 0.5) / self.steps, 1 / self.steps, self.contributions)
            if self.owes_sum:
                for image, error in enumerate(walk.errors(ends)):
                    errors[image].append(error)
            maps += walk.maps()
            supports += walk.supports
        reach = [
            [Reach.measure([level[i][k] for level in supports], geometry) for k in range(counts[i])]
            for i, geometry in enumerate(run.batch.geometries)
        ]
        complete = [torch.stack(found, 1) for found in errors] if self.owes_sum else None
        return Measured(maps, values, reach, complete)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps: the product of the levels' smoothed positive parts, without those that say nothing."""
        return product_of_levels(levels, geometry, SMOOTHING)


def contrasted(output: Any, targets: Sequence[Target]) -> list[Target]:
    """One image's targets with class scores as logits, against the strongest rival class (see `ReachCAM`)."""
    asked = [t for t in targets if isinstance(t, BoxTarget) and t.quantity in ("score", "logit")]
    if not asked:
        return list(targets)
    with torch.no_grad():
        table = output.candidates(asked).class_scores
    rivals: dict[int, BoxTarget] = {}
    for target, scores in zip(asked, table, strict=True):
        own, others = scores[target.label], scores.clone()
        others[target.label] = -1
        against = target.against
        if against is None and (output.background is not None or others.max() >= RIVAL * own):
            against = int(others.argmax())
        rivals[id(target)] = replace(target, quantity="logit", against=against)
    return [rivals.get(id(target), target) for target in targets]


class _Walk:
    """The path at one layer: adds up its midpoints, for all targets of all images.

    Attributes:
        supports: per level, per image, (N_i, h, w) bool: where any midpoint's gradient is not 0.
    """

    def __init__(self, run: Pass, index: int) -> None:
        self.run = run
        self.index = index
        self.reshape = run.adapter.reshape_for(run.batch)
        self.path = FeaturePath(run.trace, index, run.batch.geometries, self.reshape)
        self.differences = [level.to(work_dtype(level)) for level in self.path.differences]
        counts = [len(row) for row in run.targets]

        def blank(like: Tensor, n: int) -> Tensor:  # channels are kept apart only where they are needed
            return like.new_zeros((n, *(like.shape[1:] if run.eigen_smooth else like.shape[2:])))

        self.sums = [[blank(level, n) for n in counts] for level in self.differences]
        self.supports = [
            [torch.zeros((n, *level.shape[2:]), dtype=torch.bool, device=level.device) for n in counts]
            for level in self.differences
        ]

    def scores(self, t: float) -> tuple[Trace, list[list[Tensor]]]:
        """Every target's scalar where the layer puts out what lies at t of the path."""
        adapter, index = self.run.adapter, self.index
        trace = Trace(
            [adapter.target_layers[index]],
            [adapter.layer_names[index]],
            gradients=torch.is_grad_enabled(),
            reshape_transform=self.reshape,
            replace=lambda layer, ran, output: self.path.at(ran, t),
        )
        with trace:
            raw = adapter.forward(self.run.batch)
        return trace, adapter.score(adapter.outputs(raw, self.run.batch), self.run.targets)

    def step(self, t: float, share: float, contributions: Callable[[Tensor, Tensor], Tensor]) -> None:
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
                    part = contributions(difference[None], g[None].to(difference.dtype))[0] * share
                    self.sums[level][image][k] += part if self.run.eigen_smooth else part.sum(0)
                    self.supports[level][image][k] |= (g != 0).any(0)

    def maps(self) -> list[list[Tensor]]:
        """Per level, per image, (N_i, h, w)."""
        if not self.run.eigen_smooth:
            return self.sums
        return [
            [first_principal_component(image) if len(image) else image.sum(1) for image in level] for level in self.sums
        ]

    def errors(self, values: list[list[float]]) -> list[Tensor]:
        """Per image, (N_i,): how far each map's sum is from what the score owes to the image, relative to that."""
        with torch.no_grad():
            _, starts = self.scores(0.0)
        found = []
        for image, row in enumerate(values):
            score = torch.tensor(row, dtype=torch.float64)
            owed = score - torch.tensor([value_of(start) for start in starts[image]], dtype=torch.float64)
            total = sum(level[image].flatten(1).sum(1).double().cpu() for level in self.sums)
            found.append((total - owed).abs() / torch.maximum(owed.abs(), 0.01 * score.abs()).clamp(min=1e-12))
        return found
