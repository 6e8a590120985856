"""A detector of your own: say how to read boxes and class scores out of its raw output, and it is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from detcam.adapters.base import Batch, DetectorAdapter
from detcam.adapters.candidates import best_fit
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.trace import ReshapeTransform, guarded

Decode = Callable[[Any], tuple[Tensor, ...]]
"""From the model's raw output for a batch to ``(boxes_xyxy, class_scores)`` or ``(boxes_xyxy, class_scores,
objectness)``: (B, N, 4) in network-input pixels, (B, N, C) in [0, 1] as they should be reported, (B, N)."""


class CustomDetectorAdapter(DetectorAdapter):
    """Explains any module whose output a function turns into boxes and class scores; see `detector`."""

    family = "custom detector"

    least_score_name = "score_threshold"

    def __init__(
        self,
        model: nn.Module,
        decode: Decode,
        *,
        image_size: int | tuple[int, int] | None = None,
        letterbox: bool = False,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        score_threshold: float = 0.25,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        max_batch_size: int | None = None,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module; got {type(model).__name__}")
        if not callable(decode):
            raise TypeError(f"expected decode to be a function of the model's output; got {type(decode).__name__}")
        self.decode = decode
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if letterbox and self.image_size is None:
            raise ValueError("letterbox=True needs image_size=, the canvas that images are fitted into")
        self.letterbox = letterbox
        self.preprocess = preprocess
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.max_batch_size = max_batch_size
        super().__init__(model, target_layers=target_layers, reshape_transform=reshape_transform, names=names)

    @classmethod
    def supports(cls, model: Any) -> bool:
        return False  # what an unknown detector's output means is for its user to say

    def default_target_layers(self) -> Sequence[nn.Module]:
        """The deepest layer from which half the image can still speak for a box at its centre.

        The last layers before a convolutional head see one box and little around it; a map there could never show
        evidence elsewhere. How far each layer reaches is measured on a noise image.
        """
        height, width = self.image_size or (224, 224)
        noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
        seen: list[tuple[nn.Module, Tensor]] = []

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.requires_grad and min(output.shape[-2:]) > 1:
                seen.append((module, output))

        with guarded(self.model, gradients=True):
            batch = self.prepare([noise])
            batch.inputs.requires_grad_(True)
            handles = [
                module.register_forward_hook(look) for module in self.model.modules() if module is not self.model
            ]
            try:
                raw = self.forward(batch)
            finally:
                for handle in handles:
                    handle.remove()
            output = CustomOutput(self, tuple(part[0] for part in self._decoded(raw, 1)), batch.geometries[0])
            reach = _reach([tensor for _, tensor in seen], output.central_scores(8))
        for (module, _), fractions in zip(reversed(seen), reversed(reach), strict=True):
            if min(fractions) > 0 and sorted(fractions)[len(fractions) // 2] >= 0.5:
                return [module]
        if not seen:
            raise RuntimeError("no layer of the model puts out a (B, C, h, w) map; pass target_layers=")
        return [seen[0][0]]

    def groups(self, images: Sequence[Tensor], batch_size: int) -> list[list[int]]:
        return super().groups(images, min(batch_size, self.max_batch_size or batch_size))

    def group_key(self, image_size_hw: tuple[int, int]) -> Any:
        return 0 if self.image_size else image_size_hw

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        geometries = [self._geometry((image.shape[-2], image.shape[-1])) for image in images]
        inputs = torch.stack([self._place(image, g) for image, g in zip(images, geometries, strict=True)])
        return Batch(inputs.to(self.device, self.dtype), tuple(geometries))

    def _geometry(self, size_hw: tuple[int, int]) -> Geometry:
        canvas = self.image_size or size_hw
        if not self.letterbox:
            return Geometry.resize(size_hw, canvas)
        scale = min(canvas[0] / size_hw[0], canvas[1] / size_hw[1])
        height, width = round(size_hw[0] * scale), round(size_hw[1] * scale)
        offset = (float((canvas[1] - width) // 2), float((canvas[0] - height) // 2))
        return Geometry(size_hw, canvas, (width / size_hw[1], height / size_hw[0]), offset)

    def _place(self, image: Tensor, geometry: Geometry) -> Tensor:
        """The image at its place on the canvas, as the network expects it."""
        (height, width), (scale_x, scale_y) = geometry.image_size_hw, geometry.scale_xy
        size = (round(height * scale_y), round(width * scale_x))
        if size != (height, width):
            # Antialiasing would blur what a detector trained on plain bilinear resizes expects.
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        left, top = (int(value) for value in geometry.offset_xy)
        right, bottom = geometry.input_size_hw[1] - left - size[1], geometry.input_size_hw[0] - top - size[0]
        if left or top or right or bottom:
            image = F.pad(image, (left, right, top, bottom), value=114 / 255)
        return self.preprocess(image) if self.preprocess else image

    def forward(self, batch: Batch) -> Any:
        return self.model(batch.inputs, *batch.extra_inputs, **batch.model_kwargs)

    def outputs(self, raw: Any, batch: Batch) -> list[DetectorOutput]:
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
    """One image's decoded candidates."""

    def __init__(self, adapter: CustomDetectorAdapter, decoded: tuple[Tensor, ...], geometry: Geometry) -> None:
        self.adapter = adapter
        self.geometry = geometry
        self.boxes, self.scores = decoded[0], decoded[1]
        self.objectness = decoded[2] if len(decoded) == 3 else None
        self.classes = self.scores.shape[-1]

    def _row(self, target: DetectionTarget) -> int:
        if target.source is not None and 0 <= target.source.anchor < len(self.boxes):
            return target.source.anchor
        wanted = self.geometry.boxes_to_input(self.boxes.new_tensor(target.box_xyxy))
        return best_fit(self.boxes, self.scores[:, target.label], wanted)

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
        """The best class score of each of the candidates nearest the centre of the input, as scalars."""
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
        whole = (boxes[rows, 2] > boxes[rows, 0]) & (boxes[rows, 3] > boxes[rows, 1])
        rows = rows[whole]
        kept = rows[batched_nms(boxes[rows], scores[rows], labels[rows], adapter.iou_threshold)][
            : adapter.max_detections
        ]
        return Detections(
            boxes[kept].cpu(),
            labels[kept].cpu(),
            scores[kept].cpu(),
            self.geometry.image_size_hw,
            tuple(Source("query", anchor=row) for row in kept.tolist()),
            names=adapter.names,
        )


