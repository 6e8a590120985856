"""D-RISE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam.adapters.base import Batch
from detcam.adapters.function import read_answer
from detcam.data.images import ImageLike, load_image
from detcam.detections import Detections
from detcam.diagnostics import warn_about_sampling
from detcam.geometry import Geometry, normalize
from detcam.methods.rise import RISE
from detcam.outputs import DetectionTarget, DetectorOutput
from detcam.perturbation.base import ImageScorer, ReadOutput
from detcam.perturbation.random_masks import Passes, RandomMasks, check_passes, estimate_saliency
from detcam.results import ImageHeatmaps
from detcam.targets import BoxTarget

DEFAULT_BATCH_SIZE = 8
"""Images per call of a detector that is a function."""

DetectorFunction: TypeAlias = Callable[[list[np.ndarray]], Sequence["Detections | Mapping[str, Any]"]]
"""From RGB images, each (H, W, 3) uint8, to the detections in each: `Detections`, or a mapping with ``boxes`` (N, 4) in
pixels (xyxy), ``labels`` (N,) and ``scores`` (N,), and optionally ``class_scores`` (N, C)."""


class DRISE(RISE):
    r"""Mean of random masks, each weighted by the similarity of the detections in the masked image to the target.

    .. math:: L(\lambda) = \frac{1}{N p} \sum_{i=1}^N \max_j s(d_t, d_j^i)\, M_i(\lambda),\quad
        s(d_t, d_j) = \mathrm{IoU}(b_t, b_j) \cdot \frac{c_t \cdot c_j}{\|c_t\| \|c_j\|} \cdot o_j

    with :math:`M_i` the i-th of N masks that show a cell with probability p, :math:`d_j^i` the raw candidates (before
    NMS) of the image under mask i, and for target t and candidate j the boxes b, the vectors of class scores c and the
    objectness o. The objectness is the largest class score, background excluded; class scores of the model include it
    as a factor if the family has one. The target's class vector is that of its source; for a box without a source it is
    one-hot.

    Petsiuk et al., *Black-box Explanation of Object Detectors via Saliency Maps*, CVPR 2021,
    https://arxiv.org/abs/2006.03204.

    Use it for detectors whose gradients are unavailable, and to see context. All targets of an image share the passes.
    For a detector that is a plain function, use `drise`.

    Args:
        model: a detector, or its adapter.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        passes: as in `RISE`; ``"auto"`` samples at most 5000, the paper's number.
        grid: number of cells of a mask per side; None takes 16, as in the paper.
        probability: probability that a cell is visible.
        seed: seed of the masks.
    """

    name = "drise"
    paper = "Petsiuk et al., D-RISE, CVPR 2021, https://arxiv.org/abs/2006.03204"
    cost = "tens to thousands of forwards for all targets"
    use = "black-box detectors, plain functions too; shows context"
    tasks: ClassVar[frozenset[str]] = frozenset({"detection"})
    max_passes = 5000
    default_grid = 16
    pins_targets = False

    def weight_reader(self, scorer: ImageScorer) -> ReadOutput:
        output = scorer.output
        if not isinstance(output, DetectorOutput):
            raise TypeError(
                f"D-RISE matches boxes; {type(self.model).__name__} is explained as {self.adapter.task}: use RISE"
            )
        boxes, classes = boxes_and_classes(output, scorer.targets)

        def read_weights(raw: Any, batch: Batch) -> Tensor:
            candidates = [image.raw_candidates() for image in scorer.adapter.outputs(raw, batch)]
            return torch.stack(
                [detection_similarity(boxes, classes, *row, background=output.background) for row in candidates]
            )

        return read_weights


def boxes_and_classes(output: DetectorOutput, targets: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return boxes (N, 4) and class vectors (N, C) of targets: that of the source, or one-hot without a source."""
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


def detection_similarity(
    target_boxes: Tensor,
    target_classes: Tensor,
    boxes: Tensor,
    classes: Tensor,
    *,
    background: int | None = None,
    objectness: bool = True,
) -> Tensor:
    """Similarity of each target to the most similar detection: IoU times class cosine times objectness.

    Args:
        target_boxes: (N, 4) xyxy.
        target_classes: (N, C) class scores of the targets.
        boxes: (K, 4) xyxy, boxes of the detections.
        classes: (K, C) class scores of the detections; the largest one is the objectness.
        background: index of a background class, which does not count as objectness; None if there is none.
        objectness: whether objectness is a factor.

    Returns:
        (N,) in [0, 1]; 0 for targets that no detection overlaps.
    """
    overlap = box_iou(target_boxes.to(boxes), boxes)
    overlaps = overlap.amax(0) > 0 if len(boxes) else torch.zeros(0, dtype=torch.bool, device=boxes.device)
    if not overlaps.any():
        return target_classes.new_zeros(len(target_boxes))
    overlap, classes = overlap[:, overlaps], classes[overlaps]
    cosine = F.normalize(target_classes.to(classes), dim=1) @ F.normalize(classes, dim=1).T
    similarity = overlap * cosine
    if objectness:
        foreground = [index for index in range(classes.shape[1]) if index != background]
        similarity = similarity * classes[:, foreground].amax(1)
    return similarity.amax(1)


