"""A figure with the heatmaps of several methods for the same targets."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from PIL import Image

from detcam.adapters import adapt
from detcam.adapters.base import ModelLike
from detcam.data.images import ImageLike
from detcam.explanation.explain import MethodLike, explain
from detcam.visualize.overlay import grid


def plot_methods(model: ModelLike, image: ImageLike, methods: Sequence[MethodLike], **options: Any) -> Image.Image:
    """Draw a figure with one row per method and one column per target.

    Args:
        model: as in `detcam.explain`.
        image: one image.
        methods: methods, as in `detcam.explain`.
        **options: further arguments of `detcam.explain`, which select the targets (`targets`, `score_threshold`,
            `top_k`, `labels`, ...) or adapt the model (`names`, ...).

    Returns:
        The figure, RGB. Titles name the method and the target.

    Raises:
        ValueError: there is no method or no target.

    Example:
        >>> import numpy as np
        >>> from torchvision.models import mobilenet_v3_small
        >>> from detcam.explanation.methods_grid import plot_methods
        >>> model, image = mobilenet_v3_small().eval(), np.zeros((48, 64, 3), np.uint8)
        >>> figure = plot_methods(model, image, ["gradcam", "hirescam"], labels=[3, 7], image_size=64)
        >>> figure.mode
        'RGB'
    """
    if isinstance(methods, str) or not len(methods):
        raise ValueError(f"expected a list of methods, such as ['gradcam', 'odam']; got {methods!r}")
    selection = {key: options.pop(key) for key in signature(explain).parameters if key in options}
    adapter = adapt(model, **options)
    panels, titles, columns = [], [], 1
    for method in methods:
        (explanation,) = explain(adapter, image, method, **selection)
        if not len(explanation):
            raise ValueError("no prediction was found in the image; a lower score_threshold finds more")
        columns = len(explanation)
        panels += [explanation.overlay(index, caption=False) for index in range(columns)]
        titles += [f"{explanation.method}: {caption}" for caption in explanation.captions]
    return Image.fromarray(grid(panels, columns=columns, titles=titles))
