"""Curves against loops and hand-computed areas; perfect and worst maps give the ends of the range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam.metrics import (
    CurveSettings,
    Deletion,
    DestroyingRegion,
    Insertion,
    InsertionMinusDeletion,
    MetricWarning,
    SufficientRegion,
    score_curves,
    summarize,
)
from detcam.metrics.curves import ranks
from detcam.perturbation.fills import Fill
from detcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget, RawScoresOutputTarget
from tests.helpers import Snapshot, TinyCNN


class Black(Fill):
    """Nothing but zeros, for sums that can be done by hand."""

    name = "black"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return images * ~removed[:, None]


class Patch(nn.Module):
    """The mean brightness of the first two rows and columns: in [0, 1], and 0 where that patch is black."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x[:, :, :2, :2].mean((1, 2, 3))[:, None]


WHITE = torch.ones(1, 3, 8, 8)  # 64 pixels, of which the patch has 4
TRUE = torch.zeros(1, 8, 8)
TRUE[0, :2, :2] = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
TARGET = [RawScoresOutputTarget()]
SETTINGS = CurveSettings(fill=Black(), steps=16)


@pytest.fixture
def patch() -> nn.Module:
    return Patch().eval()


def test_areas_by_hand(patch: nn.Module) -> None:
    perfect, worst = TRUE, -TRUE
    # 16 steps of 4 pixels. The true map deletes the patch in the first step: one trapezium of 1/16 from 1 to 0.
    assert Deletion(SETTINGS).measure(patch, WHITE, TARGET, perfect).item() == pytest.approx(1 / 32)
    assert Insertion(SETTINGS).measure(patch, WHITE, TARGET, perfect).item() == pytest.approx(31 / 32)
    assert InsertionMinusDeletion(SETTINGS).measure(patch, WHITE, TARGET, perfect).item() == pytest.approx(30 / 32)
    assert Deletion(SETTINGS).measure(patch, WHITE, TARGET, worst).item() == pytest.approx(31 / 32)
    assert Insertion(SETTINGS).measure(patch, WHITE, TARGET, worst).item() == pytest.approx(1 / 32)
    assert InsertionMinusDeletion(SETTINGS).measure(patch, WHITE, TARGET, worst).item() == pytest.approx(-30 / 32)


def test_regions_by_hand(patch: nn.Module) -> None:
    # Two of the patch's four pixels keep half the score; without three of them it falls below half.
    settings = CurveSettings(fill=Black(), steps=16)
    found = SufficientRegion(0.5, settings=settings).measure(patch, WHITE, TARGET, TRUE)
    assert found.item() == pytest.approx(2 / 64, abs=1 / 256)
    found = DestroyingRegion(0.5, settings=settings).measure(patch, WHITE, TARGET, TRUE)
    assert found.item() == pytest.approx(3 / 64, abs=1 / 256)
    # The worst map has the patch last: 62 pixels before half of it is there.
    found = SufficientRegion(0.5, settings=settings).measure(patch, WHITE, TARGET, -TRUE)
    assert found.item() == pytest.approx(62 / 64, abs=1 / 256)
    found = SufficientRegion(threshold=0.25, settings=settings).measure(patch, WHITE, TARGET, TRUE)
    assert found.item() == pytest.approx(1 / 64, abs=1 / 256)
    with pytest.warns(MetricWarning, match="1 of 1"):
        assert SufficientRegion(threshold=2.0, settings=settings).measure(patch, WHITE, TARGET, TRUE).isnan().all()


def literal_curve(
    model: nn.Module, image: Tensor, heatmap: np.ndarray, category: int, *, kind: str, steps: int
) -> list[float]:
    """One pixel at a time, in float loops: the image's own pixels and its mean color."""
    mean = image.mean((1, 2))
    pixels = [(y, x) for y in range(heatmap.shape[0]) for x in range(heatmap.shape[1])]
    pixels.sort(key=lambda pixel: -heatmap[pixel])
    scores = []
    for step in range(steps + 1):
        first = pixels[: round(step / steps * len(pixels))]
        changed = image.clone() if kind == "deletion" else mean[:, None, None].expand_as(image).clone()
        for y, x in first:
            changed[:, y, x] = mean if kind == "deletion" else image[:, y, x]
        with torch.no_grad():
            scores.append(float(model(changed[None])[0].softmax(0)[category]))
    return scores


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_curves_match_loops_over_pixels(kind: str) -> None:
    model, inputs = TinyCNN(), torch.rand(2, 3, 12, 16)
    heatmaps = np.random.default_rng(0).random((2, 12, 16)).astype(np.float32)
    snapshot = Snapshot(model)
    settings = CurveSettings(fill="mean", steps=7, batch_size=3)
    targets = [ClassifierOutputTarget(0), ClassifierOutputSoftmaxTarget(2)]
    found = score_curves(model, inputs, targets, heatmaps, kind=kind, settings=settings)  # type: ignore[arg-type]
    snapshot.check()
    for index, category in enumerate((0, 2)):
        wanted = literal_curve(model, inputs[index], heatmaps[index], category, kind=kind, steps=7)
        torch.testing.assert_close(found[index].scores, torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=0)
        area = sum((a + b) / 2 / 7 for a, b in zip(wanted, wanted[1:], strict=False))
        assert found[index].auc == pytest.approx(area, abs=1e-5)


