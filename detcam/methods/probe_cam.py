"""ProbeCAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import ModelLike, Target
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.methods.common.region_proposals import color_segments, propose_regions
from detcam.methods.reach_cam import ReachCAM, contrast_targets
from detcam.perturbation.base import (
    ImageArea,
    ImageScorer,
    default_batch_size,
    detached_score,
    pin_targets,
    select_image,
)
from detcam.perturbation.bn_folding import BatchNormFolding
from detcam.perturbation.fills import LinearFill
from detcam.results import Measured, Pass, Sampling
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform
from detcam.utils.batching import batch_slices
from detcam.utils.filters import blur
from detcam.utils.opencv import cv2

DROP_EXPONENT = 4
"""Exponent of a region's score drop: regions with half of the largest drop are nearly invisible."""
SALIENCY_EXPONENT = 0.5
"""Exponent of the saliency in a region: without saliency, a drop is probably an artifact of the fill."""
MIN_BRIGHTNESS = 0.3
"""Brightness of a region's pixel without saliency, relative to its maximum."""
CELL_MARGIN = 1
"""Pixels around a region that are removed with it."""
MIN_DROP = 0.25
"""Drop of the score, relative to it, of at least one region; else regions in the box are removed as well."""


class ProbeCAM(ReachCAM):
    r"""Regions proposed by ReachCAM, weighted by the drop of the score when each is removed.

    .. math:: L(\lambda) = \max_{R \ni \lambda} \Big(\frac{d_R^+}{\max_Q d_Q^+}\Big)^4 \Big(\frac{h_R}{\max_Q
        h_Q}\Big)^{1/2} \big(0.3 + 0.7\, \hat h_R(\lambda)\big), \quad d_R = y(X) - y(X_{\setminus R})

    with R and Q the region proposals (color segments, and small discs around the maxima of ReachCAM's maps), y the
    target's score, X the image, :math:`h_R` the sum over the region of the product of ReachCAM's layers, and
    :math:`\hat h_R` the smoothed sum of the layers in the region times the distance to its border, scaled to a maximum
    of 1: outlines included in a segment are thin, and often have the largest saliency. Removed regions are filled by
    linear imputation. Gradients propose regions, and may rank them wrongly; removing them one by one decides. A class
    score is measured as the probability minus that of the rival class of ReachCAM. If no region costs a quarter of the
    target's value, as with detectors of transformers, whose gradients are noisy, the regions that ReachCAM proposes in
    the target's box are removed as well.

    After `ReachCAM`, and Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    https://arxiv.org/abs/1311.2901.

    Use it to find the cause of a detection, inside or outside the box.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `ReachCAM`.
        reshape_transform: as in `ReachCAM`.
        steps: as in `ReachCAM`.
        contrast: as in `ReachCAM`.
        probes: maximum number of removed regions per target, and of those in its box; each costs a forward pass.
    """

    compares_scores = True
    name = "probecam"
    paper = "after Zeiler and Fergus, Visualizing and Understanding CNNs, ECCV 2014, https://arxiv.org/abs/1311.2901"
    checks_convergence = False
    cost = "4 forwards and backwards per layer, 7 to 14 forwards per target"
    use = "the cause of a detection: regions proposed by ReachCAM, each verified by removal"
    explains_volumes = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        steps: int = 4,
        contrast: bool = True,
        probes: int = 7,
    ) -> None:
        if probes < 1:
            raise ValueError(f"expected probes of at least 1; got {probes}")
        super().__init__(model, target_layers, reshape_transform, steps=steps, contrast=contrast)
        self.probes = probes

    def measure(self, run: Pass) -> Measured:
        measured = super().measure(run)
        maps: list[Tensor] = []
        sampling: list[Sampling | None] = []
        folding: BatchNormFolding | None = None  # shared by all images of the pass
        for image, targets in enumerate(run.targets):
            levels = [level[image] for level in measured.maps]
            probed, passes, folding = self._probe(run, image, targets, levels, folding)
            maps.append(probed)
            sampling.append(Sampling(passes))
        return replace(measured, maps=[maps], sampling=sampling)

    combine = BaseCAM.combine  # of one map, instead of ReachCAM's product

    def _probe(
        self,
        run: Pass,
        image: int,
        targets: Sequence[Target],
        levels: Sequence[Tensor],
        folding: BatchNormFolding | None,
    ) -> tuple[Tensor, int, BatchNormFolding | None]:
        """One image's maps (N, H, W) over the network's input, the number of passes, and the folding."""
        batch = select_image(run.batch, image)
        maps = torch.zeros((len(targets), *batch.inputs.shape[-2:]), device=batch.inputs.device)
        if not targets:
            return maps, 0, folding
        contrasted = contrast_targets(run.outputs[image], targets) if self.contrast else targets
        scorer = ImageScorer(
            run.adapter,
            batch,
            run.outputs[image],
            pin_targets(run.outputs[image], [_logit_to_score(target) for target in contrasted]),
            batch_size=default_batch_size(batch.inputs.device),
            folding=folding,
        )
        area = ImageArea(scorer)
        saliency = _resize_to_area(levels, area)
        labels = color_segments(area.image[0].float())
        regions = [propose_regions(saliency[:, row], labels, self.probes) for row in range(len(targets))]
        original = _original_scores(scorer)
        drops = _score_drops(scorer, area, regions, original)
        inside = [
            self._regions_in_box(target, area, scorer.geometry, saliency[:, row], labels, regions[row])
            if max(drops[row].tolist(), default=0.0) < MIN_DROP * abs(float(original[row]))
            else regions[row][:0]
            for row, target in enumerate(targets)
        ]
        if any(map(len, inside)):
            more = _score_drops(scorer, area, inside, original)
            regions = [torch.cat(pair) for pair in zip(regions, inside, strict=True)]
            drops = [torch.cat(pair) for pair in zip(drops, more, strict=True)]
        for row, (target_regions, target_drops) in enumerate(zip(regions, drops, strict=True)):
            rendered = render_regions(saliency[:, row], target_regions, target_drops)
            maps[row, area.rows, area.columns] = rendered.to(maps)
        return maps, sum(len(target_regions) for target_regions in regions), scorer.folding

    def _regions_in_box(
        self, target: Target, area: ImageArea, geometry: Geometry, levels: Tensor, labels: Tensor, known: Tensor
    ) -> Tensor:
        """Proposals (k, h, w) of ReachCAM's maps (L, h, w) in a target's box, without the known ones (m, h, w)."""
        proposed = propose_regions(levels * _in_box(target, area, geometry), labels, self.probes)
        return proposed[~(proposed[:, None] == known).flatten(2).all(2).any(1)]


