"""Deletion and insertion: the score as pixels are removed or restored in order of saliency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.inputs import Images, Targets
from detcam.metrics.base import Metric
from detcam.metrics.metric_input import Heatmaps, MetricImage, read_metric_input
from detcam.metrics.scoring import Protocol, ScoredImage, check_scoring
from detcam.perturbation.fills import Fill, fill_of
from detcam.utils.batching import batch_slices

CurveKind = Literal["deletion", "insertion"]

MAX_RANKED_PIXELS = 2**24
"""Heatmap pixels that are ranked at once."""
RISE_PAPER = "Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421"


@dataclass(frozen=True)
class Curve:
    """The score of one target along a deletion or insertion.

    Attributes:
        fractions: (S + 1,) float64, fraction of the image's pixels that is deleted or inserted, 0 to 1.
        scores: (S + 1,) float64, the score at each fraction; NaN for a constant heatmap.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def auc(self) -> float:
        """Area under the curve, by the trapezoidal rule."""
        return float(torch.trapezoid(self.scores, self.fractions))


@dataclass(frozen=True)
class CurveSettings:
    """Settings of deletion and insertion curves.

    Attributes:
        fill: replacement of removed pixels: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        steps: number of steps S; fractions are 1 / S apart.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        relative: divide scores by the score of the unchanged image.
        probability: score the logit of a class, or of a class over a region, as a probability.
        batch_size: changed images per forward pass; None chooses one for the device.
        seed: seed of the order among pixels of equal saliency.
    """

    fill: str | Fill = "blur"
    steps: int = 20
    protocol: Protocol = "pinned"
    relative: bool = False
    probability: bool = True
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        fill_of(self.fill)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"expected steps as an int of at least 1; got {self.steps!r}")
        check_scoring(self.protocol, self.batch_size)

    def scored(self, image: MetricImage) -> ScoredImage:
        """The image at the network's input, scored with these settings."""
        return image.scored(self.protocol, self.batch_size, probability=self.probability)


def ranks(heatmaps: Tensor, seed: int = 0) -> Tensor:
    """Rank of each pixel (N, h, w) int64 by saliency, 0 for the most salient; equal pixels in random order.

    Equal pixels are frequent (a rectified map has many zeros). An order by rows would favor a part of the image.
    """
    flat = heatmaps.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    positions = torch.arange(flat.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).view(heatmaps.shape)


