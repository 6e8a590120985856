"""Figures of the demonstration."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from detcam.adapters import Adapter
from detcam.demo.evidence import BoolArray, SceneResult, dilate, match_labels
from detcam.demo.messages import method_title
from detcam.demo.train import SCORE_THRESHOLD
from detcam.detections import Detections
from detcam.synthetic.harbor import HarborScene
from detcam.utils.opencv import cv2
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import draw_boxes, grid, render

ZOOM = 2  # keeps outlines and captions thin compared with the scene
CORRECT_COLOR, FALSE_COLOR = (120, 230, 140), (255, 150, 40)


def scene_figure(adapter: Adapter, result: SceneResult) -> ImageArray:
    """Draw a row per false positive: detections, heatmap, heatmap of the last layer, the scene without the wake."""
    scene, detections = result.scene, result.detections
    early, last = result.early_layer, result.last_layer
    panels, titles = [], []
    for item in result.false_positives:
        box = detections.boxes_xyxy[item.index]
        wake = scene.object(item.wake).mask
        edited = scene.without([item.wake])
        after = adapter.predict(edited.image, score_threshold=SCORE_THRESHOLD)[0]
        panels += [
            _boxes_panel(scene, detections, result.correct, item.index),
            _heatmap_panel(scene, early.heatmaps[item.index], box, wake),
            _heatmap_panel(scene, last.heatmaps[item.index], box, wake),
            _boxes_panel(edited, after, match_labels(after, scene), None),
        ]
        titles += [
            f"false positive, score {item.score:.2f}",
            f"{method_title(early)}: {item.early_layer.wake:.0%} of the heat in the wake",
            f"{method_title(last)} at the last layer: {item.last_layer.wake:.0%}",
            "without the wake: " + ("gone" if item.certification.gone_without_wake else "still detected"),
        ]
    return grid(panels, columns=4, titles=titles)


def _boxes_panel(
    scene: HarborScene, detections: Detections, correct: tuple[bool, ...], explained: int | None
) -> ImageArray:
    """Draw a scene with its detections, green if they match a label, orange if not."""
    colors = [CORRECT_COLOR if is_correct else FALSE_COLOR for is_correct in correct]
    captions = [("false: " if i == explained else "") + detections.caption(i) for i in range(len(detections))]
    return draw_boxes(_zoom(scene.image), detections.boxes_xyxy * ZOOM, captions, colors=colors)


def _heatmap_panel(scene: HarborScene, heatmap: Tensor, box: Tensor, wake: BoolArray) -> ImageArray:
    """Draw a heatmap over the scene, with the box and the outline of the wake."""
    height, width = (side * ZOOM for side in heatmap.shape)
    heat = np.clip(cv2.resize(np.asarray(heatmap), (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    overlay = render(_zoom(scene.image), heat, mask=_zoom(dilate(wake)), color_bar=False)
    return draw_boxes(overlay, (box * ZOOM)[None], colors=FALSE_COLOR)


def _zoom(image: np.ndarray) -> np.ndarray:
    return image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
