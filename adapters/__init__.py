"""Adapters: one per model family; `adapt` selects the adapter of a model."""

from detcam.adapters.base import Adapter as Adapter
from detcam.adapters.base import Batch as Batch
from detcam.adapters.base import DetectorAdapter as DetectorAdapter
from detcam.adapters.custom_detector import CustomDetectorAdapter as CustomDetectorAdapter
from detcam.adapters.custom_detector import detector as detector
from detcam.adapters.custom_segmenter import CustomSegmentationAdapter as CustomSegmentationAdapter
from detcam.adapters.custom_segmenter import segmenter as segmenter
from detcam.adapters.embedding import EmbeddingAdapter as EmbeddingAdapter
from detcam.adapters.embedding import embed as embed
from detcam.adapters.embedding import embedder as embedder
from detcam.adapters.registry import ADAPTERS as ADAPTERS
from detcam.adapters.registry import adapt as adapt
from detcam.adapters.registry import register_adapter as register_adapter
