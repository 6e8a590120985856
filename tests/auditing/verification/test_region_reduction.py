"""Reduction of a region that ends an error."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from detcam.auditing.case import Trial
from detcam.auditing.verification.hypothesis import Hypothesis
from detcam.auditing.verification.persistence import PersistenceCriterion
from detcam.auditing.verification.proposals import Proposal, Proposals
from detcam.auditing.verification.region_reduction import concentrate, reduce_region, shrink, try_with_margin
from detcam.auditing.verification.region_search import TriedRegion, try_other_fills, try_region
from detcam.targets import BoxTarget
from tests.auditing.verification.driven import disc, drive


def test_a_region_is_reduced_to_a_segment_or_to_its_most_salient_pixels() -> None:
    region, cause = disc(50, 50, 10), disc(54, 50, 4)
    peaked = torch.exp(-((torch.arange(100)[:, None] - 54) ** 2 + (torch.arange(100)[None] - 50) ** 2) / 100.0)
    tried, _ = drive(try_region(region, 1), lambda each, fill: True)

    def covers(each: Tensor, fill: int) -> bool:
        return bool((each & cause).sum() == cause.sum())

    found, count = drive(concentrate(tried, torch.ones(100, 100), cause.long(), 1), covers)
    assert torch.equal(found.region, cause) and count == 1, "the segment that lies in the region"
    found, count = drive(concentrate(tried, peaked, torch.zeros(100, 100, dtype=torch.long), 1), covers)
    assert count == 2 and covers(found.region, 0) and int(found.region.sum()) < 0.3 * int(region.sum()), "two halvings"
    found, count = drive(
        concentrate(tried, peaked, torch.zeros(100, 100, dtype=torch.long), 1), lambda each, fill: False
    )
    assert found is tried and count == 1


def test_a_region_is_reduced_to_the_pixels_that_stand_out_from_their_surroundings() -> None:
    region, mark = disc(50, 50, 10), torch.zeros(100, 100, dtype=torch.bool)
    mark[45:53, 46:54] = True
    image = torch.linspace(0.4, 0.5, 100).expand(3, 100, 100) + 0.4 * mark
    tried, _ = drive(try_region(region, 2), lambda each, fill: True)
    found, count = drive(
        concentrate(tried, torch.ones(100, 100), torch.zeros(100, 100, dtype=torch.long), 2, image=image),
        lambda each, fill: bool((each & mark == mark).all()),
    )
    assert count == 2 and int(found.region.sum()) == 10 * 10 and bool(found.region[44:54, 45:55].all())


def test_the_fill_that_fails_is_tried_first() -> None:
    region, uniform = disc(50, 50, 10), torch.ones(100, 100)
    tried, count = drive(try_region(region, 2, first=1), lambda each, fill: fill == 0)
    assert count == 1 and tried.trials[0].fill == "1" and not tried.ends
    trials = tuple(Trial("without evidence", str(fill), score, "vanished") for fill, score in enumerate((0.1, 0.2)))
    kept, count = drive(shrink(TriedRegion(0, region, trials, ends=True), uniform, 2), lambda each, fill: fill == 0)
    assert kept.region is region and count == 2, "each half with the second fill"
    tried, _ = drive(try_region(region, 2, first=1), lambda each, fill: True)
    assert [trial.fill for trial in tried.trials] == ["0", "1"], "trials are in the order of the fills"


def test_a_region_that_was_tried_with_the_second_fill_is_tried_with_the_first_one() -> None:
    tried = TriedRegion(0, disc(50, 50, 10), (Trial("without evidence", "1", 0.6, "vanished"),), ends=False, first=1)
    found, count = drive(try_other_fills(tried, 2), lambda each, fill: fill == 1)
    assert count == 1 and not found.ends and [trial.fill for trial in found.trials] == ["0", "1"]
    attempt, _ = drive(try_region(tried.region, 2, first=1), lambda each, fill: False)
    assert attempt.first == 1 and len(attempt.trials) == 1
    everywhere = torch.ones(100, 100).bool()
    grown, _ = drive(try_with_margin(tried, everywhere, 2), lambda each, fill: fill == 1 or int(each.sum()) > 400)
    assert grown.ends and int(grown.region.sum()) > 400, "the margin is removed where one of the fills ends the error"


def test_a_region_of_many_small_parts_stays_as_it_is() -> None:
    """Each of eight equal discs has 12.5 % of the region, which is too small for a part."""
    region = torch.stack([disc(row, column, 4) for row in (30, 70) for column in (10, 35, 60, 85)]).any(0)
    tried, _ = drive(try_region(region, 1), lambda each, fill: True)
    segments = torch.zeros(100, 100, dtype=torch.long)
    assert drive(concentrate(tried, torch.rand(100, 100), segments, 1), lambda each, fill: True) == (tried, 0)


def test_regions_are_halved_while_a_half_suffices() -> None:
    region = torch.zeros(100, 100, dtype=torch.bool)
    region[10:14, 20:60] = True
    cause = torch.zeros_like(region)
    cause[11:13, 22:28] = True
    uniform = torch.ones(100, 100)
    tried, _ = drive(try_region(region, 1), lambda each, fill: True)
    smaller, _ = drive(shrink(tried, uniform, 1), lambda each, fill: bool((each & cause).sum() == cause.sum()))
    assert int(smaller.region.sum()) == 40 and bool(smaller.region[11:13, 22:28].all())
    whole, count = drive(shrink(tried, uniform, 1), lambda each, fill: int(each.sum()) > 100)
    assert whole is tried and count == 2
    small, _ = drive(try_region(cause, 1), lambda each, fill: True)
    assert drive(shrink(small, uniform, 1), lambda each, fill: True) == (small, 0)


def test_a_region_with_causes_on_both_sides_is_reduced_to_them() -> None:
    """A band connects two causes; neither half ends the error, the pixels of both with the largest values do."""
    band, causes = torch.zeros(100, 100, dtype=torch.bool), torch.zeros(100, 100, dtype=torch.bool)
    band[40:50, 20:80] = True
    causes[40:50, 20:30] = causes[40:50, 70:80] = True
    tried, _ = drive(try_region(band, 1), lambda each, fill: True)
    smaller, count = drive(shrink(tried, causes.float(), 1), lambda each, fill: bool((each & causes == causes).all()))
    assert torch.equal(smaller.region, causes) and count == 3 + 2, "both halves and both sides, then both halves"


def test_the_margin_is_removed_as_well_where_one_fill_does_not_end_the_error() -> None:
    seen, within = disc(50, 50, 3), torch.zeros(100, 100, dtype=torch.bool)
    within[:, :52] = True
    tried, _ = drive(try_region(seen, 1), lambda each, fill: True)
    cause = disc(50, 50, 4) & within

    def covers(each: Tensor, fill: int) -> bool:
        return fill == 0 or bool((each & cause == cause).all())

    found, count = drive(try_with_margin(tried, within, 2), covers)
    assert found.ends and count == 1 + 2 and not bool((found.region & ~within).any())
    persisting, _ = drive(try_region(seen, 2), lambda each, fill: False)
    assert drive(try_with_margin(persisting, within, 2), lambda each, fill: True) == (persisting, 0)
    larger = disc(50, 50, 5)
    found, count = drive(try_with_margin(tried, larger, 2), lambda each, fill: fill == 0)
    assert not found.ends and count == 1, "with its margin, it is the region that it was cut from"


def test_of_a_region_that_barely_ends_the_error_only_what_stands_out_in_a_spot_is_tried() -> None:
    region, mark = disc(50, 50, 10), disc(52, 50, 3)
    target = BoxTarget((30.0, 30.0, 70.0, 70.0), 0)
    proposal = Proposal("map", torch.exp(-((torch.arange(100)[:, None] - 50) ** 2) / 100.0).expand(100, 100))
    hypothesis = Hypothesis(
        "case", PersistenceCriterion(target, 0.5, False, torch.zeros(0, 4)), 0.9, Proposals([proposal]), region, region
    )
    image = 0.4 + 0.4 * mark.expand(3, 100, 100)
    one_segment = torch.zeros(100, 100, dtype=torch.long)
    in_segments = replace(hypothesis, segments=lambda: one_segment)
    counts = []
    for score in (0.1, 0.4):
        tried = TriedRegion(0, region, (Trial("without evidence", "ring", score, "vanished"),), ends=True)
        (found, parts), count = drive(reduce_region(tried, proposal, hypothesis, 1), lambda each, fill: False)
        assert found is tried and parts == []
        counts.append(count)
        (found, _), _ = drive(
            reduce_region(tried, proposal, in_segments, 1, image), lambda each, fill: bool((each & mark == mark).all())
        )
        assert bool((found.region & mark == mark).all()) and int(found.region.sum()) < 0.25 * int(region.sum())
        (found, _), count = drive(reduce_region(tried, proposal, in_segments, 1), lambda each, fill: True)
        assert (found is tried and count == 0) == (score == 0.4), "the region of a map"
    assert counts[0] > 0 and counts[1] == 0


def test_a_score_just_below_the_threshold_does_not_end_the_error() -> None:
    box = disc(50, 50, 10)
    criterion = PersistenceCriterion(BoxTarget((30.0, 30.0, 70.0, 70.0), 0), 0.5, False, torch.zeros(0, 4))
    hypothesis = Hypothesis("case", criterion, 0.9, Proposals([Proposal("map", box.float())]), box, box)
    below, clearly_below = (Trial("without evidence", "ring", score, "vanished") for score in (0.46, 0.44))
    assert not hypothesis.ends(below) and hypothesis.ends(clearly_below)
    assert hypothesis.ends(replace(below, outcome="class flipped")), "another class above the threshold is clear"


def test_pieces_of_a_connected_region_inside_and_outside_the_box_are_no_parts() -> None:
    """None of them ends the error alone; two regions that do not touch are parts that replace one another."""
    target = BoxTarget((30.0, 30.0, 70.0, 70.0), 0)
    box = torch.zeros(100, 100, dtype=torch.bool)
    box[30:70, 30:70] = True
    proposal = Proposal("map", torch.ones(100, 100))
    hypothesis = Hypothesis(
        "case", PersistenceCriterion(target, 0.5, False, torch.zeros(0, 4)), 0.9, Proposals([proposal]), box, box
    )
    trials = (Trial("without evidence", "ring", 0.4, "vanished"),)
    for region, count in ((disc(30, 50, 10), 0), (disc(15, 50, 5) | disc(50, 50, 5), 2)):
        tried = TriedRegion(0, region, trials, ends=True)
        (found, parts), trial_count = drive(reduce_region(tried, proposal, hypothesis, 1), lambda each, fill: False)
        assert found is tried and len(parts) == count and trial_count > 0