def curve_scores(
    scored: ScoredImage, indices: Sequence[int], fractions: Tensor, kind: CurveKind, settings: CurveSettings
) -> Tensor:
    """Scores (n, S) with given fractions of the pixels deleted, or inserted into the filled image.

    Args:
        scored: the image.
        indices: the n heatmaps that are evaluated.
        fractions: (n, S) in [0, 1].
        kind: ``"deletion"`` or ``"insertion"``.
        settings: fill, seed and normalization.
    """
    size = scored.heatmaps[0].numel()
    chunk = max(1, MAX_RANKED_PIXELS // size)
    if len(indices) > chunk:
        parts = batch_slices(len(indices), chunk)
        return torch.cat([curve_scores(scored, indices[part], fractions[part], kind, settings) for part in parts])
    pixel_ranks = ranks(scored.heatmaps[list(indices)], settings.seed)
    counts = (fractions * size).round().long()
    original = scored.original[list(indices), None]
    scores = original.expand(counts.shape).clone()
    changed = (counts != (0 if kind == "deletion" else size)).nonzero()  # the others are the unchanged image
    rows, steps = changed.unbind(1)
    fill = fill_of(settings.fill).for_image(scored.image)

    def change(part: slice) -> Tensor:
        most_salient = pixel_ranks[rows[part]] < counts[rows[part], steps[part]][:, None, None]
        removed = most_salient if kind == "deletion" else ~most_salient
        return fill(removed.to(scored.image.device))

    scores[rows, steps] = scored.scores([indices[row] for row in rows.tolist()], change)
    return scores / original if settings.relative else scores


def score_curves(
    adapter: ModelLike,
    images: Images,
    targets: Targets,
    heatmaps: Heatmaps,
    *,
    kind: CurveKind,
    settings: CurveSettings | None = None,
) -> list[Curve]:
    """The deletion or insertion curve of each heatmap.

    Args:
        adapter: an adapter or a model, as in `Metric.measure`.
        images: images, as in `Metric.measure`.
        targets: targets, as in `Metric.measure`.
        heatmaps: heatmaps, as in `Metric.measure`.
        kind: ``"deletion"`` removes pixels, most salient first; ``"insertion"`` restores them in the filled image.
        settings: settings of the curves; None takes the defaults.

    Returns:
        One curve per heatmap, in the order of the images.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> from detcam.metrics import CurveSettings, score_curves
        >>> from detcam.targets import ClassifierOutputTarget
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
        >>> images, heatmaps = torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16)
        >>> curves = score_curves(
        ...     network.eval(), images, [ClassifierOutputTarget(1)], heatmaps, kind="deletion",
        ...     settings=CurveSettings(steps=4),
        ... )
        >>> curves[0].fractions.tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if kind not in ("deletion", "insertion"):
        raise ValueError(f"expected kind to be deletion or insertion; got {kind!r}")
    settings = settings or CurveSettings()
    fractions = torch.linspace(0, 1, settings.steps + 1, dtype=torch.float64)
    metric_input = read_metric_input(adapter, images, targets, heatmaps)
    scores = metric_input.evaluate(
        lambda image: _curves(settings.scored(image), fractions, kind, settings), len(fractions)
    )
    return [Curve(fractions, row) for row in scores]


def _curves(scored: ScoredImage, fractions: Tensor, kind: CurveKind, settings: CurveSettings) -> Tensor:
    """Scores (n, S + 1) of an image's heatmaps; NaN for those without a ranking."""
    scores = torch.full((len(scored.heatmaps), len(fractions)), float("nan"), dtype=torch.float64)
    if scored.ordered:
        expanded = fractions.expand(len(scored.ordered), -1)
        scores[scored.ordered] = curve_scores(scored, scored.ordered, expanded, kind, settings)
    return scores


class CurveMetric(Metric, abstract=True):
    """Base class of metrics on deletion and insertion curves.

    Args:
        settings: settings of the curves.
        **changes: single settings by name, as in `CurveSettings`.
    """

    needs = frozenset({"model"})

    def __init__(self, settings: CurveSettings | None = None, **changes: Any) -> None:
        if settings is not None and changes:
            raise ValueError(f"expected settings, or {', '.join(changes)} by name; got both")
        known = [field.name for field in fields(CurveSettings)]
        if unknown := [name for name in changes if name not in known]:
            raise TypeError(f"{self.name} has no setting {unknown[0]!r}; the settings of curves are {', '.join(known)}")
        self.settings = settings or CurveSettings(**changes)

    def areas(self, image: MetricImage, kind: CurveKind) -> Tensor:
        """Areas under the curves (n,) of an image's heatmaps."""
        fractions = torch.linspace(0, 1, self.settings.steps + 1, dtype=torch.float64)
        return torch.trapezoid(_curves(self.settings.scored(image), fractions, kind, self.settings), fractions)


class Deletion(CurveMetric):
    r"""Area under the score curve as pixels are deleted, most salient first; low for a faithful heatmap.

    .. math:: \sum_{s=1}^{S} \frac{y(X_{s-1}) + y(X_s)}{2S}, \quad X_s = X \text{ with the first } s/S
        \text{ of its pixels filled}

    In [0, 1] for scores in [0, 1], lower is better. Petsiuk et al., *RISE*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    Args:
        settings: settings of the curves.
        **changes: single settings by name, as in `CurveSettings`.

    Example:
        >>> import torch
        >>> from detcam.metrics import Deletion
        >>> from detcam.targets import ClassifierOutputTarget
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
        >>> images, heatmaps = torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16)
        >>> values = Deletion(steps=4).measure(network.eval(), images, [ClassifierOutputTarget(1)], heatmaps)
        >>> values.shape
        torch.Size([1])
    """

    name = "deletion"
    paper = RISE_PAPER
    higher_is_better = False
    range = (0.0, 1.0)
    kind: ClassVar[CurveKind] = "deletion"

    def value(self, image: MetricImage) -> Tensor:
        return self.areas(image, self.kind)


class Insertion(Deletion):
    r"""Area under the score curve as pixels are inserted, most salient first; high for a faithful heatmap.

    .. math:: \sum_{s=1}^{S} \frac{y(X_{s-1}) + y(X_s)}{2S}, \quad X_s = \text{the fill with the first } s/S
        \text{ of the pixels of } X

    In [0, 1] for scores in [0, 1], higher is better. Petsiuk et al., *RISE*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    Args:
        settings: settings of the curves.
        **changes: single settings by name, as in `CurveSettings`.
    """

    name = "insertion"
    higher_is_better = True
    kind = "insertion"


class InsertionMinusDeletion(CurveMetric):
    """Area under the insertion curve minus area under the deletion curve.

    In [-1, 1] for scores in [0, 1], higher is better; the value of a random order is near 0. Zhang et al.,
    *Group-CAM*, 2021, https://arxiv.org/abs/2103.13859.

    Args:
        settings: settings of the curves.
        **changes: single settings by name, as in `CurveSettings`.
    """

    name = "overall"
    paper = "Zhang et al., Group-CAM, 2021, https://arxiv.org/abs/2103.13859"
    higher_is_better = True
    range = (-1.0, 1.0)

    def value(self, image: MetricImage) -> Tensor:
        return self.areas(image, "insertion") - self.areas(image, "deletion")
