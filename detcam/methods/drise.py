"""D-RISE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Batch
from detcam.data.images import ImageLike, load_image
from detcam.detections import Detections
from detcam.geometry import Geometry, normalize
from detcam.methods.rise import RISE
from detcam.outputs import DetectionTarget, DetectorOutput
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.random_masks import Passes, RandomMasks, check_passes, estimate_saliency
from detcam.results import ImageHeatmaps
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform

BlackBox: TypeAlias = Callable[[list[np.ndarray]], Sequence["Detections | Mapping[str, Any]"]]
"""From RGB images, each (H, W, 3) uint8, to what is found in each: `Detections`, or a mapping with ``boxes`` (N, 4)
xyxy in pixels, ``labels`` (N,) and ``scores`` (N,), and optionally ``class_scores`` (N, C)."""


class DRISE(RISE):
    r"""Mean of random masks, each weighted by how well the detections through it match the target's.

    .. math:: L(\lambda) = \frac{1}{N p} \sum_{i=1}^N \max_j s(d_t, d_j^i)\, M_i(\lambda),\quad
        s(d_t, d_j) = \mathrm{IoU}(b_t, b_j) \cdot \frac{c_t \cdot c_j}{\|c_t\| \|c_j\|} \cdot o_j

    over all that the detector says before suppression about the image seen through mask i; b are boxes, c vectors
    of class scores, o objectness. Objectness is read from the class scores that the detector reports, of which it is
    a factor where the family has one: the greatest one, background aside. The target's class vector is the one at
    its source; for a box that nobody detected, its label alone.

    Petsiuk et al., *Black-box Explanation of Object Detectors via Saliency Maps*, CVPR 2021,
    https://arxiv.org/abs/2006.03204.

    All targets of an image share the passes. For a detector that is no module, see `drise`.

    Args:
        model: a detector, or its adapter.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
        passes: as in `RISE`; ``"auto"`` ends at 5000, the paper's number.
        grid: cells a side.
        probability: of a cell to be seen.
        seed: of the masks.
    """

    name = "drise"
    paper = "Petsiuk et al., D-RISE, CVPR 2021, https://arxiv.org/abs/2006.03204"
    cost = "tens to thousands of forwards for all targets"
    use = "black-box detectors, plain functions too; shows context"
    tasks: ClassVar[frozenset[str]] = frozenset({"detection"})
    max_passes = 5000
    pins_targets = False

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        passes: Passes = "auto",
        grid: int = 16,
        probability: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, passes, grid, probability, seed)

    def scorer(self, scorer: ImageScorer) -> Callable[[Tensor], Tensor]:
        output = scorer.output
        if not isinstance(output, DetectorOutput):
            raise TypeError(
                f"D-RISE matches boxes; {type(self.model).__name__} is explained as {self.adapter.task}: use RISE"
            )
        boxes, classes = _vectors(output, scorer.targets)

        def read(raw: Any, batch: Batch) -> Tensor:
            found = [one.raw_candidates() for one in scorer.adapter.outputs(raw, batch)]
            return torch.stack([similarity(boxes, classes, *one, background=output.background) for one in found])

        return lambda inputs: scorer.score(inputs, read)


def _vectors(output: DetectorOutput, targets: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) and class vectors (N, C) of targets."""
    other = [target for target in targets if not isinstance(target, DetectionTarget)]
    if other:
        raise TypeError(f"D-RISE explains boxes; got {type(other[0]).__name__}: give a BoxTarget, or use RISE")
    pinned = [index for index, target in enumerate(targets) if target.source is not None]
    labels = torch.tensor([target.label for target in targets])
    classes = F.one_hot(labels, output.classes).float()
    if pinned:
        with torch.no_grad():
            scores = output.candidates([targets[index] for index in pinned]).class_scores
        classes = classes.to(scores)
        classes[pinned] = scores
    return torch.tensor([target.box_xyxy for target in targets]).to(classes), classes


def similarity(
    target_boxes: Tensor, target_classes: Tensor, boxes: Tensor, classes: Tensor, *, background: int | None = None
) -> Tensor:
    """How well the best of some detections matches each target: IoU times cosine of classes times objectness.

    Args:
        target_boxes: (N, 4) xyxy.
        target_classes: (N, C) class scores.
        boxes: (K, 4), of the detections.
        classes: (K, C), of the detections; the greatest one stands for objectness.
        background: the class index that does not.

    Returns:
        (N,) in [0, 1]; 0 where no detection overlaps.
    """
    overlap = box_iou(target_boxes.to(boxes), boxes)
    near = overlap.amax(0) > 0 if len(boxes) else torch.zeros(0, dtype=torch.bool, device=boxes.device)
    if not near.any():
        return target_classes.new_zeros(len(target_boxes))
    overlap, classes = overlap[:, near], classes[near]
    alike = F.normalize(target_classes.to(classes), dim=1) @ F.normalize(classes, dim=1).T
    things = [index for index in range(classes.shape[1]) if index != background]
    return (overlap * alike * classes[:, things].amax(1)).amax(1)


