"""The kind of evidence of a case, and the form of its region."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detcam.auditing.case import CasePart, EvidenceKind, Trial
from detcam.auditing.grouping.evidence_kind import border_share, color_separation, describe_evidence, evidence_kind
from tests.auditing.grouping.cases import make_case

PLAIN = make_case(id="a", name="cat", delta_ap=0.0, method="portfolio", verdict="weak")
OUTSIDE = {"evidence_shares": {"ring": 0.995, "predicted box": 0.005}, "evidence_location": "ring"}
INSIDE = {"evidence_shares": {"predicted box": 1.0}, "evidence_location": "predicted box"}
BOTH = {"evidence_shares": {"ring": 0.5, "predicted box": 0.5}, "evidence_location": "ring"}
ON_OBJECT = {
    "evidence_shares": {"ground truth": 1.0},
    "evidence_location": "ground truth",
    "type": "classification",
}
FLIPPED = Trial("without evidence", "ring", 0.1, "class flipped")
VANISHED = Trial("without evidence", "linear", 0.1, "vanished")
TRANSPLANT = Trial("transplant", "transplant", 0.9, "appeared")
NEEDED = CasePart(0.01, "ground truth", 0.1, needed=True)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({**OUTSIDE, "method": ""}, None),
        ({**OUTSIDE, "verdict": "not confirmed"}, "not confirmed"),
        ({**OUTSIDE, "evidence_form": "area"}, "surroundings"),
        ({**OUTSIDE, "evidence_form": "mark"}, "mark"),
        ({**OUTSIDE, "evidence_form": "border"}, "image border"),
        ({**OUTSIDE, "evidence_form": "mark", "evidence_object": "dog"}, "another object"),
        ({"evidence_shares": {"same class": 1.0}, "evidence_location": "same class"}, "another object"),
        ({"evidence_shares": {"ground truth": 1.0}, "evidence_location": "ground truth"}, "another object"),
        ({**ON_OBJECT, "trials": (FLIPPED, FLIPPED)}, "part of the object"),
        ({**ON_OBJECT, "trials": (FLIPPED, VANISHED)}, "object itself"),
        ({**OUTSIDE, "type": "both", "trials": (FLIPPED,), "parts": (NEEDED,)}, "surroundings"),
        ({**OUTSIDE, "type": "both", "trials": (VANISHED,), "parts": (NEEDED,)}, "object and surroundings"),
        ({**OUTSIDE, "parts": (NEEDED,)}, "object and surroundings"),
        (INSIDE, "look-alike"),
        ({**INSIDE, "type": "localization"}, "part of the object"),
        ({**INSIDE, "background_type": "missing annotation"}, "unlabeled object"),
        ({**INSIDE, "background_type": "missing annotation", "verdict": "not confirmed"}, "unlabeled object"),
        (BOTH, "object and surroundings"),
        ({**OUTSIDE, "type": "missed", "trials": (TRANSPLANT,)}, "absent context"),
        ({**BOTH, "type": "classification", "trials": (FLIPPED,)}, "object and surroundings"),
        ({**BOTH, "type": "classification", "trials": (VANISHED,)}, "object itself"),
        ({**BOTH, "evidence_shares": {"ring": 0.95, "predicted box": 0.05}}, "object and surroundings"),
    ],
)
def test_kind_of_evidence(fields: dict[str, object], kind: EvidenceKind | None) -> None:
    assert evidence_kind(replace(PLAIN, **fields)) == kind  # type: ignore[arg-type]


def square(top: int, left: int, side: int) -> torch.Tensor:
    region = torch.zeros(100, 200, dtype=torch.bool)
    region[top : top + side, left : left + side] = True
    return region


def test_form_of_the_region() -> None:
    image = torch.full((3, 100, 200), 0.5)
    image[0, 40:50, 100:110] = 1.0
    noise = 0.05 * torch.rand(3, 100, 200, generator=torch.Generator().manual_seed(0))
    mark = square(40, 100, 10)
    assert describe_evidence(image + noise, mark) == {
        "evidence_box_xyxy": (100.0, 40.0, 110.0, 50.0),
        "evidence_form": "mark",
    }
    assert describe_evidence(image + noise, square(20, 20, 10))["evidence_form"] == "area", "nothing is there"
    image[0, 40:80, 100:140] = 1.0
    assert describe_evidence(image + noise, square(40, 100, 40))["evidence_form"] == "area", "too large"
    assert describe_evidence(image + noise, square(0, 60, 3))["evidence_form"] == "border"
    assert describe_evidence(image, torch.zeros(100, 200, dtype=torch.bool)) == {}


def test_border_share() -> None:
    assert border_share(square(0, 50, 6)) == pytest.approx(0.5), "3 of 100 rows are the border"
    assert border_share(square(50, 194, 6)) == pytest.approx(1.0), "6 of 200 columns are the border"
    assert border_share(square(50, 50, 6)) == 0


def test_color_separation() -> None:
    image = torch.zeros(3, 100, 200)
    region = square(40, 100, 20)
    assert color_separation(image, region) == 0
    image[1, region] = 1.0
    assert color_separation(image, region) == pytest.approx(1.0)
    image = torch.rand(3, 100, 200, generator=torch.Generator().manual_seed(0))
    assert color_separation(image, region) < 0.05
