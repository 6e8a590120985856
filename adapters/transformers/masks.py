"""Models of transformers whose queries are masks: Mask2Former, MaskFormer, OneFormer, EoMT, DETR for segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from detcam.adapters.base import Adapter, AdapterOptions, Batch
from detcam.adapters.candidates import best_fit
from detcam.adapters.contract import check_fractions
from detcam.adapters.detection import DetectorAdapter
from detcam.adapters.normalization import Normalization
from detcam.adapters.segmentation import SegmentationAdapter
from detcam.adapters.transformers.base import TransformersModel
from detcam.adapters.transformers.layers import decoder_inputs
from detcam.adapters.transformers.model import find_tokenizer, has_head, model_type
from detcam.adapters.transformers.queries import mask_values
from detcam.detections import Detections, Source
from detcam.geometry import Geometry, mask_to_box
from detcam.layers import find_target_layers
from detcam.outputs import Candidates, DetectionTarget, DetectorOutput
from detcam.segmenter_output import SegmenterOutput

HEADS = ("ForUniversalSegmentation", "ForInstanceSegmentation", "ForSegmentation")
FAMILIES = frozenset({"conditional_detr", "detr", "eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer"})
"""Families whose class logits take a softmax with "no object" as the last class."""

MASK2FORMER_SIZE = (384, 384)
"""Size to which Mask2Former's post-processing resizes the mask logits."""

MAX_OVERLAP_LOSS = 0.8
"""A segment is dropped if no more than this fraction of its own mask is left to it, as in the library."""


@dataclass(frozen=True)
class MaskQueries:
    """What the queries of a batch predict.

    Attributes:
        logits: (B, Q, C + 1) class logits, the last of them "no object".
        masks: (B, Q, h, w) mask logits over the input.
    """

    logits: Tensor
    masks: Tensor


def read_mask_queries(output: Any, model: nn.Module) -> MaskQueries:
    """Return class and mask logits of a model's output.

    Raises:
        TypeError: the output has none.
    """
    logits = getattr(output, "class_queries_logits", getattr(output, "logits", None))
    masks = getattr(output, "masks_queries_logits", getattr(output, "pred_masks", None))
    if logits is None or masks is None:
        raise TypeError(
            f"expected class and mask logits of queries in the output of {type(model).__name__}; got "
            f"{type(output).__name__}. Use detcam.adapters.detector(model, decode=...) or segmenter(...)"
        )
    return MaskQueries(logits, masks.squeeze(2) if masks.ndim == 5 else masks)


def is_task_model(model: object) -> bool:
    """Return whether a model reads the task as text."""
    return model_type(model) == "oneformer"


