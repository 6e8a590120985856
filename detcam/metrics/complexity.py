"""Metrics on the heatmap's area and concentration, and their combinations with faithfulness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detcam.adapters.base import Adapter, ModelLike, Target
from detcam.inputs import Images, Targets
from detcam.metrics.base import Metric
from detcam.metrics.cam_mult_image import DropInConfidence
from detcam.metrics.metric_input import Explainer, Heatmaps, MapArray, MetricImage, read_metric_input
from detcam.metrics.perturbation_confidence import Percentile
from detcam.metrics.road import ROADCombined

CamCallable: TypeAlias = Callable[..., "Sequence[MapArray] | MapArray"]
"""A method in the style of ``pytorch_grad_cam``, called with ``input_tensor=`` and ``targets=``."""

ADCC_PAPER = (
    "Poppi et al., Revisiting The Evaluation of Class Activation Mapping, CVPRW 2021, https://arxiv.org/abs/2104.10252"
)
EPSILON = 1e-8


class MapMetric(Metric, abstract=True):
    """Base class of metrics on the heatmap alone; an instance is callable as in ``pytorch_grad_cam``."""

    def __call__(self, grayscale_cams: MapArray) -> npt.NDArray[np.float64]:
        """Values (B,) of heatmaps (B, H, W)."""
        if grayscale_cams.ndim != 3:
            raise ValueError(f"expected heatmaps of shape (B, H, W); got {tuple(grayscale_cams.shape)}")
        return self.evaluate(read_metric_input(None, None, None, grayscale_cams)).numpy()


class Complexity(MapMetric):
    r"""Mean magnitude of the heatmap: :math:`\frac{1}{n} \sum_i |H_i|`.

    In [0, 1], lower is better: 0 for a map of zeros, 1 for a map of ones. Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.
    """

    name = "complexity"
    paper = ADCC_PAPER
    higher_is_better = False
    range = (0.0, 1.0)

    def value(self, image: MetricImage) -> Tensor:
        return _magnitudes(image).mean(1)


class Sparseness(MapMetric):
    r"""Gini index of the heatmap's magnitudes; high where few pixels hold the heat.

    .. math:: G = \frac{\sum_{i=1}^n (2i - n - 1)\, a_{(i)}}{n \sum_i a_i}, \quad a_{(1)} \le \dots \le a_{(n)}

    In [0, 1], higher is better (sparser): 0 for equal pixels, near 1 for a single pixel. NaN for a map of zeros.
    Chalasani et al., *Concise Explanations of Neural Networks using Adversarial Training*, ICML 2020,
    https://arxiv.org/abs/1810.06583.
    """

    name = "sparseness"
    paper = (
        "Chalasani et al., Concise Explanations using Adversarial Training, ICML 2020, https://arxiv.org/abs/1810.06583"
    )
    higher_is_better = True
    range = (0.0, 1.0)

    def value(self, image: MetricImage) -> Tensor:
        ordered = _magnitudes(image).sort(1).values
        count = ordered.shape[1]
        weights = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
        return (ordered * weights).sum(1) / (count * ordered.sum(1))


class Entropy(MapMetric):
    r"""Entropy of the heatmap's normalized magnitudes, divided by its maximum log n.

    .. math:: -\frac{1}{\log n} \sum_i p_i \log p_i, \quad p_i = a_i / \sum_j a_j

    In [0, 1], lower is better: 0 for a single pixel, 1 for equal pixels. The paper calls it complexity and does not
    divide. NaN for a map of zeros. Bhatt et al., *Evaluating and Aggregating Feature-based Model Explanations*,
    IJCAI 2020, https://arxiv.org/abs/2005.00631.
    """

    name = "entropy"
    paper = "Bhatt et al., Evaluating and Aggregating Feature-based Explanations, IJCAI 2020, https://arxiv.org/abs/2005.00631"
    higher_is_better = False
    range = (0.0, 1.0)

    def value(self, image: MetricImage) -> Tensor:
        magnitudes = _magnitudes(image)
        shares = magnitudes / magnitudes.sum(1, keepdim=True)
        return -torch.xlogy(shares, shares).sum(1) / np.log(shares.shape[1])


class Coherency(Metric):
    r"""Correlation of the heatmap with the heatmap of the product of image and heatmap.

    .. math:: \tfrac12 \left( \rho(H(X), H(X \odot H(X))) + 1 \right)

    :math:`\rho` is Pearson's correlation. In [0, 1], higher is better. Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.

    A (B, C, H, W) tensor is multiplied as it is. Images are multiplied before they are prepared for the network, so
    that pixels outside the heatmap are black. NaN where either heatmap is constant.
    """

    name = "coherency"
    paper = ADCC_PAPER
    higher_is_better = True
    range = (0.0, 1.0)
    needs = frozenset({"model", "method"})

    def value(self, image: MetricImage) -> Tensor:
        correlations = []
        for heatmap, target in zip(image.heatmaps, image.targets, strict=True):
            product = image.pixels.cpu() * heatmap.to(image.pixels.dtype)
            product = product if image.normalized else product.clamp(0, 1)
            correlations.append(_pearson(heatmap, image.explain(product, [target])[0]))
        return (torch.tensor(correlations, dtype=torch.float64) + 1) / 2

    def __call__(
        self,
        input_tensor: Images,
        grayscale_cams: Heatmaps,
        targets: Targets,
        model: ModelLike,
        base_method: CamCallable,
    ) -> npt.NDArray[np.float64]:
        """Values (B,) with the signature of ``pytorch_grad_cam``; `base_method` explains the products."""
        method = _as_explainer(base_method)
        return self.evaluate(read_metric_input(model, input_tensor, targets, grayscale_cams, method=method)).numpy()


class HarmonicMean(Metric, abstract=True):
    """Base class of harmonic means of coherency, 1 - complexity and a measure of faithfulness.

    Args:
        base_method: a method that explains changed images, called as in ``pytorch_grad_cam``; None takes the `method`
            that is given to `measure`.
    """

    paper = ADCC_PAPER
    higher_is_better = True
    range = (0.0, 1.0)
    needs = frozenset({"model", "method"})

    def __init__(self, base_method: CamCallable | None = None) -> None:
        self.default_method = None if base_method is None else _as_explainer(base_method)

    @abstractmethod
    def faithfulness(self, image: MetricImage) -> Tensor:
        """Values (n,) in [0, 1], higher is better."""

    def value(self, image: MetricImage) -> Tensor:
        parts = [Coherency().value(image), 1 - Complexity().value(image), self.faithfulness(image)]
        return 3 / sum((1 / (part + EPSILON) for part in parts), torch.zeros(()))

    def __call__(
        self, input_tensor: Images, grayscale_cams: Heatmaps, targets: Targets, model: ModelLike
    ) -> npt.NDArray[np.float64]:
        """Values (N,) with the signature of ``pytorch_grad_cam``, with the method given at construction."""
        return self.evaluate(
            read_metric_input(
                model, input_tensor, targets, grayscale_cams, method=self.default_method, probability=False
            )
        ).numpy()


class ADCC(HarmonicMean):
    r"""Harmonic mean of coherency, 1 - complexity and 1 - average drop (relative to the unchanged score).

    .. math:: 3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{1 - \text{drop}}
        \right)^{-1}

    In [0, 1], higher is better. Poppi et al., *Revisiting The Evaluation of Class Activation Mapping*, CVPRW 2021,
    https://arxiv.org/abs/2104.10252.

    Args:
        base_method: a method that explains changed images, called as in ``pytorch_grad_cam``; None takes the `method`
            that is given to `measure`.
    """

    name = "adcc"

    def faithfulness(self, image: MetricImage) -> Tensor:
        return 1 - DropInConfidence(relative=True).value(image)


class ARCC(HarmonicMean):
    r"""ADCC with ROAD instead of the average drop: harmonic mean of coherency, 1 - complexity and 2 ROAD.

    .. math:: 3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{2\,\text{ROAD}}
        \right)^{-1}, \quad 2\,\text{ROAD clipped to } [0, 1]

    In [0, 1], higher is better. As in ``pytorch_grad_cam`` 1.5.7, after Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.

    Args:
        base_method: a method that explains changed images, called as in ``pytorch_grad_cam``; None takes the `method`
            that is given to `measure`.
        road_percentiles: percentiles of `ROADCombined`.
    """

    name = "arcc"
    paper = "pytorch_grad_cam 1.5.7, after " + ADCC_PAPER

    def __init__(
        self, base_method: CamCallable | None = None, road_percentiles: Sequence[Percentile] = (20, 40, 60, 80)
    ) -> None:
        super().__init__(base_method)
        self.road = ROADCombined(road_percentiles)

    def faithfulness(self, image: MetricImage) -> Tensor:
        return (self.road.value(image) * 2).clamp(0, 1)


def _magnitudes(image: MetricImage) -> Tensor:
    """Magnitudes (n, P) float64 of the heatmaps' pixels."""
    return image.heatmaps.flatten(1).double().abs()


def _pearson(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation of two maps; NaN where one is constant."""
    a, b = (each.flatten().double() - each.double().mean() for each in (first, second))
    return float((a @ b) / (a.norm() * b.norm()))


def _as_explainer(cam: CamCallable) -> Explainer:
    """A method in the style of ``pytorch_grad_cam`` as an `Explainer`."""

    def explain(adapter: Adapter, images: Any, targets: list[list[Target]]) -> list[Tensor]:
        flat = [row[0] for row in targets]
        heatmaps = cam(input_tensor=images, targets=flat if isinstance(images, Tensor) else targets)
        return [torch.as_tensor(each).reshape(-1, *each.shape[-2:]) for each in heatmaps]

    return explain
