"""One adapter per model family, and `adapt`, which finds the right one."""

from detcam.adapters.base import Adapter
from detcam.adapters.custom_detector import CustomDetectorAdapter, detector
from detcam.adapters.custom_segmenter import CustomSegmentationAdapter, segmenter
from detcam.adapters.embedding import EmbeddingAdapter, embed, embedder
from detcam.adapters.registry import FAMILIES, adapt, adapter_class

__all__ = [
    "FAMILIES",
    "Adapter",
    "CustomDetectorAdapter",
    "CustomSegmentationAdapter",
    "EmbeddingAdapter",
    "adapt",
    "adapter_class",
    "detector",
    "embed",
    "embedder",
    "segmenter",
]
