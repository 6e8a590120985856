"""torchvision's two-stage detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, over any backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from detcam.adapters.base import Batch, DetectorAdapter
from detcam.adapters.coco import coco_names
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.outputs import Candidates, DetectorOutput
from detcam.targets import BoxTarget, DetectionTarget, InstanceMaskTarget


@dataclass(frozen=True)
class _Raw:
    """Pyramid features, the network's input with its padding, and the proposals of each image (input pixels)."""

    features: Mapping[str, Tensor]
    images: ImageList
    proposals: list[Tensor]


class TwoStageAdapter(DetectorAdapter):
    """Explains any `torchvision.models.detection.GeneralizedRCNN`.

    A detection is pinned to its proposal: the box head scores that proposal again, so the gradient is exact and no
    box is re-found by overlap. A box that nobody detected is scored as a proposal.
    """

    family = "torchvision two-stage"

    @classmethod
    def supports(cls, model: Any) -> bool:
        return isinstance(model, GeneralizedRCNN)

    def default_target_layers(self) -> Sequence[nn.Module]:
        return [self.model.backbone]

    def default_names(self) -> Mapping[int, str]:
        return coco_names(self.classes, keypoints=self.model.roi_heads.has_keypoint())

    @property
    def classes(self) -> int:
        """Number of class indices, background (0) included."""
        predictor = self.model.roi_heads.box_predictor
        return int(predictor.cls_score.out_features)

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        moved = [image.to(self.device, self.dtype) for image in images]
        transformed, _ = self.model.transform(moved)
        canvas = (transformed.tensors.shape[-2], transformed.tensors.shape[-1])
        geometries = []
        for image, (height, width) in zip(images, transformed.image_sizes, strict=True):
            size = (image.shape[-2], image.shape[-1])
            geometries.append(Geometry(size, canvas, (width / size[1], height / size[0])))
        return Batch(transformed.tensors, tuple(geometries))

    def prepare_tensor(self, batch: Tensor) -> Batch:
        return self.prepare(list(batch))

    def forward(self, batch: Batch) -> _Raw:
        features = self.model.backbone(batch.inputs)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        sizes = [_input_size(geometry) for geometry in batch.geometries]
        images = ImageList(batch.inputs, sizes)
        with torch.no_grad():  # proposals are places, not evidence: the head's score is differentiated at fixed ones
            proposals, _ = self.model.rpn(images, OrderedDict((k, v.detach()) for k, v in features.items()))
        return _Raw(features, images, proposals)

    def outputs(self, raw: _Raw, batch: Batch) -> list[DetectorOutput]:
        return [TwoStageOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]


