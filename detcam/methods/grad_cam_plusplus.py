"""Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.cam import BaseCAM


class GradCAMPlusPlus(BaseCAM):
    r"""Weights each channel by a pixel-wise weighted sum of its positive gradients.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\quad
        w_k = \sum_{ij} \alpha^k_{ij} \mathrm{ReLU}(g^k_{ij}),\quad
        \alpha^k_{ij} = \frac{(g^k_{ij})^2}{2 (g^k_{ij})^2 + \sum_{ab} A^k_{ab} (g^k_{ij})^3 + 10^{-6}}

    with :math:`A^k` channel k of the target layer's activation and :math:`g^k` the gradient of the score S with respect
    to it. The derivatives of exp(S) in the paper are powers of g times exp(S) if S is linear in A (equation 19). The
    constant, as in ``pytorch_grad_cam``, keeps the quotient finite; it makes the weights of gradients far below 0.001
    roughly cubic.

    Chattopadhyay et al., *Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks*, WACV 2018,
    https://arxiv.org/abs/1710.11063.

    Use it for classification if an image shows several objects of the class.
    """

    name = "gradcamplusplus"
    paper = "Chattopadhyay et al., Grad-CAM++, WACV 2018, https://arxiv.org/abs/1710.11063"
    cost = "1 forward, 1 backward per target"
    use = "classification of images with several objects of one class"

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        squared = gradients**2
        total = activations.sum((2, 3), keepdim=True)
        alpha = squared / (2 * squared + total * squared * gradients + 1e-6)
        alpha = torch.where(gradients != 0, alpha, torch.zeros_like(alpha))
        return (alpha * gradients.clamp(min=0)).sum((2, 3))
