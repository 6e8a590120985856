"""Joint removal of the segments around a box: causes that replace one another have no effect one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.interventions import Investigation
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.region_probes import dilated_regions, fewest_regions
from detcam.auditing.verification.region_reduction import MIN_SEGMENT_SHARE, distinct_pixels
from detcam.auditing.verification.region_search import TriedRegion
from detcam.auditing.verification.verdict import MAX_STRONG_FRACTION
from detcam.utils.components import components

JOINT_NAME = "joint removal of segments"
MAX_JOINT_REMOVALS = 16
"""Maximum number of sets of segments that are removed around the box."""
MAX_OTHER_REMOVALS = 10
"""The same of sets of the others, which may be needed as well."""
MIN_DETAIL_FRACTION = 0.0005
"""Minimum fraction of the image that a detail covers which is removed as a part of its own."""


def find_joint_regions(
    within: Tensor, hypothesis: Hypothesis, segments: Tensor, image: Tensor
) -> Investigation[tuple[Proposal, list[TriedRegion], list[TriedRegion]]]:
    """Remove all segments in a region around the box, and search for the fewest of them that end the error together.

    The number of trials is that of the needed segments times the logarithm of the number of all. If the others end the
    error as well, which then needs both, the fewest of those are searched likewise.

    Args:
        within: (h, w) bool, the region.
        hypothesis: the claim, whose error the regions end.
        segments: (h, w) int64, labels of segments.
        image: (C, h, w), whose colors show the details of large segments.

    Returns:
        A proposal, whose map counts the sets that a pixel is in; the sets that end the error with the first fill, each
        with its trial, the fewest segments first; and the fewest of the others that end it. The sets cover less than a
        tenth of the image; the lists are empty if there are none.
    """
    found = dilated_regions(torch.stack([torch.zeros_like(within), *_segments_in(within, segments, image)]))
    regions = list(found[1:] & ~hypothesis.inside)
    ending = yield from fewest_regions(regions, hypothesis.ends, MAX_JOINT_REMOVALS)
    heatmap = torch.zeros(segments.shape)
    for each in ending:
        heatmap += each.region
    ending = [each for each in ending if float(each.region.float().mean()) < MAX_STRONG_FRACTION]
    others: list[TriedRegion] = []
    if ending:
        rest = [each & ~ending[0].region for each in regions]
        rest = [each for each in rest if float(each.float().mean()) >= MIN_DETAIL_FRACTION]
        others = yield from fewest_regions(rest, hypothesis.ends, MAX_OTHER_REMOVALS)
    return Proposal(JOINT_NAME, heatmap), ending, others[:1]


def _segments_in(region: Tensor, segments: Tensor, image: Tensor) -> list[Tensor]:
    """The segments (h, w) bool that lie in a region (h, w) bool, and the parts in it of others, smallest first.

    Of a segment that extends beyond the region, such as the ground, the details are parts of their own: a segment has a
    minimum size.
    """
    count = int(segments.max()) + 1
    inside = torch.bincount(segments[region], minlength=count)
    shares = inside / torch.bincount(segments.flatten(), minlength=count).clamp(min=1)
    found: list[Tensor] = []
    for label in torch.nonzero(inside)[:, 0].tolist():
        segment = segments == label
        if shares[label] >= MIN_SEGMENT_SHARE:
            found.append(segment)
            continue
        part = segment & region
        details = _details(part, image)
        rest = part & ~torch.stack([*details, torch.zeros_like(part)]).any(0)
        found += [*details, rest]
    return sorted(found, key=lambda each: int(each.sum()))


def _details(part: Tensor, image: Tensor) -> list[Tensor]:
    """The connected parts (h, w) bool of the pixels with distinct colors, of at least `MIN_DETAIL_FRACTION`."""
    details: list[Tensor] = []
    for window, piece, area in components(distinct_pixels(part, image).numpy()):
        if area >= MIN_DETAIL_FRACTION * part.numel():
            details.append(torch.zeros_like(part))
            details[-1][window] = torch.from_numpy(piece)
    return details