class TwoStageOutput(DetectorOutput):
    """One image's pyramid and proposals, with the heads that read them."""

    def __init__(self, adapter: TwoStageAdapter, raw: _Raw, index: int, geometry: Geometry) -> None:
        self.adapter = adapter
        self.heads: Any = adapter.model.roi_heads
        self.raw = raw
        self.index = index
        self.geometry = geometry
        self.classes = adapter.classes
        self.features = OrderedDict((name, level[index : index + 1]) for name, level in raw.features.items())

    def pool(self, proposals: Tensor) -> Tensor:
        """(K, C, p, p) features of proposals (K, 4), input pixels."""
        return self.heads.box_roi_pool(self.features, [proposals], [self.raw.images.image_sizes[self.index]])

    def proposals(self, targets: Sequence[DetectionTarget]) -> Tensor:
        """(K, 4) proposals of targets, input pixels."""
        boxes = [(t.source.box_xyxy if t.source else None) or t.box_xyxy for t in targets]
        boxes_xyxy = torch.tensor(boxes, dtype=torch.float64, device=self.raw.images.tensors.device)
        return self.geometry.boxes_to_input(boxes_xyxy).to(self.raw.images.tensors.dtype)

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        proposals = self.proposals(targets)
        return self._read(self.pool(proposals), proposals, targets)

    def _read(self, pooled: Tensor, proposals: Tensor, targets: Sequence[DetectionTarget]) -> Candidates:
        logits, regression = self.heads.box_predictor(self.heads.box_head(pooled))
        boxes = self.heads.box_coder.decode(regression, [proposals])
        labels = torch.tensor([target.label for target in targets], device=boxes.device)
        chosen = boxes[torch.arange(len(targets), device=boxes.device), labels]
        objectness = None
        if any(getattr(target, "quantity", None) == "objectness" for target in targets):
            objectness = self._objectness(proposals)
        return Candidates(self.geometry.boxes_to_image(chosen), F.softmax(logits, -1), logits, objectness)

    def box_scores(self, targets: Sequence[BoxTarget]) -> list[Tensor]:
        """Scalars whose gradients are exact and cheap.

        A box's score depends on the picture through its own pooled features alone. The head runs once for all boxes
        and is differentiated once down to those features; each scalar is then the first-order expansion around them,
        s_k + <ds_k/dp_k, p_k - p_k>: same value, same gradient, and one box's backward pass never visits the others.
        """
        if not torch.is_grad_enabled() or any(target.quantity == "objectness" for target in targets):
            return super().box_scores(targets)
        proposals = self.proposals(targets)
        pooled = [self.pool(proposal[None]) for proposal in proposals]
        leaf = torch.cat([one.detach() for one in pooled]).requires_grad_(True)
        candidates = self._read(leaf, proposals, targets)
        scores = [target.of(candidates, row) for row, target in enumerate(targets)]
        (gradients,) = torch.autograd.grad(torch.stack(scores).sum(), leaf)
        return [
            score.detach() + ((own - own.detach()) * gradient).sum() if own.requires_grad else score.detach()
            for score, own, gradient in zip(scores, pooled, gradients[:, None], strict=True)
        ]

    def _objectness(self, proposals: Tensor) -> Tensor:
        """The region proposal network's objectness at the anchors whose decoded boxes are these proposals."""
        rpn: Any = self.adapter.model.rpn
        image = ImageList(
            self.raw.images.tensors[self.index : self.index + 1], [self.raw.images.image_sizes[self.index]]
        )
        levels = list(self.features.values())
        logits, deltas = rpn.head(levels)
        anchors = rpn.anchor_generator(image, levels)
        flat_logits = torch.cat([level.permute(0, 2, 3, 1).reshape(-1) for level in logits])
        flat_deltas = torch.cat(
            [
                level.view(1, -1, 4, *level.shape[-2:]).permute(0, 3, 4, 1, 2).reshape(-1, 4)
                for level in deltas
            ]
        )
        with torch.no_grad():
            boxes = rpn.box_coder.decode(flat_deltas.detach(), anchors)[:, 0]
            boxes = clip_boxes_to_image(boxes, self.raw.images.image_sizes[self.index])
            chosen = box_iou(proposals, boxes).argmax(1)
        return flat_logits[chosen].sigmoid()

    def mask_scores(self, targets: Sequence[InstanceMaskTarget]) -> list[Tensor]:
        if not self.heads.has_mask():
            return super().mask_scores(targets)
        boxes = torch.tensor([t.box_xyxy for t in targets], dtype=torch.float64, device=self.raw.images.tensors.device)
        boxes = self.geometry.boxes_to_input(boxes).to(self.raw.images.tensors.dtype)
        scores = []
        for box, target in zip(boxes, targets, strict=True):  # one at a time: a backward pass visits its own box only
            logits = self._mask_logits(box[None])[0, target.label]
            inside = logits.detach() > 0
            scores.append(logits[inside].mean() if inside.any() else logits.max())
        return scores

    def _mask_logits(self, boxes: Tensor) -> Tensor:
        """(K, C, m, m) mask logits of boxes (K, 4), input pixels."""
        size = [self.raw.images.image_sizes[self.index]]
        pooled = self.heads.mask_roi_pool(self.features, [boxes], size)
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(pooled))
        return logits

    @torch.no_grad()
    def detections(self) -> Detections:
        heads, proposals = self.heads, self.raw.proposals[self.index]
        logits, regression = heads.box_predictor(heads.box_head(self.pool(proposals)))
        boxes, labels, scores, origin = self._suppress(logits, regression, proposals)
        found: dict[str, Tensor] = {"boxes": boxes, "labels": labels, "scores": scores}
        size = self.raw.images.image_sizes[self.index]
        if heads.has_mask():
            probabilities = self._mask_logits(boxes).sigmoid()
            found["masks"] = probabilities[torch.arange(len(labels), device=labels.device), labels][:, None]
        if heads.has_keypoint():
            from torchvision.models.detection.roi_heads import keypointrcnn_inference

            pooled = heads.keypoint_roi_pool(self.features, [boxes], [size])
            maps = heads.keypoint_predictor(heads.keypoint_head(pooled))
            points, point_scores = keypointrcnn_inference(maps, [boxes])
            found["keypoints"] = points[0]
            found["keypoints_scores"] = point_scores[0]
        done = self.adapter.model.transform.postprocess([found], [size], [self.geometry.image_size_hw])[0]
        places = self.geometry.boxes_to_image(proposals[origin].double()).tolist()
        extras = {}
        if "keypoints" in done:
            keypoints = done["keypoints"].float().cpu()
            keypoints[..., 2] = done["keypoints_scores"].float().cpu()
            extras["keypoints"] = keypoints
        return Detections(
            done["boxes"].float().cpu(),
            labels.cpu(),
            scores.float().cpu(),
            self.geometry.image_size_hw,
            tuple(Source("proposal", box_xyxy=tuple(place)) for place in places),
            masks=(done["masks"][:, 0] > 0.5).cpu() if "masks" in done else None,
            names=self.adapter.names,
            extras=extras,
        )

    def _suppress(self, logits: Tensor, regression: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The box head's own post-processing, keeping which proposal each box came from.

        Returns:
            boxes (N, 4) in input pixels, labels (N,), scores (N,), indices of proposals (N,).
        """
        heads = self.heads
        boxes = heads.box_coder.decode(regression, [proposals])
        boxes = clip_boxes_to_image(boxes, self.raw.images.image_sizes[self.index])[:, 1:]
        scores = F.softmax(logits, -1)[:, 1:]
        count, classes = scores.shape
        labels = torch.arange(1, classes + 1, device=scores.device).expand(count, -1).reshape(-1)
        origin = torch.arange(count, device=scores.device)[:, None].expand(-1, classes).reshape(-1)
        boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
        keep = torch.where(scores > heads.score_thresh)[0]
        keep = keep[remove_small_boxes(boxes[keep], min_size=1e-2)]
        keep = keep[batched_nms(boxes[keep].float(), scores[keep].float(), labels[keep], heads.nms_thresh)]
        keep = keep[: heads.detections_per_img]
        return boxes[keep], labels[keep], scores[keep], origin[keep]


def _input_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the resized image on the canvas, without padding."""
    height, width = geometry.image_size_hw
    return round(height * geometry.scale_xy[1]), round(width * geometry.scale_xy[0])
