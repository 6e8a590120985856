"""Networks of ultralytics that predict maps: semantic segmentation, and depth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.segmentation import SegmentationAdapter
from detcam.adapters.ultralytics.detector import letterboxed
from detcam.adapters.ultralytics.letterbox import Letterbox
from detcam.adapters.ultralytics.network import (
    fresh_attributes,
    head_names,
    inner_module,
    is_ultralytics,
    network_input_size,
)
from detcam.detections import as_names
from detcam.layers import input_channels
from detcam.segmenter_output import SegmenterOutput


class UltralyticsMaps(SegmentationAdapter, abstract=True):
    """Base class of the networks that predict maps. Images are letterboxed as in `YOLO.predict`.

    Args:
        model: a `YOLO` object, or the module inside one.
        image_size: side of the network's input, or height and width; None takes the model's `imgsz`, else 640.
        **options: further arguments of `Adapter`, such as `names` and `target_layers`. By default, the target
            layers are those that the head reads.
    """

    fixed_options = frozenset({"mean", "std", "multilabel"})
    takes_bytes = True

    def __init__(
        self, model: object, *, image_size: int | tuple[int, int] | None = None, **options: Unpack[AdapterOptions]
    ) -> None:
        module = inner_module(model)
        stride = max(int(module.stride.max()), 32)
        self.letterbox = Letterbox(network_input_size(model, image_size, 640, stride), stride)
        channels = input_channels(module)
        super().__init__(module, mean=(0.0,) * channels, std=(1.0,) * channels, **options)

    @property
    def layers(self) -> Any:
        """The network's modules in order of execution, the head last."""
        return self.model.model

    def default_names(self) -> Mapping[int, str]:
        return as_names(self.model.names)  # type: ignore[arg-type]

    def group_key(self, image_size_hw: tuple[int, int]) -> Hashable:
        return image_size_hw

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        return letterboxed(images, self.letterbox, self.device, self.dtype)

    def prepare_tensor(self, batch: Tensor) -> Batch:
        """Take a (B, C, H, W) tensor, RGB in [0, 1], whose sides are multiples of the stride."""
        self.letterbox.check(batch, self.channels)
        return super().prepare_tensor(batch)

    def forward(self, batch: Batch) -> Any:
        with fresh_attributes(self.layers[-1]):
            return super().forward(batch)


class UltralyticsSegmentationAdapter(UltralyticsMaps):
    """Semantic segmentation of ultralytics, such as yolo26n-sem: class maps at a stride of 8."""

    family = "ultralytics semantic segmentation"

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_ultralytics(model) and "SemanticSegment" in head_names(model)

    def default_target_layers(self) -> Sequence[nn.Module]:
        return [self.layers[self.layers[-1].f[0]]]  # the head's further maps are read in training only


class UltralyticsDepthAdapter(UltralyticsMaps):
    """Depth of ultralytics, such as yolo26n-depth: one map of positive depths at a stride of 4.

    The map is explained as class 0 of a segmentation network: the score of ``MaskTarget(0, region)`` is the mean depth
    over a region, and without targets the whole image is the region.
    """

    family = "ultralytics depth"

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_ultralytics(model) and "Depth" in head_names(model)

    def default_names(self) -> Mapping[int, str]:
        return {0: "depth"}

    def default_target_layers(self) -> Sequence[nn.Module]:
        return [self.layers[index] for index in self.layers[-1].f]

    def outputs(self, raw: Any, batch: Batch) -> list[SegmenterOutput]:
        return [SegmenterOutput(item, geometry) for item, geometry in zip(raw, batch.geometries, strict=True)]
