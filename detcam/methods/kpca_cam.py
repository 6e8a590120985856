"""KPCA-CAM."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import ModelLike
from detcam.cam import BaseCAM
from detcam.layers import LayersLike
from detcam.trace import ReshapeTransform
from detcam.utils.pca import first_eigenpair, oriented
from detcam.utils.precision import to_float64

Kernel: TypeAlias = Literal["sigmoid", "rbf", "poly", "cosine", "linear"]

MAX_CELLS = 16384
"""Maximum number of cells of a map; a larger map needs more than 2 GiB for its kernel matrix in float64."""


class KPCA_CAM(BaseCAM):
    r"""First kernel principal component of the activations; independent of the target.

    .. math:: L = \mathrm{ReLU}(\sqrt{\lambda_1} v_1), \quad \tilde K v_1 = \lambda_1 v_1, \quad
        K_{pq} = \tanh(\gamma\, \bar A_p \cdot \bar A_q + 1)

    with :math:`\bar A_p` the centered channel vector at position p, :math:`\tilde K` the centered kernel matrix, and
    :math:`v_1` its first eigenvector. Its sign is arbitrary; `detcam.utils.pca` fixes it.

    Karmani et al., *KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA*, MMSP 2024,
    https://arxiv.org/abs/2410.00267.

    Use it to inspect features with a nonlinear component analysis; it ignores the target and needs no gradient.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        kernel: ``sigmoid``, ``tanh(gamma x.y + 1)``; ``rbf``, ``exp(-gamma |x - y|^2)``; ``poly``,
            ``(gamma x.y + 1)^3``; ``cosine``, the cosine of the angle; ``linear``, ``x.y``, which is `EigenCAM`.
        gamma: kernel coefficient; None takes 1 / C for C channels.
    """

    name = "kpcacam"
    paper = "Karmani et al., KPCA-CAM, MMSP 2024, https://arxiv.org/abs/2410.00267"
    cost = "1 forward"
    use = "inspecting features by nonlinear components; ignores the target"
    uses_gradients = False
    class_discriminative = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
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
        if height * width > MAX_CELLS:
            raise ValueError(
                f"kernel PCA compares all cells of a map with one another; a map of {height} x {width} has too many "
                f"(at most {MAX_CELLS}). Choose a deeper target layer, or EigenCAM"
            )
        vectors = to_float64(activations.flatten(2).transpose(1, 2))
        centered = vectors - vectors.mean(1, keepdim=True)
        components = torch.cat([self._component(image[None]) for image in centered])
        return components.reshape(-1, height, width).to(activations.dtype)

    def _component(self, centered: Tensor) -> Tensor:
        """First component (1, hw) of centered channel vectors (1, hw, C)."""
        kernel = self._kernel_matrix(centered)
        mean = kernel.mean(1, keepdim=True)
        kernel -= mean  # in place: it may take 2 GiB
        kernel -= mean.transpose(1, 2) - mean.mean()
        value, vector = first_eigenpair(kernel)
        return oriented(vector * value.clamp(min=0).sqrt()[:, None], centered.transpose(1, 2))

    def _kernel_matrix(self, x: Tensor) -> Tensor:
        """Kernel matrix (1, hw, hw) of channel vectors (1, hw, C)."""
        gamma = 1 / x.shape[2] if self.gamma is None else self.gamma
        if self.kernel == "rbf":
            return torch.exp(-gamma * torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        if self.kernel == "cosine":
            x = F.normalize(x, dim=2)
        products = x @ x.transpose(1, 2)
        if self.kernel == "sigmoid":
            return products.mul_(gamma).add_(1).tanh_()
        return products.mul_(gamma).add_(1).pow_(3) if self.kernel == "poly" else products
