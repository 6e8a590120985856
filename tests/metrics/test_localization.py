"""Localization metrics: by hand, against loops, and at the ends of their ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam.auditing import match
from detcam.benchmarking.samples import annotated_regions
from detcam.data.ground_truth import GroundTruth
from detcam.metrics import METRICS, summarize
from detcam.metrics.base import MetricWarning
from detcam.metrics.localization import (
    Compactness,
    EnergyPointingGame,
    HeatmapIoU,
    LocalizationMetric,
    ObjectDiscrimination,
    PointingGame,
)
from detcam.metrics.target_regions import TargetRegions, ground_truth_regions
from detcam.targets import MaskTarget
from tests.auditing.random_data import BOX, RIGHT, make_detections, make_ground_truth

ALL = (PointingGame, EnergyPointingGame, HeatmapIoU, ObjectDiscrimination, Compactness)


def value(metric: LocalizationMetric, heat: Any, own: Any, others: Any = None, ignored: Any = None) -> float:
    heat, own = torch.as_tensor(heat)[None], torch.as_tensor(own)[None]
    others = torch.zeros_like(own) if others is None else torch.as_tensor(others)[None]
    ignored = torch.zeros_like(own) if ignored is None else torch.as_tensor(ignored)[None]
    (found,) = metric.measure(None, None, None, [heat], truth=[TargetRegions(own, others, ignored)])
    assert found.dtype == torch.float64
    return float(found)


def region(*pixels: tuple[int, int], size: tuple[int, int] = (4, 6)) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def test_metrics_are_registered_with_their_needs() -> None:
    for metric in ALL:
        assert METRICS[metric.name] is metric and metric.needs == {"truth"}
        assert "alse positive" in (metric.__doc__ or "")
    assert [metric.name for metric in ALL if not metric.higher_is_better] == ["object_discrimination", "compactness"]


HEAT = np.zeros((4, 6))
HEAT[1, 1], HEAT[1, 2], HEAT[2, 4], HEAT[0, 5] = 1.0, 0.5, 0.25, 0.25


def test_by_hand() -> None:
    own, others = region((1, 1), (1, 2), (2, 2)), region((2, 4), (1, 2))
    assert value(PointingGame(), HEAT, own) == 1
    assert value(PointingGame(), HEAT, ~own) == 0
    assert value(EnergyPointingGame(), HEAT, own) == pytest.approx(1.5 / 2)
    assert value(HeatmapIoU(), HEAT, own) == pytest.approx(2 / 3)  # at 0.5: both hot pixels of the object's three
    assert value(ObjectDiscrimination(), HEAT, own, others) == pytest.approx(0.75 / 1.75)
    # Distances to (1, 1), squared: 0, 1, 10, 17; the box is 2 by 2, a quarter of its diagonal squared is 2.
    assert value(Compactness(), HEAT, own) == pytest.approx(math.sqrt((0.5 + 2.5 + 4.25) / (2 * 2)))


def test_the_box_around_the_object() -> None:
    own = region((1, 2), (2, 4))
    assert value(EnergyPointingGame(), HEAT, own) == pytest.approx(0.75 / 2)
    assert value(EnergyPointingGame("box"), HEAT, own) == pytest.approx(0.75 / 2)
    wide = region((1, 1), (2, 4))
    assert value(EnergyPointingGame(), HEAT, wide) == pytest.approx(1.25 / 2)
    assert value(EnergyPointingGame("box"), HEAT, wide) == pytest.approx(1.75 / 2)
    assert value(PointingGame(shape="box"), HEAT, region((0, 1), (1, 0))) == 1
    assert value(PointingGame(), HEAT, region((0, 1), (1, 0))) == 0


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (2.2, 0), (2.3, 1), (15, 1)])
def test_the_pointing_game_tolerance_is_a_radius(tolerance: float, hit: int) -> None:
    assert value(PointingGame(tolerance), HEAT, region((3, 2), (3, 5))) == hit  # sqrt(5) pixels away


def test_several_maxima_count_by_their_share_of_hits() -> None:
    heat = HEAT.copy()
    heat[0, 0] = heat[3, 3] = 1
    assert value(PointingGame(), heat, region((1, 1))) == pytest.approx(1 / 3)


def literal(metric: type[LocalizationMetric], heat: np.ndarray, own: np.ndarray, others: np.ndarray) -> float:
    height, width = heat.shape
    pixels = [(r, c) for r in range(height) for c in range(width)]
    total = math.fsum(heat[p] for p in pixels)
    if metric is EnergyPointingGame:
        return math.fsum(heat[p] for p in pixels if own[p]) / total
    if metric is ObjectDiscrimination:
        on = math.fsum(heat[p] for p in pixels if others[p])
        return on / math.fsum(heat[p] for p in pixels if others[p] or own[p])
    if metric is HeatmapIoU:
        best = 0.0
        for threshold in sorted({heat[p] for p in pixels}):
            hot = {p for p in pixels if heat[p] >= threshold}
            true = {p for p in pixels if own[p]}
            best = max(best, len(hot & true) / len(hot | true))
        return best
    top = max(pixels, key=lambda p: heat[p])
    if metric is PointingGame:
        return float(own[top])
    rows, columns = [p[0] for p in pixels if own[p]], [p[1] for p in pixels if own[p]]
    box_w, box_h = max(columns) - min(columns) + 1, max(rows) - min(rows) + 1
    spread = math.fsum(heat[p] * ((p[0] - top[0]) ** 2 + (p[1] - top[1]) ** 2) for p in pixels)
    return math.sqrt(spread / ((box_w**2 + box_h**2) / 4 * total))


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(metric: type[LocalizationMetric], seed: int) -> None:
    random = np.random.default_rng(seed)
    heat = random.random((9, 13)).round(1 if seed == 2 else 6)
    heat[3, 4] = 2
    own, others = random.random((2, 9, 13)) < 0.3
    own[3, 4] = seed == 0
    expected = literal(metric, heat, own, others)
    assert value(metric(), heat, own, others) == pytest.approx(expected, abs=1e-12)


def test_ends_of_the_ranges() -> None:
    own, others = region((1, 1), (1, 2), (2, 1), (2, 2)), region((3, 5))
    exact, opposite = own.double(), (~own).double()
    assert value(EnergyPointingGame(), exact, own) == value(HeatmapIoU(), exact, own) == 1
    assert value(EnergyPointingGame(), opposite, own) == value(PointingGame(), opposite, own) == 0
    assert value(HeatmapIoU(), opposite, own) == pytest.approx(4 / 24)  # the lowest threshold takes all
    assert value(ObjectDiscrimination(), exact, own, others) == 0
    assert value(ObjectDiscrimination(), others.double(), own, others) == 1
    assert value(Compactness(), others.double(), own) == 0


@pytest.mark.parametrize("metric", ALL)
def test_no_value_without_truth_order_or_numbers(metric: type[LocalizationMetric]) -> None:
    own, others = region((1, 1)), region((3, 3))
    holed = HEAT.copy()
    holed[0, 0] = np.nan
    heats = torch.from_numpy(np.stack([HEAT, HEAT, np.ones((4, 6)), holed]))
    truth = TargetRegions(
        torch.stack([own, torch.zeros_like(own), own, own]), others.expand(4, -1, -1), torch.zeros(4, 4, 6).bool()
    )
    with pytest.warns(MetricWarning, match=f"{metric.name}: 3 of 4 heatmaps have no value"):
        found = metric().measure(None, None, None, [heats], truth=[truth])
    assert found.isnan().tolist() == [False, True, True, True]
    summary = summarize(found)
    assert (summary.count, summary.skipped) == (1, 3) and summary.mean == float(found[0])


def test_discrimination_needs_several_targets() -> None:
    own = region((1, 1))
    with pytest.warns(MetricWarning):
        assert math.isnan(value(ObjectDiscrimination(), HEAT, own))
    with pytest.warns(MetricWarning):
        assert math.isnan(value(ObjectDiscrimination(), HEAT, region((3, 0)), region((3, 3))))


def test_negative_saliency_counts_as_zero() -> None:
    heat = HEAT.copy()
    heat[3, 0] = -5
    for metric in ALL:
        own, others = region((1, 1)), region((2, 4))
        assert value(metric(), heat, own, others) == value(metric(), HEAT, own, others)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (PointingGame, 1.0),
        (EnergyPointingGame, 0.5 / 1.0),
        (HeatmapIoU, 1.0),
        (ObjectDiscrimination, 0.25 / 0.75),
        (Compactness, math.sqrt((0.25 * 5 + 0.25 * 10) / (0.5 * 1.0))),
    ],
)
def test_saliency_on_crowds_is_excluded(metric: type[LocalizationMetric], expected: float) -> None:
    own, others, crowd = region((1, 2)), region((2, 4), (1, 1)), region((1, 1), (1, 2))
    assert value(metric(), HEAT, own, others, crowd) == pytest.approx(expected)


def test_regions_of_annotations() -> None:
    truth = make_ground_truth([BOX, RIGHT, [5, 5, 15, 15], [0, 30, 40, 40]], [1, 2, 1, 1], crowd=[False] * 3 + [True])
    found = ground_truth_regions(truth, [0, None, 2, -1])
    assert found.objects.flatten(1).sum(1).tolist() == [100, 0, 100, 0]
    assert found.other_objects.flatten(1).sum(1).tolist() == [200, 0, 200, 0]
    assert bool(found.other_objects[0, 7, 7]) and bool(found.other_objects[0, 25, 25])
    assert found.ignored.flatten(1).sum(1).tolist() == [400, 0, 400, 0]
    same = ground_truth_regions(truth, [0, 1], same_class=True)
    assert same.other_objects.flatten(1).sum(1).tolist() == [100, 0]
    assert same.ignored.flatten(1).sum(1).tolist() == [400, 0]  # the crowd is of class 1
    for wrong, message in ((4, "image's 4 annotated objects; got 4"), (3, "crowd region"), (-2, "got -2")):
        with pytest.raises(ValueError, match=message):
            ground_truth_regions(truth, [wrong])


def test_regions_of_many_annotations_do_not_hold_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of 100,000 objects in one image are more than fits in memory."""
    monkeypatch.setattr(GroundTruth, "masks", lambda self: pytest.fail("all masks are in memory"))
    truth = make_ground_truth([BOX, RIGHT], [1, 1])
    assert ground_truth_regions(truth, [0]).other_objects.flatten(1).sum(1).tolist() == [100]
    target = MaskTarget(1, torch.ones(40, 40, dtype=torch.bool))
    regions = annotated_regions(truth, make_detections([BOX], [1], [0.9]), [target])
    assert regions.objects.flatten(1).sum(1).tolist() == [200]


