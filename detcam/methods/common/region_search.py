"""Searches for the regions of an image that produce a target: segmentation, scores of sets of regions, saliency."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Batch
from detcam.outputs import DetectorOutput
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM, ReadOutput
from detcam.results import Sampling
from detcam.targets import BoxTarget
from detcam.utils.batching import batch_slices
from detcam.utils.precision import work_dtype

TIE_TOLERANCE = 1e-6
"""Scores within this difference are ties, due to rounding; the first region is chosen."""

ScoreBoxes: TypeAlias = Callable[[DetectorOutput, "Sequence[BoxTarget]"], Tensor]
"""From the output for a perturbed image and n box targets to their scores (n,)."""


def superpixels(image: Tensor, regions: int) -> Tensor:
    """Segment an image (C, H, W) into connected superpixels: labels (H, W) from 0 on, approximately `regions`."""
    from skimage.segmentation import slic  # slow to import

    values = image.detach().float().cpu()
    low, high = values.amin(), values.amax()
    pixels = ((values - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).double().numpy()
    labels = slic(pixels, n_segments=regions, slic_zero=True, start_label=0, convert2lab=pixels.shape[2] == 3)
    _, numbered = np.unique(labels, return_inverse=True)
    return torch.as_tensor(numbered.reshape(labels.shape), device=image.device)


def iou_weighted_scores(output: DetectorOutput, targets: Sequence[BoxTarget], *, pinned: bool = False) -> Tensor:
    """Compute the IoU-weighted class score of each box.

    Args:
        output: the detector's output for one image.
        targets: N boxes.
        pinned: if True, the product at each target's source; else the maximum over all raw candidates.

    Returns:
        (N,) in [0, 1]; 0 for boxes that no candidate overlaps.
    """
    target_boxes = torch.tensor([target.box_xyxy for target in targets])
    labels = torch.tensor([target.label for target in targets])
    if pinned:
        with torch.no_grad():
            candidates = output.candidates(list(targets))
        boxes = output.geometry.clip(candidates.boxes_xyxy).float().cpu()
        overlap = box_iou(target_boxes, boxes).nan_to_num(0.0).diagonal()
        return overlap * candidates.class_scores.float().cpu()[torch.arange(len(targets)), labels]
    scores = torch.zeros(len(targets))
    for label in labels.unique().tolist():
        boxes, class_scores = (part.float().cpu() for part in output.raw_candidates(label))
        if len(boxes):
            members = labels == label
            overlap = box_iou(target_boxes[members], boxes).nan_to_num(0.0)  # 0 / 0 for two boxes without area
            scores[members] = (overlap * class_scores[:, label]).amax(1)
    return scores


def is_box_score(output: Any, target: Any) -> bool:
    """Whether a target is the class score of a box, which a search matches by overlap."""
    if not isinstance(output, DetectorOutput) or not isinstance(target, BoxTarget):
        return False
    return target.quantity == "score" and target.against is None


def score_reader(scorer: ImageScorer, score_boxes: ScoreBoxes) -> ReadOutput:
    """From a pass to the scores (K, N) float64 of all targets: class scores of boxes by a function, others their own.

    Args:
        scorer: the image and its targets.
        score_boxes: computes the scores of boxes that `is_box_score` accepts.
    """
    matched = [index for index, target in enumerate(scorer.targets) if is_box_score(scorer.output, target)]
    others = [index for index in range(len(scorer.targets)) if index not in matched]
    box_targets: list[Any] = [scorer.targets[index] for index in matched]
    other_targets = [scorer.targets[index] for index in others]

    def read_scores(raw: Any, batch: Batch) -> Tensor:
        outputs = scorer.adapter.outputs(raw, batch)
        scores = torch.zeros(len(outputs), len(scorer.targets), dtype=torch.float64)
        for row, output in zip(scores, outputs, strict=True):
            if box_targets:
                row[matched] = score_boxes(output, box_targets).cpu().double()
        if other_targets:
            values = scorer.adapter.score(outputs, [other_targets] * len(outputs))
            scores[:, others] = torch.tensor([[float(v.detach()) for v in row] for row in values]).double()
        if not torch.isfinite(scores).all():
            raise RuntimeError("a perturbed image scores NaN or infinity; check the model, or use float32")
        return scores

    return read_scores


class RegionSets:
    """Scores of sets of regions, each computed once. A set is an int with one bit per region.

    Args:
        evaluate: from visible regions (K, regions) bool to the scores (K, targets) float64.
        regions: number of regions.

    Attributes:
        all_regions: the set of all regions.
    """

    def __init__(self, evaluate: Callable[[Tensor], Tensor], regions: int) -> None:
        self.evaluate = evaluate
        self.regions = regions
        self.all_regions = (1 << regions) - 1
        self._known: dict[int, Tensor] = {}

    @property
    def passes(self) -> int:
        """Number of evaluated images."""
        return len(self._known)

    def scores(self, sets: Sequence[int]) -> Tensor:
        """Return y (K, targets), the scores of the images that show K sets of regions."""
        new = [shown for shown in dict.fromkeys(sets) if shown not in self._known]
        if new:
            size = (self.regions + 7) // 8
            packed = np.frombuffer(b"".join(shown.to_bytes(size, "little") for shown in new), np.uint8)
            visible = np.unpackbits(packed.reshape(len(new), size), axis=1, count=self.regions, bitorder="little")
            self._known.update(zip(new, self.evaluate(torch.from_numpy(visible).bool()), strict=True))
        return torch.stack([self._known[shown] for shown in sets])

    def clue_and_collaboration(self, sets: Sequence[int]) -> Tensor:
        """Return F(S) = y(S) + 1 - y(V without S), (K, targets), of K sets of regions."""
        scores = self.scores([*sets, *(self.all_regions ^ shown for shown in sets)])
        return scores[: len(sets)] + 1 - scores[len(sets) :]


def region_sets(scorer: ImageScorer, area: ImageArea, labels: Tensor, read_scores: ReadOutput) -> RegionSets:
    """The sets of regions of an image; hidden pixels are 0 in the network's input.

    Args:
        scorer: the image and its targets.
        area: the part of the network's input that the image covers.
        labels: (h, w) region of each pixel of the area, from 0 on.
        read_scores: from a pass to the scores (K, N).
    """

    def evaluate(visible: Tensor) -> Tensor:
        shown = visible.to(labels.device)
        parts = batch_slices(len(shown), scorer.images_per_pass)
        scores = [scorer.score(area.apply_masks(shown[part][:, labels]), read_scores) for part in parts]
        return torch.cat(scores).cpu().double()

    return RegionSets(evaluate, int(labels.max()) + 1)


def saliency_of_order(regions: int, order: Sequence[int], gains: Sequence[float], *, own_gain: bool) -> Tensor:
    """Saliency (regions,) float64: the magnitudes of the gains from a region (or the next) on; 0 if not chosen.

    Args:
        regions: number of regions.
        order: the chosen regions.
        gains: the increase of F by each of them.
        own_gain: whether the sum includes the region's own gain.
    """
    saliency = torch.zeros(regions, dtype=torch.float64)
    magnitudes = torch.tensor(gains, dtype=torch.float64).abs()
    remaining = magnitudes.flip(0).cumsum(0).flip(0)
    saliency[list(order)] = remaining if own_gain else remaining - magnitudes
    return saliency


class SuperpixelSearchCAM(InputCAM, abstract=True):
    """Base class of the methods that rank superpixels by F (see `RegionSets.clue_and_collaboration`).

    Attributes:
        regions: approximate number of superpixels.
        pinned: if True, a box is scored at its source instead of the candidate that fits best.
    """

    regions: int
    pinned: bool

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        area = ImageArea(scorer)
        labels = superpixels(area.image[0], self.regions)

        def score_boxes(output: DetectorOutput, targets: Sequence[BoxTarget]) -> Tensor:
            return iou_weighted_scores(output, targets, pinned=self.pinned)

        sets = region_sets(scorer, area, labels, score_reader(scorer, score_boxes))
        saliency = self.rank(sets, len(scorer.targets)).to(area.inputs.device, work_dtype(area.inputs))
        scorer.sampling = Sampling(sets.passes)
        return [area.pad_maps(saliency[:, labels])]

    @abstractmethod
    def rank(self, sets: RegionSets, targets: int) -> Tensor:
        """Return the saliency (targets, regions) float64 of each region for each target."""


def check_region_counts(regions: int, select: int | None) -> None:
    """Raise ValueError unless there are regions to choose from, and some are chosen."""
    if regions < 2:
        raise ValueError(f"expected at least 2 regions to choose from; got {regions}")
    if select is not None and select < 1:
        raise ValueError(f"expected select of at least 1, or None for all regions; got {select}")
