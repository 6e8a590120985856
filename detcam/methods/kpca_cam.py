"""KPCA-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter
from detcam.cam import BaseCAM
from detcam.trace import ReshapeTransform
from detcam.utils.pca import first_eigenpair, oriented

Kernel = Literal["sigmoid", "rbf", "poly", "cosine", "linear"]

MOST_PLACES = 16384
"""The kernel of a map with more places than this would take more than 2 GiB in float64."""


class KPCA_CAM(BaseCAM):
    r"""First kernel principal component of the activations; needs no gradient and ignores the target.

    .. math:: L = \mathrm{ReLU}(\sqrt{\lambda_1} v_1), \quad \tilde K v_1 = \lambda_1 v_1, \quad
        K_{pq} = \tanh(\gamma\, \bar A_p \cdot \bar A_q + 1)

    with the channel vectors of the places p and q centred, and the kernel centred too. The sign, which is arbitrary,
    is fixed by the rule in `detcam.utils.pca`.

    Karmani et al., *KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA*, MMSP 2024,
    https://arxiv.org/abs/2410.00267.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        kernel: ``sigmoid``, tanh(gamma x.y + 1); ``rbf``, exp(-gamma |x - y|^2); ``poly``, (gamma x.y + 1)^3;
            ``cosine``, the cosine of the angle; ``linear``, x.y, which is EigenCAM.
        gamma: None takes one over the number of channels.
    """

    name = "kpcacam"
    paper = "Karmani et al., KPCA-CAM, MMSP 2024, https://arxiv.org/abs/2410.00267"
    cost = "1 forward"
    use = "a look at the features that is not linear; ignores the target"
    uses_gradients = False
    class_discriminative = False

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        kernel: Kernel = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if kernel not in get_args(Kernel):
            raise ValueError(f"expected kernel to be one of {', '.join(get_args(Kernel))}; got {kernel!r}")
        self.kernel = kernel
        self.gamma = gamma

    def saliency(self, activations: Tensor, gradients: Tensor) -> Tensor:
        _, _, height, width = activations.shape
        if height * width > MOST_PLACES:
            raise ValueError(
                f"kernel PCA compares all places with all places; a map of {height} x {width} has too many of them "
                f"(at most {MOST_PLACES}). Choose a deeper target layer, or EigenCAM"
            )
        vectors = activations.flatten(2).transpose(1, 2).double()
        centred = vectors - vectors.mean(1, keepdim=True)
        found = torch.cat([self._component(one[None]) for one in centred])
        return found.reshape(-1, height, width).to(activations.dtype)

    def _component(self, centred: Tensor) -> Tensor:
        """(1, hw) projections of (1, hw, C) centred channel vectors."""
        kernel = self._kernel(centred)
        mean = kernel.mean(1, keepdim=True)
        kernel -= mean  # in place: it may take 2 GiB
        kernel -= mean.transpose(1, 2) - mean.mean()
        value, vector = first_eigenpair(kernel)
        return oriented(vector * value.clamp(min=0).sqrt()[:, None], centred.transpose(1, 2))

    def _kernel(self, x: Tensor) -> Tensor:
        """Every place's vector against every other's: (1, hw, hw)."""
        gamma = 1 / x.shape[2] if self.gamma is None else self.gamma
        if self.kernel == "rbf":
            return torch.exp(-gamma * torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        if self.kernel == "cosine":
            x = F.normalize(x, dim=2)
        products = x @ x.transpose(1, 2)
        if self.kernel == "sigmoid":
            return products.mul_(gamma).add_(1).tanh_()
        return products.mul_(gamma).add_(1).pow_(3) if self.kernel == "poly" else products
