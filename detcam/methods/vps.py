"""Visual Precision Search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Batch
from detcam.outputs import DetectorOutput, work_dtype
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM
from detcam.results import Sampling
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform
from detcam.utils.batching import pieces

AHEAD = 4
"""A lazy search looks at so many regions at a time, so that passes come in batches."""
TIED = 1e-6
"""Gains that differ by less, relative to the best, are rounding: the first region of them is taken."""


class VPS(InputCAM):
    r"""Superpixels in the order in which they bring a target out, found greedily.

    .. math:: F(S) = y(S) + 1 - y(V \setminus S),\quad s_i = \arg\max_r F(S_{i-1} \cup \{r\}),\quad
        \alpha_i = \sum_{j \ge i} |F(S_j) - F(S_{j-1})|

    with V the regions of the image, y(S) the target's score in the image that shows the regions S alone (the clue
    score), and 1 - y(V \\ S) what is lost without them (the collaboration score). What is hidden becomes 0 in the
    network's input: the mean colour where the input is normalised, else black. (The authors' code does so for Grounding
    DINO, and blackens the image for the detectors of MMDetection; its superpixels are OpenCV's.) A region's saliency
    is its :math:`\alpha`.

    For a box, y is the greatest product of IoU with the box and score of its class over all that the detector says
    before suppression; with `pinned`, that product at the box's own source. Every other target is its own y.

    In the paper the sum for :math:`\alpha_i` begins at i + 1 (``own_gain=False``): the order is the same, but the last
    region that matters ties with those that do not.

    Chen et al., *Interpreting Object-level Foundation Models via Visual Precision Search*, CVPR 2025,
    https://arxiv.org/abs/2411.16198.

    With K regions the paper's search takes K (K + 1) passes less those that show what was shown before; every pass is
    read for all of an image's targets. How many there were is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
        regions: about how many superpixels (SLIC without a compactness to choose); the paper has 50 to 100.
        select: the search ends after so many regions, and the others have saliency 0; None orders them all.
        lazy: look again only at regions whose last known gain might be the best, which takes a fraction of the passes.
            Where gains never grow the order is the same. What the collaboration score gains may grow, and then the
            order may differ from the paper's. False looks at all remaining regions in every step.
        pinned: ask a box at its source instead of wherever it fits best.
        own_gain: whether a region's saliency counts its own gain.
    """

    name = "vps"
    paper = "Chen et al., Visual Precision Search, CVPR 2025, https://arxiv.org/abs/2411.16198"
    cost = "hundreds to thousands of forwards a target"
    use = "which few regions suffice, in what order; a black box will do"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
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
        canvas = ImageArea(scorer)
        image = scorer.batch.inputs[0, :, canvas.rows, canvas.columns]
        labels = superpixels(image, self.regions)
        count = int(labels.max()) + 1
        read = self._reader(scorer)

        def look(visible: Tensor) -> Tensor:
            shown = visible.to(labels.device)
            parts = pieces(len(shown), scorer.images_per_pass)
            found = [scorer.score(canvas.apply_masks(shown[part][:, labels]), read) for part in parts]
            return torch.cat(found).double().cpu()

        search = GreedySearch(look, count, len(scorer.targets), lazy=self.lazy)
        search.run(count if self.select is None else min(self.select, count))
        scorer.sampling = Sampling(search.passes)
        saliency = search.saliency(own_gain=self.own_gain).to(canvas.inputs.device, work_dtype(canvas.inputs))
        return [canvas.pad_maps(saliency[:, labels])]

    def _reader(self, scorer: ImageScorer) -> Callable[[Any, Batch], Tensor]:
        """From a pass to every target's y (K, N)."""
        matched = [index for index, target in enumerate(scorer.targets) if _is_matched(scorer.output, target)]
        plain = [index for index in range(len(scorer.targets)) if index not in matched]
        boxes: list[Any] = [scorer.targets[index] for index in matched]
        others = [scorer.targets[index] for index in plain]

        def read(raw: Any, batch: Batch) -> Tensor:
            outputs = scorer.adapter.outputs(raw, batch)
            scores = torch.zeros(len(outputs), len(scorer.targets), dtype=torch.float64)
            for row, output in zip(scores, outputs, strict=True):
                if boxes:
                    row[matched] = box_fit(output, boxes, pinned=self.pinned).double().cpu()
            if others:
                values = scorer.adapter.score(outputs, [others] * len(outputs))
                scores[:, plain] = torch.tensor([[float(v.detach()) for v in row] for row in values]).double()
            if not torch.isfinite(scores).all():
                raise RuntimeError("a changed image scores NaN or infinity; check the model, or use float32")
            return scores

        return read


def _is_matched(output: Any, target: Any) -> bool:
    """Whether a target is the class score of a box, which is looked for by overlap."""
    if not isinstance(output, DetectorOutput) or not isinstance(target, BoxTarget):
        return False
    return target.quantity == "score" and target.against is None


