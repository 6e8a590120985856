"""The heatmap of a verified case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detcam.auditing.case import EVIDENCE_LOCATIONS, Trial
from detcam.auditing.conclusion import conclude
from detcam.auditing.sentences import is_outside, outside_share
from detcam.auditing.verification.hypothesis import EvidencePart, VerificationResult
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.verdict import Verdict
from tests.auditing.grouping.cases import make_case


class SameFrame:
    """The image is the network's input."""

    def map_to_image(self, area_map: Tensor) -> Tensor:
        return area_map

    def to_image(self, region: Tensor) -> Tensor:
        return region

    def to_input(self, image_map: Tensor) -> Tensor:
        return image_map

    def pool(self, levels: Any, weights: Tensor) -> None:
        return None


def region(top: int, left: int) -> Tensor:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[top : top + 2, left : left + 2] = True
    return mask


def test_parts_that_are_needed_are_shown() -> None:
    """Evidence: the map, scaled to its drop. A part that the map does not show: half the drop without it."""
    evidence, cue, joint = region(0, 0), region(4, 4), region(0, 0)
    heatmap = torch.zeros(8, 8)
    heatmap[0, 0], heatmap[1, 1], heatmap[7, 0] = 0.5, 0.25, 1.0
    trials = (Trial("without evidence", "ring", 0.2, "vanished"), Trial("without evidence", "linear", 0.1, "vanished"))
    parts = (EvidencePart(cue, 0.08, True), EvidencePart(joint, 0.7, False))
    verified = VerificationResult(
        trials, Verdict("strong", 0.7, ""), Proposal("map", heatmap), evidence, parts, None, ends=True
    )
    made = make_case(image_size_hw=(8, 8), score=0.8, box_xyxy=(0.0, 0.0, 2.0, 2.0))
    regions = {
        location: region(0, 0) if location == "predicted box" else ~region(0, 0) for location in EVIDENCE_LOCATIONS
    }
    result = conclude(made, "portfolio", verified.proposal, regions, SameFrame(), [], verified)  # type: ignore[arg-type]
    assert result.maps is not None
    expected = torch.zeros(8, 8)
    expected[0, 0] = 0.75  # 1 - 0.2 / 0.8, the fill with the smaller drop
    expected[1, 1] = 0.375 / 2  # half the distance to the border of the region
    expected[4:6, 4:6] = 0.45  # half of 1 - 0.08 / 0.8
    assert torch.equal(torch.from_numpy(result.maps.heatmap).int(), (expected * 255).round().int())
    assert result.case.peak_xy == (0, 0)


@pytest.mark.parametrize(("columns", "outside"), [(slice(3, 7), 0.75), (slice(4, 7), 1.0)])
def test_evidence_that_was_removed_with_a_part_of_the_box_does_not_lie_outside(columns: slice, outside: float) -> None:
    """The heatmap is zero in the column that reaches into the box."""
    inside, evidence = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[:, :4] = True
    evidence[2:6, columns] = True
    heatmap = torch.zeros(8, 8)
    heatmap[2:6, 4:7] = 1.0
    verified = VerificationResult(
        (Trial("without evidence", "ring", 0.1, "vanished"),),
        Verdict("strong", 0.7, "", compared_controls=3),
        Proposal("map", heatmap),
        evidence,
        (),
        None,
        ends=True,
    )
    regions = {location: torch.zeros(8, 8, dtype=torch.bool) for location in EVIDENCE_LOCATIONS}
    regions |= {"predicted box": inside, "scene": ~inside}
    made = make_case(image_size_hw=(8, 8), box_xyxy=(0.0, 0.0, 4.0, 8.0))
    case = conclude(made, "portfolio", verified.proposal, regions, SameFrame(), [], verified).case  # type: ignore[arg-type]
    assert case.compared_controls == 3
    assert outside_share(case) == outside and is_outside(case) == (outside == 1)
    assert ("lies outside the box" in case.sentence) == (outside == 1)
