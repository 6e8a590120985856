"""VX-CODE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from typing import Any, Literal

import torch
from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.methods.common.region_search import TIE_TOLERANCE, RegionSets, is_box_score, region_sets, score_reader
from detcam.methods.drise import boxes_and_classes, detection_similarity
from detcam.outputs import DetectorOutput
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM
from detcam.results import Sampling
from detcam.targets import BoxTarget
from detcam.trace import ReshapeTransform
from detcam.utils.precision import work_dtype

SMALL_BOX, MEDIUM_BOX = 0.01, 0.2
"""Largest area of a small and of a medium box, as fractions of the image."""
SMALL_BOX_GRID, MEDIUM_BOX_GRID, LARGE_BOX_GRID = 24, 16, 8
"""Patches per side of the image for boxes of these sizes, and for larger ones."""
MARGIN = 1 / 7
"""Width of the border around a small or medium box in which patches are ranked, as a fraction of the image's sides."""


class VXCODE(InputCAM):
    r"""Patches ranked by a greedy search for those that together reduce, or restore, the detection most.

    .. math:: P_i = P_{i-1} \cup \arg\min_{|Q| = r} y(V \setminus (P_{i-1} \cup Q)),\quad
        y(S) = \max_j \mathrm{IoU}(b_t, b_j^S)\, \frac{c_t \cdot c_j^S}{\|c_t\| \|c_j^S\|},\quad
        \alpha_i = y(V \setminus P_{i-1})

    with V the patches of the image, S the visible ones, :math:`b_j^S` and :math:`c_j^S` the boxes and vectors of class
    scores of the raw candidates (before NMS) in that image, :math:`b_t` and :math:`c_t` those of the target, and
    :math:`\alpha_i` the saliency of the i-th chosen patch, 1 for the first one. Hidden pixels are 0 in the network's
    input: the mean color if the input is normalized, else black. (The authors' code uses black throughout.) With
    ``mode="insertion"``, patches are shown on an empty image instead: the search maximizes
    :math:`y(P_{i-1} \cup Q)`, and :math:`\alpha_i = 1 - y(P_{i-1})`.

    With r = 1, a step adds the patch of the largest marginal contribution in its context, as a Shapley value weights
    it; with r > 1 it adds the r patches whose joint contribution is largest, their interactions included. The
    combinations are those of the ``candidates`` patches that are best alone (patch selection), until
    ``combined_share`` of the patches is chosen; then the search goes on one by one. The r patches of a step are put
    into the order with the best sum of y over the steps.

    As in the paper, the side of the image is divided into 24 patches for a box of at most 1 % of its area, into 16 for
    one of at most 20 %, else into 8, and around boxes of the first two sizes only patches are ranked whose center is
    at most a seventh of the image's side away from the box (all, where there is none).

    Heads without a background class, such as YOLO's, have class vectors that do not tell whether there is an object:
    for these, y has the candidate's largest class score as a further factor, as in `DRISE`, and y is divided by its
    value in the whole image. A target that is not the class score of a box has the grid of 8 x 8, or that of its box,
    and :math:`y(S) = (s(S) - s(\emptyset)) / |s(V) - s(\emptyset)|` with s its score. The paper treats neither case.

    Yamauchi, Kera and Kawamoto, *Explaining Object Detectors via Collective Contribution of Pixels*, CVPR 2026,
    https://arxiv.org/abs/2412.00666. Constants that the paper's text does not give are those of the authors' code
    (https://github.com/tttt-0814/VX-CODE).

    Use it for the patches that a box needs, ranked in their context, for any black box. With N ranked patches it takes
    N (N + 1) / 2 passes with r = 1, a few thousand per box, and for r > 1 in addition the binomial coefficient
    (`candidates`, r) per step; their number is in `ImageHeatmaps.sampling`. Targets of the same grid share passes.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        mode: ``"deletion"`` hides patches of the image, ``"insertion"`` shows patches of an empty image.
        patches_per_step: number r of patches that are chosen together; at most 3 is practical.
        grid: number of patches per side; None chooses it by the box, as in the paper.
        select: number of patches to choose; the others have saliency 0. None ranks all patches.
        candidates: number of patches whose combinations are tried.
        combined_share: fraction of the patches that is chosen in combinations.
    """

    name = "vxcode"
    paper = "Yamauchi et al., VX-CODE, CVPR 2026, https://arxiv.org/abs/2412.00666"
    cost = "thousands of forwards per target"
    use = "the patches that a box needs, alone or together; for any black box"

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        mode: Literal["deletion", "insertion"] = "deletion",
        patches_per_step: int = 1,
        grid: int | None = None,
        select: int | None = None,
        candidates: int = 30,
        combined_share: float = 0.1,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if mode not in ("deletion", "insertion"):
            raise ValueError(f"expected mode 'deletion' or 'insertion'; got {mode!r}")
        if patches_per_step < 1:
            raise ValueError(f"expected patches_per_step of at least 1; got {patches_per_step}")
        if grid is not None and grid < 2:
            raise ValueError(f"expected grid of at least 2 patches per side, or None; got {grid}")
        if select is not None and select < 1:
            raise ValueError(f"expected select of at least 1, or None for all patches; got {select}")
        if candidates < patches_per_step:
            raise ValueError(f"expected candidates of at least patches_per_step, {patches_per_step}; got {candidates}")
        self.mode, self.patches_per_step, self.grid, self.select = mode, patches_per_step, grid, select
        self.candidates, self.combined_share = candidates, combined_share

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        area = ImageArea(scorer)
        read_scores = score_reader(scorer, _similarity(scorer))
        per_grid: dict[int, tuple[Tensor, RegionSets]] = {}
        maps = []
        for row, target in enumerate(scorer.targets):
            box = _box_on_area(target, scorer, area)
            share = 1.0 if box is None else _area_share(box, area.size_hw)
            grid = self.grid or patches_per_side(share)
            if grid not in per_grid:
                labels = patch_labels(area.size_hw, grid).to(area.inputs.device)
                per_grid[grid] = labels, region_sets(scorer, area, labels, read_scores)
            labels, sets = per_grid[grid]
            near = patches_near(box, area.size_hw, grid) if box is not None and share <= MEDIUM_BOX else []
            patches = near or list(range(sets.regions))
            search = PatchSearch(
                _relative_scores(sets, row, is_similarity=is_box_score(scorer.output, target)),
                sets.regions,
                patches,
                mode=self.mode,
                together=self.patches_per_step,
                candidates=self.candidates,
                combined=self.combined_share * len(patches),
            )
            search.run(len(patches) if self.select is None else min(self.select, len(patches)))
            maps.append(search.saliency().to(area.inputs.device, work_dtype(area.inputs))[labels])
        scorer.sampling = Sampling(sum(sets.passes for _, sets in per_grid.values()))
        return [area.pad_maps(torch.stack(maps))]