def box_fit(output: DetectorOutput, targets: Sequence[BoxTarget], *, pinned: bool = False) -> Tensor:
    """How far a detector still says a box: IoU times class score.

    Args:
        output: what it says about one image.
        targets: N boxes.
        pinned: at each target's source; else the greatest product over all that the detector says.

    Returns:
        (N,) in [0, 1]; 0 where nothing overlaps.
    """
    wanted = torch.tensor([target.box_xyxy for target in targets])
    labels = torch.tensor([target.label for target in targets])
    if pinned:
        with torch.no_grad():
            said = output.candidates(list(targets))
        overlap = box_iou(wanted, output.geometry.clip(said.boxes_xyxy).float().cpu()).nan_to_num(0.0).diagonal()
        return overlap * said.class_scores.float().cpu()[torch.arange(len(targets)), labels]
    found = torch.zeros(len(targets))
    for label in labels.unique().tolist():
        boxes, scores = (part.float().cpu() for part in output.raw_candidates(label))
        if len(boxes):
            own = labels == label
            overlap = box_iou(wanted[own], boxes).nan_to_num(0.0)  # of two boxes without area it is 0 / 0
            found[own] = (overlap * scores[:, label]).amax(1)
    return found


def superpixels(image: Tensor, regions: int) -> Tensor:
    """Superpixels of an image (C, H, W): labels (H, W) from 0 on, about as many as asked for, each connected."""
    from skimage.segmentation import slic  # takes long to import, and nothing else needs it

    values = image.detach().float().cpu()
    low, high = values.amin(), values.amax()
    pixels = ((values - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).double().numpy()
    labels = slic(pixels, n_segments=regions, slic_zero=True, start_label=0, convert2lab=pixels.shape[2] == 3)
    _, numbered = np.unique(labels, return_inverse=True)
    return torch.as_tensor(numbered.reshape(labels.shape), device=image.device)


class GreedySearch:
    """Puts regions in the order of their gains, for several targets that share what is looked at.

    Sets of regions are numbers whose bits say which regions belong.

    Args:
        look: from what is visible (K, regions), bool, to every target's score (K, targets).
        regions: how many there are.
        targets: how many scores there are for each look.
        lazy: whether known gains stand until a region might be chosen.

    Attributes:
        order: per target, its regions as they were chosen.
        gains: per target, how much F grew with each of them.
    """

    def __init__(self, look: Callable[[Tensor], Tensor], regions: int, targets: int, *, lazy: bool) -> None:
        self.look = look
        self.regions = regions
        self.lazy = lazy
        self.whole = (1 << regions) - 1
        self.order: list[list[int]] = [[] for _ in range(targets)]
        self.gains: list[list[float]] = [[] for _ in range(targets)]
        self._known: dict[int, Tensor] = {}
        self._bounds = torch.full((targets, regions), torch.inf, dtype=torch.float64)

    @property
    def passes(self) -> int:
        """How many images were looked at."""
        return len(self._known)

    def run(self, steps: int) -> None:
        """Choose so many regions for each target."""
        chosen = [0] * len(self.order)
        reached = self.values([0])[0]
        for _ in range(steps):
            if not self.lazy:
                self._bounds[self._bounds > -torch.inf] = torch.inf
            self._look_at_the_best(chosen, reached)
            for target, bounds in enumerate(self._bounds):
                best = float(bounds.max())
                region = int((bounds >= best - TIED * (1 + abs(best))).nonzero()[0])
                self.order[target].append(region)
                self.gains[target].append(float(bounds[region]))
                chosen[target] |= 1 << region
                bounds[region] = -torch.inf
            reached = torch.stack([row[n] for n, row in enumerate(self.values(chosen))])

    def _look_at_the_best(self, chosen: list[int], reached: Tensor) -> None:
        """Bring gains up to date until each target's best one is known."""
        stale = self._bounds > -torch.inf
        waiting = list(range(len(chosen)))
        while waiting:
            wanted: list[tuple[int, int]] = []
            for target in waiting:
                bounds = self._bounds[target].masked_fill(~stale[target], -torch.inf)
                unknown = (bounds == torch.inf).nonzero()[:, 0]
                first = bounds.argsort(descending=True, stable=True)[: min(AHEAD, int(stale[target].sum()))]
                wanted += [(target, region) for region in (unknown if len(unknown) else first).tolist()]
            found = self.values([chosen[target] | 1 << region for target, region in wanted])
            for (target, region), row in zip(wanted, found, strict=True):
                self._bounds[target, region] = row[target] - reached[target]
                stale[target, region] = False
            waiting = [target for target in waiting if self._may_be_beaten(target, stale[target])]

    def _may_be_beaten(self, target: int, stale: Tensor) -> bool:
        """Whether a region whose gain is not known any more might be better than all whose gain is known."""
        bounds = self._bounds[target]
        known = bounds.masked_fill(stale, -torch.inf).max()
        return bool(stale.any()) and bool(bounds[stale].max() > known)

    def values(self, sets: Sequence[int]) -> Tensor:
        """F of sets of regions for every target: (K, targets)."""
        needed = dict.fromkeys(part for shown in sets for part in (shown, self.whole ^ shown))
        new = [part for part in needed if part not in self._known]
        if new:
            visible = torch.tensor([[part >> region & 1 for region in range(self.regions)] for part in new])
            self._known.update(zip(new, self.look(visible.bool()), strict=True))
        return torch.stack([self._known[shown] + 1 - self._known[self.whole ^ shown] for shown in sets])

    def saliency(self, *, own_gain: bool) -> Tensor:
        """(targets, regions): per region the sizes of all gains from it (or the next) on; 0 if it was not chosen."""
        found = torch.zeros(len(self.order), self.regions, dtype=torch.float64)
        for target, (order, gains) in enumerate(zip(self.order, self.gains, strict=True)):
            sizes = torch.tensor(gains, dtype=torch.float64).abs()
            left = sizes.flip(0).cumsum(0).flip(0)
            found[target, order] = left if own_gain else left - sizes
        return found
