"""Reduction of a region that ends an error: to smaller regions that end it as well, and to its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.verification.hypothesis import EvidencePart, Hypothesis
from detcam.auditing.verification.interventions import Investigation
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.region_search import (
    Ending,
    TriedRegion,
    ends_error,
    is_same,
    try_other_fills,
    try_region,
)
from detcam.auditing.verification.verdict import MAX_STRONG_FRACTION
from detcam.utils.components import components
from detcam.utils.opencv import cv2

MAX_HALVINGS = 2
"""Maximum number of times that a region is halved."""
MIN_HALVED_FRACTION = 0.004
"""Minimum fraction of the image that a region covers before it is halved."""
MIN_CORED_FRACTION = 0.006
"""Minimum fraction of the image that a region covers from which its most salient pixels are tried after its halves."""
MIN_CORE_FRACTION = 0.0008
"""Minimum fraction of the image that the most salient half of a region covers."""
MIN_SEGMENT_SHARE = 0.6
"""Minimum share of a segment in a region, from which it lies in the region."""
STANDING_OUT_RING = 3
"""Width, in pixels, of the ring around a part whose mean color is that of its surroundings."""
MIN_PIECE_FRACTION, MAX_PIECE_FRACTION = 0.15, 0.85
"""Minimum and maximum size of the pixels of a region in one segment that are tried instead, relative to the region."""
MIN_PART_FRACTION = 0.15
"""Minimum size of a part, relative to the region."""
MARGIN = 0.016
"""Margin of a region that does not end the error with every fill, relative to the image's longer side."""
MAX_PARTS = 3
"""Maximum number of parts of a region that are removed alone."""


def reduce_region(
    tried: TriedRegion, proposal: Proposal, hypothesis: Hypothesis, fill_count: int, image: Tensor | None = None
) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
    """Reduce a region that ends the error to a smaller one that does so with a similar effect.

    Of a region that barely ends the error, its parts are tried, and what stands out in a spot, but no half of it, since
    that hardly ever suffices; unless it is so large that its verdict cannot be strong.

    Args:
        tried: the region.
        proposal: the map that proposed it.
        hypothesis: the claim whose region it is.
        fill_count: number of fills.
        image: (C, h, w), whose colors show what stands out in a region; None tries no such pixels.

    Returns:
        The smallest region; and its parts, none of which ends the error alone, with other regions that do.
    """
    tried, parts = yield from _separate_parts(tried, hypothesis, fill_count)
    ends = hypothesis.ends_likewise(tried.trials)
    is_large = float(tried.region.float().mean()) >= MAX_STRONG_FRACTION
    barely = hypothesis.barely_ends(tried.trials) and not is_large
    if hypothesis.segments is not None and (image is not None or not barely):
        segments, halvings = hypothesis.segments(), 0 if barely else MAX_HALVINGS
        smaller = yield from concentrate(tried, proposal.heatmap, segments, fill_count, ends, image, halvings)
        tried, parts = yield from _with_parts(smaller, tried, parts, hypothesis, fill_count)
    if not barely:
        smaller = yield from shrink(tried, proposal.heatmap, fill_count, ends)
        tried, parts = yield from _with_parts(smaller, tried, parts, hypothesis, fill_count)
    return (yield from _part_outside(tried, hypothesis, fill_count)), parts


def _with_parts(
    smaller: TriedRegion, tried: TriedRegion, parts: list[EvidencePart], hypothesis: Hypothesis, fill_count: int
) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
    """A smaller region with its own parts instead of those of the larger one."""
    if smaller is tried:
        return tried, parts
    others = [part for part in parts if part.needed]
    if len(connected_parts(smaller.region)) == 1:
        return smaller, others
    smaller, own = yield from _separate_parts(smaller, hypothesis, fill_count)
    return smaller, [*own, *others]


def _separate_parts(
    tried: TriedRegion, hypothesis: Hypothesis, fill_count: int
) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
    """Remove the connected parts of a region alone, and its parts inside and outside the box.

    Returns:
        The smallest part that ends the detection alone, or the region; and all parts.
    """
    region = tried.region
    inside = hypothesis.inside
    pieces = _distinct([region & inside, region & ~inside, *connected_parts(region)], region)[:MAX_PARTS]
    alone: list[TriedRegion] = []
    for piece in pieces:
        if not any(each.ends and _is_larger_and_overlaps(piece, each.region) for each in alone):
            alone.append((yield from try_region(piece, fill_count, tried.map_index, hypothesis.ends)))
    parts = [EvidencePart(each.region, each.score, each.ends) for each in alone]
    sufficient = [each for each in alone if each.ends]
    if not sufficient:
        return (yield from _without_idle_parts(tried, parts, hypothesis, fill_count))
    tried = min(sufficient, key=lambda each: int(each.region.sum()))
    return tried, [part for part in parts if part.needed and not bool((part.region & tried.region).any())]