def patches_per_side(box_share: float) -> int:
    """Return the number of patches per side for a box that covers a fraction of the image."""
    if 0 < box_share <= SMALL_BOX:
        return SMALL_BOX_GRID
    return MEDIUM_BOX_GRID if SMALL_BOX < box_share <= MEDIUM_BOX else LARGE_BOX_GRID


def patch_sides(size_hw: tuple[int, int], grid: int) -> tuple[int, int]:
    """Return height and width of a patch; those at the right and bottom border may be smaller, or one more."""
    return max(1, round(size_hw[0] / grid)), max(1, round(size_hw[1] / grid))


def patch_labels(size_hw: tuple[int, int], grid: int) -> Tensor:
    """Return the patch (h, w) of each pixel, numbered row by row."""
    height, width = patch_sides(size_hw, grid)
    rows, columns = torch.arange(size_hw[0]) // height, torch.arange(size_hw[1]) // width
    return rows[:, None] * (int(columns[-1]) + 1) + columns


def patches_near(box_xyxy: Sequence[float], size_hw: tuple[int, int], grid: int) -> list[int]:
    """Return the patches whose center lies in the box or at most a seventh of the image's side away from it."""
    height, width = patch_sides(size_hw, grid)
    rows, columns = -(-size_hw[0] // height), -(-size_hw[1] // width)
    left, right = box_xyxy[0] - size_hw[1] * MARGIN, box_xyxy[2] + size_hw[1] * MARGIN
    top, bottom = box_xyxy[1] - size_hw[0] * MARGIN, box_xyxy[3] + size_hw[0] * MARGIN
    return [
        row * columns + column
        for row in range(rows)
        for column in range(columns)
        if max(0, left) <= (column + 0.5) * width <= min(size_hw[1], right)
        and max(0, top) <= (row + 0.5) * height <= min(size_hw[0], bottom)
    ]


class PatchSearch:
    """Ranks the patches of one target; see `VXCODE`.

    Args:
        scores: from sets of visible patches, ints with one bit per patch, to y.
        count: number of patches of the image.
        patches: the patches to rank.
        mode: as in `VXCODE`.
        together: number of patches that are chosen in a step.
        candidates: number of patches whose combinations are tried.
        combined: number of patches from which on they are chosen one by one.

    Attributes:
        order: the patches in the order of their choice.
        values: y after each choice.
    """

    def __init__(
        self,
        scores: Callable[[Sequence[int]], Tensor],
        count: int,
        patches: Sequence[int],
        *,
        mode: Literal["deletion", "insertion"],
        together: int,
        candidates: int,
        combined: float,
    ) -> None:
        self.scores, self.count, self.inserts = scores, count, mode == "insertion"
        self.together, self.candidates, self.combined = together, candidates, combined
        self.order: list[int] = []
        self.values: list[float] = []
        self._remaining = list(patches)
        self._chosen = 0

    def run(self, steps: int) -> None:
        """Choose `steps` patches, or a few more in the last combination."""
        while self._remaining and len(self.order) < steps:
            if self.together > 1 and len(self.order) < self.combined and len(self._remaining) > 1:
                chosen = self._best_combination()
            else:
                chosen = self._best([(patch,) for patch in self._remaining], 1)[0]
            states = self._states(chosen)
            self.order += chosen
            self.values += self.scores([self._visible(state) for state in states]).tolist()
            self._chosen = states[-1]
            self._remaining = [patch for patch in self._remaining if patch not in chosen]

    def saliency(self) -> Tensor:
        """(count,) float64; 0 for patches that were not chosen."""
        before = [1 - value if self.inserts else value for value in self.values]
        saliency = torch.zeros(self.count, dtype=torch.float64)
        saliency[self.order] = torch.tensor([1.0, *before[:-1]], dtype=torch.float64)
        return saliency

    def _best_combination(self) -> tuple[int, ...]:
        """The best combination of the patches that are best alone, in the order with the best sum."""
        alone = sorted(patch for (patch,) in self._best([(patch,) for patch in self._remaining], self.candidates))
        together = min(self.together, len(alone))
        chosen = self._best(list(combinations(alone, together)), 1)[0]
        orders = list(permutations(chosen))
        states = [self._visible(state) for order in orders for state in self._states(order)]
        return orders[self._ranking(self.scores(states).reshape(len(orders), -1).sum(1))[0]]

    def _best(self, groups: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
        """The `count` groups of patches that change y most if they are chosen, best first."""
        states = [self._visible(self._states(group)[-1]) for group in groups]
        return [groups[index] for index in self._ranking(self.scores(states))[:count]]

    def _ranking(self, scores: Tensor) -> list[int]:
        """Indices from the best score to the worst; equal ones, up to rounding, in their order."""
        steps = (scores / TIE_TOLERANCE).round()
        return (-steps if self.inserts else steps).argsort(stable=True).tolist()

    def _states(self, patches: Sequence[int]) -> list[int]:
        """The sets of chosen patches after each of some further ones."""
        states = [self._chosen]
        for patch in patches:
            states.append(states[-1] | 1 << patch)
        return states[1:]

    def _visible(self, chosen: int) -> int:
        return chosen if self.inserts else ((1 << self.count) - 1) ^ chosen


def _similarity(scorer: ImageScorer) -> Callable[[DetectorOutput, Sequence[BoxTarget]], Tensor]:
    """From the output for a perturbed image and the box targets to the similarity (n,) of the best candidates."""
    original: Any = scorer.output
    matched = [target for target in scorer.targets if is_box_score(original, target)]
    boxes, classes = torch.zeros(0, 4), torch.zeros(0, 0)
    if matched:
        boxes, classes = (part.float().cpu() for part in boxes_and_classes(original, matched))

    def similarity(output: DetectorOutput, targets: Sequence[BoxTarget]) -> Tensor:
        labels = torch.tensor([target.label for target in targets])
        scores = torch.zeros(len(targets))
        for label in labels.unique().tolist():
            members = labels == label
            candidate_boxes, class_scores = (part.float().cpu() for part in output.raw_candidates(label))
            scores[members] = detection_similarity(
                boxes[members],
                classes[members],
                candidate_boxes,
                class_scores,
                background=original.background,
                objectness=original.background is None,
            )
        return scores

    return similarity


def _relative_scores(sets: RegionSets, row: int, *, is_similarity: bool) -> Callable[[Sequence[int]], Tensor]:
    """Scores y (K,) of sets of patches, 1 for the whole image; without similarity, 0 for the empty image."""
    whole = float(sets.scores([sets.all_regions])[0, row])
    empty = 0.0 if is_similarity else float(sets.scores([0])[0, row])
    span = abs(whole - empty) or 1.0
    return lambda shown: (sets.scores(shown)[:, row] - empty) / span


def _box_on_area(target: Any, scorer: ImageScorer, area: ImageArea) -> tuple[float, float, float, float] | None:
    """The box of a target in pixels of the area that the image covers; None for a target without a box."""
    box = getattr(target, "box_xyxy", None)
    if box is None:
        return None
    x1, y1, x2, y2 = scorer.geometry.boxes_to_input(torch.tensor([list(box)], dtype=torch.float64))[0].tolist()
    left, top = area.columns.start, area.rows.start
    return x1 - left, y1 - top, x2 - left, y2 - top


def _area_share(box_xyxy: Sequence[float], size_hw: tuple[int, int]) -> float:
    return (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]) / (size_hw[0] * size_hw[1])