def test_false_positives_of_a_matching_have_no_value() -> None:
    truth = make_ground_truth([BOX], [1])
    matched = match(make_detections([BOX, RIGHT], [1, 1], [0.9, 0.8]), truth)
    heat = torch.zeros(2, 40, 40)
    heat[:, 25, 25] = 1
    with pytest.warns(MetricWarning, match="1 of 2"):
        found = PointingGame().measure(
            None,
            None,
            None,
            [heat],
            truth=[ground_truth_regions(truth, matched.ground_truth_index.tolist(), shape="box")],
        )
    assert found[0] == 0 and found[1].isnan()


def test_masks_suffice_as_ground_truth() -> None:
    first, second = region((1, 1)), region((2, 4), (1, 2))
    truth = [torch.stack([first, second, first]), torch.stack([second])]
    heats = [torch.from_numpy(HEAT).expand(3, -1, -1), torch.from_numpy(HEAT)[None]]
    found = EnergyPointingGame().measure(None, None, None, heats, truth=truth)
    assert found.tolist() == pytest.approx([0.5, 0.375, 0.5, 0.375])
    with pytest.warns(MetricWarning, match="1 of 4"):  # alone in its image
        found = ObjectDiscrimination().measure(None, None, None, heats, truth=truth)
    assert found[:3].tolist() == pytest.approx([0.75 / 1.75, 1 / 1.75, 0.75 / 1.75])  # the third's own is no other
    assert found[3].isnan()
    stacked = EnergyPointingGame().measure(None, None, None, torch.from_numpy(HEAT)[None], truth=[first])
    assert stacked.tolist() == [0.5]


