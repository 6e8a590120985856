"""Sanity checks: a map must change with the network's weights and with the image, and come out the same twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM
from detcam.data.images import ImageLike, load_image
from detcam.metrics.base import Explainer, Metric, MetricInput, read_metric_input, warn_about_skipped
from detcam.metrics.similarity import check_maps, rank_correlation, ssim
from detcam.trace import guarded
from detcam.utils.model_lock import exclusive

COMPARED_AT = 64  # pixels a side to which maps of different images are brought
MOST_PAIRS = 500


@dataclass(frozen=True)
class Randomization:
    """How alike a map stays to itself while the network forgets what it has learnt, from the top down.

    Attributes:
        layers: per step S, the layers that lost their weights in it; those of earlier steps stay random.
        ssim: (S, N) float64, structural similarity of each target's map with the map of the intact network, 1 where
            they are equal.
        rank_correlation: (S, N) float64 in [-1, 1], Spearman's.
    """

    layers: tuple[tuple[str, ...], ...]
    ssim: Tensor
    rank_correlation: Tensor


@dataclass(frozen=True)
class MapSimilarity:
    """How alike pairs of maps are on average.

    Attributes:
        ssim: mean structural similarity; NaN where there is no pair.
        rank_correlation: mean of Spearman's; NaN where there is no pair.
        pairs: how many were compared.
    """

    ssim: float
    rank_correlation: float
    pairs: int


@dataclass(frozen=True)
class Reproducibility:
    """Whether the same question gets the same map.

    Attributes:
        equal: whether both maps were equal to the bit.
        largest_difference: in heatmap units, of any pixel, in [0, 1].
    """

    equal: bool
    largest_difference: float


def randomization(
    cam: BaseCAM,
    image: ImageLike,
    targets: Sequence[Target] | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> Randomization:
    r"""Randomise the network's weights layer by layer, from the top down, and see whether the map changes.

    A map that hardly changes does not depend on what the network has learnt. Each weight tensor :math:`w` is drawn anew
    from :math:`\mathcal N(\operatorname{mean}(w), \operatorname{std}(w)^2)`, so that signals keep their size; running
    statistics of normalisation layers are not weights and stay. The top is what runs last.

    Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292 (cascading
    randomisation).

    The model's own weights are overwritten while this runs and restored to the bit, also where it fails.

    Args:
        cam: the method, over its model.
        image: one image.
        targets: what to explain; None takes what the intact model finds, and keeps it.
        steps: the layers are taken in so many groups of about equal number; None takes them one by one.
        seed: of the random weights.

    Raises:
        ValueError: nothing to explain in the image, no weights, or `steps` below 1.
    """
    _check_steps(steps)
    pixels = load_image(image)
    intact = cam.explain([pixels], None if targets is None else [list(targets)])[0]
    if not intact.targets:
        raise ValueError("there is nothing to explain in the image; give targets, or an image with findings")

    def explain(adapter: Adapter, images: Any, asked: list[list[Target]]) -> list[Tensor]:
        return [torch.from_numpy(result.heatmaps) for result in cam.explain(images, asked)]

    return _randomize(
        cam.adapter, explain, pixels, list(intact.targets), torch.from_numpy(intact.heatmaps), steps, seed
    )


class RandomizationCheck(Metric):
    r"""How alike the map stays when the network's weights are randomised from the top down (`randomization`).

    .. math:: \frac{1}{S} \sum_{s=1}^{S} \rho(H, H_s)

    over the steps s, with Spearman's rank correlation :math:`\rho` of the map :math:`H_s` after the step with the map
    H of the intact network. In [-1, 1], lower is better: near 0, the map shows what the network has learnt; near 1, it
    would look the same without. Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018,
    https://arxiv.org/abs/1810.03292.

    Args:
        steps: as in `randomization`; each costs the method's passes once more.
        seed: of the random weights.
    """

    name = "randomization"
    paper = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, https://arxiv.org/abs/1810.03292"
    higher_is_better = False
    range = (-1.0, 1.0)
    needs = frozenset({"model", "method"})

    def __init__(self, steps: int | None = 4, seed: int = 0) -> None:
        self.steps, self.seed = _check_steps(steps), seed

    def measure(
        self,
        adapter: Any,
        images: Any,
        targets: Any,
        heatmaps: Any,
        *,
        truth: Sequence[Tensor] | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        question, explain = ask_again(self.name, adapter, images, targets, heatmaps, method)

        def correlations(image: Tensor, asked: list[Target], maps: Tensor) -> Tensor:
            found = _randomize(question.adapter, explain, image, asked, maps, self.steps, self.seed)
            flat = maps.flatten(1).amax(1) == maps.flatten(1).amin(1)  # it is like nothing, not unlike everything
            return found.rank_correlation.mean(0).masked_fill(flat, float("nan"))

        return per_target(self.name, question, correlations)


def ask_again(
    name: str, adapter: Any, images: Any, targets: Any, heatmaps: Any, method: Explainer | None
) -> tuple[MetricInput, Explainer]:
    """Check a call of a metric that explains again.

    Raises:
        ValueError: no method, no targets, or a network's ready input instead of images.
    """
    question = read_metric_input(adapter, images, targets, heatmaps)
    if method is None:
        raise ValueError(f"{name} explains again and needs method=: from adapter, images and targets to heatmaps")
    if question.request.tensor is not None or question.request.targets is None:
        raise ValueError(f"{name} needs images, not a network's ready input, and their targets")
    return question, method


def per_target(name: str, question: MetricInput, measure: Callable[[Tensor, list[Target], Tensor], Tensor]) -> Tensor:
    """Values (N,) of all images: of each image's maps that are finite what `measure` says, NaN of the others."""
    rows: list[Tensor] = []
    asked = question.request.targets or []
    for image, targets, maps in zip(question.request.images, asked, question.heatmaps, strict=True):
        values = torch.full((len(targets),), float("nan"), dtype=torch.float64)
        good = [index for index, one in enumerate(maps) if bool(one.isfinite().all())]
        if good:
            values[good] = measure(image, [targets[index] for index in good], maps[good]).double()
        rows.append(values)
    return warn_about_skipped(name, torch.cat(rows) if rows else torch.zeros(0, dtype=torch.float64))


