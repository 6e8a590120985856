"""Classes of regions in the output of a semantic network: the criterion, and the verified cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detcam.adapters import segmenter
from detcam.auditing.analysis import analyze_errors
from detcam.auditing.case_table import unexplained_case
from detcam.auditing.criteria import criterion_for
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.verification.region_persistence import RegionCriterion
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, Source
from detcam.geometry import Geometry
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import BoxTarget, MaskTarget

SIZE = 64
NAMES = {0: "background", 1: "boat", 2: "barge"}
OBJECT = torch.zeros(SIZE, SIZE, dtype=torch.bool)
OBJECT[24:40, 24:44] = True
CUE = torch.zeros(SIZE, SIZE, dtype=torch.bool)
CUE[50:58, 6:14] = True


class BrightObjects(nn.Module):
    """Bright pixels are a barge, or a boat if there is something red anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        red, green = x[:, 0], x[:, 1]
        cue = (red - green).clamp(min=0).sum((1, 2), keepdim=True) / int(CUE.sum())
        barge = 8 * (green - 0.5)
        return torch.stack([torch.zeros_like(green), barge + 4 * cue - 2, barge], 1)


def test_the_cause_of_a_wrong_class_of_a_region_is_verified() -> None:
    adapter = segmenter(BrightObjects().eval(), names=NAMES, mean=(0.0,) * 3, std=(1.0,) * 3, target_layers="layer")
    image = torch.full((3, SIZE, SIZE), 0.2)
    image[:, OBJECT] = 1.0
    image[0, CUE], image[1, CUE], image[2, CUE] = 0.9, 0.0, 0.0
    box = torch.tensor([[24.0, 24.0, 44.0, 40.0]])
    found = Detections(
        box, torch.tensor([1]), torch.tensor([1.0]), (SIZE, SIZE), (Source("region"),), OBJECT[None], names=NAMES
    )
    label, number = torch.tensor([2]), torch.tensor([0])
    truth = GroundTruth(
        1, "a.png", Path("a.png"), (SIZE, SIZE), box, torch.tensor([[24.0, 24.0, 20.0, 16.0]]).double().numpy(),
        label, label, number.bool(), torch.tensor([320.0]).double(), number, (None,), names=NAMES,
    )  # fmt: skip
    analysis = analyze_errors([found], [truth])
    case = unexplained_case(analysis, 0, [found], [truth])
    assert case.type == "classification"
    explainer = ErrorExplainer(adapter, None, NAMES, 0.3)
    ((explained,),) = explainer.explain([ErrorImage(image, found, truth, [analysis[0]], [case])])
    case = explained.case
    assert case.question == "why boat rather than barge?" and case.verdict == "strong", case.sentence
    assert explained.maps is not None
    evidence, heatmap = (torch.from_numpy(each) for each in (explained.maps.evidence, explained.maps.heatmap))
    assert (evidence & CUE).sum() > 0.5 * evidence.sum() and CUE.flatten()[heatmap.argmax()]
    without = [trial for trial in case.trials if trial.intervention == "without evidence"]
    assert {(trial.score, trial.outcome) for trial in without} == {(0.0, "class flipped")}
    target = explainer.adapter.targets_of(found)[0]
    assert isinstance(target, MaskTarget)


@pytest.mark.parametrize(
    ("boat_rows", "barge_rows", "score", "outcome"),
    [
        (16, 0, 1.0, "unchanged"),
        (4, 12, 0.25, "class flipped"),
        (8, 8, 0.5, "unchanged"),
        (0, 4, 0.0, "vanished"),
        (0, 0, 0.0, "vanished"),
    ],
)
def test_outcomes_of_regions(boat_rows: int, barge_rows: int, score: float, outcome: str) -> None:
    logits = torch.zeros(3, SIZE, SIZE)
    logits[0] = 1.0
    logits[1, 24 : 24 + boat_rows] = 2.0
    logits[2, 24 + boat_rows : 24 + boat_rows + barge_rows] = 2.0
    geometry = Geometry((SIZE, SIZE), (SIZE, SIZE), (1.0, 1.0))
    criterion = RegionCriterion(1, OBJECT, 0.3, background=0)
    assert criterion.evaluate(SegmenterOutput(logits, geometry)) == (score, outcome)


def test_a_region_needs_its_mask() -> None:
    from detcam.auditing.errors import DetectionError

    output = SegmenterOutput(torch.zeros(3, SIZE, SIZE), Geometry((SIZE, SIZE), (SIZE, SIZE), (1.0, 1.0)))
    error = DetectionError(0, 1, "background", 0, None, None, 1, 0.9, 0.0, 0.0, True)
    box = (0.0, 0.0, 4.0, 4.0)
    found = Detections(torch.tensor([box]), torch.tensor([1]), torch.tensor([0.9]), (SIZE, SIZE), (Source("region"),))
    truth = GroundTruth.without_objects(1, "a.png", Path("a.png"), (SIZE, SIZE), NAMES)
    with pytest.raises(ValueError, match="expected regions with masks"):
        criterion_for(
            error, found, truth, output, BoxTarget(box, 1), 0.9, score_threshold=0.3, iou_threshold=0.5, masks=False
        )
