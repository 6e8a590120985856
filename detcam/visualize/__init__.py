"""Draws heatmaps, boxes and concepts over images.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.visualize.concepts import concept_colors as concept_colors
    from detcam.visualize.concepts import create_labels_legend as create_labels_legend
    from detcam.visualize.concepts import show_factorization_on_image as show_factorization_on_image
    from detcam.visualize.convert import save_image as save_image
    from detcam.visualize.convert import to_jpeg_bytes as to_jpeg_bytes
    from detcam.visualize.convert import to_png_bytes as to_png_bytes
    from detcam.visualize.drawing import Scale as Scale
    from detcam.visualize.drawing import draw_boxes as draw_boxes
    from detcam.visualize.drawing import draw_outline as draw_outline
    from detcam.visualize.drawing import scale_for as scale_for
    from detcam.visualize.overlay import deprocess_image as deprocess_image
    from detcam.visualize.overlay import grid as grid
    from detcam.visualize.overlay import overlay_heatmap as overlay_heatmap
    from detcam.visualize.overlay import preprocess_image as preprocess_image
    from detcam.visualize.overlay import render as render
    from detcam.visualize.overlay import show_cam_on_image as show_cam_on_image

_MODULES = {
    "Scale": "detcam.visualize.drawing",
    "concept_colors": "detcam.visualize.concepts",
    "create_labels_legend": "detcam.visualize.concepts",
    "deprocess_image": "detcam.visualize.overlay",
    "draw_boxes": "detcam.visualize.drawing",
    "draw_outline": "detcam.visualize.drawing",
    "grid": "detcam.visualize.overlay",
    "overlay_heatmap": "detcam.visualize.overlay",
    "preprocess_image": "detcam.visualize.overlay",
    "render": "detcam.visualize.overlay",
    "save_image": "detcam.visualize.convert",
    "scale_for": "detcam.visualize.drawing",
    "show_cam_on_image": "detcam.visualize.overlay",
    "show_factorization_on_image": "detcam.visualize.concepts",
    "to_jpeg_bytes": "detcam.visualize.convert",
    "to_png_bytes": "detcam.visualize.convert",
}
"""The module that defines each public name."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)

__all__ = sorted(_MODULES)  # type checkers read the block above
