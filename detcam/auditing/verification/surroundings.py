"""The surroundings of a box: their light is evened, or they are removed as a whole.

A fill of all surroundings must not paint them again from what borders them. Light that fades slowly has no border: a
region of it would be filled with the light around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.case import Trial
from detcam.auditing.verification.evidence import RING_WIDTH, box_region
from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.interventions import Investigation, Removal, T, asking
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.region_reduction import connected_parts
from detcam.perturbation.fills import LIGHT_BLUR, EvenLightFill, Fill, HalfLightFill, MeanFill, RingFill, light_of
from detcam.utils.opencv import cv2

SURROUNDINGS_NAME = "surroundings of the box"
LIGHT_NAME = "light around the box"
LIGHT_WIDTHS = (1.0, RING_WIDTH)
"""Distances from the box up to which the light is evened, relative to its longer side."""
MAX_LIGHT_DISTANCE = 3.0
"""Maximum distance of a pixel from those that are blurred, in standard deviations of the blur."""
MIN_DETAIL = 4.0
"""Minimum difference of a detail from a blur of what is no detail, relative to the median difference."""


@dataclass(frozen=True)
class Surroundings:
    """A region around a box that is changed as a whole.

    Attributes:
        propose: from a hypothesis and the image (C, h, w) to a proposal and regions (h, w) bool, each within the one
            before it.
        fills: the fills of the region and its controls.
        limit: what limits the grade of a verdict on it.
    """

    propose: Callable[[Hypothesis, Tensor], tuple[Proposal, list[Tensor]]]
    fills: tuple[Fill, ...]
    limit: str


def propose_light(hypothesis: Hypothesis, image: Tensor) -> tuple[Proposal, list[Tensor]]:
    """The pixels in and around the box that are no details of the image.

    Details differ from a blur of the other pixels: objects and edges, such as the object in the box.

    Returns:
        A proposal, whose map is the difference of the light from that of other pixels; and, for each of `LIGHT_WIDTHS`,
        the largest connected part of those pixels up to that distance, each within the one before it.
    """
    box = details = hypothesis.box
    longer = max(int(box.any(axis).sum()) for axis in (0, 1))
    reach = MAX_LIGHT_DISTANCE * LIGHT_BLUR * max(box.shape)
    for _ in range(2):
        if not longer or bool(details.all()):
            return Proposal(LIGHT_NAME, box.float()), []
        difference = (image - light_of(image, ~details)).norm(dim=0)
        # Far from all pixels that are no details, the blur is not known.
        found = (difference > MIN_DETAIL * difference[~details].median()) | (_distances(~details) > reach)
        details = F.max_pool2d(found[None].float(), 3, 1, 1)[0] > 0
    distances, within, regions = _distances(box), ~details, []
    for width in LIGHT_WIDTHS:
        parts = connected_parts(within & (distances <= width * longer))
        if not parts:
            break
        within = parts[0]
        regions.append(within)
    if not regions:
        return Proposal(LIGHT_NAME, box.float()), []
    evened = EvenLightFill()(image[None], regions[0][None])[0]
    return Proposal(LIGHT_NAME, (image - evened).norm(dim=0)), regions


def ring_around(hypothesis: Hypothesis) -> Tensor:
    """The ring (h, w) bool around the box, without the object that the error concerns; empty if the box is."""
    rows, columns = torch.nonzero(hypothesis.box, as_tuple=True)
    if not len(rows):
        return hypothesis.box
    top, bottom, left, right = rows[0].item(), rows[-1].item() + 1, columns.min().item(), columns.max().item() + 1
    dy, dx = RING_WIDTH * (bottom - top), RING_WIDTH * (right - left)
    size_hw = (hypothesis.box.shape[0], hypothesis.box.shape[1])
    return box_region((left - dx, top - dy, right + dx, bottom + dy), size_hw) & ~hypothesis.inside


def _distances(region: Tensor) -> Tensor:
    """Distances (h, w) float32 of pixels from a region (h, w) bool, pixels."""
    return torch.from_numpy(cv2.distanceTransform((~region).numpy().view("uint8"), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def propose_surroundings(hypothesis: Hypothesis, image: Tensor) -> tuple[Proposal, list[Tensor]]:
    """The ring around the box, without the object that the error concerns.

    Returns:
        A proposal, whose map has the values of the first map of the hypothesis; and the ring, (h, w) bool, alone.
    """
    ring = ring_around(hypothesis)
    if not bool(hypothesis.box.any()):
        return Proposal(SURROUNDINGS_NAME, ring.float()), []
    heatmap = ring.float()
    if hypothesis.proposals.maps:
        first = hypothesis.proposals.maps[0].heatmap
        heatmap = heatmap * (0.1 + first / first.amax().clamp(min=1e-12))
    return Proposal(SURROUNDINGS_NAME, heatmap), [ring]


LIGHT = Surroundings(
    propose_light, (EvenLightFill(), HalfLightFill()), "only its light was changed, its details were kept"
)
REMOVED = Surroundings(
    # Linear imputation continues the colors of what is left of them at the edge of the box.
    propose_surroundings,
    (RingFill(), MeanFill()),
    "the surroundings were filled with single colors only",
)
SURROUNDINGS: tuple[Surroundings, ...] = (LIGHT, REMOVED)
"""What is tried of a confusion if no region changes the class, in this order."""
SURROUNDINGS_FILLS: tuple[Fill, ...] = tuple(fill for each in SURROUNDINGS for fill in each.fills)


def with_later_fills(investigation: Investigation[T], first: int) -> Investigation[T]:
    """An investigation whose fills are those from the index `first` on."""

    def ask(requests: list[Removal]) -> Investigation[list[Trial]]:
        return (yield [replace(request, fill=first + request.fill) for request in requests])

    return asking(investigation, ask)
