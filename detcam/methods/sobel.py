"""Sobel edges, a control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detcam.cam import LayerlessCAM
from detcam.data.images import to_uint8
from detcam.geometry import Geometry, normalize
from detcam.results import Measured, Pass, values_of
from detcam.utils.opencv import cv2
from detcam.visualize.convert import PixelsLike, as_image


class Sobel(LayerlessCAM):
    r"""Control: edges of the image, independent of the network.

    .. math:: L = \tfrac{1}{2} \big(\min(|S_x * Y|, 1) + \min(|S_y * Y|, 1)\big)

    with Y the luma in [0, 1] and :math:`S_x`, :math:`S_y` the 3 x 3 Sobel kernels. The map is computed from the
    original image at its own resolution, with 8 bits per color; a normalized input tensor is converted back to colors
    first.

    Sobel and Feldman, *A 3x3 Isotropic Gradient Operator for Image Processing*, 1968. As a control for saliency:
    Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292.

    Use it as a control: a method whose maps do not score better finds edges rather than evidence.
    """

    name = "sobel"
    paper = "a control; Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, https://arxiv.org/abs/1810.03292"
    cost = "1 forward"
    use = "a control: edges of the image, independent of the network"
    uses_gradients = False
    class_discriminative = False

    def measure(self, run: Pass) -> Measured:
        maps = [
            torch.from_numpy(sobel_cam(_to_rgb(image))).float().div(255).expand(len(row), -1, -1)
            for image, row in zip(run.source_images(), run.targets, strict=True)
        ]
        return Measured([maps], values_of(run.score()), None)

    @staticmethod
    def combine(levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Normalize the edges of one image, which are at the image's resolution already."""
        return normalize(levels[0]) if len(levels[0]) else levels[0]


def _to_rgb(image: Tensor) -> NDArray[np.uint8]:
    """Convert an image (C, H, W) in [0, 1] to (H, W, 3) uint8; other channel counts than 3 are averaged."""
    return to_uint8(image if len(image) == 3 else image.mean(0).expand(3, -1, -1))


def sobel_cam(img: PixelsLike) -> NDArray[np.uint8]:
    """Compute the Sobel edges of an image, as in ``pytorch_grad_cam``.

    Args:
        img: (H, W, 3) RGB array or (3, H, W) tensor, uint8 or float in [0, 1]; or a PIL image.

    Returns:
        (H, W) uint8.

    Raises:
        TypeError: not an image.
        ValueError: an array of another shape or range.

    Example:
        >>> import numpy as np
        >>> from detcam import sobel_cam
        >>> image = np.zeros((4, 6, 3), np.uint8)
        >>> image[:, 3:] = 255
        >>> sobel_cam(image)[1].tolist()
        [0, 0, 128, 128, 0, 0]
    """
    gray = cv2.cvtColor(as_image(img, "img"), cv2.COLOR_RGB2GRAY)
    # Values are clipped at 255, which is a step of 64 gray levels.
    dx, dy = (cv2.convertScaleAbs(cv2.Sobel(gray, cv2.CV_64F, *order, ksize=3)) for order in ((1, 0), (0, 1)))
    return np.asarray(cv2.addWeighted(dx, 0.5, dy, 0.5, 0), np.uint8)
