"""The base class of metrics, and the summary of their values."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.inputs import Images, Targets
from detcam.metrics.metric_input import Explainer, Heatmaps, MetricImage, MetricInput, Truth, read_metric_input
from detcam.utils.subclasses import check_complete, missing_members

Need = Literal["model", "truth", "method"]
"""What a metric needs besides heatmaps: the model, annotations, or the method that made the heatmaps."""

TargetKind = Literal["class", "box", "mask", "embedding"]
"""A kind of target."""

TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)


class MetricWarning(UserWarning):
    """Some heatmaps have no value: they are NaN in the result and left out of means."""


class Metric(ABC):
    """A number for each heatmap.

    A subclass sets `name`, `range` and `higher_is_better` and defines `value`. The class describes the metric, an
    instance holds its settings, which should all have defaults. `measure` checks the input and calls `value` for each
    image.

    A base class for several metrics that defines less is declared with ``class MyBase(Metric, abstract=True)``.

    Example:
        >>> import torch
        >>> from detcam.metrics import Metric
        >>> class MeanHeat(Metric):
        ...     name, range, higher_is_better = "mean_heat", (0.0, 1.0), False
        ...
        ...     def value(self, image):
        ...         return image.heatmaps.mean((1, 2))
        >>> MeanHeat().measure(None, None, None, torch.full((1, 8, 8), 0.25)).tolist()
        [0.25]
    """

    name: ClassVar[str]
    """Name in the registry: lower case, words joined by underscores."""
    range: ClassVar[tuple[float, float]]
    """Smallest and largest value for scores in [0, 1]; values for logits or box edges can exceed it."""
    higher_is_better: ClassVar[bool]
    """Whether a larger value means a better heatmap."""
    paper: ClassVar[str] = ""
    """Title, venue and link of the source."""
    tasks: ClassVar[tuple[TargetKind, ...]] = TARGET_KINDS
    """Kinds of targets that the metric evaluates."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What `value` uses besides heatmaps: ``"model"`` allows `MetricImage.scored`, ``"truth"`` `MetricImage.truth`,
    ``"method"`` `MetricImage.explain`."""
    default_method: Explainer | None = None
    """The method that explains changed images in calls without one; for metrics that need ``"method"``."""

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not abstract:
            _check_definition(cls)

    @abstractmethod
    def value(self, image: MetricImage) -> Tensor:
        """Values of one image's heatmaps. This is the only method that a metric has to define.

        Args:
            image: the image with n heatmaps, n >= 1, without NaN; gives access to targets, annotations and model.

        Returns:
            (n,) values; NaN for a heatmap for which the metric is undefined.
        """

    def measure(
        self,
        adapter: ModelLike | None,
        images: Images | None,
        targets: Targets,
        heatmaps: Heatmaps,
        *,
        truth: Truth | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        """The value of each heatmap.

        Args:
            adapter: an adapter, or a model, which is adapted. Metrics that do not need the model accept None for
                `adapter`, `images` and `targets`.
            images: images of any size, or a normalized (B, C, H, W) tensor, as for a method.
            targets: the targets that the heatmaps explain, as for a method; None takes them from `ImageHeatmaps`, or
                takes the model's predictions.
            heatmaps: per image (N_i, H_i, W_i) in image pixels, tensors or arrays; or (B, H, W), one per image; or
                the result of ``cam.explain``.
            truth: per image the annotated regions (N_i, H_i, W_i) bool, or `TargetRegions`; for metrics that need
                ``"truth"``.
            method: function of adapter, images and targets to heatmaps; for metrics that need ``"method"``.

        Returns:
            (N,) float64 on the CPU, N = sum of N_i in the order of the images. The value is NaN for a heatmap with
            NaN and where the metric is undefined; `MetricWarning` states their number.

        Raises:
            TypeError, ValueError: an argument is not as described; the message says what was expected.

        Example:
            >>> import torch
            >>> from detcam.metrics import EnergyPointingGame
            >>> heatmaps = torch.zeros(1, 8, 8)
            >>> heatmaps[0, 2, 2:4] = 1.0
            >>> truth = torch.zeros(1, 8, 8, dtype=torch.bool)
            >>> truth[0, :, :3] = True
            >>> EnergyPointingGame().measure(None, None, None, [heatmaps], truth=[truth]).tolist()
            [0.5]
        """
        method = self.default_method if method is None else method
        if "truth" in self.needs and truth is None:
            raise ValueError(f"{self.name} needs truth=: per image the annotated regions (N, H, W) of the objects")
        if "method" in self.needs and method is None:
            raise ValueError(f"{self.name} needs method=: a function of adapter, images and targets to heatmaps")
        if self.needs & {"model", "method"} and (adapter is None or images is None):
            raise ValueError(f"{self.name} needs a model and images; got None")
        metric_input = read_metric_input(
            adapter,
            images,
            targets,
            heatmaps,
            truth=truth if "truth" in self.needs else None,
            method=method if "method" in self.needs else None,
        )
        return self.evaluate(metric_input)

    def evaluate(self, metric_input: MetricInput) -> Tensor:
        """Values (N,) of a checked input, with a warning where values are NaN."""
        return warn_undefined(self.name, metric_input.evaluate(self.value), stacklevel=4)


def warn_undefined(name: str, values: Tensor, *, stacklevel: int = 3) -> Tensor:
    """Return the values, with a warning that states how many are NaN."""
    undefined = int(values.isnan().sum())
    if undefined:
        warnings.warn(
            f"{name}: {undefined} of {len(values)} heatmaps have no value (NaN): the heatmap holds NaN or is constant, "
            "or the metric is undefined for its target; means leave them out",
            MetricWarning,
            stacklevel=stacklevel,
        )
    return values


def _check_definition(metric: type[Metric]) -> None:
    """Check what a subclass of `Metric` declares.

    Raises:
        TypeError: something is missing or invalid; the message says what to add.
    """
    missing = [] if "name" in vars(metric) else [f'name = "{metric.__name__.lower()}"  # a name of its own']
    examples = {"range": "(0.0, 1.0)", "higher_is_better": "True"}
    missing += [f"{name} = {example}" for name, example in examples.items() if not hasattr(metric, name)]
    check_complete("metric", metric, missing + missing_members(metric))
    if not isinstance(metric.name, str) or not metric.name:
        raise TypeError(f"metric {metric.__name__}: expected name as a non-empty str; got {metric.name!r}")
    limits = metric.range
    if not isinstance(limits, tuple) or len(limits) != 2 or not limits[0] < limits[1]:
        raise TypeError(f"metric {metric.name}: expected range as (smallest, largest value); got {limits!r}")
    if not isinstance(metric.higher_is_better, bool):
        raise TypeError(f"metric {metric.name}: expected higher_is_better as a bool; got {metric.higher_is_better!r}")
    for attribute, allowed in (("tasks", TARGET_KINDS), ("needs", get_args(Need))):
        entries = getattr(metric, attribute)
        if isinstance(entries, str) or not set(entries) <= set(allowed):
            raise TypeError(f"metric {metric.name}: expected {attribute} as a subset of {allowed}; got {entries!r}")


@dataclass(frozen=True)
class MetricSummary:
    """Mean and spread of a metric's values.

    Attributes:
        mean: mean of the values that are not NaN; NaN if there are none.
        std: sample standard deviation of these values; NaN for fewer than two.
        count: number of these values.
        skipped: number of heatmaps without a value.
    """

    mean: float
    std: float
    count: int
    skipped: int


def summarize(values: Tensor) -> MetricSummary:
    """Mean and standard deviation of the values (N,) that are not NaN.

    Args:
        values: (N,) values, as `Metric.measure` returns them.

    Returns:
        The summary, with the number of NaN values as `skipped`.

    Example:
        >>> import torch
        >>> from detcam.metrics import summarize
        >>> summarize(torch.tensor([0.25, 0.75, float("nan")])).mean
        0.5
    """
    defined = values[~values.isnan()].double()
    return MetricSummary(
        float(defined.mean()) if len(defined) else float("nan"),
        float(defined.std()) if len(defined) > 1 else float("nan"),
        len(defined),
        len(values) - len(defined),
    )