def render_regions(levels: Tensor, regions: Tensor, drops: Tensor) -> Tensor:
    """Render a target's map from its regions.

    Args:
        levels: (L, h, w) maps of ReachCAM, not negative.
        regions: (k, h, w) bool.
        drops: (k,) score drop without each region.

    Returns:
        (h, w) float64 in [0, 1].
    """
    rendered = torch.zeros(levels.shape[-2:], dtype=torch.float64)
    drops = drops.cpu().double().clamp(min=0)
    if not len(regions) or not bool((drops > 0).any()):
        return rendered
    levels = levels.cpu().double()
    sums = torch.stack([(levels.prod(0) * region).sum() for region in regions])
    weights = (drops / drops.max()) ** DROP_EXPONENT * (sums / sums.max().clamp(min=1e-300)) ** SALIENCY_EXPONENT
    saliency = blur(levels.sum(0)[None], 0.01 * max(rendered.shape))[0]
    for region, weight in zip(regions, weights, strict=True):
        inside = _eroded(region)
        shape = saliency * _relative_depth(inside)
        shape = inside * (MIN_BRIGHTNESS + (1 - MIN_BRIGHTNESS) * shape / shape.max().clamp(min=1e-300))
        rendered = torch.maximum(rendered, weight * shape)
    return rendered