def _randomize(
    adapter: Adapter,
    explain: Explainer,
    image: Tensor,
    targets: list[Target],
    intact: Tensor,
    steps: int | None,
    seed: int,
) -> Randomization:
    layers = layers_top_down(adapter, image, targets)
    groups = np.array_split(np.arange(len(layers)), len(layers) if steps is None else min(steps, len(layers)))
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[list[float], list[float]]] = []
    weights = [parameter for _, parameters in layers for parameter in parameters]
    with exclusive(adapter.model), _restored(weights):  # other threads must not meet random weights
        for group in groups:
            for index in group.tolist():
                for parameter in layers[index][1]:
                    _redraw(parameter, generator)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # empty and incomplete maps are to be expected of such a network
                maps = explain(adapter, [image], [targets])[0]
            pairs = list(zip(intact, maps, strict=True))
            found.append(([ssim(*pair) for pair in pairs], [rank_correlation(*pair) for pair in pairs]))
    likeness = torch.tensor(found, dtype=torch.float64)
    names = tuple(tuple(layers[index][0] for index in group.tolist()) for group in groups)
    return Randomization(names, likeness[:, 0], likeness[:, 1])


def _check_steps(steps: int | None) -> int | None:
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"expected steps of at least 1, or None for one layer at a time; got {steps}")
    return steps


