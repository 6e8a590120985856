"""How much a map says: area, concentration, and whether it says the same of what it keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.metrics.base import (
    Explainer,
    Metric,
    MetricInput,
    Need,
    read_heatmaps,
    read_metric_input,
    warn_about_skipped,
)
from detcam.metrics.cam_mult_image import DropInConfidence
from detcam.metrics.perturbation_confidence import Percentile
from detcam.metrics.road import ROADCombined

ADCC_PAPER = (
    "Poppi et al., Revisiting The Evaluation of Class Activation Mapping, CVPRW 2021, https://arxiv.org/abs/2104.10252"
)
EPSILON = 1e-8


class MapMetric(Metric):
    """A number read from the heatmap alone."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def of(self, maps: Tensor) -> Tensor:
        """Values (n,) of heatmaps (n, P) float64, flattened and finite; NaN where there is none."""

    def values(self, heatmaps: Sequence[Tensor]) -> Tensor:
        """Values (N,) of checked heatmaps; NaN where a heatmap holds NaN."""
        rows = []
        for maps in heatmaps:
            flat = maps.flatten(1).double()
            known = flat.isfinite().all(1)
            row = torch.full((len(flat),), float("nan"), dtype=torch.float64)
            row[known] = self.of(flat[known])
            rows.append(row)
        return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.float64)

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
        return warn_about_skipped(self.name, self.values(question.heatmaps))

    def __call__(self, grayscale_cams: Any) -> npt.NDArray[np.float64]:
        """Values (B,) of heatmaps (B, H, W)."""
        cams = torch.as_tensor(grayscale_cams)
        if cams.ndim != 3:
            raise ValueError(f"expected heatmaps of shape (B, H, W); got {tuple(cams.shape)}")
        maps = read_heatmaps(cams, [(cams.shape[1], cams.shape[2])] * len(cams))
        return warn_about_skipped(self.name, self.values(maps)).numpy()


class Complexity(MapMetric):
    r"""Mean magnitude of the heatmap: :math:`\frac{1}{n} \sum_i |H_i|`.

    In [0, 1], lower is better: 0 for a map of zeros, 1 for a map of ones. Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.
    """

    name = "complexity"
    paper = ADCC_PAPER
    higher_is_better = False
    range = (0.0, 1.0)

    def of(self, maps: Tensor) -> Tensor:
        return maps.abs().mean(1)


class Sparseness(MapMetric):
    r"""Gini index of the heatmap's magnitudes: how few pixels hold the heat.

    .. math:: G = \frac{\sum_{i=1}^n (2i - n - 1)\, a_{(i)}}{n \sum_i a_i}, \quad a_{(1)} \le \dots \le a_{(n)}

    In [0, 1], higher is better (sparser): 0 where all are equal, near 1 for one pixel. Without a value for a map of
    zeros. Chalasani et al., *Concise Explanations of Neural Networks using Adversarial Training*, ICML 2020,
    https://arxiv.org/abs/1810.06583.
    """

    name = "sparseness"
    paper = (
        "Chalasani et al., Concise Explanations using Adversarial Training, ICML 2020, https://arxiv.org/abs/1810.06583"
    )
    higher_is_better = True
    range = (0.0, 1.0)

    def of(self, maps: Tensor) -> Tensor:
        ordered = maps.abs().sort(1).values
        count = maps.shape[1]
        weights = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
        return (ordered * weights).sum(1) / (count * ordered.sum(1))


class Entropy(MapMetric):
    r"""Entropy of the heatmap's magnitudes as shares, over its greatest value log n.

    .. math:: -\frac{1}{\log n} \sum_i p_i \log p_i, \quad p_i = a_i / \sum_j a_j

    In [0, 1], lower is better: 0 for one pixel, 1 for all equal. Called complexity in the paper, and not divided
    there. Without a value for a map of zeros. Bhatt et al., *Evaluating and Aggregating Feature-based Model
    Explanations*, IJCAI 2020, https://arxiv.org/abs/2005.00631.
    """

    name = "entropy"
    paper = "Bhatt et al., Evaluating and Aggregating Feature-based Explanations, IJCAI 2020, https://arxiv.org/abs/2005.00631"
    higher_is_better = False
    range = (0.0, 1.0)

    def of(self, maps: Tensor) -> Tensor:
        shares = maps.abs() / maps.abs().sum(1, keepdim=True)
        return -torch.xlogy(shares, shares).sum(1) / np.log(maps.shape[1])


