"""How the score changes with the image: the base of ROAD and of the metrics that multiply image and heatmap."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detcam.metrics.base import Explainer, Metric, MetricInput, read_metric_input, warn_about_skipped
from detcam.metrics.scoring import Protocol, ScoredImage, check_asking, collected, examine
from detcam.perturbation.fills import Fill, fill_of
from detcam.utils.opencv import cv2

Percentile: TypeAlias = "float | Literal['auto']"
"""From 0 to 100; ``"auto"`` takes Otsu's threshold of the heatmap, which must lie in [0, 1]."""
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)

Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From k heatmap numbers (k,) and k variant numbers (k,) to changed images (k, C, h, w)."""


class ConfidenceMetric(Metric):
    """The change of the score when the image is changed as each heatmap says.

    Called like its namesake in ``pytorch_grad_cam``, it reads targets as they are and answers with an array; asked
    through `measure`, it reads the logit of a class, or of a class over a region, as a probability.

    Args:
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None takes what suits the device.
    """

    needs_order: ClassVar[bool] = True
    """Whether a constant heatmap has no value."""

    def __init__(self, *, protocol: Protocol = "pinned", batch_size: int | None = None) -> None:
        self.protocol: Protocol = protocol
        self.batch_size = batch_size
        check_asking(protocol, batch_size)

    @abstractmethod
    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, Change]:
        """How many variants of an image (1, C, h, w) each heatmap (n, h, w) asks for, and what makes them."""

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        """Values (n,) from scores of the unchanged image (n,) and of its variants (n, V)."""
        return (after - before[:, None]).mean(1)

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
        question = read_metric_input(adapter, images, targets, heatmaps)
        return warn_about_skipped(self.name, self.values(question, probability=True))

    def values(
        self, question: MetricInput, *, probability: bool, return_diff: bool = True, shown: list[Tensor] | None = None
    ) -> Tensor:
        """Values (N,) of a checked call; `shown` is given each image's changed inputs (N_i, C, H, W)."""

        def ask(case: ScoredImage) -> Tensor:
            found = torch.full((len(case.heatmaps),), float("nan"), dtype=torch.float64)
            chosen = case.ordered if self.needs_order else case.finite
            if chosen:
                count, change = self.plan(case.image, case.heatmaps[chosen])
                rows = torch.arange(len(chosen)).repeat_interleave(count)
                variants = torch.arange(count).repeat(len(chosen))
                which = [chosen[row] for row in rows.tolist()]
                after = case.scores(which, lambda part: change(rows[part], variants[part])).view(-1, count)
                before = case.original[chosen] if return_diff else torch.zeros(len(chosen), dtype=torch.float64)
                found[chosen] = self.combine(before, after)
            if shown is not None:
                images = case.inputs(case.image.expand(len(found), -1, -1, -1).clone())
                if chosen:
                    first = torch.arange(len(chosen))
                    images[chosen] = case.inputs(change(first, torch.zeros_like(first)))
                shown.append(images)
            return found

        return collected(
            examine(question, ask, protocol=self.protocol, batch_size=self.batch_size, probability=probability)
        )

    def __call__(
        self,
        input_tensor: Any,
        cams: Any,
        targets: Any,
        model: Any,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """Values as an array.

        Args:
            input_tensor: a normalised (B, C, H, W) tensor, or images.
            cams: (B, H, W) heatmaps, one an image, or lists of (N_i, H_i, W_i).
            targets: as for a method.
            model: a model or its adapter.
            return_visualization: also return the changed inputs.
            return_diff: False gives the score itself instead of its change.

        Returns:
            (N,) float32; with `return_visualization` also a (N, C, H, W) tensor of changed network inputs (a list of
            them, one per image, where sizes differ), of the first variant where there are several.
        """
        shown: list[Tensor] | None = [] if return_visualization else None
        question = read_metric_input(model, input_tensor, targets, cams)
        values = self.values(question, probability=False, return_diff=return_diff, shown=shown)
        found = warn_about_skipped(self.name, values).numpy().astype(np.float32)
        if shown is None:
            return found
        same = len({images.shape[1:] for images in shown}) == 1
        return found, torch.cat(shown) if same else shown


class PerturbationConfidenceMetric(ConfidenceMetric):
    """The change of the score under a change of one's own.

    score(perturbation(x, cam)) - score(x).

    Args:
        perturbation: from an image on the network's input (C, h, w) and a heatmap (h, w) to a changed image
            (C, h, w), all on the CPU.
        protocol: as in `ConfidenceMetric`.
        batch_size: likewise.
    """

    name = "perturbation"
    paper = "pytorch_grad_cam, https://github.com/jacobgil/pytorch-grad-cam"
    higher_is_better = True
    range = (-1.0, 1.0)
    needs_order = False

    def __init__(
        self,
        perturbation: Callable[[Tensor, Tensor], Tensor],
        *,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(protocol=protocol, batch_size=batch_size)
        self.perturbation = perturbation

    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, Change]:
        alone = image[0].cpu()
        return 1, lambda rows, variants: torch.stack(
            [self.perturbation(alone, heatmaps[row]) for row in rows.tolist()]
        ).to(image)


def threshold(heatmap: npt.NDArray[Any], percentile: Percentile) -> float:
    """The value from which a heatmap's pixels count among the most salient.

    Pixels of equal value go together. Where the percentile is the least value (a rectified map may have most pixels at
    0), all would go; then those at the least value stay.
    """
    if percentile == "auto":
        otsu, _ = cv2.threshold(np.uint8(heatmap * 255), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        return (float(otsu) + 1) / 255  # Otsu's threshold is the last grey level of the lower class
    level, least = float(np.percentile(heatmap, percentile)), heatmap.min()
    above = heatmap[heatmap > least]
    return float(above.min()) if level <= least and above.size else level


def removed_pixels(heatmaps: Tensor, percentile: Percentile, *, least: bool) -> Tensor:
    """Which pixels (n, h, w) go: those at or above a percentile of the heatmap, or, least first, of one minus it."""
    ranked = 1 - heatmaps if least else heatmaps
    levels = torch.tensor([threshold(each.cpu().numpy(), percentile) for each in ranked], dtype=torch.float64)
    return ranked >= levels[:, None, None].to(ranked.device)


class RemoveMostRelevantFirst:
    """Removes the pixels of a heatmap at or above its percentile.

    With ``"auto"`` the pixels above Otsu's threshold go (the namesake in ``pytorch_grad_cam`` keeps those).

    Args:
        percentile: from 0 to 100, or ``"auto"``.
        imputer: from an image (C, h, w) and a float mask (h, w), 1 where a pixel stays, to the filled image.
    """

    least: ClassVar[bool] = False

    def __init__(self, percentile: Percentile, imputer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.percentile = check_percentile(percentile)
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        removed = removed_pixels(mask[None], self.percentile, least=self.least)[0]
        return self.imputer(input_tensor, (~removed).float())


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Removes the pixels at or above a percentile of one minus the heatmap."""

    least = True


class RemovalMetric(ConfidenceMetric):
    """The change of the score without the most salient pixels, or without the least, averaged over percentiles.

    Args:
        percentiles: from 0 to 100 each; at percentile p the upper 100 - p percent of the pixels go.
        fill: what takes their place: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        protocol: as in `ConfidenceMetric`.
        batch_size: likewise.
    """

    range = (-1.0, 1.0)
    orders: ClassVar[tuple[bool, ...]]
    """Per group of variants, whether the least salient pixels go."""

    def __init__(
        self,
        percentiles: Sequence[Percentile] = PERCENTILES,
        fill: str | Fill = "linear",
        *,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(protocol=protocol, batch_size=batch_size)
        if not len(percentiles):
            raise ValueError("expected at least one percentile; got none")
        self.percentiles = tuple(check_percentile(percentile) for percentile in percentiles)
        self.fill = fill_of(fill)

    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, Change]:
        kinds = [(percentile, least) for least in self.orders for percentile in self.percentiles]
        levels = torch.tensor(
            [
                [threshold((1 - each if least else each).numpy(), percentile) for percentile, least in kinds]
                for each in heatmaps
            ],
            dtype=torch.float64,
        )
        turned = torch.tensor([least for _, least in kinds])

        def change(rows: Tensor, variants: Tensor) -> Tensor:
            maps = heatmaps[rows]
            ranked = torch.where(turned[variants][:, None, None], 1 - maps, maps)
            removed = ranked >= levels[rows, variants][:, None, None]
            return self.fill(image, removed.to(image.device))

        return len(kinds), change


class RemoveMostRelevantFirstAverage(RemovalMetric):
    r"""The mean change of the score as the most salient pixels go, over percentiles: below 0 for a faithful map.

    .. math:: \frac{1}{|P|} \sum_{p \in P} y(X \text{ without the pixels at or above percentile } p) - y(X)

    In [-1, 1] for scores in [0, 1], lower is better. Samek et al., *Evaluating the Visualization of What a Deep Neural
    Network Has Learned*, 2015, https://arxiv.org/abs/1509.06321.

    Args:
        percentiles: from 0 to 100 each; at percentile p the upper 100 - p percent of the pixels go.
        fill: what takes their place: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        **options: as in `ConfidenceMetric`.
    """

    name = "most_relevant_first"
    paper = (
        "Samek et al., Evaluating the Visualization of What a DNN Has Learned, 2015, https://arxiv.org/abs/1509.06321"
    )
    higher_is_better = False
    orders = (False,)

    def __init__(
        self, percentiles: Sequence[Percentile] = PERCENTILES, fill: str | Fill = "blur", **options: Any
    ) -> None:
        super().__init__(percentiles, fill, **options)


class RemoveLeastRelevantFirstAverage(RemoveMostRelevantFirstAverage):
    r"""The mean change of the score as the least salient pixels go, over percentiles: near 0 for a faithful map.

    As `RemoveMostRelevantFirstAverage`, with percentiles of one minus the heatmap. In [-1, 1] for scores in [0, 1],
    higher is better. Samek et al., *Evaluating the Visualization of What a Deep Neural Network Has Learned*, 2015,
    https://arxiv.org/abs/1509.06321.

    Args:
        percentiles: as in `RemoveMostRelevantFirstAverage`.
        fill: likewise.
        **options: likewise.
    """

    name = "least_relevant_first"
    higher_is_better = True
    orders = (True,)


class AveragerAcrossThresholds:
    """The mean of a metric over percentiles.

    Args:
        imputer: from a percentile to a metric that is called as `ConfidenceMetric` is.
        percentiles: from 0 to 100 each.
    """

    def __init__(
        self, imputer: Callable[[Percentile], ConfidenceMetric], percentiles: Sequence[Percentile] = PERCENTILES
    ) -> None:
        self.imputer = imputer
        self.percentiles = tuple(check_percentile(percentile) for percentile in percentiles)

    def __call__(self, input_tensor: Any, cams: Any, targets: Any, model: Any) -> npt.NDArray[np.float32]:
        scores = [self.imputer(percentile)(input_tensor, cams, targets, model) for percentile in self.percentiles]
        found: npt.NDArray[np.float32] = np.mean(np.stack(scores), axis=0)
        return found


def check_percentile(percentile: Percentile) -> Percentile:
    """Raise where something is no percentile."""
    if percentile == "auto":
        return percentile
    if isinstance(percentile, str) or not 0 <= percentile <= 100:
        raise ValueError(f"expected a percentile from 0 to 100, or 'auto'; got {percentile!r}")
    return percentile
