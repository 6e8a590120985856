"""What every registered metric promises: it says what it is, is made without arguments, and answers one call."""

from __future__ import annotations

import re

import pytest
import torch

from detcam.metrics import METRICS, Metric
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN

INPUTS = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(5))
TARGETS = [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)], [], [ClassifierOutputTarget(1)]]
GENERATOR = torch.Generator().manual_seed(6)
MAPS = [torch.rand(len(row), 16, 20, generator=GENERATOR) for row in TARGETS]
ALONE = [kind for kind in METRICS.values() if kind.needs <= {"model"} and "class" in kind.tasks]


@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_every_metric_has_a_description(kind: type[Metric]) -> None:
    assert METRICS[kind.name] is kind and kind.name == kind.name.lower()
    assert kind.__doc__ and kind.paper
    low, high = kind.range
    assert low < high
    assert kind.tasks and set(kind.tasks) <= {"class", "box", "mask", "embedding"}
    assert set(kind.needs) <= {"model", "truth", "method"}
    assert isinstance(kind.higher_is_better, bool)
    kind()


@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_the_docstring_has_formula_range_direction_and_paper(kind: type[Metric]) -> None:
    words = " ".join((kind.__doc__ or "").split())
    low, high = (f"{end:g}" for end in kind.range)
    assert f"In [{low}, {high}{')' if high == 'inf' else ']'}" in words
    better, worse = ("higher", "lower") if kind.higher_is_better else ("lower", "higher")
    assert f"{better} is better" in words and f"{worse} is better" not in words
    link = re.search(r"https://[^\s,;]+", kind.paper)
    assert link and link[0] in words
    # In words where it is a case distinction, or one formula with another order of the pixels.
    spoken = {"pointing_game", "overall", "least_relevant_first", "road_least_relevant"}
    assert ":math:`" in words or ".. math::" in words or kind.name in spoken


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::detcam.metrics.MetricWarning")
def test_one_call_one_value_per_heatmap_in_range(kind: type[Metric]) -> None:
    model = TinyCNN()
    snapshot = Snapshot(model)
    values = kind().measure(model, INPUTS, TARGETS, MAPS)
    snapshot.check()
    assert values.shape == (3,) and values.dtype == torch.float64 and values.device.type == "cpu"
    low, high = kind.range
    known = values[~values.isnan()]
    assert ((known >= low - 1e-6) & (known <= high + 1e-6)).all()
    # Each value is its own heatmap's: alone it is the same, and the last image's does not depend on the first's.
    alone = kind().measure(model, INPUTS[2:], TARGETS[2:], MAPS[2:])
    torch.testing.assert_close(alone, values[2:], equal_nan=True)


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
def test_no_heatmaps_no_values(kind: type[Metric]) -> None:
    values = kind().measure(TinyCNN(), INPUTS[:1], [[]], [torch.zeros(0, 16, 20)])
    assert values.shape == (0,) and values.dtype == torch.float64