def independence(heatmaps: Sequence[Tensor], *, seed: int = 0) -> tuple[MapSimilarity, MapSimilarity]:
    """How alike the maps of different images are, and the maps of different targets in one image.

    A map that looks the same whatever the image, or whatever is asked, does not answer the question. Compare with
    what a control such as a blob in the middle reaches. Maps are brought to one size by averaging.

    Args:
        heatmaps: per image, (N, H, W) in [0, 1].
        seed: of the choice of pairs, where there are more than 500.

    Returns:
        between images, between targets.

    Raises:
        ValueError: maps of another shape, or with NaN.
    """
    small = [
        F.interpolate(check_maps(maps)[:, None], (COMPARED_AT, COMPARED_AT), mode="area")[:, 0]
        for maps in heatmaps
        if len(maps)
    ]
    items = [(image, row) for image, maps in enumerate(small) for row in maps]
    across = [(one, other) for (i, one), (j, other) in combinations(items, 2) if i != j]
    within = [(one, other) for (i, one), (j, other) in combinations(items, 2) if i == j]
    return _likeness(across, seed), _likeness(within, seed)


def reproducibility(cam: BaseCAM, image: ImageLike, targets: Sequence[Target] | None = None) -> Reproducibility:
    """Ask the same twice, with PyTorch's and NumPy's generators in another state, and compare.

    Args:
        cam: the method.
        image: one image.
        targets: what to explain; None takes what the model finds.
    """
    pixels = load_image(image)
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
    difference = np.abs(first.heatmaps - second.heatmaps)
    return Reproducibility(np.array_equal(first.heatmaps, second.heatmaps), float(difference.max(initial=0)))


def layers_top_down(adapter: Adapter, image: Tensor, targets: Sequence[Target]) -> list[tuple[str, list[nn.Parameter]]]:
    """The layers that have weights of their own, from what runs last to what runs first.

    A layer that another one runs for itself (an attention's projection) goes with that one; a layer that does not run
    at all comes last.

    Raises:
        ValueError: the model has no weights.
    """
    started: dict[str, int] = {}
    names = {module: name for name, module in adapter.model.named_modules()}

    def note(module: nn.Module, inputs: Any) -> None:
        name = names.get(module)
        if name is None:  # a copy that an adapter runs in a part's place shares its hooks
            return
        started.pop(name, None)
        started[name] = len(started)

    with guarded(adapter.model, gradients=False):
        handles = [module.register_forward_pre_hook(note) for module in names]
        try:
            batch = adapter.prepare([image])
            adapter.score(adapter.outputs(adapter.forward(batch), batch), [list(targets)])
        finally:
            for handle in handles:
                handle.remove()
    order = {name: place for place, name in enumerate(started)}

    def place(name: str) -> int:
        while name not in order and name:
            name = name.rpartition(".")[0]
        return order.get(name, -1)

    seen: set[int] = set()
    layers: list[tuple[str, list[nn.Parameter]]] = []
    for module, name in names.items():
        own = [p for p in module.parameters(recurse=False) if p.is_floating_point() and id(p) not in seen]
        seen.update(id(parameter) for parameter in own)
        if own:
            layers.append((name or type(module).__name__, own))
    if not layers:
        raise ValueError(f"{type(adapter.model).__name__} has no weights to randomise")
    return sorted(layers, key=lambda layer: -place(layer[0]))


@contextmanager
def _restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put back the values of parameters, to the bit, also when the block raises."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.inference_mode():  # in which ordinary tensors and inference tensors can both be written
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def _redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    values = parameter.detach().float()
    std = values.std(correction=0) if values.numel() > 1 else values.new_zeros(())
    drawn = torch.randn(values.shape, generator=generator).to(values.device) * std + values.mean()
    with torch.inference_mode():
        parameter.copy_(drawn.to(parameter.dtype))


def _likeness(pairs: Sequence[tuple[Tensor, Tensor]], seed: int) -> MapSimilarity:
    if len(pairs) > MOST_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(pairs), MOST_PAIRS, replace=False)
        pairs = [pairs[index] for index in sorted(chosen.tolist())]
    if not pairs:
        return MapSimilarity(float("nan"), float("nan"), 0)
    alike = np.mean([(ssim(*pair), rank_correlation(*pair)) for pair in pairs], axis=0)
    return MapSimilarity(float(alike[0]), float(alike[1]), len(pairs))