def _without_idle_parts(
    tried: TriedRegion, parts: Sequence[EvidencePart], hypothesis: Hypothesis, fill_count: int
) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
    """Leave out the parts without which the rest of a region ends the error; of two parts, each is the other's rest.

    A connected region is one thing: its pieces inside and outside the box are no parts that replace one another.
    """
    if len(connected_parts(tried.region)) == 1:
        return tried, []
    kept: list[EvidencePart] = []
    for part in reversed(parts):  # connected ones first
        if not any(bool((part.region & other.region).any()) for other in kept):
            kept.append(part)
    if len(kept) > 2:
        for part in list(kept):
            rest = tried.region & ~part.region
            attempt = yield from try_region(rest, fill_count, tried.map_index, hypothesis.ends)
            if attempt.ends:
                tried = attempt
                kept = [each for each in kept if each is not part]
    return tried, kept


def _part_outside(tried: TriedRegion, hypothesis: Hypothesis, fill_count: int) -> Investigation[TriedRegion]:
    """The part outside the box of a region that mostly lies there, if it ends the error alone.

    Only then may it be said that the evidence lies outside.
    """
    outside = tried.region & ~_grown(hypothesis.inside, 1)
    if not 0.5 * int(tried.region.sum()) <= int(outside.sum()) < int(tried.region.sum()):
        return tried
    attempt = yield from try_region(outside, fill_count, tried.map_index, hypothesis.ends)
    return attempt if attempt.ends else tried


def concentrate(
    tried: TriedRegion,
    heatmap: Tensor,
    segments: Tensor,
    fill_count: int,
    ends: Ending = ends_error,
    image: Tensor | None = None,
    halvings: int = MAX_HALVINGS,
) -> Investigation[TriedRegion]:
    """Reduce a region that ends the error to what a map highlights in it, as long as that ends the error alone.

    Of each connected part, the segments that lie in it are tried; without any, its pixels in the segment with most of
    the map's values. If they do not suffice, the pixels are tried whose colors stand out from those around the part,
    then half of the pixels with the largest values, and half of these. A region of small parts only stays as it is.

    Args:
        tried: the region.
        heatmap: (h, w), >= 0.
        segments: (h, w) int64, labels of segments.
        fill_count: number of fills.
        ends: whether a trial ends the error.
        image: (C, h, w), the image; None tries no pixels that stand out.
        halvings: maximum number of times that the pixels with the largest values are halved.
    """
    parts = connected_parts(tried.region)
    if not parts:
        return tried
    pieces = [_joined([_in_segments(part, heatmap, segments) for part in parts])]
    if image is not None:
        pieces.append(_joined([_standing_out(part, image) for part in parts]))
    for piece in pieces:
        if MIN_PIECE_FRACTION <= float(piece.sum()) / float(tried.region.sum()) <= MAX_PIECE_FRACTION:
            attempt = yield from try_region(piece, fill_count, tried.map_index, ends, first=tried.strictest_fill)
            if attempt.ends:
                return attempt
    for _ in range(halvings):
        parts = _cores(parts, heatmap)
        core = _joined(parts)
        if float(core.float().mean()) < MIN_CORE_FRACTION:
            break
        attempt = yield from try_region(core, fill_count, tried.map_index, ends, first=tried.strictest_fill)
        if not attempt.ends:
            break
        tried = attempt
    return tried


def _standing_out(part: Tensor, image: Tensor) -> Tensor:
    """The pixels of a part (h, w) bool whose colors differ from the mean around it, with their neighbors."""
    around = _grown(part, STANDING_OUT_RING) & ~part
    if not bool(around.any()):
        return torch.zeros_like(part)
    return _unlike(part, image, image[:, around].mean(1, keepdim=True))


def distinct_pixels(region: Tensor, image: Tensor) -> Tensor:
    """The pixels of a region (h, w) bool, not empty, whose colors differ from its median, with their neighbors.

    On an object these are its details, without which the object is still there.
    """
    return _unlike(region, image, image[:, region].median(1, keepdim=True).values)


def _unlike(region: Tensor, image: Tensor, color: Tensor) -> Tensor:
    """The pixels of a region (h, w) bool whose colors differ from a color (C, 1), with their neighbors in the region.

    The threshold of the difference is that of Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979).
    """
    difference = (image[:, region] - color).norm(dim=0)
    levels = (255 * difference / difference.amax().clamp(min=1e-12)).round().to(torch.uint8).numpy()
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    piece = torch.zeros_like(region)
    piece[region] = torch.from_numpy(levels > threshold)
    return _grown(piece, 1) & region


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The union of parts (h, w) bool, at least one."""
    return torch.stack(list(parts)).any(0)


def _in_segments(part: Tensor, heatmap: Tensor, segments: Tensor) -> Tensor:
    """The pixels of a part (h, w) bool in the segments that lie in it, else in the one with most of a map's values."""
    labels, count = segments[part], int(segments.max()) + 1
    shares = torch.bincount(labels, minlength=count) / torch.bincount(segments.flatten()).clamp(min=1)
    if bool((shares >= MIN_SEGMENT_SHARE).any()):
        return part & (shares >= MIN_SEGMENT_SHARE)[segments]
    sums = torch.zeros(count).index_add_(0, labels, heatmap[part].float())
    return part & (segments == int(sums.argmax()))