def encode_task(tokenizer: Any, model: Any, task: str) -> Tensor:
    """Return the tokens (1, L) of a task, padded with 0."""
    length = model.config.task_seq_len
    text = tokenizer(
        [f"the task is {task}"], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    tokens: Tensor = text["input_ids"] * text["attention_mask"]
    return tokens


class MaskQueryModel(TransformersModel, abstract=True):
    """What the two adapters of mask queries share.

    Attributes:
        task_tokens: (1, L) the task as OneFormer reads it; None for other models.
    """

    task_tokens: Tensor | None = None

    @classmethod
    def supports(cls, model: object) -> bool:
        return has_head(model, *HEADS) and model_type(model) in FAMILIES

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the features that the decoder of queries reads."""
        return decoder_inputs(self.model) or find_target_layers(self.model, (224, 224), self.device, self.dtype)

    def use_task(self, model: nn.Module, processor: Any, task: str) -> None:
        """Encode the task, which OneFormer reads as text."""
        self.task_tokens = encode_task(find_tokenizer(model, processor), model, task) if is_task_model(model) else None

    def call_settings(self, batch: Batch) -> dict[str, Any]:
        settings = super().call_settings(batch)
        if self.task_tokens is not None:
            settings["task_inputs"] = self.task_tokens.repeat(len(batch.inputs), 1).to(self.device)
        return settings

    def forward(self, batch: Batch) -> MaskQueries:
        return read_mask_queries(super().forward(batch), self.model)


class TransformersMaskQueries(MaskQueryModel, DetectorAdapter):
    """Mask2Former, MaskFormer, OneFormer, EoMT and DETR for segmentation: one target per query's mask.

    The segments are those of the family's `post_process_panoptic_segmentation`, without fusing: a query is kept if its
    best class is not "no object" and its score exceeds `score_threshold`; a pixel belongs to the kept query with the
    greatest product of score and mask probability; a segment that loses most of its mask to others is dropped. The
    box of a segment is that of its pixels. With ``segments="semantic"``, `adapt` returns an adapter that explains
    classes over regions, as the family's `post_process_semantic_segmentation` assigns them.

    Args:
        model: a model such as ``Mask2FormerForUniversalSegmentation``.
        processor: as in `TransformersDetector`; OneFormer needs a processor with its tokenizer.
        image_size: as in `TransformersDetector`.
        segments: ``"panoptic"``, one target per query; or ``"semantic"``, one per class.
        score_threshold: minimum class score of a segment, in [0, 1].
        mask_threshold: mask probability from which a pixel counts as part of a query's own mask, in [0, 1].
        **options: further arguments of `Adapter`, such as `target_layers` and `names`. By default, the target layer is
            the one that the decoder of queries reads.
    """

    family = "transformers masks"
    score_threshold_name = "score_threshold"

    def __init__(
        self,
        model: nn.Module,
        *,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        segments: Literal["panoptic", "semantic"] = "panoptic",
        score_threshold: float = 0.5,
        mask_threshold: float = 0.5,
        **options: Unpack[AdapterOptions],
    ) -> None:
        if segments != "panoptic":
            raise ValueError(f"expected segments 'panoptic' or 'semantic', through detcam.adapt; got {segments!r}")
        check_fractions(score_threshold=score_threshold, mask_threshold=mask_threshold)
        self.score_threshold, self.mask_threshold = score_threshold, mask_threshold
        self.use_processor(model, processor, image_size)
        self.use_task(model, processor, segments)
        super().__init__(model, **options)

    @classmethod
    def variant(cls, options: Mapping[str, object]) -> type[Adapter]:
        return TransformersSemanticQueries if options.get("segments") == "semantic" else cls

    def outputs(self, raw: MaskQueries, batch: Batch) -> list[DetectorOutput]:
        return [
            MaskQueryOutput(self, raw.logits[index], raw.masks[index], geometry)
            for index, geometry in enumerate(batch.geometries)
        ]


class MaskQueryOutput(DetectorOutput):
    """The mask queries of one image."""

    def __init__(self, adapter: TransformersMaskQueries, logits: Tensor, masks: Tensor, geometry: Geometry) -> None:
        self.adapter = adapter
        self.logits, self.masks, self.geometry = logits, masks, geometry
        self.classes = logits.shape[-1]
        self.background = self.classes - 1

    def candidates(self, targets: Sequence[DetectionTarget]) -> Candidates:
        rows = torch.tensor([self.query(target) for target in targets], device=self.logits.device)
        logits = self.logits[rows]
        return Candidates(self.boxes(rows), logits.softmax(-1), logits)

    @torch.no_grad()
    def boxes(self, queries: Tensor) -> Tensor:
        """Return the bounding boxes (K, 4) of queries' own masks, image pixels; the image where a mask is empty."""
        height, width = self.geometry.image_size_hw
        whole = (0.0, 0.0, float(width), float(height))
        masks = self.probabilities(queries) >= self.adapter.mask_threshold
        return self.logits.new_tensor([mask_to_box(mask) if mask.any() else whole for mask in masks]).reshape(-1, 4)

    def probabilities(self, queries: Tensor) -> Tensor:
        """Return mask probabilities (K, H, W) in image pixels, as the family's post-processing resizes them."""
        family = model_type(self.adapter.model)
        masks = self.masks.detach()[queries].float()
        if not len(queries):
            return masks.new_zeros((0, *self.geometry.image_size_hw))
        if family.startswith("eomt"):
            whole = F.interpolate(masks[None], self.geometry.input_size_hw, mode="bilinear")[0]
            return self.geometry.to_image(whole).sigmoid()
        if family == "mask2former":
            masks = F.interpolate(masks[None], MASK2FORMER_SIZE, mode="bilinear")[0]
        return self.geometry.to_image(masks.sigmoid())

    def query(self, target: DetectionTarget) -> int:
        """Return the query of a target, or the one that fits it best."""
        source = target.source
        if source is not None and source.kind == "query" and source.anchor >= 0:
            if source.anchor >= len(self.logits):
                raise ValueError(f"source {source} is not a query of this model; was it made by another model?")
            return source.anchor
        boxes = self.boxes(torch.arange(len(self.logits), device=self.logits.device))
        scores = self.logits.detach().softmax(-1)[:, target.label]
        return best_fit(boxes, scores, boxes.new_tensor(target.box_xyxy))

    def source_of(self, target: DetectionTarget) -> Source:
        return Source("query", anchor=self.query(target))

    @torch.no_grad()
    def raw_candidates(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        return self.boxes(torch.arange(len(self.logits), device=self.logits.device)), self.logits.softmax(-1)

    def mask_scores(self, targets: Sequence[DetectionTarget]) -> list[Tensor]:
        return mask_values(self.masks, targets, [self.query(target) for target in targets], self.geometry)

    @torch.no_grad()
    def detections(self) -> Detections:
        scores, labels = self.logits.detach().float().softmax(-1).max(-1)
        queries = ((scores > self.adapter.score_threshold) & (labels != self.background)).nonzero()[:, 0]
        probabilities = self.probabilities(queries)
        weighted = probabilities * scores[queries, None, None]
        # EoMT compares the probability with the threshold and cuts segments there, the others compare the product.
        is_eomt = model_type(self.adapter.model).startswith("eomt")
        own = (probabilities if is_eomt else weighted) >= self.adapter.mask_threshold
        kept, masks = [], []
        owner = weighted.argmax(0) if len(queries) else weighted.sum(0)
        for row in range(len(queries)):
            owned = owner.eq(row)
            mask = owned & own[row] if is_eomt else owned
            area = int(own[row].sum())
            if mask.any() and area and int(owned.sum()) / area > MAX_OVERLAP_LOSS:
                kept.append(row)
                masks.append(mask.cpu())
        order = scores[queries[kept]].argsort(descending=True, stable=True).tolist()
        kept, masks = [kept[index] for index in order], [masks[index] for index in order]
        chosen = queries[kept]
        return Detections(
            torch.tensor([mask_to_box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
            labels[chosen].cpu(),
            scores[chosen].cpu(),
            self.geometry.image_size_hw,
            tuple(Source("query", anchor=query) for query in chosen.tolist()),
            masks=torch.stack(masks) if masks else torch.zeros((0, *self.geometry.image_size_hw), dtype=torch.bool),
            names=self.adapter.names,
        )


class TransformersSemanticQueries(MaskQueryModel, SegmentationAdapter):
    """The models of `TransformersMaskQueries`, explained by class over regions.

    The map of a class is the sum over queries of class probability times mask probability, and a pixel belongs to the
    class with the maximum, as in the family's `post_process_semantic_segmentation`. A `MaskTarget` is the mean of a
    class's map over its region. The arguments are those of `TransformersSegmenter`, and ``segments="semantic"``.
    """

    family = "transformers semantic queries"
    fixed_options = frozenset({"mean", "std", "multilabel"})

    def __init__(
        self,
        model: nn.Module,
        *,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        segments: Literal["semantic"] = "semantic",
        background: int | Literal["auto"] | None = "auto",
        **options: Unpack[AdapterOptions],
    ) -> None:
        self.use_processor(model, processor, image_size)
        self.use_task(model, processor, segments)
        super().__init__(model, background=background, **options)

    def default_normalization(self) -> Normalization:
        return Normalization(self.preparation.mean or (0.0, 0.0, 0.0), self.preparation.std or (1.0, 1.0, 1.0))

    def canvas(self, image_size_hw: tuple[int, int]) -> tuple[int, int]:
        return self.preparation.geometry(image_size_hw).input_size_hw

    def outputs(self, raw: Any, batch: Batch) -> list[SegmenterOutput]:
        masks = raw.masks.float()
        family = model_type(self.model)
        if family == "mask2former":
            masks = F.interpolate(masks, MASK2FORMER_SIZE, mode="bilinear")
        elif family.startswith("eomt"):
            masks = F.interpolate(masks, (batch.inputs.shape[-2], batch.inputs.shape[-1]), mode="bilinear")
        maps = torch.einsum("bqc,bqhw->bchw", raw.logits.float().softmax(-1)[..., :-1], masks.sigmoid())
        return [ClassMaps(item, geometry) for item, geometry in zip(maps, batch.geometries, strict=True)]


class ClassMaps(SegmenterOutput):
    """Class maps that are sums of probabilities rather than logits; a pixel's score is its class's share of the sum."""

    def _exclusive(self, logits: Tensor) -> list[tuple[int, float, Tensor]]:
        maps = self.geometry.to_image(logits)
        best, labels = maps.max(0)
        share = best / maps.sum(0).clamp(min=torch.finfo(maps.dtype).tiny)
        return [
            (label, float(share[labels == label].mean()), (labels == label).cpu()) for label in labels.unique().tolist()
        ]
