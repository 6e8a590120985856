"""Missed objects in the surroundings of found ones: donors, transplants, and what they confirm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam.adapters import detector
from detcam.auditing import AuditCase, analyze_errors
from detcam.auditing.case import Box, CaseMaps, Trial
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.grouping.actions import case_action
from detcam.auditing.grouping.evidence_kind import evidence_kind
from detcam.auditing.report import ReportWriter
from detcam.auditing.verification.donors import Donor, choose_donors, cut_window, paste_window, window
from detcam.auditing.verification.hypothesis import VerificationResult
from detcam.auditing.verification.interventions import Removal
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.transplants import Transplantation, TransplantFill
from detcam.auditing.verification.verdict import Verdict, decide_transplant
from detcam.data import images as data_images
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, Source
from tests.auditing.verification.driven import answered

OBJECT: Box = (24.0, 24.0, 48.0, 40.0)
SIZE_HW = (64, 192)


def truth_of(image: int, boxes: Sequence[Box] = (OBJECT,)) -> GroundTruth:
    table = torch.tensor(boxes)
    count = len(boxes)
    return GroundTruth(
        image_id=image,
        file_name=f"{image}.png",
        path=Path(f"{image}.png"),
        image_size_hw=SIZE_HW,
        boxes_xyxy=table,
        boxes_xywh=torch.cat([table[:, :2], table[:, 2:] - table[:, :2]], 1).numpy(),
        labels=torch.zeros(count, dtype=torch.int64),
        category_ids=torch.zeros(count, dtype=torch.int64),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.full((count,), 384.0),
        ids=torch.arange(count),
        segmentations=(None,) * count,
        names={0: "boat"},
    )


def detected(boxes: Sequence[Box], scores: Sequence[float]) -> Detections:
    sources = tuple(Source("anchor", 0, index, (0.0, 0.0)) for index in range(len(boxes)))
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Detections(torch.tensor(boxes).reshape(-1, 4), labels, torch.tensor(scores), SIZE_HW, sources)


def test_donors_have_the_highest_scores_and_come_from_different_images() -> None:
    right, edge = (120.0, 24.0, 144.0, 40.0), (0.0, 0.0, 24.0, 16.0)
    found = [
        detected([OBJECT, right, edge], [0.9, 0.8, 0.95]),
        detected([OBJECT], [0.5]),
        detected([OBJECT], [0.2]),
        detected([], []),
    ]
    truths = [truth_of(0, [OBJECT, right, edge]), *(truth_of(image) for image in (1, 2, 3))]
    images = [torch.full((3, *SIZE_HW), 0.1 * (image + 1)) for image in range(4)]
    read: list[int] = []
    analysis = analyze_errors(found, truths)
    donors = choose_donors(analysis, truths, [0, 7], 0.3, lambda index: read.append(index) or images[index])  # type: ignore[func-returns-value]
    assert read == [0, 1, 0], "one at the edge has no surroundings, one scores below the threshold"
    assert [len(donors[label]) for label in (0, 7)] == [3, 0]
    for donor, level in zip(donors[0], (0.1, 0.2, 0.1), strict=True):
        assert donor.surroundings.shape == (4, 32, 48) and bool((donor.surroundings[-1] == 1).all())
        assert donor.surroundings[:3].float().mean() == pytest.approx(level, abs=1e-3)


def test_the_control_is_far_from_objects() -> None:
    left, top, right, bottom = window(OBJECT)
    image = torch.zeros(3, *SIZE_HW)
    image[:, top:bottom, left:right] = 1
    found, truths = [detected([OBJECT], [0.9])], [truth_of(0)]
    (donor,) = choose_donors(analyze_errors(found, truths), truths, [0], 0.3, [image].__getitem__)[0]
    assert donor.control is not None and float(donor.surroundings[:3].min()) == 1
    height, width = donor.control.shape[-2:]
    assert not bool(donor.control[:3, height // 4 : -height // 4, width // 4 : -width // 4].any())
    crowded = [truth_of(0, [OBJECT, (0.0, 0.0, 192.0, 64.0)])]
    assert choose_donors(analyze_errors(found, crowded), crowded, [0], 0.3, [image].__getitem__)[0][0].control is None


def test_most_of_a_controls_window_is_in_the_image() -> None:
    """Where there is none, the missed object would keep its own surroundings."""
    box: Box = (84.0, 20.0, 108.0, 44.0)
    image, found = torch.zeros(3, *SIZE_HW), [detected([box], [0.9])]
    for image_id in range(20):
        truths = [replace(truth_of(0, [box]), image_id=image_id)]
        (donor,) = choose_donors(analyze_errors(found, truths), truths, [0], 0.3, [image].__getitem__)[0]
        assert donor.control is not None and float(donor.control[-1].float().mean()) > 0.72


def test_objects_of_images_that_cannot_be_read_are_no_donors() -> None:
    found, truths = [detected([OBJECT], [0.9 - 0.1 * image]) for image in range(4)], [truth_of(i) for i in range(4)]

    def read(index: int) -> Tensor:
        if not index:
            raise ValueError("cannot read the image")
        return torch.full((3, *SIZE_HW), 0.1 * index)

    donors = choose_donors(analyze_errors(found, truths), truths, [0], 0.3, read)[0]
    means = [float(each.surroundings[:3].float().mean()) for each in donors]
    assert means == pytest.approx([0.1, 0.2, 0.3], abs=1e-3)


def test_a_large_window_is_kept_smaller_and_pasted_at_the_size_of_the_box() -> None:
    columns = torch.linspace(0, 1, 1000).expand(3, 600, 1000)
    box: Box = (250.0, 150.0, 750.0, 450.0)
    pixels = cut_window(columns, box)
    assert pixels.shape == (4, 154, 256)
    pasted = paste_window(torch.full((3, *SIZE_HW), 0.5), OBJECT, pixels)
    left, top, right, bottom = window(OBJECT)
    assert torch.allclose(pasted[0, 30, left:right], torch.linspace(0, 1, right - left), atol=0.03)
    pasted[:, top:bottom, left:right] = 0.5
    assert bool((pasted == 0.5).all()), "nothing else changes"
    beyond = paste_window(
        torch.full((3, *SIZE_HW), 0.5), (0.0, 0.0, 24.0, 16.0), cut_window(columns, (0.0, 0.0, 500.0, 300.0))
    )
    assert bool((beyond[:, 24:] == 0.5).all()) and beyond.shape == (3, *SIZE_HW)


class Recorder:
    """Stands for the perturbed versions of an image."""

    def __init__(self) -> None:
        self.fills: list[TransplantFill] = []

    def add_fills(self, fills: Sequence[TransplantFill]) -> int:
        self.fills += fills
        return 2 + len(self.fills) - len(fills)


def run(found: Sequence[float], narrow: float, controls: Sequence[float]) -> tuple[VerificationResult, list[str]]:
    """The result of given scores, and the interventions; the first control is the filled ring."""
    donors = [Donor(torch.ones(4, 32, 48).half(), torch.zeros(4, 32, 48).half()) for _ in found]
    image = torch.zeros(3, *SIZE_HW)
    claim = Transplantation(image, OBJECT, donors, lambda changed: changed[None], lambda each: each, 0.05, 0.5)
    empty = torch.zeros(SIZE_HW, dtype=torch.bool)
    verdict = Verdict("not confirmed", float("nan"), "persists")
    removed = VerificationResult((), verdict, Proposal("map", empty.float()), empty, (), None, ends=False)
    investigation = claim.investigate(removed, Recorder())  # type: ignore[arg-type]

    def answer(request: Removal) -> Trial:
        assert not bool(request.region[24:40, 24:48].any()), "the object keeps its pixels"
        if request.intervention == "transplant control":
            score = controls[0 if request.fill == 0 else request.fill - 1 - len(found)]
        else:
            score = found[request.fill - 2] if bool(request.region[17, 36]) else narrow
        return Trial(request.intervention, "transplant", score, "appeared" if score >= 0.5 else "absent")

    result, asked = answered(investigation, answer)
    return result, [request.intervention for request in asked]


def test_surroundings_that_all_donors_share_are_the_cause() -> None:
    result, asked = run([0.9, 0.8, 0.9], 0.7, [0.1, 0.1, 0.0, 0.1])
    assert result.verdict.grade == "strong" and result.verdict.effect == pytest.approx(1.0), result.verdict
    assert asked == ["transplant"] * 6 + ["transplant control"] * 4
    assert bool(result.evidence[21, 36]) and not bool(result.evidence[17, 36]), "the narrower ring suffices"
    assert len(result.trials) == 7 and result.ends
    wide, _ = run([0.9, 0.8, 0.9], 0.3, [0.1, 0.1, 0.0, 0.1])
    assert bool(wide.evidence[17, 36]) and wide.verdict.grade == "strong"


@pytest.mark.parametrize(
    ("found", "controls", "count", "words"),
    [
        ([0.4, 0.9, 0.9], [0.1] * 4, 1, "absent in the surroundings of a found object too"),
        ([0.9, 0.9, 0.4], [0.1] * 4, 3, "absent in the surroundings of a found object too"),
        ([0.9, 0.9, 0.9], [0.6, 0.1, 0.1, 0.1], 10, "but in others as well (0.60)"),
        ([0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.6], 10, "but in others as well (0.60)"),
    ],
)
def test_other_surroundings_are_not(found: list[float], controls: list[float], count: int, words: str) -> None:
    result, asked = run(found, 0.9, controls)
    assert result.verdict.grade == "not confirmed" and result.verdict.reason.endswith(words)
    assert len(asked) == count and not bool(result.evidence.any())


def test_few_controls_limit_the_grade() -> None:
    trials = [Trial("transplant", "transplant", 0.9, "appeared"), Trial("transplant control", "ring", 0.1, "absent")]
    verdict = decide_transplant(0.05, 0.5, trials, 0.01)
    assert verdict.grade == "weak" and "few controls" in verdict.reason
    near = [Trial("transplant", "transplant", 0.5, "appeared"), Trial("transplant control", "ring", 0.45, "absent")]
    little = decide_transplant(0.05, 0.5, near, 0.01)
    found = "found in the surroundings of found objects (score 0.50), which changes little"
    assert little.grade == "not confirmed" and little.reason == f"{found} (score 0.05, and at most 0.45 in others)"
    unseen = decide_transplant(0.0, 0.5, near, 0.01)
    assert unseen.reason == f"{found} (not detected; score at most 0.45 in others)"


class RingDetector(nn.Module):
    """A detector that finds the object by the brightness beside it; clamped, darkness has no gradient."""

    def __init__(self, is_clamped: bool) -> None:
        super().__init__()
        self.is_clamped = is_clamped
        self.seen = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.zeros_(self.seen.weight)
        self.seen.weight.data[:, 0, 1, 1] = 1

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(x)
        beside = torch.cat([seen[:, :, 20:24, 24:48], seen[:, :, 40:44, 24:48]], 2).mean((1, 2, 3))
        scores = (2 * beside - 1).clamp(0.001, 0.999) if self.is_clamped else torch.sigmoid(20 * beside - 10)
        return scores[:, None, None].expand(-1, 1, 2) * torch.tensor([1.0, 0.0])


def audit_dark(folder: Path, bright: Sequence[bool], is_clamped: bool = False, **options: object) -> list[AuditCase]:
    """The cases of the missed boats of images in which others have bright surroundings."""
    for image, is_bright in enumerate(bright):
        pixels = np.full((*SIZE_HW, 3), 60, dtype=np.uint8)
        pixels[16:48, 12:60] = 240 if is_bright else 60
        pixels[24:40, 24:48] = 120
        Image.fromarray(pixels).save(folder / f"{image}.png")
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 192, "height": 64} for i in range(len(bright))],
        "categories": [{"id": 1, "name": "boat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [24, 24, 24, 16], "area": 384, "iscrowd": 0}
            for i in range(len(bright))
        ],
    }
    (folder / "labels.json").write_text(json.dumps(data))
    adapter = detector(
        RingDetector(is_clamped).eval(),
        lambda raw: (torch.tensor([[OBJECT]]).expand(len(raw), -1, -1), raw),
        names=["boat", "buoy"],
        target_layers="seen",
    )
    found = detcam.audit(adapter, folder, folder / "labels.json", explain=0, **options)  # type: ignore[arg-type]
    return [case for case in found.cases if case.type == "missed"]


@pytest.mark.parametrize("is_clamped", [False, True])
def test_an_audit_finds_that_an_object_lacks_its_context(is_clamped: bool, tmp_path: Path) -> None:
    (case,) = audit_dark(tmp_path, [True, False, True, True], is_clamped)
    assert case.verdict == "strong" and case.needs_context, case.sentence
    assert "found in the surroundings of found objects (3 of 3; 0 of 4 controls)" in case.sentence
    assert evidence_kind(case) == "absent context" and case_action(case) == "add images"
    assert case.minimal_region_fraction is None, "no removal ends the error"
    assert case.evidence_location == "ring" and case.proposal == "surroundings of found objects"
    column, row = case.peak_xy or (0, 0)
    assert 20 <= row < 44 and 18 <= column < 54 and not (24 <= row < 40 and 24 <= column < 48)
    assert case.forward_passes <= 27


class Killed(Exception):
    """Raised half-way on purpose."""


def test_an_audit_resumes_between_two_missed_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bright = [True, False, True, False]
    expected = audit_dark(tmp_path, bright, batch_size=1, out=tmp_path / "whole")
    assert [evidence_kind(case) for case in expected] == ["absent context"] * 2
    written: list[str] = []
    write = ReportWriter.case

    def write_case(self: ReportWriter, case: AuditCase, image: np.ndarray, maps: CaseMaps | None) -> None:
        if len(written) == 1:
            written.append("killed")
            raise Killed
        write(self, case, image, maps)
        written.append(case.id)

    monkeypatch.setattr(ReportWriter, "case", write_case)
    with pytest.raises(Killed):
        audit_dark(tmp_path, bright, batch_size=1, out=tmp_path / "resumed")
    found = audit_dark(tmp_path, bright, batch_size=1, out=tmp_path / "resumed", resume=True)
    assert {written[0], written[2]} == {case.id for case in expected} and len(written) == 3, "none is explained twice"
    assert [case.to_json() for case in found] == [case.to_json() for case in expected]


def test_images_stay_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = audit_dark(tmp_path, [True, False, True])
    kept: list[torch.dtype] = []
    explain = ErrorExplainer.explain

    def explaining(self: ErrorExplainer, images: Sequence[ErrorImage]) -> list[list[ExplainedError]]:
        kept.extend(image.image.dtype for image in images)
        return explain(self, images)

    monkeypatch.setattr(ErrorExplainer, "explain", explaining)
    monkeypatch.setattr(data_images, "MAX_FLOAT_PIXELS", 1)
    (found,) = audit_dark(tmp_path, [True, False, True])
    assert kept == [torch.uint8] and found.to_json() == expected.to_json() and found.confirmed


def test_one_donor_is_too_few(tmp_path: Path) -> None:
    (case,) = audit_dark(tmp_path, [True, False])
    assert not case.confirmed and not any("transplant" in trial.intervention for trial in case.trials)


def test_a_method_alone_transplants_nothing(tmp_path: Path) -> None:
    (case,) = audit_dark(tmp_path, [True, False, True], method="odam")
    assert not case.confirmed and not any(trial.intervention == "transplant" for trial in case.trials)