def _reach(layers: Sequence[Tensor], scores: Sequence[Tensor]) -> list[list[float]]:
    """Per layer and score, the share of the layer's cells at which the score's gradient is not zero."""
    fractions: list[list[float]] = [[] for _ in layers]
    for score in scores:
        gradients = torch.autograd.grad(score, list(layers), retain_graph=True, allow_unused=True)
        for row, gradient in zip(fractions, gradients, strict=True):
            row.append(0.0 if gradient is None else float((gradient != 0).any(1).float().mean()))
    return fractions


def detector(
    model: nn.Module,
    decode: Decode,
    *,
    image_size: int | tuple[int, int] | None = None,
    letterbox: bool = False,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    max_batch_size: int | None = None,
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    reshape_transform: ReshapeTransform | None = None,
    names: Mapping[int, str] | Sequence[str] | None = None,
) -> CustomDetectorAdapter:
    """Make any detector explainable with one function that reads its raw output.

    Args:
        model: from a (B, 3, H, W) input to anything that `decode` understands.
        decode: from the raw output of a batch to ``(boxes_xyxy, class_scores)``: (B, N, 4) in network-input pixels
            and (B, N, C) in [0, 1], as the detector should report them; optionally a third, objectness (B, N).
            It must be differentiable; non-maximum suppression follows on its own.
        image_size: (H, W) that every image is stretched to; None takes images at their own size.
        letterbox: keep the image's proportions and pad to `image_size` with grey (114/255), image centred.
        preprocess: from one (3, H, W) RGB image in [0, 1] at input size to what the network expects (normalise,
            swap channels); None hands it on.
        score_threshold: least score of a detection.
        iou_threshold: overlap at which the weaker of two boxes of a class is dropped.
        max_detections: at most so many per image.
        max_batch_size: images that the model takes at once; 1 for many exported networks, None for any number.
        target_layers: modules or dotted names; None takes the deepest layer whose measured reach covers half the
            image.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.
        names: class index to name.

    Returns:
        An adapter, ready for `GradCAM(adapter)`, `explain(adapter, images)` and `adapter.predict(images)`.

    Raises:
        TypeError: `model` is not a module, or `decode` returns no tensors (when it is first called).
        ValueError: `decode` returns tensors of other shapes, or scores outside [0, 1].
    """
    return CustomDetectorAdapter(
        model,
        decode,
        image_size=image_size,
        letterbox=letterbox,
        preprocess=preprocess,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        max_batch_size=max_batch_size,
        target_layers=target_layers,
        reshape_transform=reshape_transform,
        names=names,
    )
