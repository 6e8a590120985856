"""Investigations whose requests are remembered."""

from __future__ import annotations

import pytest

from detcam.auditing.case import Trial
from detcam.auditing.verification.interventions import Investigation, Removal, remembering
from tests.auditing.verification.driven import disc, drive


def test_repeated_requests_take_no_further_pass() -> None:
    first, second = disc(20, 20), disc(60, 60)

    def investigation() -> Investigation[list[Trial]]:
        trials = yield [Removal("without part", first), Removal("without part", second)]
        trials = trials + (yield [Removal("without evidence", first)])
        return trials + (yield [Removal("without evidence", first, fill=1), Removal("random control", second)])

    trials, count = drive(remembering(investigation()), lambda region, fill: bool(region[20, 20]))
    assert count == 3, "two regions with the first fill, one with the second"
    assert [(each.intervention, each.fill, each.outcome) for each in trials] == [
        ("without part", "0", "vanished"),
        ("without part", "0", "unchanged"),
        ("without evidence", "0", "vanished"),
        ("without evidence", "1", "vanished"),
        ("random control", "0", "unchanged"),
    ]


@pytest.mark.parametrize(("ends", "expected"), [(False, 3), (True, 4)])
def test_a_region_nearly_like_one_without_which_the_error_persists_is_not_tried(ends: bool, expected: int) -> None:
    first, near, far = disc(50, 50, 20), disc(50, 51, 20), disc(50, 58, 20)

    def investigation() -> Investigation[list[Trial]]:
        trials = yield [Removal("without evidence", first)]
        return trials + (
            yield [Removal("without evidence", region, fill) for region, fill in ((near, 0), (far, 0), (near, 1))]
        )

    trials, count = drive(remembering(investigation()), lambda region, fill: ends)
    assert count == expected and len(trials) == 4
    assert trials[1].outcome == trials[0].outcome and trials[3].fill == "1"