def _relative_depth(region: Tensor) -> Tensor:
    """Distance of each pixel of a region (h, w) bool to its border, scaled to 1; the image's edge is no border."""
    if bool(region.all()):
        return torch.ones(region.shape, dtype=torch.float64)
    distance = cv2.distanceTransform(region.numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance / distance.max()).double()


def _eroded(region: Tensor) -> Tensor:
    """A region (h, w) bool eroded by a pixel, because segments are slightly too large; a thin region is unchanged."""
    eroded = cv2.erode(region.numpy().view(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    inner = torch.from_numpy(eroded).bool()
    return inner if bool(inner.any()) else region


def _logit_to_score(target: Target) -> Target:
    """Replace a class's logit by its score: a logit is unbounded below if no evidence remains."""
    return replace(target, quantity="score") if isinstance(target, BoxTarget) and target.quantity == "logit" else target


def _resize_to_area(levels: Sequence[Tensor], area: ImageArea) -> Tensor:
    """Positive parts of levels (N, h', w') over the input, resized to the image's area: (L, N, h, w) in [0, 1]."""
    resized = []
    for level in levels:
        positive = F.interpolate(
            level.clamp(min=0)[:, None].cpu().double(), area.inputs.shape[-2:], mode="bilinear", align_corners=False
        )[:, 0, area.rows, area.columns]
        maximum = positive.flatten(1).amax(1)
        scaled = positive / maximum.clamp(min=1e-300)[:, None, None]
        # A level without saliency for a target must not erase the others in the product.
        resized.append(torch.where((maximum > 0)[:, None, None], scaled, 1.0))
    saliency = torch.stack(resized)
    empty = torch.stack([~(level > 0).flatten(1).any(1) for level in levels]).all(0).cpu()
    return torch.where(empty[None, :, None, None], 0.0, saliency)


def _in_box(target: Target, area: ImageArea, geometry: Geometry) -> Tensor:
    """The pixels (h, w) bool of a target's box in the image's area; none of a target without a box."""
    inside = torch.zeros(area.size_hw, dtype=torch.bool)
    box = getattr(target, "box_xyxy", None)
    if box is not None:
        x1, y1, x2, y2 = geometry.boxes_to_input(torch.tensor(box, dtype=torch.float64)).round().int().tolist()
        rows, columns = (
            slice(max(low - side.start, 0), max(high - side.start, 0))
            for low, high, side in ((y1, y2, area.rows), (x1, x2, area.columns))
        )
        inside[rows, columns] = True
    return inside


@torch.no_grad()
def _original_scores(scorer: ImageScorer) -> Tensor:
    """(N,) float64, the targets' scores of the unperturbed image."""
    with torch.enable_grad():  # the recorded pass of the image has a graph, which dense heads read
        rows = scorer.adapter.score([scorer.output], [scorer.targets])
    return torch.stack([detached_score(scalar) for scalar in rows[0]]).cpu().double()


@torch.no_grad()
def _score_drops(scorer: ImageScorer, area: ImageArea, regions: Sequence[Tensor], original: Tensor) -> list[Tensor]:
    """Drop of each target's score without each of its regions (k, h, w): per target (k,) float64."""
    removed = torch.cat(list(regions))
    owner = [row for row, target_regions in enumerate(regions) for _ in target_regions]
    dilated = (
        F.max_pool2d(removed[:, None].float(), 2 * CELL_MARGIN + 1, 1, CELL_MARGIN)[:, 0] > 0
        if len(removed)
        else removed
    )
    fill = LinearFill().for_image(area.image)
    scores = [
        scorer.score(area.paste(fill(dilated[part].to(area.inputs.device)))).cpu().double()
        for part in batch_slices(len(dilated), scorer.images_per_pass)
    ]
    changed = torch.cat(scores) if scores else torch.zeros((0, len(regions)), dtype=torch.float64)
    drops = [original[row] - changed[index, row] for index, row in enumerate(owner)]
    counts = [len(target_regions) for target_regions in regions]
    return list((torch.stack(drops) if drops else torch.zeros(0)).split(counts))
