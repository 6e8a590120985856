"""torchvision's two-stage detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, over any backbone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import keypointrcnn_inference
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes

from detcam.adapters.base import Batch
from detcam.adapters.torchvision.detector import (
    TorchvisionDetector,
    at_least_float,
    coco_names,
    resized_size,
    scores_of_regions,
)
from detcam.adapters.torchvision.pooling import roi_align
from detcam.adapters.torchvision.proposals import objectness_scores
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import DetectionTarget
from detcam.trace import guarded
from detcam.utils.precision import float64_on


class TwoStageAdapter(TorchvisionDetector):
    """Explains any `torchvision.models.detection.GeneralizedRCNN`.

    The source of a detection is its proposal: the box head scores that proposal again, so the gradient is exact and no
    box is matched by overlap. A box without a source is scored as a proposal.
    """

    family = "torchvision two-stage"

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, GeneralizedRCNN)

    def default_names(self) -> Mapping[int, str]:
        return coco_names(self.classes, keypoints=self.model.roi_heads.has_keypoint())

    @property
    def classes(self) -> int:
        heads = self.model.roi_heads
        known = getattr(getattr(heads.box_predictor, "cls_score", None), "out_features", None)
        if isinstance(known, int):
            return known
        channels = getattr(self.model.backbone, "out_channels", None)
        size = getattr(heads.box_roi_pool, "output_size", None)
        if not isinstance(channels, int) or size is None:
            raise TypeError(
                f"cannot determine the number of classes of {type(heads.box_predictor).__name__}: give it a linear "
                "layer named cls_score, or the backbone an out_channels and the box pooling an output_size"
            )
        with guarded(self.model, gradients=False):  # a custom predictor: look at its output
            pooled = torch.zeros(1, channels, *size, device=self.device, dtype=self.dtype)
            logits, _ = heads.box_predictor(heads.box_head(pooled))
        return int(logits.shape[-1])

    def forward(self, batch: Batch) -> TwoStageRaw:
        images = ImageList(batch.inputs, [resized_size(geometry) for geometry in batch.geometries])
        return TwoStageRaw(self.model, images, self.pyramid(batch.inputs))

    def outputs(self, raw: TwoStageRaw, batch: Batch) -> list[DetectorOutput]:
        classes = self.classes
        return [TwoStageOutput(self, raw, i, geometry, classes) for i, geometry in enumerate(batch.geometries)]


class TwoStageRaw:
    """The pyramid of a batch; proposals are computed on first use.

    Attributes:
        images: the network's input and the sizes of the images on it.
        features: per image, its pyramid (1, C, h, w) by level name.
    """

    def __init__(self, model: nn.Module, images: ImageList, pyramid: Mapping[str, Tensor]) -> None:
        self.model: Any = model
        self.images = images
        self.pyramid = pyramid
        split = {name: level.split(1) for name, level in pyramid.items()}
        self.features = [
            {name: parts[index] for name, parts in split.items()} for index in range(len(images.image_sizes))
        ]
        self._poolers: dict[str, Any] = {}

    @cached_property
    def proposals(self) -> list[Tensor]:
        """Per image (N, 4), input pixels, detached: scores are differentiated at fixed proposals."""
        levels = {name: level.detach() for name, level in self.pyramid.items()}
        half = any(level.dtype in (torch.float16, torch.bfloat16) for level in levels.values())
        with torch.no_grad():
            if not half:
                return list(self.model.rpn(self.images, levels)[0])
            # NMS on the CPU needs float32, and half precision would move boxes by pixels.
            rpn = self.model.rpn
            state = {name: at_least_float(tensor) for name, tensor in rpn.state_dict().items()}
            levels = {name: at_least_float(level) for name, level in levels.items()}
            return list(torch.func.functional_call(rpn, state, (self.images, levels))[0])

    def pooler(self, name: str) -> Any:
        """Return a copy of a region pooling of the heads; torchvision's keeps the scales of its first image."""
        if name not in self._poolers:
            self._poolers[name] = copy.copy(getattr(self.model.roi_heads, name))
        return self._poolers[name]


