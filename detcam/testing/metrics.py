"""The contract of a metric."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.adapters.base import Adapter, Target
from detcam.inputs import Images
from detcam.methods.grad_cam import GradCAM
from detcam.metrics import METRICS, Metric
from detcam.metrics.metric_input import MapArray
from detcam.testing.methods import TargetsPerImage, default_targets
from detcam.testing.models import random_images, tiny_classifier, tiny_detector, tiny_segmenter
from detcam.testing.state import ModelState, require

MAKERS = {"class": tiny_classifier, "box": tiny_detector, "mask": tiny_segmenter}


def check_metric(metric: str | Metric | type[Metric], adapter: Adapter | None = None) -> None:
    """Check that a metric keeps its contract.

    `Metric.measure` gives one float64 value per heatmap, in the order of the images, within the metric's range; arrays
    and tensors give the same values; the other images of a call do not change an image's value; a heatmap of NaN has
    the value NaN; the model is left as it was.

    Args:
        metric: the metric with its settings, its class, or the name of a registered metric.
        adapter: a model whose targets the metric judges; None takes a tiny network for each kind in ``metric.tasks``.

    Raises:
        AssertionError: the metric breaks a rule; the message says which.

    Example:
        >>> from detcam.metrics import Sparseness
        >>> from detcam.testing import check_metric
        >>> check_metric(Sparseness())
    """
    metric = METRICS.find(metric) if isinstance(metric, str) else metric
    metric = metric() if isinstance(metric, type) else metric
    check_metric_description(metric)
    if adapter is None:
        for kind, maker in MAKERS.items():
            if kind in metric.tasks:
                check_metric(metric, maker())
        return
    images = [image[:, :48, :64] for image in random_images()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = default_targets(adapter, images)
        generator = torch.Generator().manual_seed(3)
        maps = [
            torch.rand((len(row), *image.shape[-2:]), generator=generator)
            for image, row in zip(images, targets, strict=True)
        ]
        state = ModelState(adapter.model)
        values = _measure(metric, adapter, images, targets, maps)
        state.check()
        _check_values(metric, values, sum(len(row) for row in targets))
        arrays = [one.numpy() for one in maps]
        _require_equal(_measure(metric, adapter, images, targets, arrays), values, "arrays give other values")
        first = _measure(metric, adapter, images[:1], targets[:1], maps[:1])
        _require_equal(first, values[: len(first)], "an image's values change when it is measured alone")
        blank = [torch.full_like(one, float("nan")) for one in maps]
        undefined = _measure(metric, adapter, images, targets, blank)
        require(bool(undefined.isnan().all()), "a heatmap of NaN must have the value NaN")


def check_metric_description(metric: Metric) -> None:
    """Check that the metric's class names and describes itself."""
    kind = type(metric).__name__
    require(isinstance(metric.name, str) and metric.name == metric.name.lower(), f"{kind}.name must be lower case")
    low, high = metric.range
    require(low < high, f"{kind}.range must be the least and the greatest value; got {metric.range}")
    require(isinstance(metric.higher_is_better, bool), f"{kind}.higher_is_better must be a bool")
    known = {"class", "box", "mask", "embedding"}
    require(bool(metric.tasks) and set(metric.tasks) <= known, f"{kind}.tasks must name some of {sorted(known)}")


def _measure(
    metric: Metric, adapter: Adapter, images: list[Tensor], targets: TargetsPerImage, heatmaps: Sequence[MapArray]
) -> Tensor:
    """The metric's values, with regions in the middle of each image as ground truth and GradCAM as method."""
    truth = []
    for image, row in zip(images, targets, strict=True):
        height, width = image.shape[-2:]
        region = torch.zeros((len(row), height, width), dtype=torch.bool)
        region[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
        truth.append(region)

    def method(model: Adapter, images: Images, targets: list[list[Target]]) -> list[Tensor]:
        return [torch.as_tensor(result.heatmaps) for result in GradCAM(model).explain(images, targets)]

    return metric.measure(adapter, images, list(targets), heatmaps, truth=truth, method=method)


def _check_values(metric: Metric, values: Tensor, count: int) -> None:
    require(isinstance(values, Tensor), f"expected a tensor of values; got {type(values).__name__}")
    require(tuple(values.shape) == (count,), f"expected {count} values, one per heatmap; got {tuple(values.shape)}")
    require(values.dtype == torch.float64, f"expected float64 values; got {values.dtype}")
    low, high = metric.range
    finite = values[values.isfinite()]
    inside = (finite >= low - 1e-9) & (finite <= high + 1e-9)
    require(bool(inside.all()), f"values lie outside of {metric.name}'s range {metric.range}: {finite.tolist()}")


def _require_equal(one: Tensor, other: Tensor, message: str) -> None:
    same = bool(((one - other).abs() <= 1e-6).logical_or(one.isnan() & other.isnan()).all())
    require(same, f"{message}: {one.tolist()} instead of {other.tolist()}")
