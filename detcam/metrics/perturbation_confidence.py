"""Change of the score in a changed image: the base of ROAD and of metrics on the product of image and heatmap."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.inputs import Images, Targets
from detcam.metrics.base import Metric, warn_undefined
from detcam.metrics.metric_input import Heatmaps, MetricImage, read_metric_input
from detcam.metrics.scoring import Protocol, check_scoring
from detcam.perturbation.fills import Fill, fill_of
from detcam.utils.opencv import cv2

Percentile: TypeAlias = "float | Literal['auto']"
"""A percentile from 0 to 100; ``"auto"`` takes Otsu's threshold of the heatmap, which must lie in [0, 1]."""
DEFAULT_PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)

ImageChange: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From k heatmap indices (k,) and k variant indices (k,) to changed images (k, C, h, w)."""

Visualization: TypeAlias = "Tensor | list[Tensor]"
"""Changed network inputs (N, C, H, W), or a list with one such tensor per image where sizes differ."""


class ConfidenceMetric(Metric, abstract=True):
    """Base class of metrics on the change of the score when the image is changed according to the heatmap.

    An instance is callable with the signature of ``pytorch_grad_cam``. Such a call scores targets as they are and
    returns an array; `measure` scores the logit of a class, or of a class over a region, as a probability.

    Args:
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    needs = frozenset({"model"})
    needs_order: ClassVar[bool] = True
    """Whether the metric is undefined for a constant heatmap."""

    def __init__(self, *, protocol: Protocol = "pinned", batch_size: int | None = None) -> None:
        check_scoring(protocol, batch_size)
        self.protocol: Protocol = protocol
        self.batch_size = batch_size

    @abstractmethod
    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, ImageChange]:
        """The number of variants V of an image (1, C, h, w) per heatmap (n, h, w), and a function that makes them."""

    def combine(self, before: Tensor, after: Tensor) -> Tensor:
        """Values (n,) from the scores of the unchanged image (n,) and of its variants (n, V)."""
        return (after - before[:, None]).mean(1)

    def value(self, image: MetricImage) -> Tensor:
        return self._changes(image, return_diff=True, shown=None)

    def _changes(self, image: MetricImage, *, return_diff: bool, shown: dict[int, Tensor] | None) -> Tensor:
        """Values (n,) of an image's heatmaps; adds the changed network inputs (N, C, H, W) to `shown`."""
        scored = image.scored(self.protocol, self.batch_size)
        values = torch.full((len(scored.heatmaps),), float("nan"), dtype=torch.float64)
        indices = scored.ordered if self.needs_order else scored.matched
        if shown is not None:
            count = len(image.source.heatmaps[image.index])
            shown[image.index] = scored.inputs(scored.image.expand(count, -1, -1, -1).clone())
        if indices:
            count, change = self.plan(scored.image, scored.heatmaps[indices])
            rows = torch.arange(len(indices)).repeat_interleave(count)
            variants = torch.arange(count).repeat(len(indices))
            repeated = [indices[row] for row in rows.tolist()]
            after = scored.scores(repeated, lambda part: change(rows[part], variants[part])).view(-1, count)
            before = scored.original[indices] if return_diff else torch.zeros(len(indices), dtype=torch.float64)
            values[indices] = self.combine(before, after)
            if shown is not None:
                first = torch.arange(len(indices))
                changed = scored.inputs(change(first, torch.zeros_like(first)))
                shown[image.index][[image.rows[i] for i in indices]] = changed
        return values

    @overload
    def __call__(
        self,
        input_tensor: Images,
        cams: Heatmaps,
        targets: Targets,
        model: ModelLike,
        return_visualization: Literal[False] = ...,
        return_diff: bool = ...,
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def __call__(
        self,
        input_tensor: Images,
        cams: Heatmaps,
        targets: Targets,
        model: ModelLike,
        return_visualization: Literal[True],
        return_diff: bool = ...,
    ) -> tuple[npt.NDArray[np.float32], Visualization]: ...

    def __call__(
        self,
        input_tensor: Images,
        cams: Heatmaps,
        targets: Targets,
        model: ModelLike,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> npt.NDArray[np.float32] | tuple[npt.NDArray[np.float32], Visualization]:
        """Evaluate heatmaps with the signature of ``pytorch_grad_cam``.

        Args:
            input_tensor: a normalized (B, C, H, W) tensor, or images.
            cams: (B, H, W) heatmaps, one per image, or a list of (N_i, H_i, W_i), as arrays or tensors.
            targets: as for a method.
            model: a model or its adapter.
            return_visualization: also return the changed network inputs.
            return_diff: False returns the score of the changed image instead of the change.

        Returns:
            (N,) float32 values; with `return_visualization` also the changed network inputs (N, C, H, W), of the
            first variant where there are several, as a list of tensors where image sizes differ.
        """
        metric_input = read_metric_input(model, input_tensor, targets, cams, probability=False)
        shown: dict[int, Tensor] | None = {} if return_visualization else None
        changes = metric_input.evaluate(partial(self._changes, return_diff=return_diff, shown=shown))
        values = warn_undefined(self.name, changes).numpy().astype(np.float32)
        if shown is None:
            return values
        adapter, request = metric_input.model_call
        for index, maps in enumerate(metric_input.heatmaps):
            if len(maps) and index not in shown:  # every heatmap holds NaN: the image stays as it is
                unchanged = request.batch(adapter, [index]).inputs
                shown[index] = unchanged.expand(len(maps), -1, -1, -1)
        inputs = [shown[index] for index in sorted(shown)]
        return values, torch.cat(inputs) if len({tuple(image.shape[1:]) for image in inputs}) == 1 else inputs


class PerturbationConfidenceMetric(ConfidenceMetric):
    """Change of the score under a user's perturbation of the image: score(perturbation(x, cam)) - score(x).

    A subclass without its own `name` is named after its class.

    Args:
        perturbation: from an image at the network's input (C, h, w) and a heatmap (h, w), both on the CPU, to a
            changed image (C, h, w).
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.

    Example:
        >>> import torch
        >>> from detcam.metrics import PerturbationConfidenceMetric
        >>> from detcam.targets import ClassifierOutputTarget
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
        >>> metric = PerturbationConfidenceMetric(lambda image, cam: image * (1 - cam))
        >>> images, heatmaps = torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16).numpy()
        >>> metric(images, heatmaps, [ClassifierOutputTarget(1)], network.eval()).shape
        (1,)
    """

    name = "perturbation"
    paper = "pytorch_grad_cam, https://github.com/jacobgil/pytorch-grad-cam"
    higher_is_better = True
    range = (-1.0, 1.0)
    needs_order = False

    def __init_subclass__(cls, **options: Any) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        super().__init_subclass__(**options)

    def __init__(
        self,
        perturbation: Callable[[Tensor, Tensor], Tensor],
        *,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(protocol=protocol, batch_size=batch_size)
        self.perturbation = perturbation

    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, ImageChange]:
        pixels = image[0].cpu()
        return 1, lambda rows, variants: torch.stack(
            [self.perturbation(pixels, heatmaps[row]) for row in rows.tolist()]
        ).to(image)


def threshold(heatmap: npt.NDArray[Any], percentile: Percentile) -> float:
    """The smallest value of a heatmap (H, W) that counts as salient at a percentile.

    Pixels of equal value are removed together. Where the percentile is the minimum (a rectified map may have most
    pixels at 0), pixels at the minimum are kept, since otherwise all pixels would be removed.
    """
    if percentile == "auto":
        otsu, _ = cv2.threshold(np.uint8(heatmap * 255), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        return (float(otsu) + 1) / 255  # Otsu's threshold is the last gray level of the lower class
    level, minimum = float(np.percentile(heatmap, percentile)), heatmap.min()
    above = heatmap[heatmap > minimum]
    return float(above.min()) if level <= minimum and above.size else level


def removed_pixels(heatmaps: Tensor, percentile: Percentile, *, least: bool) -> Tensor:
    """Mask (n, h, w) of the pixels at or above a percentile of the heatmap, or with `least` of one minus it."""
    ranked = 1 - heatmaps if least else heatmaps
    levels = torch.tensor([threshold(each.cpu().numpy(), percentile) for each in ranked], dtype=torch.float64)
    return ranked >= levels[:, None, None].to(ranked.device)


class RemoveMostRelevantFirst:
    """Removes the pixels at or above a percentile of the heatmap.

    ``"auto"`` removes the pixels above Otsu's threshold (the class of this name in ``pytorch_grad_cam`` keeps them).

    Args:
        percentile: from 0 to 100, or ``"auto"``.
        imputer: from an image (C, h, w) and a float mask (h, w), 1 where a pixel is kept, to the filled image.
    """

    least: ClassVar[bool] = False

    def __init__(self, percentile: Percentile, imputer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.percentile = check_percentile(percentile)
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """The image (C, h, w) without the pixels that its heatmap `mask` (h, w) selects."""
        removed = removed_pixels(mask[None], self.percentile, least=self.least)[0]
        return self.imputer(input_tensor, (~removed).float())


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Removes the pixels at or above a percentile of one minus the heatmap."""

    least = True


class RemovalMetric(ConfidenceMetric, abstract=True):
    """Base class of metrics on the removal of the most or least salient pixels, averaged over percentiles.

    Args:
        percentiles: from 0 to 100 each; percentile p removes the upper 100 - p percent of the pixels.
        fill: replacement of removed pixels: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    range = (-1.0, 1.0)
    orders: ClassVar[tuple[bool, ...]]
    """Per group of variants, whether the least salient pixels are removed."""

    def __init__(
        self,
        percentiles: Sequence[Percentile] = DEFAULT_PERCENTILES,
        fill: str | Fill = "blur",
        *,
        protocol: Protocol = "pinned",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(protocol=protocol, batch_size=batch_size)
        if not len(percentiles):
            raise ValueError("expected at least one percentile; got none")
        self.percentiles = tuple(check_percentile(percentile) for percentile in percentiles)
        self.fill = fill_of(fill)

    def plan(self, image: Tensor, heatmaps: Tensor) -> tuple[int, ImageChange]:
        removals = [(percentile, least) for least in self.orders for percentile in self.percentiles]
        levels = torch.tensor(
            [
                [threshold((1 - each if least else each).numpy(), percentile) for percentile, least in removals]
                for each in heatmaps
            ],
            dtype=torch.float64,
        )
        inverted = torch.tensor([least for _, least in removals])

        def change(rows: Tensor, variants: Tensor) -> Tensor:
            maps = heatmaps[rows]
            ranked = torch.where(inverted[variants][:, None, None], 1 - maps, maps)
            removed = ranked >= levels[rows, variants][:, None, None]
            return self.fill(image, removed.to(image.device))

        return len(removals), change


class RemoveMostRelevantFirstAverage(RemovalMetric):
    r"""Mean change of the score without the most salient pixels, over percentiles; negative for a faithful heatmap.

    .. math:: \frac{1}{|P|} \sum_{p \in P} y(X \text{ without the pixels at or above percentile } p) - y(X)

    In [-1, 1] for scores in [0, 1], lower is better. Samek et al., *Evaluating the Visualization of What a Deep Neural
    Network Has Learned*, 2015, https://arxiv.org/abs/1509.06321.

    Args:
        percentiles: from 0 to 100 each; percentile p removes the upper 100 - p percent of the pixels.
        fill: replacement of removed pixels: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    name = "most_relevant_first"
    paper = (
        "Samek et al., Evaluating the Visualization of What a DNN Has Learned, 2015, https://arxiv.org/abs/1509.06321"
    )
    higher_is_better = False
    orders = (False,)


class RemoveLeastRelevantFirstAverage(RemoveMostRelevantFirstAverage):
    r"""Mean change of the score without the least salient pixels, over percentiles; near 0 for a faithful heatmap.

    As `RemoveMostRelevantFirstAverage`, with percentiles of one minus the heatmap. In [-1, 1] for scores in [0, 1],
    higher is better. Samek et al., *Evaluating the Visualization of What a Deep Neural Network Has Learned*, 2015,
    https://arxiv.org/abs/1509.06321.

    Args:
        percentiles: as in `RemoveMostRelevantFirstAverage`.
        fill: replacement of removed pixels: ``"blur"``, ``"mean"``, ``"linear"`` or a `Fill`.
        protocol: how boxes are scored, see `detcam.metrics.scoring.Protocol`.
        batch_size: changed images per forward pass; None chooses one for the device.
    """

    name = "least_relevant_first"
    higher_is_better = True
    orders = (True,)


class AveragerAcrossThresholds:
    """Mean of a metric over percentiles.

    Args:
        imputer: from a percentile to a metric, which is called as a `ConfidenceMetric`.
        percentiles: from 0 to 100 each.
    """

    def __init__(
        self, imputer: Callable[[Percentile], ConfidenceMetric], percentiles: Sequence[Percentile] = DEFAULT_PERCENTILES
    ) -> None:
        self.imputer = imputer
        self.percentiles = tuple(check_percentile(percentile) for percentile in percentiles)

    def __call__(
        self, input_tensor: Images, cams: Heatmaps, targets: Targets, model: ModelLike
    ) -> npt.NDArray[np.float32]:
        """Mean values (N,); see `ConfidenceMetric.__call__`."""
        scores = [self.imputer(percentile)(input_tensor, cams, targets, model) for percentile in self.percentiles]
        return np.mean(np.stack(scores), axis=0)


def check_percentile(percentile: Percentile) -> Percentile:
    """Return a percentile; raise ValueError for anything else."""
    if percentile == "auto":
        return percentile
    if isinstance(percentile, str) or not 0 <= percentile <= 100:
        raise ValueError(f"expected a percentile from 0 to 100, or 'auto'; got {percentile!r}")
    return percentile
