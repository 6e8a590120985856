"""ProbeCAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.methods.common.region_proposals import candidate_places, segments
from detcam.methods.reach_cam import ReachCAM, contrasted
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
from detcam.utils.batching import pieces
from detcam.utils.filters import blur
from detcam.utils.opencv import cv2

SHARPNESS = 4
"""Power of what a place loses: places that lose half as much are all but left out."""
AGREEMENT = 0.5
"""Power of the heat that a place holds: where nothing is hot, a loss is likely the fill's doing."""
EDGE = 0.3
"""How bright a place is where its own heat is least, its hottest pixel being 1."""
MARGIN = 1
"""Pixels around a place that are taken away with it."""


class ProbeCAM(ReachCAM):
    r"""Places that ReachCAM points to, each taken away: what the score loses says how much it rests on them.

    .. math:: L(\lambda) = \max_{P \ni \lambda} \Big(\frac{d_P^+}{\max_Q d_Q^+}\Big)^4 \Big(\frac{h_P}{\max_Q
        h_Q}\Big)^{1/2} \big(0.3 + 0.7\, \hat h_P(\lambda)\big), \quad d_P = y(X) - y(X_{\setminus P})

    with P the candidate places: segments of one colour and small spots where ReachCAM's maps are hottest;
    :math:`h_P` the heat that a place holds in the product of ReachCAM's layers, and :math:`\hat h_P` the smoothed heat
    inside the place, in sum over layers, times the distance to its border, scaled to a maximum of 1: outlines that a
    segment took in are thin, and often the hottest of it. What is taken away is filled by linear
    imputation. A gradient proposes, and may be wrong about which of its places matters; taking them away one by one
    tells. A class score is probed as the probability, minus that of the rival that ReachCAM contrasts it with.

    After `ReachCAM`, and Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    https://arxiv.org/abs/1311.2901.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `ReachCAM`.
        reshape_transform: as in `ReachCAM`.
        steps: as in `ReachCAM`.
        contrast: as in `ReachCAM`.
        probes: at most so many places of each target are taken away, a forward pass each.
    """

    name = "probecam"
    paper = "after Zeiler and Fergus, Visualizing and Understanding CNNs, ECCV 2014, https://arxiv.org/abs/1311.2901"
    owes_sum = False
    cost = "4 forwards and backwards a layer, 7 forwards a target"
    use = "what caused a detection: places that ReachCAM points to, each tried by taking it away; what an audit asks"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        steps: int = 4,
        contrast: bool = True,
        probes: int = 7,
    ) -> None:
        if probes < 1:
            raise ValueError(f"expected probes of at least 1; got {probes}")
        super().__init__(model, target_layers, reshape_transform, steps, contrast)
        self.probes = probes

    def measure(self, run: Pass) -> Measured:
        proposed = super().measure(run)
        probed = []
        folding: BatchNormFolding | None = None  # found once for all images of the pass
        for image, targets in enumerate(run.targets):
            found, passes, folding = self._probe(
                run, image, targets, [level[image] for level in proposed.maps], folding
            )
            probed.append((found, passes))
        return replace(
            proposed,
            maps=[[found for found, _ in probed]],
            sampling=[Sampling(passes) for _, passes in probed],
        )

    def combine(self, levels: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return BaseCAM.combine(self, levels, geometry)

    def _probe(
        self,
        run: Pass,
        image: int,
        targets: Sequence[Target],
        levels: Sequence[Tensor],
        folding: BatchNormFolding | None,
    ) -> tuple[Tensor, int, BatchNormFolding | None]:
        """One image's maps (N, H, W) over the network's input, how many images they took, and what can be folded."""
        batch = select_image(run.batch, image)
        found = torch.zeros((len(targets), *batch.inputs.shape[-2:]), device=batch.inputs.device)
        if not targets:
            return found, 0, folding
        asked = contrasted(run.outputs[image], targets) if self.contrast else targets
        scorer = ImageScorer(
            run.adapter,
            batch,
            run.outputs[image],
            pin_targets(run.outputs[image], [_as_score(target) for target in asked]),
            torch.zeros(0),
            (),
            (),
            default_batch_size(batch.inputs.device),
            False,
            folding=folding,
        )
        canvas = ImageArea(scorer)
        heat = _on_canvas(levels, canvas)
        labels = segments(batch.inputs[0, :, canvas.rows, canvas.columns].float())
        places = [candidate_places(heat[:, row], labels, self.probes) for row in range(len(targets))]
        lost = _losses(scorer, canvas, places)
        for row, (own, drops) in enumerate(zip(places, lost, strict=True)):
            found[row, canvas.rows, canvas.columns] = paint(heat[:, row], own, drops).to(found)
        return found, sum(len(own) for own in places), scorer.folding


def paint(levels: Tensor, places: Tensor, lost: Tensor) -> Tensor:
    """A map (h, w) in [0, 1] of places (k, h, w) bool that lose (k,), from a target's maps (L, h, w), not negative."""
    found = torch.zeros(levels.shape[-2:], dtype=torch.float64)
    lost = lost.double().clamp(min=0)
    if not len(places) or not bool((lost > 0).any()):
        return found
    levels = levels.double()
    held = torch.stack([(levels.prod(0) * place).sum() for place in places])
    weights = (lost / lost.max()) ** SHARPNESS * (held / held.max().clamp(min=1e-300)) ** AGREEMENT
    heat = blur(levels.sum(0)[None], 0.01 * max(found.shape))[0]
    for place, weight in zip(places, weights, strict=True):
        inside = _without_border(place)
        shape = heat * _depth(inside)
        shape = inside * (EDGE + (1 - EDGE) * shape / shape.max().clamp(min=1e-300))
        found = torch.maximum(found, weight * shape)
    return found


def _depth(place: Tensor) -> Tensor:
    """How far inside a place (h, w) bool each of its pixels lies, the innermost being 1; the image's edge is none."""
    if bool(place.all()):
        return torch.ones(place.shape, dtype=torch.float64)
    distance = cv2.distanceTransform(place.numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance / distance.max()).double()


def _without_border(place: Tensor) -> Tensor:
    """A place (h, w) bool without its outermost pixels, as segments are drawn a little too large; a thin one whole."""
    inner = F.max_pool2d((~place)[None, None].float(), 3, 1, 1)[0, 0] == 0
    return inner if bool(inner.any()) else place


def _as_score(target: Target) -> Target:
    """A class's logit as its score: a logit falls without end where there is nothing to see."""
    return replace(target, quantity="score") if isinstance(target, BoxTarget) and target.quantity == "logit" else target


def _on_canvas(levels: Sequence[Tensor], canvas: ImageArea) -> Tensor:
    """The positive parts of levels (N, h', w') over the input, on the image's place on it: (L, N, h, w) in [0, 1]."""
    found = []
    for level in levels:
        whole = F.interpolate(
            level.clamp(min=0)[:, None].double().cpu(), canvas.inputs.shape[-2:], mode="bilinear", align_corners=False
        )[:, 0, canvas.rows, canvas.columns]
        most = whole.flatten(1).amax(1)
        scaled = whole / most.clamp(min=1e-300)[:, None, None]
        # A level that says nothing for a target must not silence the others in the product.
        found.append(torch.where((most > 0)[:, None, None], scaled, 1.0))
    heat = torch.stack(found)
    silent = torch.stack([~(level > 0).flatten(1).any(1) for level in levels]).all(0).cpu()
    return torch.where(silent[None, :, None, None], 0.0, heat)


@torch.no_grad()
def _losses(scorer: ImageScorer, canvas: ImageArea, places: Sequence[Tensor]) -> list[Tensor]:
    """What each target's score loses without each of its own places (k, h, w): per target (k,) float64."""
    removed = torch.cat(list(places))
    owner = [row for row, own in enumerate(places) for _ in own]
    grown = F.max_pool2d(removed[:, None].float(), 2 * MARGIN + 1, 1, MARGIN)[:, 0] > 0 if len(removed) else removed
    device = scorer.batch.inputs.device
    fill = LinearFill().for_image(scorer.batch.inputs[:, :, canvas.rows, canvas.columns])
    with torch.enable_grad():  # the image's own pass was recorded, and dense heads read it so
        rows = scorer.adapter.score([scorer.output], [scorer.targets])
    before = torch.stack([detached_score(scalar) for scalar in rows[0]]).double().cpu()
    scores = []
    for part in pieces(len(grown), scorer.images_per_pass):
        inputs = scorer.batch.inputs.repeat(part.stop - part.start, 1, 1, 1)
        inputs[:, :, canvas.rows, canvas.columns] = fill(grown[part].to(device)).to(inputs.dtype)
        scores.append(scorer.score(inputs).double().cpu())
    after = torch.cat(scores) if scores else torch.zeros((0, len(places)), dtype=torch.float64)
    lost = [before[row] - after[number, row] for number, row in enumerate(owner)]
    counts = [len(own) for own in places]
    return list((torch.stack(lost) if lost else torch.zeros(0)).split(counts))