class TwoStageOutput(DetectorOutput):
    """The pyramid and proposals of one image, and the heads that read them."""

    background = 0

    def __init__(
        self, adapter: TwoStageAdapter, raw: TwoStageRaw, index: int, geometry: Geometry, classes: int
    ) -> None:
        self.adapter = adapter
        self.heads: Any = adapter.model.roi_heads
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = classes
        self.features = raw.features[index]
        self.size_hw: tuple[int, int] = raw.images.image_sizes[index]

    def pool(self, name: str, boxes: Tensor) -> Tensor:
        """Return the features (K, C, p, p) of boxes (K, 4), input pixels."""
        pooled: Tensor = self.raw.pooler(name)(self._float_features(), [at_least_float(boxes)], [self.size_hw])
        return pooled.to(self.raw.images.tensors.dtype)

    def _float_features(self) -> dict[str, Tensor]:
        """The pyramid in float32 or wider: the CPU does not pool bfloat16, and boxes need fractions of pixels."""
        return {name: at_least_float(level) for name, level in self.features.items()}

    def pool_each(self, name: str, boxes: Tensor) -> list[Tensor]:
        """Return `pool` as K tensors (1, C, p, p) whose backward passes only visit their box and level."""
        pooler = self.raw.pooler(name)
        if not torch.is_grad_enabled():
            return list(self.pool(name, boxes).split(1))
        if type(pooler) is not MultiScaleRoIAlign:
            return [self.pool(name, box[None]) for box in boxes]
        if pooler.scales is None:
            with torch.no_grad():
                self.pool(name, boxes[:1])
        levels = [level for key, level in self._float_features().items() if key in pooler.featmap_names]
        chosen = pooler.map_levels([boxes]).tolist() if len(levels) > 1 else [0] * len(boxes)
        return [
            roi_align(levels[level], [box[None]], pooler.output_size, pooler.scales[level], pooler.sampling_ratio).to(
                self.raw.images.tensors.dtype
            )
            for level, box in zip(chosen, at_least_float(boxes), strict=True)
        ]

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        proposals = self._boxes_of(targets, use_proposals=True)
        return self._read(self.pool("box_roi_pool", proposals), proposals, targets)

    def box_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        proposals = self._boxes_of(targets, use_proposals=True)
        scores: list[Tensor] = [torch.empty(0)] * len(targets)
        by_rpn = [index for index, target in enumerate(targets) if "objectness" in target.reads]
        by_head = [index for index, target in enumerate(targets) if target.reads != {"objectness"}]
        objectness = proposals.new_full((len(targets),), torch.nan).unbind()
        if by_rpn:
            pinned = [targets[index].source is not None for index in by_rpn]
            rpn = self.adapter.model.rpn
            rpn_scores = objectness_scores(rpn, self.features, self._image(), proposals[by_rpn], pinned)
            known = dict(zip(by_rpn, rpn_scores, strict=True))
            objectness = tuple(known.get(index, missing) for index, missing in enumerate(objectness))

        def scalars(regions: Tensor, part: slice) -> list[Tensor]:
            rows = by_head[part]
            candidates = self._read(regions, proposals[rows], [targets[index] for index in rows])
            candidates = replace(candidates, objectness=torch.stack([objectness[index] for index in rows]))
            return [targets[index].value(candidates, row) for row, index in enumerate(rows)]

        if by_head:
            regions = self.pool_each("box_roi_pool", proposals[by_head])
            for index, score in zip(by_head, scores_of_regions(regions, scalars), strict=True):
                scores[index] = score
        for index in set(by_rpn) - set(by_head):
            unread = proposals.new_full((1, max(4, self.classes)), torch.nan)
            candidates = Candidates(unread[:, :4], unread[:, : self.classes], unread, objectness[index][None])
            scores[index] = targets[index].value(candidates, 0)
        return scores

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        if not self.heads.has_mask():
            return super().mask_scores(targets)

        def scalars(regions: Tensor, part: slice) -> list[Tensor]:
            maps = self.heads.mask_predictor(self.heads.mask_head(regions))
            return [
                target.mask_value(logits[target.label], target.box_xyxy)
                for logits, target in zip(maps, targets[part], strict=True)
            ]

        boxes = self._boxes_of(targets, use_proposals=False)
        return scores_of_regions(self.pool_each("mask_roi_pool", boxes), scalars)

    def _boxes_of(self, targets: Sequence[DetectionTarget], *, use_proposals: bool) -> Tensor:
        """Proposals (K, 4) of targets, input pixels; their boxes where they have none or not `use_proposals`."""
        boxes = [(t.source.box_xyxy if t.source and use_proposals else None) or t.box_xyxy for t in targets]
        pixels = self.raw.images.tensors
        boxes_xyxy = torch.tensor(boxes, dtype=float64_on(pixels.device), device=pixels.device).reshape(-1, 4)
        return self.geometry.boxes_to_input(boxes_xyxy).to(torch.promote_types(pixels.dtype, torch.float32))

    def _read(self, pooled: Tensor, proposals: Tensor, targets: Sequence[DetectionTarget]) -> Candidates:
        logits, regression = self.heads.box_predictor(self.heads.box_head(pooled))
        boxes = self.heads.box_coder.decode(regression, [proposals])
        labels = torch.tensor([target.label for target in targets], device=boxes.device)
        chosen = boxes[torch.arange(len(targets), device=boxes.device), labels]
        logits = at_least_float(logits)
        return Candidates(self.geometry.boxes_to_image(chosen), F.softmax(logits, -1), logits)

    def _image(self) -> ImageList:
        return ImageList(self.raw.images.tensors[:1], [self.size_hw])  # only its size is read

    @cached_property
    @torch.no_grad()
    def _head_output(self) -> tuple[Tensor, Tensor]:
        """The box head's output for all proposals, detached: logits (K, C) and regression (K, 4 C)."""
        pooled = self.pool("box_roi_pool", self.raw.proposals[self.index])
        logits, regression = self.heads.box_predictor(self.heads.box_head(pooled))
        return logits, regression

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        logits, regression = self._head_output
        scores = F.softmax(at_least_float(logits), -1)
        boxes = self.heads.box_coder.decode(regression, [self.raw.proposals[self.index]])
        if label is None:
            boxes = boxes[torch.arange(len(boxes), device=boxes.device), scores[:, 1:].argmax(1) + 1]
        else:
            boxes = boxes[:, label]
        return self.geometry.clip(self.geometry.boxes_to_image(boxes)), scores

    @torch.no_grad()
    def detections(self) -> Detections:
        heads, proposals = self.heads, self.raw.proposals[self.index]
        boxes, labels, scores, origin = self._suppress(*self._head_output, proposals)
        result: dict[str, Tensor] = {"boxes": boxes, "labels": labels, "scores": scores}
        if heads.has_mask():
            maps = heads.mask_predictor(heads.mask_head(self.pool("mask_roi_pool", boxes)))
            each = torch.arange(len(labels), device=labels.device)
            result["masks"] = maps[each, labels].sigmoid()[:, None]
        if heads.has_keypoint():
            maps = heads.keypoint_predictor(heads.keypoint_head(self.pool("keypoint_roi_pool", boxes)))
            (result["keypoints"],), (result["keypoints_scores"],) = keypointrcnn_inference(maps, [boxes])
        processed = self.adapter.model.transform.postprocess([result], [self.size_hw], [self.geometry.image_size_hw])[0]
        extras = {}
        if heads.has_keypoint():  # torchvision's third column is constant; it is replaced by the score
            points = [processed["keypoints"][..., :2], processed["keypoints_scores"][..., None]]
            extras["keypoints"] = torch.cat(points, -1).float().cpu()
        sources = self.geometry.boxes_to_image(proposals[origin].cpu().double()).tolist()
        return Detections(
            processed["boxes"].float().cpu(),
            labels.cpu(),
            scores.float().cpu(),
            self.geometry.image_size_hw,
            tuple(Source("proposal", box_xyxy=tuple(box)) for box in sources),
            masks=(processed["masks"][:, 0] > 0.5).cpu() if heads.has_mask() else None,
            names=self.adapter.names,
            extras=extras,
        )

    def _suppress(self, logits: Tensor, regression: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply the box head's post-processing and keep the proposal of each box.

        Returns:
            Boxes (N, 4) in input pixels, labels (N,), scores (N,), indices of proposals (N,).
        """
        heads = self.heads
        boxes = heads.box_coder.decode(regression, [proposals])
        boxes = clip_boxes_to_image(boxes, self.size_hw)[:, 1:].reshape(-1, 4)
        table = F.softmax(at_least_float(logits), -1)[:, 1:]
        scores = table.reshape(-1)
        keep = torch.where(scores > heads.score_thresh)[0]
        keep = keep[remove_small_boxes(boxes[keep], min_size=1e-2)]
        labels = keep % table.shape[1] + 1
        chosen = batched_nms(at_least_float(boxes[keep]), at_least_float(scores[keep]), labels, heads.nms_thresh)
        chosen = chosen[: heads.detections_per_img]
        keep, labels = keep[chosen], labels[chosen]
        return boxes[keep], labels, scores[keep], torch.div(keep, table.shape[1], rounding_mode="floor")
