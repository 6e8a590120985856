"""Sobel edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detcam.cam import LayerlessCAM, value_of
from detcam.data.images import to_uint8
from detcam.geometry import Geometry, normalize
from detcam.results import Measured, Pass
from detcam.utils.opencv import cv2
from detcam.visualize.convert import as_image


class Sobel(LayerlessCAM):
    r"""Edges of the image, whatever the network: what a map looks like that knows nothing of it. A control.

    .. math:: L = \tfrac{1}{2} \big(\min(|S_x * Y|, 1) + \min(|S_y * Y|, 1)\big)

    with the luma Y in [0, 1] and Sobel's 3 x 3 kernels. The map is made of the original image in its own pixels, and
    of nothing else; a network's ready input is brought back to colours first, and 8 bits a colour are looked at. A
    method whose maps score no better than this one finds edges, not reasons.

    Sobel and Feldman, *A 3x3 Isotropic Gradient Operator for Image Processing*, 1968. As a control for saliency:
    Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292.
    """

    name = "sobel"
    paper = "a control; Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, https://arxiv.org/abs/1810.03292"
    cost = "1 forward"
    use = "a control: the image's edges, whatever the network"
    uses_gradients = False
    class_discriminative = False

    def measure(self, run: Pass) -> Measured:
        scalars = run.adapter.score(run.outputs, run.targets) if any(run.targets) else [[] for _ in run.targets]
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        maps = [
            torch.from_numpy(sobel_cam(_in_colors(image))).float().div(255).expand(len(row), -1, -1)
            for image, row in zip(run.source_images(), run.targets, strict=True)
        ]
        return Measured([maps], values, None)

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """One image's heatmaps; the edges are in its own pixels already."""
        return normalize(levels[0]) if len(levels[0]) else levels[0]


def _in_colors(image: Tensor) -> NDArray[np.uint8]:
    """An image (C, H, W) in [0, 1] as (H, W, 3) uint8; more or fewer channels than three become their mean."""
    return to_uint8(image if len(image) == 3 else image.mean(0).expand(3, -1, -1))


def sobel_cam(img: Any) -> NDArray[np.uint8]:
    """Sobel's edges of an image, as `pytorch_grad_cam` has them.

    Args:
        img: (H, W, 3) RGB array or (3, H, W) tensor, uint8 or float in [0, 1]; or a PIL image.

    Returns:
        (H, W) uint8.

    Raises:
        TypeError, ValueError: not an image.
    """
    grey = cv2.cvtColor(as_image(img, "img"), cv2.COLOR_RGB2GRAY)
    across, down = (
        cv2.convertScaleAbs(
            cv2.Sobel(grey, cv2.CV_64F, *order, ksize=3)
        )  # cut at 255: 64 grey levels from side to side
        for order in ((1, 0), (0, 1))
    )
    return np.asarray(cv2.addWeighted(across, 0.5, down, 0.5, 0), np.uint8)
