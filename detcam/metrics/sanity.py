"""Sanity checks: a heatmap must depend on the network's weights and on the image, and must be reproducible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM
from detcam.data.images import ImageLike
from detcam.metrics.base import Metric
from detcam.metrics.metric_input import MapArray, MetricImage
from detcam.metrics.similarity import check_maps, rank_correlation, ssim
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.model_lock import exclusive

COMPARED_SIZE = 64
"""Side in pixels to which maps of different images are resized before they are compared."""
MAX_PAIRS = 500

ExplainImage: TypeAlias = Callable[[Tensor, Sequence[Target]], Tensor]
"""From an image (C, H, W) and N targets to heatmaps (N, H, W)."""


@dataclass(frozen=True)
class Randomization:
    """Similarity of the heatmaps before and after cascading randomization of the network's weights.

    Attributes:
        layers: per step S, the layers that are randomized in it; those of earlier steps stay randomized.
        ssim: (S, N) float64, structural similarity of each target's heatmap with that of the intact network.
        rank_correlation: (S, N) float64 in [-1, 1], Spearman's rank correlation likewise.
    """

    layers: tuple[tuple[str, ...], ...]
    ssim: Tensor
    rank_correlation: Tensor


@dataclass(frozen=True)
class MapSimilarity:
    """Mean similarity over pairs of heatmaps.

    Attributes:
        ssim: mean structural similarity; NaN without pairs.
        rank_correlation: mean Spearman's rank correlation; NaN without pairs.
        pairs: number of pairs.
    """

    ssim: float
    rank_correlation: float
    pairs: int


@dataclass(frozen=True)
class Reproducibility:
    """Comparison of two runs of a method on the same input.

    Attributes:
        equal: whether the heatmaps are bitwise equal.
        largest_difference: largest absolute difference of a pixel, in [0, 1].
    """

    equal: bool
    largest_difference: float


def randomization(
    cam: BaseCAM, image: ImageLike, targets: Sequence[Target] | None = None, *, steps: int | None = None, seed: int = 0
) -> Randomization:
    r"""Randomize the network's weights from the last layer to the first, and compare the heatmaps.

    A heatmap that hardly changes does not depend on what the network has learned. Each weight tensor :math:`w` is
    replaced by samples of :math:`\mathcal N(\operatorname{mean}(w), \operatorname{std}(w)^2)`, which preserves the
    scale of activations; running statistics of normalization layers are kept. Layers are ordered by execution.

    Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292 (cascading
    randomization).

    The weights are overwritten during the call and restored bitwise, also after an exception.

    Args:
        cam: the method and its model.
        image: one image.
        targets: targets to explain; None takes the predictions of the intact model in every step.
        steps: number of groups of layers, of about equal size; None randomizes one layer per step.
        seed: seed of the random weights.

    Returns:
        The similarity per step and target.

    Raises:
        ValueError: the image has no predictions to explain, the model has no weights, or `steps` is below 1.

    Example:
        >>> import torch
        >>> from detcam import GradCAM, adapt
        >>> from detcam.metrics import randomization
        >>> from detcam.targets import ClassifierOutputTarget
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(4, 2),
        ... )
        >>> cam = GradCAM(adapt(network.eval(), target_layers=["0"], image_size=32))
        >>> randomization(cam, torch.rand(3, 32, 32), [ClassifierOutputTarget(1)]).layers
        (('4',), ('0',))
    """
    _check_steps(steps)
    pixels, targets, intact = explain_intact(cam, image, targets)
    return _randomize(cam.adapter, explainer_of(cam), pixels, targets, intact, steps, seed)


class RandomizationCheck(Metric):
    r"""Mean rank correlation of the heatmap with those after cascading randomization of the weights (`randomization`).

    .. math:: \frac{1}{S} \sum_{s=1}^{S} \rho(H, H_s)

    over the steps s, with Spearman's rank correlation :math:`\rho` of the heatmap :math:`H_s` after step s with the
    heatmap H of the intact network. In [-1, 1], lower is better: near 0, the heatmap depends on the learned weights;
    near 1, it does not. NaN for a constant heatmap. Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018,
    https://arxiv.org/abs/1810.03292.

    Args:
        steps: number of groups of layers; each costs one more run of the method. None randomizes one layer per step.
        seed: seed of the random weights.
    """

    name = "randomization"
    paper = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, https://arxiv.org/abs/1810.03292"
    higher_is_better = False
    range = (-1.0, 1.0)
    needs = frozenset({"model", "method"})

    def __init__(self, steps: int | None = 4, seed: int = 0) -> None:
        self.steps, self.seed = _check_steps(steps), seed

    def value(self, image: MetricImage) -> Tensor:
        check_is_image(self.name, image)
        heatmaps = image.heatmaps
        result = _randomize(image.adapter, image.explain, image.pixels, image.targets, heatmaps, self.steps, self.seed)
        constant = heatmaps.flatten(1).amax(1) == heatmaps.flatten(1).amin(1)  # its correlation 0 would look perfect
        return result.rank_correlation.mean(0).masked_fill(constant, float("nan"))


def check_is_image(name: str, image: MetricImage) -> None:
    """Raise ValueError for a normalized network input where a metric needs an image."""
    if image.normalized:
        raise ValueError(f"{name} needs images instead of a normalized (B, C, H, W) tensor")


def explain_intact(
    cam: BaseCAM, image: ImageLike, targets: Sequence[Target] | None
) -> tuple[Tensor, list[Target], Tensor]:
    """An image (C, H, W) in [0, 1], its targets, and their heatmaps (N, H, W).

    Raises:
        ValueError: the image has no predictions to explain.
    """
    pixels = cam.adapter.reader.read(image)
    result = cam.explain([pixels], None if targets is None else [list(targets)])[0]
    if not result.targets:
        raise ValueError("the image has no predictions to explain; pass targets, or another image")
    return pixels, list(result.targets), torch.as_tensor(result.heatmaps)


def explainer_of(cam: BaseCAM) -> ExplainImage:
    """A method as a function of an image and its targets."""
    return lambda pixels, targets: torch.as_tensor(cam.explain([pixels], [list(targets)])[0].heatmaps)


def _randomize(
    adapter: Adapter,
    explain: ExplainImage,
    image: Tensor,
    targets: Sequence[Target],
    intact: Tensor,
    steps: int | None,
    seed: int,
) -> Randomization:
    layers = layers_top_down(adapter, image, targets)
    groups = np.array_split(np.arange(len(layers)), len(layers) if steps is None else min(steps, len(layers)))
    generator = torch.Generator().manual_seed(seed)
    similarities: list[tuple[list[float], list[float]]] = []
    weights = [parameter for _, parameters in layers for parameter in parameters]
    with exclusive(adapter.model), _restored(weights):  # no other thread may run the model with random weights
        for group in groups:
            for index in group.tolist():
                for parameter in layers[index][1]:
                    _resample(parameter, generator)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # empty and incomplete maps are expected with random weights
                maps = explain(image, targets)
            pairs = list(zip(intact, maps, strict=True))
            similarities.append(([ssim(*pair) for pair in pairs], [rank_correlation(*pair) for pair in pairs]))
    values = torch.tensor(similarities, dtype=torch.float64)
    names = tuple(tuple(layers[index][0] for index in group.tolist()) for group in groups)
    return Randomization(names, values[:, 0], values[:, 1])


def _check_steps(steps: int | None) -> int | None:
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"expected steps of at least 1, or None for one layer at a time; got {steps}")
    return steps


def independence(heatmaps: Sequence[MapArray], *, seed: int = 0) -> tuple[MapSimilarity, MapSimilarity]:
    """Similarity of heatmaps of different images, and of heatmaps of different targets in one image.

    A heatmap that is the same for every image or every target explains neither. Compare the values with those of a
    control, such as a blob in the image's center. Maps are resized to one size by averaging.

    Args:
        heatmaps: per image, (N, H, W) in [0, 1].
        seed: seed of the random selection from more than 500 pairs.

    Returns:
        The similarity between images, and between targets.

    Raises:
        ValueError: a heatmap has another shape, or holds NaN.

    Example:
        >>> import torch
        >>> from detcam.metrics import independence
        >>> between_images, between_targets = independence([torch.rand(2, 32, 32), torch.rand(1, 32, 32)])
        >>> between_images.pairs, between_targets.pairs
        (2, 1)
    """
    small = [
        F.interpolate(check_maps(maps)[:, None], (COMPARED_SIZE, COMPARED_SIZE), mode="area")[:, 0]
        for maps in heatmaps
        if len(maps)
    ]
    items = [(image, row) for image, maps in enumerate(small) for row in maps]
    between_images = [(first, second) for (i, first), (j, second) in combinations(items, 2) if i != j]
    between_targets = [(first, second) for (i, first), (j, second) in combinations(items, 2) if i == j]
    return _mean_similarity(between_images, seed), _mean_similarity(between_targets, seed)


def reproducibility(cam: BaseCAM, image: ImageLike, targets: Sequence[Target] | None = None) -> Reproducibility:
    """Explain an image twice, with different states of PyTorch's and NumPy's random generators, and compare.

    Args:
        cam: the method.
        image: one image.
        targets: targets to explain; None takes the model's predictions.

    Returns:
        The comparison of the heatmaps.

    Example:
        >>> import torch
        >>> from detcam import GradCAM, adapt
        >>> from detcam.metrics import reproducibility
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> cam = GradCAM(adapt(network.eval(), target_layers=["0"], image_size=32))
        >>> reproducibility(cam, torch.rand(3, 32, 32)).equal
        True
    """
    pixels = cam.adapter.reader.read(image)
    first = cam.explain([pixels], None if targets is None else [list(targets)])[0]
    state = np.random.get_state()
    try:
        device = cam.adapter.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(torch.initial_seed() + 1)
            np.random.seed((int(state[1][0]) + 1) % 2**32)  # type: ignore[index]
            second = cam.explain([pixels], [list(first.targets)])[0]
    finally:
        np.random.set_state(state)
    maps = [torch.as_tensor(result.heatmaps) for result in (first, second)]
    difference = (maps[0] - maps[1]).abs()
    return Reproducibility(torch.equal(*maps), float(difference.max()) if difference.numel() else 0.0)


def layers_top_down(adapter: Adapter, image: Tensor, targets: Sequence[Target]) -> list[tuple[str, list[nn.Parameter]]]:
    """The layers with weights, in reverse order of execution.

    A layer whose module is not called (the projection of an attention) has the position of its parent; a layer that
    does not run comes last.

    Args:
        adapter: the adapter of the model.
        image: (C, H, W) in [0, 1].
        targets: targets, so that layers that only they run are included.

    Returns:
        Name and weights of each layer.

    Raises:
        ValueError: the model has no weights.
    """
    executed: dict[str, None] = {}  # names in the order of their last execution
    names = {module: name for name, module in adapter.model.named_modules()}

    def record(module: nn.Module, inputs: Any) -> None:
        name = names.get(module)
        if name is None:  # an adapter may run a copy of a module, which shares its hooks
            return
        executed.pop(name, None)
        executed[name] = None

    hooks = active_hooks(before=((module, record) for module in names))
    with guarded(adapter.model, gradients=False), hooks:
        batch = adapter.prepare([image])
        adapter.score(adapter.outputs(adapter.forward(batch), batch), [list(targets)])
    order = {name: position for position, name in enumerate(executed)}

    def position_of(name: str) -> int:
        while name not in order and name:
            name = name.rpartition(".")[0]
        return order.get(name, -1)

    seen: set[int] = set()
    layers: list[tuple[str, list[nn.Parameter]]] = []
    for module, name in names.items():
        weights = [p for p in module.parameters(recurse=False) if p.is_floating_point() and id(p) not in seen]
        seen.update(id(parameter) for parameter in weights)
        if weights:
            layers.append((name or type(module).__name__, weights))
    if not layers:
        raise ValueError(f"{type(adapter.model).__name__} has no weights to randomize")
    return sorted(layers, key=lambda layer: -position_of(layer[0]))


@contextmanager
def _restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Restore the values of parameters bitwise after the block, also after an exception."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.inference_mode():  # allows writing to ordinary and inference tensors
            for parameter, values in zip(parameters, saved, strict=True):
                parameter.copy_(values)


def _resample(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Replace a parameter by normal samples with its mean and standard deviation."""
    values = parameter.detach().float()
    std = values.std(correction=0) if values.numel() > 1 else values.new_zeros(())
    samples = torch.randn(values.shape, generator=generator).to(values.device) * std + values.mean()
    with torch.inference_mode():
        parameter.copy_(samples.to(parameter.dtype))


def _mean_similarity(pairs: Sequence[tuple[Tensor, Tensor]], seed: int) -> MapSimilarity:
    if len(pairs) > MAX_PAIRS:
        selected = np.random.default_rng(seed).choice(len(pairs), MAX_PAIRS, replace=False)
        pairs = [pairs[index] for index in sorted(selected.tolist())]
    if not pairs:
        return MapSimilarity(float("nan"), float("nan"), 0)
    mean_ssim, mean_correlation = np.mean([(ssim(*pair), rank_correlation(*pair)) for pair in pairs], axis=0)
    return MapSimilarity(float(mean_ssim), float(mean_correlation), len(pairs))
