"""Verification without gradients, on networks whose causes are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detcam.auditing.case import Grade, Trial
from detcam.auditing.verification import black_box, verifier
from detcam.auditing.verification.black_box import BlackBoxVerifier
from detcam.auditing.verification.hypothesis import EvidencePart, VerificationResult
from detcam.auditing.verification.interventions import Investigation, Removal
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.region_search import TriedRegion
from detcam.auditing.verification.verdict import Verdict
from detcam.methods.common.region_proposals import color_segments
from tests.auditing.verification.blue_regions import (
    LEFT,
    RIGHT,
    Spots,
    boat_or_barge,
    claim_about,
    spots_image,
    verify,
)

IN_BOX = (slice(25, 28), slice(25, 28))


def verify_black_box(network: nn.Module, image: Tensor, **claim: bool) -> VerificationResult:
    """Verify without maps."""
    return verify(network, image, None, segments=lambda: color_segments(image), kind=BlackBoxVerifier, **claim)


def test_without_gradients_the_cause_of_a_wrong_class_is_found() -> None:
    hull = (slice(29, 32), slice(29, 32))
    image, _ = spots_image(hull, LEFT)
    result = verify_black_box(Spots([hull, LEFT], boat_or_barge), image, is_confusion=True)
    assert result.proposal.name == "joint removal of segments" and result.forward_passes <= 20
    assert result.verdict.reason.startswith("class flipped without the evidence; effect"), result.verdict.reason
    assert bool(result.evidence[LEFT].any()) and not bool(result.evidence[hull].any())


@pytest.mark.parametrize("either", [False, True])
def test_without_gradients_causes_that_act_together_or_replace_one_another(either: bool) -> None:
    """No single region changes the class if either of two suffices."""
    hull = (slice(29, 32), slice(29, 32))
    image, _ = spots_image(hull, LEFT, RIGHT)

    def combine(blueness: Tensor) -> Tensor:
        cues = blueness[1:].amax(0) if either else blueness[1:].amin(0)
        return boat_or_barge(torch.stack([blueness[0], cues]))

    result = verify_black_box(Spots([hull, LEFT, RIGHT], combine), image, is_confusion=True)
    assert result.verdict.grade in ("strong", "weak") and result.forward_passes <= 30, result.verdict.reason
    assert bool(result.needed[LEFT].any()) and bool(result.needed[RIGHT].any()) and not bool(result.needed[hull].any())
    assert [part.needed for part in result.parts] == ([False, False] if either else [True])


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (("weak", 0.4), ("weak", 0.3), "first"),
        (("weak", 0.3), ("weak", 0.4), "second"),
        (("weak", 0.3), ("weak", 0.3), "second"),  # the same result, with further parts
        (("weak", 0.3), ("not confirmed", 0.9), "first"),
        (("not confirmed", 0.1), ("weak", 0.3), "second"),
        (None, ("not confirmed", 0.1), "second"),  # what is not confirmed is shown all the same
        (("not confirmed", 0.1), None, "first"),
    ],
)
def test_the_more_effective_of_two_confirmed_results_counts(
    first: tuple[Grade, float] | None, second: tuple[Grade, float] | None, chosen: str
) -> None:
    empty = torch.zeros(2, 2)
    results = {
        name: VerificationResult((), Verdict(*of, ""), Proposal(name, empty), empty > 0, (), None, ends=True)
        for name, of in (("first", first), ("second", second))
        if of is not None
    }
    found = black_box.stronger_result(results.get("first"), results.get("second"))
    assert found is results[chosen]


def test_a_model_with_gradients_has_no_maximum_of_perturbed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the absence of maps of one case change what is removed first."""
    hull = (slice(29, 32), slice(29, 32))
    image, _ = spots_image(hull, LEFT)
    monkeypatch.setattr(black_box, "MAX_TRIALS", 3)
    network = Spots([hull, LEFT], boat_or_barge)
    result = verify(network, image, None, segments=lambda: color_segments(image), is_confusion=True)
    assert result.proposal.name == "coarse-to-fine removal" and result.forward_passes > 3
    assert bool(result.evidence[LEFT].any()) and not bool(result.evidence[hull].any())


def test_a_case_without_gradients_ends_at_a_maximum_of_perturbed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    hull = (slice(30, 33), slice(30, 33))
    image, _ = spots_image(hull, IN_BOX)
    network = Spots([hull, IN_BOX], boat_or_barge)
    monkeypatch.setattr(black_box, "MAX_TRIALS", 9)
    result = verify_black_box(network, image, is_confusion=True)
    assert result.verdict.grade == "not confirmed", "images were tested"
    assert "no region was verified within 9 perturbed images" in result.verdict.reason and result.forward_passes == 9
    assert bool(result.evidence.any()) and result.trials and not result.ends
    assert min(each.score for each in result.trials) < 0.6, result.trials


def test_the_strongest_attempt_is_small_and_counts_with_its_weakest_fill() -> None:
    """Controls are no attempts, and what surrounds a box as a whole is no evidence."""
    claim = claim_about(torch.eye(20))
    cells = {name: torch.zeros(20, 20, dtype=torch.bool) for name in ("large", "one fill", "both", "control")}
    for row, cell in enumerate(cells.values()):
        cell[row, :5] = True
    cells["large"][5:] = True
    tried = [
        (Removal("without evidence", cells["large"]), Trial("without evidence", "ring", 0.0, "class flipped")),
        (Removal("without evidence", cells["one fill"]), Trial("without evidence", "ring", 0.1, "unchanged")),
        (Removal("without evidence", cells["one fill"], 1), Trial("without evidence", "linear", 0.7, "unchanged")),
        (Removal("without part", cells["both"]), Trial("without part", "ring", 0.6, "unchanged")),
        (Removal("random control", cells["control"]), Trial("random control", "ring", 0.0, "vanished")),
    ]
    result = black_box.strongest_attempt(claim, tried)
    assert torch.equal(result.evidence, cells["both"])
    assert result.trials == (Trial("without evidence", "ring", 0.6, "unchanged"),)
    assert result.verdict.grade == "not confirmed" and "5 perturbed images" in result.verdict.reason
    (large,) = [each for each in tried if each[0].region is cells["large"]]
    assert torch.equal(black_box.strongest_attempt(claim, [large]).evidence, cells["large"])


def test_at_the_maximum_evidence_outside_the_object_has_no_pixel_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cue = (slice(19, 25), slice(27, 33))
    image, heatmap = spots_image(cue)
    heatmap[25:27, 27:33] = heatmap.amax()  # reaches into the box
    heatmap[RIGHT] = 0.5 * heatmap.amax()  # tried once the cue is verified
    network = Spots([cue], lambda blueness: blueness[0])

    def not_reduced(tried: TriedRegion, *_: object) -> Investigation[tuple[TriedRegion, list[EvidencePart]]]:
        yield from ()
        return tried, []

    def claim() -> VerificationResult:
        return verify(network, image, heatmap, is_outside=True, kind=BlackBoxVerifier)

    monkeypatch.setattr(verifier, "reduce_region", not_reduced)
    whole = claim()
    monkeypatch.setattr(black_box, "MAX_TRIALS", whole.forward_passes - 1)
    result = claim()
    assert result.forward_passes < whole.forward_passes and result.verdict == whole.verdict
    assert bool(result.evidence[cue].any()) and not bool(result.evidence[25:35, 25:35].any())
