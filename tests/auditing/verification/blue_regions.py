"""Networks that detect a boat from the blueness of regions, images with these regions, and their verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcam.adapters import detector
from detcam.auditing.verification.evidence import box_region
from detcam.auditing.verification.hypothesis import Hypothesis, VerificationResult
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_probes import RegionProbes
from detcam.auditing.verification.verifier import Verifier
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.fills import Fill
from detcam.targets import BoxTarget
from detcam.trace import guarded

POND = (25.0, 25.0, 35.0, 35.0)


class BluenessDetector(nn.Module):
    """Detects one boat, with the blueness of its surroundings as the score."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (self.seen(x)[:, 2, 10:50, 10:50] - x[:, 0, 10:50, 10:50]).mean((1, 2))
        return found


def decode_blueness(raw: Tensor) -> tuple[Tensor, Tensor]:
    """One box with the scores of boat and barge, from the score (N,) of the boat, or from both (2, N)."""
    both = raw.T if raw.ndim == 2 else torch.stack([raw, torch.zeros_like(raw)], 1)
    return torch.tensor(POND).expand(len(both), 1, 4), both[:, None].clamp(0, 1)


def verify(
    network: nn.Module,
    image: Tensor,
    heatmap: Tensor | None,
    fills: Sequence[Fill] | None = None,
    segments: Callable[[], Tensor] | None = None,
    regions: Sequence[tuple[slice, slice]] = (),
    *,
    is_confusion: bool = False,
    is_outside: bool = False,
    kind: type[Verifier] = Verifier,
) -> VerificationResult:
    """Verify that a map, if any, shows the cause of the boat in an image (3, h, w), with a score threshold of 0.5."""
    adapter = detector(network.eval(), decode_blueness, names=["boat", "barge"], target_layers="seen").without_layers()
    size = (image.shape[1], image.shape[2])
    box = box_region(POND, size)
    with guarded(adapter.model, gradients=False), torch.no_grad():
        batch = adapter.prepare([image])
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        target = BoxTarget(POND, 0)
        score = float(output.candidates([target]).class_scores[0, 0])
        scorer = ImageScorer(adapter, batch, output, [target], torch.zeros(1), (), (), 8, False)
        criterion = PersistenceCriterion.from_output(output, target, 0.5)
        proposed = torch.zeros(len(regions), *size, dtype=torch.bool)
        for region, place in zip(proposed, regions, strict=True):
            region[place] = True
        maps = [] if heatmap is None else [Proposal("map", heatmap)]
        probes = RegionProbes(maps[0].heatmap[None], proposed, torch.zeros(size)) if regions else None
        proposals = Proposals(maps, probes)
        claim = Hypothesis("case", criterion, score, proposals, box, box, segments, is_confusion=is_confusion)
        (result,) = kind(scorer, fills).verify([replace(claim, is_outside=is_outside)])
    return result


class Spots(nn.Module):
    """Detects a boat from the blueness of several regions (rows, columns).

    Args:
        regions: the regions.
        combine: from their blueness (K, N) to the score (N,).
    """

    def __init__(self, regions: Sequence[tuple[slice, slice]], combine: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.seen = nn.Identity()
        self.regions, self.combine = regions, combine

    def forward(self, x: Tensor) -> Tensor:
        x = self.seen(x)
        return self.combine(torch.stack([x[:, 2, rows, columns].mean((1, 2)) for rows, columns in self.regions]))


LEFT, RIGHT = (slice(4, 10), slice(4, 10)), (slice(4, 10), slice(50, 56))


def spots_image(*regions: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
    """A gray image (3, 64, 64) with blue regions, and these as a map (64, 64)."""
    spots = torch.zeros(64, 64)
    for region in regions:
        spots[region] = 1
    image = torch.full((3, 64, 64), 0.1)
    image[2] += 0.8 * spots
    return image, spots


HULL = (slice(27, 33), slice(27, 33))


def boat_or_barge(blueness: Tensor) -> Tensor:
    """The hull is a boat with the cue, and else a barge."""
    hull, cue = blueness
    return torch.stack([torch.minimum(hull, cue), torch.minimum(hull, 1 - cue)])


def claim_about(heatmap: Tensor) -> Hypothesis:
    """A claim about the wrong class of a box."""
    criterion = PersistenceCriterion(BoxTarget(POND, 0), 0.5, False, torch.zeros(0, 4))
    box = heatmap > 0
    return Hypothesis("case", criterion, 0.9, Proposals([Proposal("map", heatmap)]), box, box, is_confusion=True)