def test_logits_and_relative_scores() -> None:
    model, inputs, heatmap = TinyCNN(), torch.rand(1, 3, 12, 16), torch.rand(1, 12, 16)
    target = [ClassifierOutputTarget(1)]
    plain = score_curves(
        model, inputs, target, heatmap, kind="deletion", settings=CurveSettings(steps=4, probability=False)
    )
    with torch.no_grad():
        assert float(plain[0].scores[0]) == pytest.approx(float(model(inputs)[0, 1]), abs=1e-5)
    share = score_curves(
        model, inputs, target, heatmap, kind="deletion", settings=CurveSettings(steps=4, relative=True)
    )
    absolute = score_curves(model, inputs, target, heatmap, kind="deletion", settings=CurveSettings(steps=4))
    assert float(share[0].scores[0]) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(share[0].scores, absolute[0].scores / absolute[0].scores[0])


def test_ties_are_removed_in_random_order() -> None:
    maps = torch.zeros(2, 10, 10)
    maps[0, 3, 4], maps[0, 9, 9] = 2.0, 1.0
    order = ranks(maps)
    assert order[0, 3, 4] == 0 and order[0, 9, 9] == 1
    assert torch.equal(order.flatten(1).sort(dim=1).values, torch.arange(100).expand(2, -1))
    tied = order[1].flatten().double()
    assert abs(float(torch.corrcoef(torch.stack([tied, torch.arange(100.0).double()]))[0, 1])) < 0.3
    assert torch.equal(order, ranks(maps)) and not torch.equal(order, ranks(maps, seed=1))


def test_many_heatmaps_are_ordered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, heatmaps = TinyCNN(), torch.rand(1, 3, 12, 16), torch.rand(5, 12, 16)
    targets = [[ClassifierOutputTarget(index % 3) for index in range(5)]]
    whole = Deletion(steps=3).measure(model, inputs, targets, [heatmaps])
    monkeypatch.setattr("detcam.metrics.curves.MAX_RANKED_PIXELS", 2 * 12 * 16)
    torch.testing.assert_close(Deletion(steps=3).measure(model, inputs, targets, [heatmaps]), whole)


def test_constant_maps_have_no_value_and_do_not_affect_the_mean(patch: nn.Module) -> None:
    broken = TRUE.clone()
    broken[0, 5, 5] = float("nan")
    heatmaps = [torch.cat([TRUE, torch.full_like(TRUE, 0.3), broken])]
    with pytest.warns(MetricWarning, match="2 of 3"):
        values = Deletion(SETTINGS).measure(patch, WHITE, [TARGET * 3], heatmaps)
    assert values.isnan().tolist() == [False, True, True]
    summary = summarize(values)
    assert summary.mean == pytest.approx(1 / 32) and (summary.count, summary.skipped) == (1, 2)
    nothing = summarize(Deletion(SETTINGS).measure(patch, WHITE, [[]], [torch.zeros(0, 8, 8)]))
    assert nothing.count == nothing.skipped == 0 and np.isnan(nothing.mean)


def test_invalid_calls_raise(patch: nn.Module) -> None:
    measure = Deletion(SETTINGS).measure
    with pytest.raises(ValueError, match=r"\(N, 8, 8\)"):
        measure(patch, WHITE, TARGET, torch.rand(1, 4, 4))
    with pytest.raises(ValueError, match="heatmaps for 1 image, one entry per image; got 2"):
        measure(patch, WHITE, TARGET, torch.rand(2, 8, 8))
    with pytest.raises(ValueError, match="one heatmap per target, 1; got 2"):
        measure(patch, WHITE, [TARGET], [torch.rand(2, 8, 8)])
    with pytest.raises(ValueError, match="one entry per image"):
        measure(patch, WHITE, [], torch.rand(1, 8, 8))
    with pytest.raises(TypeError, match="heatmaps"):
        measure(patch, WHITE, TARGET, "heatmap")
    with pytest.raises(TypeError, match="real"):
        measure(patch, WHITE, TARGET, torch.rand(1, 8, 8, dtype=torch.complex64))
    with pytest.raises(TypeError, match="boxes of a detector"):
        Deletion(protocol="odam").measure(patch, WHITE, TARGET, TRUE)
    with pytest.raises(ValueError, match="pinned, matched"):
        Deletion(protocol="iou").measure(patch, WHITE, TARGET, TRUE)
    with pytest.raises(TypeError, match="deletion has no setting 'colour'; the settings of curves are fill, steps"):
        Deletion(colour=3)
    with pytest.raises(ValueError, match="step"):
        CurveSettings(steps=0)
    with pytest.raises(ValueError, match="both"):
        Deletion(SETTINGS, steps=3)
    with pytest.raises(ValueError, match="fraction"):
        SufficientRegion(0.0)
    with pytest.raises(ValueError, match="kind"):
        score_curves(patch, WHITE, TARGET, TRUE, kind="erosion")  # type: ignore[arg-type]