class Coherency(Metric):
    r"""How alike the heatmap is to that of the image times the heatmap.

    .. math:: \tfrac12 \left( \rho(H(X), H(X \odot H(X))) + 1 \right)

    :math:`\rho` is Pearson's correlation. In [0, 1], higher is better. Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.

    A (B, C, H, W) tensor is multiplied as it is; images are multiplied before they are prepared for the network, so
    that what the map does not keep is black. Without a value where either map is constant.
    """

    name = "coherency"
    paper = ADCC_PAPER
    higher_is_better = True
    range = (0.0, 1.0)
    needs: ClassVar[frozenset[Need]] = frozenset({"model", "method"})

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
        return warn_about_skipped(self.name, self.values(question, method))

    def values(self, question: MetricInput, method: Explainer | None) -> Tensor:
        """Values (N,) of a checked call."""
        if method is None:
            raise ValueError(f"{self.name} needs method=, the method that explains the changed images")
        request, rows, values = question.request, question.request.targets, []
        if rows is None:
            raise ValueError(f"{self.name} explains changed images: say with targets= what the heatmaps explain")
        sources = request.images if request.tensor is None else request.tensor.cpu()
        for image, maps, asked in zip(sources, question.heatmaps, rows, strict=True):
            for heatmap, target in zip(maps, asked, strict=True):
                kept = image.cpu() * heatmap.to(image.dtype)
                again = self._again(question.adapter, kept, request.tensor is not None, target, method)
                values.append(_pearson(heatmap, again) if heatmap.isfinite().all() else float("nan"))
        return (torch.tensor(values, dtype=torch.float64) + 1) / 2

    @staticmethod
    def _again(adapter: Adapter, kept: Tensor, ready: bool, target: Target, method: Explainer) -> Tensor:
        """The heatmap (H, W) of a changed image."""
        found = method(adapter, kept[None] if ready else [kept.clamp(0, 1)], [[target]])[0]
        again = torch.as_tensor(found).detach().cpu()
        if tuple(again.shape) != (1, *kept.shape[-2:]):
            raise ValueError(f"expected method to give one heatmap (1, H, W) per target; got {tuple(again.shape)}")
        return again[0]

    def __call__(
        self, input_tensor: Tensor, grayscale_cams: Any, targets: Any, model: nn.Module, base_method: Any
    ) -> npt.NDArray[np.float64]:
        """Values (B,) with `base_method` called as a CAM, ``base_method(input_tensor=..., targets=...)``."""
        question = read_metric_input(model, input_tensor, targets, grayscale_cams)
        return warn_about_skipped(self.name, self.values(question, _as_explainer(base_method))).numpy()


class HarmonicMean(Metric):
    """The harmonic mean of coherency, 1 - complexity and a measure of faithfulness."""

    paper = ADCC_PAPER
    higher_is_better = True
    range = (0.0, 1.0)
    needs: ClassVar[frozenset[Need]] = frozenset({"model", "method"})

    def __init__(self, base_method: Any = None) -> None:
        self.base_method = base_method

    @abstractmethod
    def faithfulness(self, question: MetricInput, *, probability: bool) -> Tensor:
        """Values (N,) in [0, 1], the higher the better."""

    def values(self, question: MetricInput, method: Explainer | None, *, probability: bool) -> Tensor:
        """Values (N,) of a checked call."""
        if method is None and self.base_method is not None:
            method = _as_explainer(self.base_method)
        parts = [
            Coherency().values(question, method),
            1 - Complexity().values(question.heatmaps),
            self.faithfulness(question, probability=probability),
        ]
        return 3 / sum((1 / (part + EPSILON) for part in parts), torch.zeros(()))

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
        return warn_about_skipped(self.name, self.values(question, method, probability=True))

    def __call__(self, input_tensor: Any, grayscale_cams: Any, targets: Any, model: Any) -> npt.NDArray[np.float64]:
        """Values (N,) with the base method given at construction."""
        question = read_metric_input(model, input_tensor, targets, grayscale_cams)
        return warn_about_skipped(self.name, self.values(question, None, probability=False)).numpy()


class ADCC(HarmonicMean):
    r"""Harmonic mean of coherency, 1 - complexity and 1 - average drop (relative to the unchanged score).

    .. math:: 3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{1 - \text{drop}}
        \right)^{-1}

    In [0, 1], higher is better. Poppi et al., *Revisiting The Evaluation of Class Activation Mapping*, CVPRW 2021,
    https://arxiv.org/abs/2104.10252.

    Args:
        base_method: a CAM that explains changed images; None takes the `method` that `measure` is given.
    """

    name = "adcc"

    def faithfulness(self, question: MetricInput, *, probability: bool) -> Tensor:
        return 1 - DropInConfidence(relative=True).values(question, probability=probability)


class ARCC(HarmonicMean):
    r"""ADCC with ROAD in place of the average drop: harmonic mean of coherency, 1 - complexity and 2 ROAD.

    .. math:: 3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{2\,\text{ROAD}}
        \right)^{-1}, \quad 2\,\text{ROAD cut to } [0, 1]

    In [0, 1], higher is better. As in ``pytorch_grad_cam`` 1.5.7, after Poppi et al., *Revisiting The Evaluation of
    Class Activation Mapping*, CVPRW 2021, https://arxiv.org/abs/2104.10252.

    Args:
        base_method: a CAM that explains changed images; None takes the `method` that `measure` is given.
        road_percentiles: of `ROADCombined`.
    """

    name = "arcc"
    paper = "pytorch_grad_cam 1.5.7, after " + ADCC_PAPER

    def __init__(self, base_method: Any = None, road_percentiles: Sequence[Percentile] = (20, 40, 60, 80)) -> None:
        super().__init__(base_method)
        self.road = ROADCombined(road_percentiles)

    def faithfulness(self, question: MetricInput, *, probability: bool) -> Tensor:
        return (self.road.values(question, probability=probability) * 2).clamp(0, 1)


def _pearson(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two maps; NaN where one is constant."""
    a, b = (each.flatten().double() - each.double().mean() for each in (one, other))
    return float((a @ b) / (a.norm() * b.norm()))


def _as_explainer(cam: Any) -> Explainer:
    """A method that is called as a CAM as an `Explainer`."""

    def explain(adapter: Adapter, images: Any, targets: list[list[Target]]) -> list[Tensor]:
        flat = [row[0] for row in targets]
        found = cam(input_tensor=images, targets=flat if isinstance(images, Tensor) else targets)
        return [torch.as_tensor(each).reshape(-1, *each.shape[-2:]) for each in found]

    return explain