def localize(truth: Any, heatmaps: Any) -> Tensor:
    return PointingGame().measure(None, None, None, heatmaps, truth=truth)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: localize(None, []), "needs truth="),
    (lambda: localize(torch.zeros(1, 4, 6), [torch.zeros(1, 4, 6)]), "one entry per image; got Tensor"),
    (lambda: localize([torch.zeros(4)], [torch.zeros(1, 4, 6)]), r"truth of shape \(N, H, W\); got"),
    (lambda: localize([torch.zeros(1, 4, 6)], [torch.zeros(2, 4, 6)]), r"truth of shape \(2, 4, 6\); got"),
    (lambda: localize([torch.zeros(1, 4, 6)], [torch.zeros(1, 3, 6)]), r"heatmaps of shape \(N, 4, 6\)"),
    (lambda: PointingGame(-1), "0 or more; got -1"),
    (lambda: EnergyPointingGame("circle"), '"mask" or "box"; got'),  # type: ignore[arg-type]
    (lambda: ground_truth_regions(make_ground_truth([], []), [], shape="circle"), '"mask" or "box"; got'),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_invalid_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_no_heatmaps() -> None:
    nothing = HeatmapIoU().measure(None, None, None, [torch.zeros(0, 4, 6)], truth=[torch.zeros(0, 4, 6)])
    assert nothing.shape == (0,) and nothing.dtype == torch.float64
    assert ground_truth_regions(make_ground_truth([], []), []).objects.shape == (0, 40, 40)


def test_a_maximum_on_a_crowd_is_no_miss() -> None:
    heat = HEAT.copy()
    heat[1, 2] = 1
    assert value(PointingGame(), heat, region((1, 2)), ignored=region((1, 1))) == 1
    assert value(PointingGame(), heat, region((1, 2))) == 0.5
