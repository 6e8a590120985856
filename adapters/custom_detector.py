"""Detectors of any architecture: a decode function reads boxes and class scores from the raw output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.black_box import BlackBox
from detcam.adapters.contract import plain_module
from detcam.adapters.decode_probe import deepest_far_layer, observe_decode
from detcam.adapters.decoded_boxes import Decoded, DecodedOutput, read_decoded
from detcam.adapters.detection import DetectorAdapter
from detcam.data.images import as_float
from detcam.geometry import Geometry, checked_size
from detcam.layers import probe_sizes
from detcam.outputs import DetectorOutput
from detcam.trace import guarded

DEFAULT_PROBE_HW = (224, 224)
"""Size of the noise images that run through a network that takes any size."""
DetectorDecode: TypeAlias = Callable[[Any], "tuple[Tensor, ...]"]
"""From the model's raw output for a batch to ``(boxes_xyxy, class_scores)``, (B, N, 4) in network-input pixels and
(B, N, C) in [0, 1], and optionally objectness (B, N) in [0, 1] and the index (B, N) of each row's candidate, int64."""


class CustomDetectorAdapter(DetectorAdapter):
    """Explains any detector by one function that reads its raw output; also named `detector`.

    Args:
        model: from a (B, 3, H, W) input to anything that `decode` understands.
        decode: from the raw output of a batch to ``(boxes_xyxy, class_scores)``: (B, N, 4) in network-input pixels
            and (B, N, C) in [0, 1], as the detector reports them; optionally objectness (B, N), and the int64 index
            (B, N) of the candidate that each row comes from. It must be differentiable. Non-maximum suppression is
            applied afterwards. If the network or `decode` sorts, selects or suppresses boxes (found with one pass on
            noise), a row is another box in another image; a box is then found by that index, or else by overlap and
            class, and one that is not found has the score 0.
        image_size: (height, width) that every image is stretched to, or one number for both; None keeps its size.
        letterbox: whether to keep the image's aspect ratio and pad it to `image_size` with gray (114/255): True pads
            on both sides, ``"top-left"`` on the right and below, as YOLOX does.
        preprocess: from one (3, H, W) RGB image in [0, 1] at input size to the network's input, such as a
            normalization or a swap of channels; None leaves the image as it is.
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: overlap above which the weaker of two boxes of a class is suppressed, in [0, 1].
        max_detections: maximum number of detections per image.
        max_batch_size: maximum number of images per forward pass; None finds out whether the network takes two.
        **options: further arguments of `Adapter`, such as `target_layers` and `names`. By default, the target layer is
            the deepest one whose gradient covers half of the image.

    Raises:
        TypeError: `model` is not a module, or `decode` does not return tensors (when it is first called).
        ValueError: `decode` returns tensors of other shapes, scores outside [0, 1], or boxes that are not corners in
            pixels of the network's input.
        RuntimeError: no layer returns a map, or the scores have no gradient.

    Example:
        >>> import torch
        >>> from detcam.adapters import detector
        >>> def decode(output):
        ...     x, y, w, h, logit = output.flatten(2).unbind(1)
        ...     boxes = 64 * torch.stack([x - w.exp(), y - h.exp(), x + w.exp(), y + h.exp()], -1)
        ...     return boxes, logit.sigmoid()[..., None]
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 5, 8, stride=8))
        >>> adapter = detector(model, decode, names=["boat"], image_size=64, target_layers="0")
        >>> (detections,) = adapter.predict(torch.rand(3, 48, 64), labels="boat")
    """

    family = "custom detector"
    score_threshold_name = "score_threshold"
    takes_bytes = True

    def __init__(
        self,
        model: nn.Module,
        decode: DetectorDecode,
        *,
        image_size: int | tuple[int, int] | None = None,
        letterbox: bool | Literal["top-left"] = False,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        score_threshold: float = 0.25,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        max_batch_size: int | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        model = plain_module(model)
        if not callable(decode):
            raise TypeError(f"expected decode to be a function of the model's output; got {type(decode).__name__}")
        self.decode = decode
        size = checked_size(image_size)
        self.image_size = (size, size) if isinstance(size, int) else size
        if letterbox not in (True, False, "top-left"):
            raise ValueError(f'expected letterbox to be True, False or "top-left"; got {letterbox!r}')
        if letterbox and self.image_size is None:
            raise ValueError("letterbox=True needs image_size=, the canvas that images are fitted into")
        self.letterbox = letterbox
        self.preprocess = preprocess
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.max_batch_size = max_batch_size
        self.rows_are_sources = True
        super().__init__(model, **options)
        if isinstance(model, BlackBox):
            self.rows_are_sources = False
            self.max_batch_size = max_batch_size or model.max_batch_size
            return
        self._check_channels()
        behavior = observe_decode(self, self._noise, probe_sizes(self.image_size or DEFAULT_PROBE_HW))
        self.rows_are_sources = behavior.rows_are_sources
        if max_batch_size is None:
            self.max_batch_size = behavior.max_batch_size

    @classmethod
    def supports(cls, model: object) -> bool:
        return False  # the output of an unknown detector needs a decode function

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the deepest layer whose gradient, for boxes at the image's center, covers half of the image.

        The last layers before a convolutional head only see a box and its surroundings, so a map there cannot show
        evidence elsewhere. The reach of each layer is measured on a noise image. If no layer reaches half of the image,
        the deepest one is taken that keeps most of the farthest one's reach, beyond one cell, with a warning.
        """
        self._check_channels()
        return [deepest_far_layer(self, self._noise(1))]

    def _check_channels(self) -> None:
        """Correct the number of channels of a network that moves space to depth before its first convolution.

        That convolution has four times the channels of the network's input, as in YOLOX.
        """
        if self.channels % 4:
            return
        try:
            with guarded(self.model, gradients=False, quiet=True):
                self.forward(self._noise(1))
        except RuntimeError:
            self.reader = replace(self.reader, channels=self.channels // 4)

    def _noise(self, count: int, size_hw: tuple[int, int] | None = None) -> Batch:
        """The network's input for seeded noise images of its size, or of another."""
        size_hw = size_hw or self.image_size or DEFAULT_PROBE_HW
        noise = torch.rand((self.channels, *size_hw), generator=torch.Generator().manual_seed(0))
        image = self.preprocess(noise) if self.preprocess else noise
        geometries = (Geometry.identity(size_hw),) * count
        return Batch(torch.stack([image] * count).to(self.device, self.dtype), geometries)

    def group_key(self, image_size_hw: tuple[int, int]) -> Any:
        return 0 if self.image_size else image_size_hw

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        geometries = [self._geometry((image.shape[-2], image.shape[-1])) for image in images]
        inputs = torch.stack([self._resized(image, g) for image, g in zip(images, geometries, strict=True)])
        return Batch(inputs.to(self.device, self.dtype), tuple(geometries))

    def _geometry(self, size_hw: tuple[int, int]) -> Geometry:
        canvas = self.image_size or size_hw
        if not self.letterbox:
            return Geometry.resize(size_hw, canvas)
        scale = min(canvas[0] / size_hw[0], canvas[1] / size_hw[1])
        height, width = (max(round(side * scale), 1) for side in size_hw)
        offset = (float((canvas[1] - width) // 2), float((canvas[0] - height) // 2))
        if self.letterbox == "top-left":
            offset = (0.0, 0.0)
        return Geometry(size_hw, canvas, (width / size_hw[1], height / size_hw[0]), offset)

    def _resized(self, image: Tensor, geometry: Geometry) -> Tensor:
        """Resize and pad an image according to its geometry, and preprocess it."""
        image = as_float(image)
        (height, width), (scale_x, scale_y) = geometry.image_size_hw, geometry.scale_xy
        size = (round(height * scale_y), round(width * scale_x))
        if size != (height, width):
            # No antialiasing: it would blur the input of a detector trained on plain bilinear resizes.
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        left, top = (int(value) for value in geometry.offset_xy)
        right, bottom = geometry.input_size_hw[1] - left - size[1], geometry.input_size_hw[0] - top - size[0]
        if left or top or right or bottom:
            image = F.pad(image, (left, right, top, bottom), value=114 / 255)
        return self.preprocess(image) if self.preprocess else image

    def outputs(self, raw: object, batch: Batch) -> list[DetectorOutput]:
        decoded = self.decoded(raw, len(batch.inputs))
        return [DecodedOutput(self, decoded.image(index), geometry) for index, geometry in enumerate(batch.geometries)]

    def decoded(self, raw: Any, count: int) -> Decoded:
        """Call `decode` on the raw output of a batch of `count` images, and check the result."""
        return read_decoded(self.decode(raw), raw, count)


detector = CustomDetectorAdapter
"""Makes any detector explainable with a decode function: ``detector(model, decode, ...)``."""
