"""Detectors of any architecture: a decode function reads boxes and class scores from the raw output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch, DetectorAdapter
from detcam.adapters.candidates import best_fit
from detcam.adapters.contract import plain_module
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks

DetectorDecode: TypeAlias = Callable[[Any], "tuple[Tensor, ...]"]
"""From the model's raw output for a batch to ``(boxes_xyxy, class_scores)`` or ``(boxes_xyxy, class_scores,
objectness)``: (B, N, 4) in network-input pixels, (B, N, C) in [0, 1] and (B, N) in [0, 1]."""


class CustomDetectorAdapter(DetectorAdapter):
    """Explains any detector by one function that reads its raw output; also named `detector`.

    Args:
        model: from a (B, 3, H, W) input to anything that `decode` understands.
        decode: from the raw output of a batch to ``(boxes_xyxy, class_scores)``: (B, N, 4) in network-input pixels
            and (B, N, C) in [0, 1], as the detector reports them; optionally a third, objectness (B, N). It must be
            differentiable. Non-maximum suppression is applied afterwards.
        image_size: (height, width) that every image is stretched to, or one number for both; None keeps its size.
        letterbox: whether to keep the image's aspect ratio and pad it to `image_size` with gray (114/255): True pads
            on both sides, ``"top-left"`` on the right and below, as YOLOX does.
        preprocess: from one (3, H, W) RGB image in [0, 1] at input size to the network's input, such as a
            normalisation or a swap of channels; None leaves the image as it is.
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: overlap above which the weaker of two boxes of a class is suppressed, in [0, 1].
        max_detections: maximum number of detections per image.
        max_batch_size: maximum number of images per forward pass; 1 for many exported networks, None for any number.
        **options: `target_layers`, `reshape_transform` and `names`, as in `Adapter`. By default, the target layer is
            the deepest one whose gradient covers half of the image.

    Raises:
        TypeError: `model` is not a module, or `decode` does not return tensors (when it is first called).
        ValueError: `decode` returns tensors of other shapes, or scores outside [0, 1].

    Example:
        >>> import torch
        >>> from detcam.adapters import detector
        >>> def decode(output):
        ...     x, y, w, h, logit = output.flatten(2).unbind(1)
        ...     return torch.stack([x - w, y - h, x + w, y + h], -1), logit.sigmoid()[..., None]
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 5, 8, stride=8))
        >>> adapter = detector(model, decode, names=["boat"], image_size=64, target_layers="0")
        >>> (detections,) = adapter.predict(torch.rand(3, 48, 64), labels="boat")
    """

    family = "custom detector"
    score_threshold_name = "score_threshold"

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
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
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
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        return False  # the output of an unknown detector needs a decode function

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the deepest layer whose gradient, for boxes at the image's centre, covers half of the image.

        The last layers before a convolutional head only see a box and its surroundings, so a map there cannot show
        evidence elsewhere. The reach of each layer is measured on a noise image.
        """
        height, width = self.image_size or (224, 224)
        noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
        maps: list[tuple[nn.Module, Tensor]] = []

        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.requires_grad and min(output.shape[-2:]) > 1:
                maps.append((module, output))

        with guarded(self.model, gradients=True):
            batch = self.prepare([noise])
            batch.inputs.requires_grad_(True)
            inner = [module for module in self.model.modules() if module is not self.model]
            with active_hooks(module.register_forward_hook(record) for module in inner):
                raw = self.forward(batch)
            output = CustomOutput(self, tuple(part[0] for part in self._decoded(raw, 1)), batch.geometries[0])
            if not maps:
                raise RuntimeError(
                    "no layer inside the model returns a (B, C, h, w) map; pass target_layers=, for example "
                    "target_layers=[model] for a model of one layer"
                )
            if not output.scores.requires_grad:
                raise RuntimeError("the scores that decode returns have no gradient; decode must not detach the output")
            reach = _reach([tensor for _, tensor in maps], output.central_scores(8))
        for (module, _), fractions in zip(reversed(maps), reversed(reach), strict=True):
            if min(fractions) > 0 and sorted(fractions)[len(fractions) // 2] >= 0.5:
                return [module]
        return [maps[0][0]]

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
        height, width = round(size_hw[0] * scale), round(size_hw[1] * scale)
        offset = (float((canvas[1] - width) // 2), float((canvas[0] - height) // 2))
        if self.letterbox == "top-left":
            offset = (0.0, 0.0)
        return Geometry(size_hw, canvas, (width / size_hw[1], height / size_hw[0]), offset)

    def _resized(self, image: Tensor, geometry: Geometry) -> Tensor:
        """Resize and pad an image according to its geometry, and preprocess it."""
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
        decoded = self._decoded(raw, len(batch.inputs))
        return [
            CustomOutput(self, tuple(part[index] for part in decoded), geometry)
            for index, geometry in enumerate(batch.geometries)
        ]

    def _decoded(self, raw: Any, count: int) -> tuple[Tensor, ...]:
        decoded = self.decode(raw)
        if not isinstance(decoded, (tuple, list)) or len(decoded) not in (2, 3):
            raise TypeError(
                "expected decode to return (boxes_xyxy, class_scores) or (boxes_xyxy, class_scores, objectness); "
                f"got {type(decoded).__name__}"
            )
        if not all(isinstance(part, Tensor) for part in decoded):
            raise TypeError(f"expected decode to return tensors; got {[type(part).__name__ for part in decoded]}")
        boxes, scores = decoded[0], decoded[1]
        fits = boxes.ndim == 3 and boxes.shape[-1] == 4 and scores.ndim == 3 and scores.shape[:2] == boxes.shape[:2]
        fits = fits and (len(decoded) == 2 or decoded[2].shape == boxes.shape[:2]) and len(boxes) == count
        if not fits:
            raise ValueError(
                f"expected decode to return boxes ({count}, N, 4) and class scores ({count}, N, C), and objectness "
                f"({count}, N) if there is one; got {', '.join(str(tuple(part.shape)) for part in decoded)}"
            )
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ValueError("expected class scores in [0, 1]; apply sigmoid or softmax in decode")
        return tuple(decoded)


class CustomOutput(DetectorOutput):
    """The decoded candidates of one image."""

    def __init__(self, adapter: CustomDetectorAdapter, decoded: tuple[Tensor, ...], geometry: Geometry) -> None:
        self.adapter = adapter
        self.geometry = geometry
        self.boxes, self.scores = decoded[0], decoded[1]
        self.objectness = decoded[2] if len(decoded) == 3 else None
        self.classes = self.scores.shape[-1]

    def _row(self, target: DetectionTarget) -> int:
        if target.source is not None and 0 <= target.source.anchor < len(self.boxes):
            return target.source.anchor
        target_xyxy = self.geometry.boxes_to_input(self.boxes.new_tensor(target.box_xyxy))
        return best_fit(self.boxes, self.scores[:, target.label], target_xyxy)

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        rows = torch.tensor([self._row(target) for target in targets], device=self.boxes.device)
        scores = self.scores[rows]
        return Candidates(
            self.geometry.boxes_to_image(self.boxes[rows]),
            scores,
            torch.logit(scores, eps=1e-6),
            None if self.objectness is None else self.objectness[rows],
        )

    def central_scores(self, count: int) -> list[Tensor]:
        """Return the best class score of each of the `count` candidates nearest the input's centre, as scalars."""
        height, width = self.geometry.input_size_hw
        centers = (self.boxes[:, :2] + self.boxes[:, 2:]).detach() / 2
        distance = (centers - centers.new_tensor([width / 2, height / 2])).norm(dim=1)
        nearest = distance.argsort(stable=True)[:count]
        return [self.scores[row].max() for row in nearest.tolist()]

    def source_of(self, target: DetectionTarget) -> Source:
        return Source("query", anchor=self._row(target))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self.geometry.clip(self.geometry.boxes_to_image(self.boxes)), self.scores

    @torch.no_grad()
    def detections(self) -> Detections:
        adapter = self.adapter
        scores, labels = self.scores.float().max(1)
        rows = torch.nonzero(scores >= adapter.score_threshold)[:, 0]
        boxes = self.geometry.clip(self.geometry.boxes_to_image(self.boxes.float()))
        rows = rows[(boxes[rows, 2:] > boxes[rows, :2]).all(1)]
        kept = rows[batched_nms(boxes[rows], scores[rows], labels[rows], adapter.iou_threshold)]
        kept = kept[: adapter.max_detections]
        return Detections(
            boxes[kept].cpu(),
            labels[kept].cpu(),
            scores[kept].cpu(),
            self.geometry.image_size_hw,
            tuple(Source("query", anchor=row) for row in kept.tolist()),
            names=adapter.names,
        )


def _reach(layers: Sequence[Tensor], scores: Sequence[Tensor]) -> list[list[float]]:
    """Return, per layer and score, the fraction of the layer's cells with a nonzero gradient of the score."""
    fractions: list[list[float]] = [[] for _ in layers]
    for score in scores:
        gradients = torch.autograd.grad(score, list(layers), retain_graph=True, allow_unused=True)
        for row, gradient in zip(fractions, gradients, strict=True):
            row.append(0.0 if gradient is None else float((gradient != 0).any(1).float().mean()))
    return fractions


detector = CustomDetectorAdapter
"""Makes any detector explainable with a decode function: ``detector(model, decode, ...)``."""