def drise(
    function: DetectorFunction,
    image: ImageLike,
    targets: Detections | Sequence[BoxTarget] | None = None,
    *,
    passes: Passes = "auto",
    grid: int = DRISE.default_grid,
    probability: float = 0.5,
    seed: int = 0,
    batch_size: int | None = None,
) -> ImageHeatmaps:
    """Explain a detector that is a plain function from images to boxes, by D-RISE; masked pixels are black.

    If the function returns no class vectors, boxes of different labels do not match, and a box's score is its
    objectness.

    Args:
        function: from a list of RGB images, each (H, W, 3) uint8, to the detections in each: `Detections`, or a
            mapping with ``boxes`` (N, 4) xyxy in pixels, ``labels`` (N,), ``scores`` (N,) and optionally
            ``class_scores`` (N, C). A low score threshold helps: a box with a lower score is more informative than a
            missing one.
        image: the image.
        targets: boxes to explain; None explains all detections of the function.
        passes: as in `DRISE`.
        grid: as in `DRISE`.
        probability: as in `DRISE`.
        seed: as in `DRISE`.
        batch_size: number of images per call of the function; None takes 8.

    Returns:
        As an entry of `DRISE.explain`; the scores are each target's similarity to the detections in the unmasked image.

    Raises:
        TypeError: the function returns other types, or a target is not a `BoxTarget`.
        ValueError: the function returns arrays of other shapes, or `passes` is not valid.

    Example:
        >>> import numpy as np
        >>> from detcam import drise
        >>> def brightness(images):
        ...     scores = [image[8:, 8:].mean() / 255 for image in images]
        ...     return [{"boxes": [[8, 8, 16, 16]], "labels": [0], "scores": [score]} for score in scores]
        >>> result = drise(brightness, np.full((16, 16, 3), 255, np.uint8), passes=50, grid=4)
        >>> result.heatmaps.shape
        (1, 16, 16)
    """
    check_passes(passes)
    pixels = load_image(image).cpu() * 255
    size = (pixels.shape[-2], pixels.shape[-1])

    def detect(images: Tensor) -> list[tuple[Tensor, Tensor]]:
        arrays = [each.round().byte().permute(1, 2, 0).contiguous().numpy() for each in images]
        answers = function(arrays)
        if not isinstance(answers, (list, tuple)) or len(answers) != len(arrays):
            raise TypeError(f"expected the function to return a list with {len(arrays)} entries, one per image")
        return [_parse_detections(answer) for answer in answers]

    unmasked = detect(pixels[None])[0]
    box_targets, boxes, classes = _parse_targets(targets, *unmasked)

    def score(detections: list[tuple[Tensor, Tensor]]) -> Tensor:
        rows = []
        for detected_boxes, vectors in detections:
            width = max(classes.shape[1], vectors.shape[1])  # without class vectors, C follows from the labels
            target_classes, detected = (F.pad(table, (0, width - table.shape[1])) for table in (classes, vectors))
            rows.append(detection_similarity(boxes, target_classes, detected_boxes, detected))
        return torch.stack(rows)

    geometry = Geometry.identity(size)
    if not box_targets:
        empty = torch.zeros((0, *size))
        return ImageHeatmaps(empty.numpy(), (empty,), (), torch.zeros(0), None, None, geometry)
    maps, sampling = estimate_saliency(
        RandomMasks(size, grid, probability, seed, pixels.device, pixels.dtype),
        len(box_targets),
        lambda masks: score(detect(pixels * masks[:, None])),
        passes=passes,
        max_passes=DRISE.max_passes,
        batch_size=DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
        seed=seed,
    )
    result = ImageHeatmaps(
        maps=normalize(maps).float().numpy(),
        saliency=(maps,),
        targets=tuple(box_targets),
        scores=score([unmasked])[0],
        reach=None,
        detections=targets if isinstance(targets, Detections) else None,
        geometry=geometry,
        sampling=sampling,
    )
    warn_about_sampling([result])
    return result


def _parse_detections(answer: Any) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) and class vectors (K, C) of a function's detections in one image."""
    boxes, scores, labels, vectors = read_answer(answer)
    if vectors is None:
        index = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else labels
        vectors = F.one_hot(index, int(index.max()) + 1 if len(index) else 1) * scores[:, None]
    return boxes, vectors


def _parse_targets(
    targets: Detections | Sequence[BoxTarget] | None, boxes: Tensor, vectors: Tensor
) -> tuple[list[BoxTarget], Tensor, Tensor]:
    """Targets, their boxes (N, 4) and class vectors (N, C), given the detections in the unmasked image."""
    if targets is None:
        valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, vectors = boxes[valid], vectors[valid]
        detected = zip(boxes.tolist(), vectors.argmax(1).tolist(), strict=True)
        return [BoxTarget(tuple(box), label) for box, label in detected], boxes, vectors
    if isinstance(targets, Detections):
        rows = zip(targets.boxes_xyxy.tolist(), targets.labels.tolist(), targets.source, strict=True)
        targets = [BoxTarget(tuple(box), label, source) for box, label, source in rows]
    wrong = [target for target in targets if not isinstance(target, BoxTarget)]
    if wrong:
        raise TypeError(f"expected targets as Detections or BoxTargets; got {type(wrong[0]).__name__}")
    labels = torch.tensor([target.label for target in targets], dtype=torch.int64)
    classes = F.one_hot(labels, max([vectors.shape[1], *(label + 1 for label in labels.tolist())])).float()
    return list(targets), torch.tensor([target.box_xyxy for target in targets]).reshape(-1, 4), classes
