"""Investigations whose requests are remembered."""

from __future__ import annotations

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
