"""Adapters: one per model family; `adapt` selects the adapter of a model."""

from detcam.adapters.base import Adapter, Batch
from detcam.adapters.custom_detector import CustomDetectorAdapter, detector
from detcam.adapters.custom_segmenter import CustomSegmentationAdapter, segmenter
from detcam.adapters.detection import DetectorAdapter
from detcam.adapters.embedding import EmbeddingAdapter, embed, embedder
from detcam.adapters.onnx.model import OnnxModel
from detcam.adapters.registry import ADAPTERS, adapt, register_adapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Batch",
    "CustomDetectorAdapter",
    "CustomSegmentationAdapter",
    "DetectorAdapter",
    "EmbeddingAdapter",
    "OnnxModel",
    "adapt",
    "detector",
    "embed",
    "embedder",
    "register_adapter",
    "segmenter",
]
