"""Visual Precision Search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Batch, ModelLike
from detcam.layers import LayersLike
from detcam.outputs import DetectorOutput, work_dtype
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM, ReadOutput
from detcam.results import Sampling
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform
from detcam.utils.batching import batch_slices

LAZY_BATCH = 4
"""Number of regions that a lazy search evaluates at a time, so that passes come in batches."""
TIE_TOLERANCE = 1e-6
"""Gains within this relative difference of the best are ties, due to rounding; the first region is chosen."""


class VPS(InputCAM):
    r"""Superpixels ranked by a greedy search for the regions that produce the target.

    .. math:: F(S) = y(S) + 1 - y(V \setminus S),\quad s_i = \arg\max_r F(S_{i-1} \cup \{r\}),\quad
        \alpha_i = \sum_{j \ge i} |F(S_j) - F(S_{j-1})|

    with V the regions of the image, y(S) the target's score in the image that shows only the regions S (the clue
    score), 1 - y(V \\ S) the loss without them (the collaboration score), :math:`s_i` the i-th chosen region,
    :math:`S_i` the first i of them, and :math:`\alpha_i` the saliency of :math:`s_i`. Hidden pixels become 0 in the
    network's input: the mean color if the input is normalized, else black. (The authors' code does so for Grounding
    DINO, and uses black for the detectors of MMDetection; its superpixels are OpenCV's.)

    For a box, y is the maximum over raw candidates (before NMS) of IoU with the box times score of its class; with
    `pinned`, that product at the box's source. For every other target, y is its score.

    In the paper the sum for :math:`\alpha_i` starts at i + 1 (``own_gain=False``): the order is the same, but the last
    region that matters ties with the regions without effect.

    Chen et al., *Interpreting Object-level Foundation Models via Visual Precision Search*, CVPR 2025,
    https://arxiv.org/abs/2411.16198.

    Use it to find the smallest set of sufficient regions of a black-box model. With K regions, the paper's search takes
    K (K + 1) passes less repeated ones; every pass is read for all targets of an image. Their number is in
    `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        regions: approximate number of superpixels (SLIC with adaptive compactness); 50 to 100 in the paper.
        select: number of regions to choose; the others have saliency 0. None ranks all regions.
        lazy: if True, evaluate only regions whose last known gain may be the best, which takes a fraction of the
            passes. The order is the same if gains never increase. The gain in the collaboration score may increase,
            and the order may then differ from the paper's. False evaluates all remaining regions in every step.
        pinned: if True, score a box at its source instead of the candidate that fits best.
        own_gain: if True, a region's saliency includes its own gain.
    """

    name = "vps"
    paper = "Chen et al., Visual Precision Search, CVPR 2025, https://arxiv.org/abs/2411.16198"
    cost = "hundreds to thousands of forwards per target"
    use = "the few regions that suffice, ranked; for any black box"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        regions: int = 50,
        select: int | None = None,
        lazy: bool = False,
        pinned: bool = False,
        own_gain: bool = True,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if regions < 2:
            raise ValueError(f"expected at least 2 regions to choose from; got {regions}")
        if select is not None and select < 1:
            raise ValueError(f"expected select of at least 1, or None for all regions; got {select}")
        self.regions, self.select, self.lazy, self.pinned, self.own_gain = regions, select, lazy, pinned, own_gain

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        area = ImageArea(scorer)
        labels = superpixels(area.image[0], self.regions)
        count = int(labels.max()) + 1
        read_scores = self._score_reader(scorer)

        def evaluate(visible: Tensor) -> Tensor:
            shown = visible.to(labels.device)
            parts = batch_slices(len(shown), scorer.images_per_pass)
            scores = [scorer.score(area.apply_masks(shown[part][:, labels]), read_scores) for part in parts]
            return torch.cat(scores).cpu().double()

        search = GreedySearch(evaluate, count, len(scorer.targets), lazy=self.lazy)
        search.run(count if self.select is None else min(self.select, count))
        scorer.sampling = Sampling(search.passes)
        saliency = search.saliency(own_gain=self.own_gain).to(area.inputs.device, work_dtype(area.inputs))
        return [area.pad_maps(saliency[:, labels])]

    def _score_reader(self, scorer: ImageScorer) -> ReadOutput:
        """From a pass to the score y (K, N) of every target."""
        matched = [index for index, target in enumerate(scorer.targets) if _is_box_score(scorer.output, target)]
        others = [index for index in range(len(scorer.targets)) if index not in matched]
        box_targets: list[Any] = [scorer.targets[index] for index in matched]
        other_targets = [scorer.targets[index] for index in others]

        def read_scores(raw: Any, batch: Batch) -> Tensor:
            outputs = scorer.adapter.outputs(raw, batch)
            scores = torch.zeros(len(outputs), len(scorer.targets), dtype=torch.float64)
            for row, output in zip(scores, outputs, strict=True):
                if box_targets:
                    row[matched] = iou_weighted_scores(output, box_targets, pinned=self.pinned).cpu().double()
            if other_targets:
                values = scorer.adapter.score(outputs, [other_targets] * len(outputs))
                scores[:, others] = torch.tensor([[float(v.detach()) for v in row] for row in values]).double()
            if not torch.isfinite(scores).all():
                raise RuntimeError("a perturbed image scores NaN or infinity; check the model, or use float32")
            return scores

        return read_scores


def _is_box_score(output: Any, target: Any) -> bool:
    """Whether a target is the class score of a box, which is matched by overlap."""
    if not isinstance(output, DetectorOutput) or not isinstance(target, BoxTarget):
        return False
    return target.quantity == "score" and target.against is None


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


def superpixels(image: Tensor, regions: int) -> Tensor:
    """Segment an image (C, H, W) into connected superpixels: labels (H, W) from 0 on, approximately `regions`."""
    from skimage.segmentation import slic  # slow to import

    values = image.detach().float().cpu()
    low, high = values.amin(), values.amax()
    pixels = ((values - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).double().numpy()
    labels = slic(pixels, n_segments=regions, slic_zero=True, start_label=0, convert2lab=pixels.shape[2] == 3)
    _, numbered = np.unique(labels, return_inverse=True)
    return torch.as_tensor(numbered.reshape(labels.shape), device=image.device)


class GreedySearch:
    """Ranks regions by their gain, for several targets that share the evaluated images.

    A set of regions is an int with one bit per region.

    Args:
        evaluate: from visible regions (K, regions) bool to the scores (K, targets) float64.
        regions: number of regions.
        targets: number of targets.
        lazy: if True, gains are evaluated again only for regions that may be chosen.

    Attributes:
        order: per target, its regions in the order of their choice.
        gains: per target, the increase of F by each of them.
    """

    def __init__(self, evaluate: Callable[[Tensor], Tensor], regions: int, targets: int, *, lazy: bool) -> None:
        self.evaluate = evaluate
        self.regions = regions
        self.lazy = lazy
        self.all_regions = (1 << regions) - 1
        self.order: list[list[int]] = [[] for _ in range(targets)]
        self.gains: list[list[float]] = [[] for _ in range(targets)]
        self._known: dict[int, Tensor] = {}
        self._bounds = torch.full((targets, regions), torch.inf, dtype=torch.float64)

    @property
    def passes(self) -> int:
        """Number of evaluated images."""
        return len(self._known)

    def run(self, steps: int) -> None:
        """Choose `steps` regions for each target."""
        chosen = [0] * len(self.order)
        current = self.values([0])[0]
        for _ in range(steps):
            if not self.lazy:
                self._bounds[self._bounds > -torch.inf] = torch.inf
            self._update_gains(chosen, current)
            for target, bounds in enumerate(self._bounds):
                best = float(bounds.max())
                region = int((bounds >= best - TIE_TOLERANCE * (1 + abs(best))).nonzero()[0])
                self.order[target].append(region)
                self.gains[target].append(float(bounds[region]))
                chosen[target] |= 1 << region
                bounds[region] = -torch.inf
            current = torch.stack([row[n] for n, row in enumerate(self.values(chosen))])

    def _update_gains(self, chosen: list[int], current: Tensor) -> None:
        """Evaluate gains until the best one of each target is known."""
        stale = self._bounds > -torch.inf
        pending = list(range(len(chosen)))
        while pending:
            requests: list[tuple[int, int]] = []
            for target in pending:
                bounds = self._bounds[target].masked_fill(~stale[target], -torch.inf)
                unknown = (bounds == torch.inf).nonzero()[:, 0]
                best = bounds.argsort(descending=True, stable=True)[: min(LAZY_BATCH, int(stale[target].sum()))]
                requests += [(target, region) for region in (unknown if len(unknown) else best).tolist()]
            values = self.values([chosen[target] | 1 << region for target, region in requests])
            for (target, region), row in zip(requests, values, strict=True):
                self._bounds[target, region] = row[target] - current[target]
                stale[target, region] = False
            pending = [target for target in pending if self._may_be_beaten(target, stale[target])]

    def _may_be_beaten(self, target: int, stale: Tensor) -> bool:
        """Whether a region with a stale gain may be better than all regions with a current one."""
        bounds = self._bounds[target]
        known = bounds.masked_fill(stale, -torch.inf).max()
        return bool(stale.any()) and bool(bounds[stale].max() > known)

    def values(self, sets: Sequence[int]) -> Tensor:
        """F (K, targets) of K sets of regions."""
        needed = dict.fromkeys(part for shown in sets for part in (shown, self.all_regions ^ shown))
        new = [part for part in needed if part not in self._known]
        if new:
            visible = torch.tensor([[part >> region & 1 for region in range(self.regions)] for part in new])
            self._known.update(zip(new, self.evaluate(visible.bool()), strict=True))
        return torch.stack([self._known[shown] + 1 - self._known[self.all_regions ^ shown] for shown in sets])

    def saliency(self, *, own_gain: bool) -> Tensor:
        """(targets, regions): sum of the magnitudes of the gains from a region (or the next) on; 0 if not chosen."""
        saliency = torch.zeros(len(self.order), self.regions, dtype=torch.float64)
        for target, (order, gains) in enumerate(zip(self.order, self.gains, strict=True)):
            magnitudes = torch.tensor(gains, dtype=torch.float64).abs()
            remaining = magnitudes.flip(0).cumsum(0).flip(0)
            saliency[target, order] = remaining if own_gain else remaining - magnitudes
        return saliency