def drise(
    function: BlackBox,
    image: ImageLike,
    targets: Detections | Sequence[BoxTarget] | None = None,
    *,
    passes: Passes = "auto",
    grid: int = 16,
    probability: float = 0.5,
    seed: int = 0,
    batch_size: int = 8,
) -> ImageHeatmaps:
    """D-RISE for any detector that is a function from images to boxes; masked places are black.

    Where the function reports no class vectors, boxes of other labels do not match, and a box's score stands for its
    objectness.

    Args:
        function: from a list of RGB images, each (H, W, 3) uint8, to what is found in each: `Detections`, or a
            mapping with ``boxes`` (N, 4) xyxy in pixels, ``labels`` (N,), ``scores`` (N,) and, if it has them,
            ``class_scores`` (N, C). Low scores help: a box that fades is worth more than one that vanishes.
        image: one image.
        targets: what to explain; None explains all that the function finds.
        passes: as in `DRISE`.
        grid: as in `DRISE`.
        probability: as in `DRISE`.
        seed: as in `DRISE`.
        batch_size: images per call of the function.

    Returns:
        As `DRISE(...).explain` gives it; the scores are each target's similarity to what is found in the plain image.

    Raises:
        TypeError, ValueError: the function's answer is not as expected.
    """
    check_passes(passes)
    pixels = load_image(image).cpu() * 255
    size = (pixels.shape[-2], pixels.shape[-1])

    def look(images: Tensor) -> list[tuple[Tensor, Tensor]]:
        arrays = [one.round().byte().permute(1, 2, 0).contiguous().numpy() for one in images]
        answers = function(arrays)
        if not isinstance(answers, (list, tuple)) or len(answers) != len(arrays):
            raise TypeError(f"expected the function to return a list with {len(arrays)} entries, one per image")
        return [_read(answer) for answer in answers]

    plain = look(pixels[None])[0]
    asked, boxes, classes = _asked(targets, *plain)

    def scores(found: list[tuple[Tensor, Tensor]]) -> Tensor:
        rows = []
        for places, vectors in found:
            width = max(classes.shape[1], vectors.shape[1])  # a function without class vectors names labels it met
            own, others = (F.pad(table, (0, width - table.shape[1])) for table in (classes, vectors))
            rows.append(similarity(boxes, own, places, others))
        return torch.stack(rows)

    geometry = Geometry.identity(size)
    if not asked:
        empty = torch.zeros((0, *size))
        return ImageHeatmaps(empty, (empty,), (), torch.zeros(0), None, None, geometry)
    maps, sampling = estimate_saliency(
        RandomMasks(size, grid, probability, seed, pixels.device, pixels.dtype),
        len(asked),
        lambda masks: scores(look(pixels * masks[:, None])),
        passes=passes,
        max_passes=DRISE.max_passes,
        batch_size=batch_size,
        seed=seed,
    )
    given = targets if isinstance(targets, Detections) else None
    return ImageHeatmaps(
        normalize(maps).float(), (maps,), tuple(asked), scores([plain])[0], None, given, geometry, sampling=sampling
    )


def _read(answer: Any) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) and class vectors (K, C) of what a function found in one image."""
    if isinstance(answer, Detections):
        answer = {"boxes": answer.boxes_xyxy, "labels": answer.labels, "scores": answer.scores}
    if not isinstance(answer, Mapping) or not {"boxes", "labels", "scores"} <= answer.keys():
        got = f"a mapping with {sorted(answer)}" if isinstance(answer, Mapping) else type(answer).__name__
        raise TypeError(f"expected Detections, or a mapping with boxes, labels and scores, per image; got {got}")
    boxes = torch.as_tensor(answer["boxes"]).detach().float().cpu().reshape(-1, 4)
    labels = torch.as_tensor(answer["labels"]).detach().long().cpu().reshape(-1)
    scores = torch.as_tensor(answer["scores"]).detach().float().cpu().reshape(-1)
    if not len(boxes) == len(labels) == len(scores):
        raise ValueError(f"expected as many labels and scores as boxes; got {len(labels)}, {len(scores)}, {len(boxes)}")
    if "class_scores" in answer:
        vectors = torch.as_tensor(answer["class_scores"]).detach().float().cpu()
        if vectors.ndim != 2 or len(vectors) != len(boxes):
            raise ValueError(f"expected class_scores of shape ({len(boxes)}, C); got {tuple(vectors.shape)}")
        return boxes, vectors
    classes = int(labels.max()) + 1 if len(labels) else 1
    return boxes, F.one_hot(labels, classes) * scores[:, None]


def _asked(
    targets: Detections | Sequence[BoxTarget] | None, boxes: Tensor, vectors: Tensor
) -> tuple[list[BoxTarget], Tensor, Tensor]:
    """What to explain, its boxes (N, 4) and its class vectors (N, C), given what was found in the plain image."""
    if targets is None:
        whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, vectors = boxes[whole], vectors[whole]
        found = zip(boxes.tolist(), vectors.argmax(1).tolist(), strict=True)
        return [BoxTarget(tuple(box), label) for box, label in found], boxes, vectors
    if isinstance(targets, Detections):
        given = zip(targets.boxes_xyxy.tolist(), targets.labels.tolist(), targets.source, strict=True)
        targets = [BoxTarget(tuple(box), label, source) for box, label, source in given]
    wrong = [target for target in targets if not isinstance(target, BoxTarget)]
    if wrong:
        raise TypeError(f"expected targets as Detections or BoxTargets; got {type(wrong[0]).__name__}")
    asked = list(targets)
    labels = torch.tensor([target.label for target in asked], dtype=torch.int64)
    classes = F.one_hot(labels, max([vectors.shape[1], *(label + 1 for label in labels.tolist())])).float()
    return asked, torch.tensor([target.box_xyxy for target in asked]).reshape(-1, 4), classes