def shrink(
    tried: TriedRegion, heatmap: Tensor | None, fill_count: int, ends: Ending = ends_error
) -> Investigation[TriedRegion]:
    """Halve a region that ends the error, as long as the rest ends the error alone.

    The region is cut across its longer side. If no half ends the error, the evidence lies on both sides of the cut: the
    pixels of each half with the largest values of a map are tried. Regions of less than `MIN_HALVED_FRACTION` of the
    image stay as they are.

    Args:
        tried: the region.
        heatmap: (h, w), >= 0; None tries the halves only.
        fill_count: number of fills.
        ends: whether a trial ends the error.
    """
    for _ in range(MAX_HALVINGS):
        if float(tried.region.float().mean()) < MIN_HALVED_FRACTION:
            break
        halves = _halves(tried.region)
        for half in halves:
            attempt = yield from try_region(half, fill_count, tried.map_index, ends, first=tried.strictest_fill)
            if attempt.ends:
                break
        else:
            if halves and heatmap is not None:
                core = _joined(_cores(halves, heatmap))
            else:
                core = torch.zeros_like(tried.region)
            if float(tried.region.float().mean()) < MIN_CORED_FRACTION or not bool(core.any()):
                break
            untried = TriedRegion(tried.map_index, core, (), ends=False)
            attempt = yield from try_with_margin(untried, tried.region, fill_count, ends)
        if not attempt.ends:
            break
        tried = attempt
    return tried


def _cores(parts: Sequence[Tensor], heatmap: Tensor) -> list[Tensor]:
    """The half of each part (h, w) bool with the largest values of a map."""
    return [part & (heatmap > heatmap[part].median()) for part in parts]


def _halves(region: Tensor) -> list[Tensor]:
    """The two halves of a region (h, w) bool, of equal size, across its longer side; none of a region of 7 pixels."""
    rows, columns = torch.nonzero(region, as_tuple=True)
    if len(rows) < 8:
        return []
    along = rows if int(rows.max() - rows.min()) > int(columns.max() - columns.min()) else columns
    first = torch.zeros_like(region)
    order = along.argsort(stable=True)[: len(rows) // 2]
    first[rows[order], columns[order]] = True
    return [first, region & ~first]


def try_with_margin(
    tried: TriedRegion, within: Tensor, fill_count: int, ends: Ending = ends_error
) -> Investigation[TriedRegion]:
    """Remove a region with the remaining fills; if the error ends with some fills only, remove its margin as well.

    A fill may continue the colors of what a region leaves of the cause at its edge.

    Args:
        tried: the region, with the trials that were made.
        within: (h, w) bool, the pixels that the margin may cover.
        fill_count: number of fills.
        ends: whether a trial ends the error.
    """
    attempt = yield from try_other_fills(tried, fill_count, ends)
    if attempt.ends or not any(map(ends, attempt.trials)):
        return attempt
    radius = max(1, round(MARGIN * max(tried.region.shape)))
    grown = _grown(tried.region, radius) & within
    if is_same(grown, within):
        return attempt
    return (yield from try_region(grown, fill_count, tried.map_index, ends))


def _grown(region: Tensor, radius: int) -> Tensor:
    """A region (h, w) bool with the pixels around it, up to a number of rows and columns away."""
    return F.max_pool2d(region[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0


def connected_parts(region: Tensor) -> list[Tensor]:
    """The connected parts of a region (h, w) bool of at least `MIN_PART_FRACTION` of its size, largest first."""
    found = list(components(region.numpy()))
    size = sum(area for _, _, area in found)
    parts: list[Tensor] = []
    for window, part, area in sorted(found, key=lambda each: -each[2]):
        if area >= MIN_PART_FRACTION * size:
            parts.append(torch.zeros_like(region))
            parts[-1][window] = torch.from_numpy(part)
    return parts


def _is_larger_and_overlaps(piece: Tensor, region: Tensor) -> bool:
    """Whether a piece is no smaller part than a region that ends the error, nor a further one."""
    return int(piece.sum()) >= int(region.sum()) and bool((piece & region).any())


def _distinct(pieces: Iterable[Tensor], region: Tensor) -> list[Tensor]:
    """The pieces that are neither empty, nor small, nor nearly the region itself or another piece."""
    size = int(region.sum())
    kept: list[Tensor] = []
    for piece in pieces:
        count = int(piece.sum())
        if 0.1 * size <= count <= 0.9 * size and not any(is_same(piece, other) for other in kept):
            kept.append(piece)
    return kept
