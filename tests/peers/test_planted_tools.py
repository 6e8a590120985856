"""Tools of other packages as explainers of the planted benchmark."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from detcam.benchmarking.planted.detectors import detector_families
from detcam.benchmarking.planted.explainers import check_heatmap
from detcam.benchmarking.planted.hit_metrics import HitSummary
from detcam.benchmarking.planted.results import MethodRow
from detcam.synthetic.shortcuts import draw_shortcut_scene
from tests.peers import planted_tools

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def untrained() -> dict[str, tuple[torch.nn.Module, np.ndarray, Any]]:
    """Per family a detector with random weights, an image, and the target of its first detection."""
    image = draw_shortcut_scene("mark", 0, "test").image
    cases = {}
    for name in ("two-stage", "yolo"):
        family = detector_families()[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = family.build().eval()
        adapter = family.adapter(model)
        (detections,) = adapter.predict(image, score_threshold=0.0, top_k=1)
        cases[name] = (model, image, adapter.targets_of(detections)[0])
    return cases


@pytest.mark.parametrize(
    ("tool", "family"), [(name, family) for name, tool in planted_tools.TOOLS.items() for family in tool.families]
)
@pytest.mark.filterwarnings("ignore")
def test_tool_returns_a_heatmap_and_leaves_the_model(
    tool: str, family: str, untrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(planted_tools.TOOLS[tool].package)
    if "D-RISE" in tool:
        pytest.importorskip("smqtk_detection")
    monkeypatch.setattr(planted_tools, "DRISE_MASKS", 8)
    monkeypatch.setattr(planted_tools, "OCCLUSION_WINDOW", (3, 80, 64))
    monkeypatch.setattr(planted_tools, "OCCLUSION_STRIDE", (3, 80, 64))
    model, image, target = untrained[family]
    before = copy.deepcopy(model.state_dict())
    heatmap = planted_tools.TOOLS[tool].explain(model, image, target)
    assert check_heatmap(heatmap, image.shape[:2], tool).shape == image.shape[:2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_score_of_the_box_is_the_models_own(untrained: Any) -> None:
    for family, (model, image, target) in untrained.items():
        adapter = detector_families()[family].adapter(model)
        (detections,) = adapter.predict(image, score_threshold=0.0, top_k=1)
        with torch.no_grad():
            score = planted_tools.box_scores(model, planted_tools.to_batch(image), target)
        assert score.shape == (1,) and float(score) >= float(detections.scores[0]) - 1e-4


def test_tools_are_chosen_by_family_and_by_a_part_of_their_name() -> None:
    for family in ("yolo", "yolo11s"):
        assert list(planted_tools.installed_tools(family, "visualize")) == ["ultralytics visualize=True"]
    assert not planted_tools.installed_tools("two-stage", "visualize")


def test_table_weighs_all_cases_equally() -> None:
    rows = [
        MethodRow("yolo", scenario, "hold-out", "tool", HitSummary(cases, peak, 0.5, 1.0, peak, 1.0))
        for scenario, cases, peak in (("mark", 6, 0.5), ("context", 2, 1.0))
    ]
    lines = planted_tools.share_table(rows).splitlines()
    assert lines[0] == "| tool | cases | on the cause | energy | mark | context |"
    assert lines[2] == "| tool | 8 | 62 % (31-86) | 0.50 | 50 % | 100 % |"
