"""Detectors of transformers whose output has ``.logits`` and ``.pred_boxes``: DETR, RT-DETR, YOLOS and their kin."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.contract import check_fractions
from detcam.adapters.detection import DetectorAdapter
from detcam.adapters.transformers.base import TransformersModel
from detcam.adapters.transformers.layers import decoder_inputs, token_levels
from detcam.adapters.transformers.model import has_head, model_type
from detcam.adapters.transformers.queries import ChosenTokens, Queries, QueryActivation, QueryOutput, corners, grids_of
from detcam.layers import find_target_layers
from detcam.outputs import DetectorOutput

SOFTMAX_FAMILIES = frozenset({"detr", "table_transformer", "yolos"})
"""Families whose `post_process_object_detection` takes a softmax and drops the last class, "no object"."""

SIGMOID_FAMILIES = frozenset(
    {
        "conditional_detr",
        "d_fine",
        "dab_detr",
        "deformable_detr",
        "deimv2",
        "lw_detr",
        "pp_doclayout_v2",
        "pp_doclayout_v3",
        "pp_doclayout_v4",
        "rf_detr",
        "rt_detr",
        "rt_detr_v2",
    }
)
"""Families whose `post_process_object_detection` takes a sigmoid and the best pairs of query and class."""

INSTANCE_FAMILIES = frozenset({"rf_detr"})
"""Families of detectors with a mask for each box."""

OPEN_VOCABULARY_FAMILIES = frozenset({"grounding_dino", "mm_grounding_dino", "owlvit", "owlv2", "omdet_turbo"})
"""Families that need prompts."""


class TransformersDetector(TransformersModel, DetectorAdapter):
    """Detectors of transformers with queries: DETR, Conditional, Deformable, DAB-DETR, RT-DETR, D-FINE, YOLOS, ...

    RF-DETR for instance segmentation also has the masks of `post_process_instance_segmentation`.

    Images are prepared by the model's image processor; its resize, padding and normalization are undone in the result.
    Scores, labels and boxes are those of the family's `post_process_object_detection`. The source of a detection is its
    query; in detectors that choose their queries among the encoder's tokens, the token decides, since the order of the
    queries depends on the image.

    Args:
        model: a model such as ``DetrForObjectDetection``.
        processor: the image processor, a processor that contains it, or the folder that holds it; None takes the one
            saved beside the model's weights, else the family's defaults, with a warning.
        image_size: height and width of the input, or one number: the shorter side where the processor keeps the aspect
            ratio. None takes the processor's.
        activation: ``"sigmoid"`` for independent classes, ``"softmax"`` for exclusive classes of which the last is "no
            object"; None takes the family's.
        score_threshold: minimum score of a detection, in [0, 1].
        max_detections: maximum number of detections per image; None takes the family's.
        **options: further arguments of `Adapter`, such as `names` and `target_layers`. By default, the target
            layers are the features that the decoder reads.

    Attributes:
        one_label_per_query: whether a query is detected with its best class only, rather than with every class.

    Raises:
        ValueError: the family is unknown and `activation` is not given.
    """

    family = "transformers detection"
    one_label_per_query = False
    score_threshold_name = "score_threshold"

    def __init__(
        self,
        model: nn.Module,
        *,
        processor: Any = None,
        image_size: int | tuple[int, int] | None = None,
        activation: QueryActivation | None = None,
        score_threshold: float = 0.25,
        max_detections: int | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        check_fractions(score_threshold=score_threshold)
        self.activation = family_activation(model) if activation is None else activation
        if self.activation not in ("sigmoid", "softmax"):
            raise ValueError(f"expected activation 'sigmoid' or 'softmax'; got {activation!r}")
        self.score_threshold = score_threshold
        self.max_detections = max_detections
        self.use_processor(model, processor, image_size)
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        if has_head(model, "ForInstanceSegmentation"):
            return model_type(model) in INSTANCE_FAMILIES
        return has_head(model, "ForObjectDetection") and model_type(model) not in OPEN_VOCABULARY_FAMILIES

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the features that the decoder reads, one layer per pyramid level where these are separate maps.

        Measured on an RT-DETR trained on drawn scenes (36 detections, whose boxes cover 2% of the image; peak in the
        box, fraction of energy in it): ODAM 0.89 and 0.25 at these layers, 0.31 and 0.04 before the encoder, 0.39 and
        0.11 at the backbone's stride 8, 0.28 and 0.07 at stride 16, 0.03 and 0.03 at stride 32; GradCAM, which pools
        its gradient, 0.56 and 0.05 at these layers and less elsewhere.
        """
        return decoder_inputs(self.model) or find_target_layers(self.model, (224, 224), self.device, self.dtype)

    def forward(self, batch: Batch) -> Queries:
        config: Any = self.model.config
        chosen = ChosenTokens(int(getattr(config, "two_stage_num_proposals", 0) or getattr(config, "num_queries", 0)))
        with chosen:
            output = super().forward(batch)
        return self.read(output, batch, chosen)

    def read(self, output: Any, batch: Batch, chosen: ChosenTokens) -> Queries:
        """Return the queries in the model's output.

        Args:
            output: the output.
            batch: the batch.
            chosen: the tokens of the encoder that became queries.
        """
        logits, boxes = read_queries(self.model, output)
        grids = grids_of(chosen, (batch.inputs.shape[-2], batch.inputs.shape[-1]), token_levels(self.model))
        masks = getattr(output, "pred_masks", None)
        return Queries(logits, boxes, None if grids is None else chosen.tokens, grids, masks)

    def outputs(self, raw: Queries, batch: Batch) -> list[DetectorOutput]:
        return [QueryOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]

    def candidate_limit(self, queries: int) -> int:
        """Return the number of pairs of query and class that the family's post-processing keeps."""
        function = getattr(self.preparation.processor, "post_process_object_detection", None)
        top_k = inspect.signature(function).parameters.get("top_k") if function is not None else None
        return top_k.default if top_k is not None and isinstance(top_k.default, int) else queries


def family_activation(model: Any) -> QueryActivation:
    """Return the activation of a family's class logits, as its post-processing and its loss apply it.

    Raises:
        ValueError: the family is unknown.
    """
    family = model_type(model)
    if family in SOFTMAX_FAMILIES or (family in SIGMOID_FAMILIES and not getattr(model.config, "use_focal_loss", True)):
        return "softmax"
    if family in SIGMOID_FAMILIES:
        return "sigmoid"
    raise ValueError(
        f"the scores of {type(model).__name__} (model_type {family!r}) are not known; pass activation='sigmoid' for "
        "independent classes, or activation='softmax' for exclusive classes of which the last is 'no object'"
    )


def read_queries(model: Any, output: Any) -> tuple[Tensor, Tensor]:
    """Return class logits (B, Q, C), and boxes (B, Q, 4) as x1, y1, x2, y2 in units of the input's sides.

    Raises:
        TypeError: the output has no ``.logits`` or no ``.pred_boxes``.
    """
    family = model_type(model)
    if family == "pp_doclayout_v2":  # the output's rows are sorted by a threshold; these are the queries as they are
        return output.intermediate_logits[:, -1], corners(output.intermediate_reference_points[:, -1])
    logits, boxes = getattr(output, "logits", None), getattr(output, "pred_boxes", None)
    if logits is None or boxes is None or logits.ndim != 3 or boxes.ndim != 3:
        raise TypeError(
            f"expected .logits (B, Q, C) and .pred_boxes (B, Q, 4) in the output of {type(model).__name__}; got "
            f"{type(output).__name__}. Use detcam.adapters.detector(model, decode=...)"
        )
    if boxes.shape[-1] == 10:  # a center and the offsets of four corners
        points = boxes[..., None, :2] + boxes[..., 2:].unflatten(-1, (4, 2)) - 0.5
        return logits, torch.cat([points.amin(-2), points.amax(-2)], -1)
    return logits, corners(boxes)
