"""Visual Precision Search against a literal greedy search, sets computed by hand, and planted causes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import VPS, adapt
from detcam.adapters import detector
from detcam.methods.common.region_search import RegionSets, iou_weighted_scores, superpixels
from detcam.methods.vps import GreedySearch
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget
from tests.helpers import TinyCNN, tensors

SetFunction = Callable[[frozenset[int]], float]


def evaluation_of(functions: list[SetFunction]) -> Callable[[Tensor], Tensor]:
    """An evaluation for `GreedySearch` that refuses to evaluate a set twice."""
    seen: set[frozenset[int]] = set()

    def evaluate(visible: Tensor) -> Tensor:
        rows = []
        for row in visible:
            shown = frozenset(row.nonzero()[:, 0].tolist())
            assert shown not in seen, "the same image was looked at twice"
            seen.add(shown)
            rows.append([function(shown) for function in functions])
        return torch.tensor(rows, dtype=torch.float64)

    return evaluate


def literal_greedy(y: SetFunction, regions: int) -> tuple[list[int], list[float]]:
    """The paper's algorithm, set by set."""
    everything = frozenset(range(regions))

    def f(chosen: frozenset[int]) -> float:
        return y(chosen) + 1 - y(everything - chosen)

    chosen: frozenset[int] = frozenset()
    order, gains = [], []
    for _ in range(regions):
        rest = sorted(everything - chosen)
        best = max(rest, key=lambda r: (f(chosen | {r}), -r))
        order.append(best)
        gains.append(f(chosen | {best}) - f(chosen))
        chosen = chosen | {best}
    return order, gains


def random_function(seed: int, regions: int) -> SetFunction:
    values = torch.rand(2**regions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda shown: float(values[sum(1 << region for region in shown)])


def test_the_order_equals_a_direct_search() -> None:
    functions = [random_function(seed, 6) for seed in range(3)]
    search = GreedySearch(RegionSets(evaluation_of(functions), 6), 3, lazy=False)
    search.run(6)
    for function, order, gains in zip(functions, search.order, search.gains, strict=True):
        expected, sizes = literal_greedy(function, 6)
        assert order == expected
        assert gains == pytest.approx(sizes)


class ClueAlone(GreedySearch):
    """Looks at y(S) alone: of a coverage its gains never grow, while those of 1 - y(V without S) never shrink."""

    def values(self, sets: Sequence[int]) -> Tensor:
        return self.sets.scores(sets)


def coverage(seed: int, regions: int) -> SetFunction:
    """The weight of the points that the shown regions cover."""
    generator = torch.Generator().manual_seed(seed)
    covers = torch.rand(regions, 40, generator=generator) < 0.3
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    return lambda shown: float(weights[covers[sorted(shown)].any(0)].sum())


def test_lazy_search_of_submodular_gains_needs_fewer_evaluations() -> None:
    covered = [coverage(seed, 16) for seed in range(2)]
    plain, lazy = (ClueAlone(RegionSets(evaluation_of(covered), 16), 2, lazy=lazy) for lazy in (False, True))
    plain.run(5)
    lazy.run(5)
    assert min(plain.gains[0] + plain.gains[1]) > 1e-3, "regions without gain have no order"
    assert lazy.order == plain.order
    assert lazy.sets.passes < 0.8 * plain.sets.passes


def test_three_regions_by_hand() -> None:
    y = {"": 0.0, "a": 0.5, "b": 0.1, "c": 0.0, "ab": 0.6, "ac": 0.5, "bc": 0.3, "abc": 0.9}
    evaluate = evaluation_of([lambda shown: y["".join("abc"[region] for region in sorted(shown))]])
    search = GreedySearch(RegionSets(evaluate, 3), 1, lazy=False)
    search.run(3)
    # F() = 0 + 1 - .9; F(a) = .5 + 1 - .3, F(b) = .1 + 1 - .5, F(c) = 0 + 1 - .6: a.
    # F(ab) = .6 + 1 - 0, F(ac) = .5 + 1 - .1: b. F(abc) = .9 + 1 - 0.
    assert search.order == [[0, 1, 2]]
    assert search.gains[0] == pytest.approx([1.1, 0.4, 0.3])
    torch.testing.assert_close(search.saliency(own_gain=True), torch.tensor([[1.8, 0.7, 0.3]]).double())
    torch.testing.assert_close(search.saliency(own_gain=False), torch.tensor([[0.7, 0.3, 0.0]]).double())


def test_ties_select_the_first_region_despite_rounding() -> None:
    noise = itertools.cycle([0.0, 1e-9, -1e-9, 3e-9])
    sets = RegionSets(evaluation_of([lambda shown: len(shown) / 4 + next(noise)]), 4)
    search = GreedySearch(sets, 1, lazy=False)
    search.run(4)
    assert search.order == [[0, 1, 2, 3]]


class Patch(nn.Module):
    """Class 0 is the brightness of one square of the image, class 1 of another."""

    squares = ((8, 8), (32, 40))

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        means = [x[:, :, top : top + 16, left : left + 16].mean((1, 2, 3)) for top, left in self.squares]
        return torch.stack(means, 1) * self.scale


def checkered() -> Tensor:
    """64 x 64 pixels of 8 x 8 squares, each of its own gray, so that superpixels are squares."""
    gray = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.5
    return gray.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_planted_square_is_highlighted(lazy: bool) -> None:
    image = checkered()
    cam = VPS(Patch().eval(), regions=64, lazy=lazy, select=8)
    result = cam.explain(image, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    for heatmap, (top, left) in zip(torch.as_tensor(result.heatmaps), Patch.squares, strict=True):
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top : top + 16, left : left + 16] = True
        assert float(heatmap[inside].mean()) > 0.5
        assert float(heatmap[~inside].mean()) < 0.05
    labels = superpixels(image[0], 64)
    assert int((torch.stack([result.saliency[0][0][labels == label][0] for label in labels.unique()]) > 0).sum()) <= 8


def test_superpixels_follow_the_image() -> None:
    image = torch.zeros(3, 32, 32)
    image[0, :16, :16] = image[1, 16:, :16] = image[2, :16, 16:] = 1.0
    labels = superpixels(image, 4)
    assert [len(labels[rows, columns].unique()) for rows in (slice(1, 15), slice(17, 31))
            for columns in (slice(1, 15), slice(17, 31))] == [1] * 4  # fmt: skip
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert superpixels(torch.zeros(1, 24, 24), 9).max() > 0, "an image of one color has regions too"


def two_boxes() -> Any:
    """A detector of two fixed boxes, whose class scores are the brightness inside."""
    network = Patch().eval()

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[8.0, 8, 24, 24], [40.0, 32, 56, 48]]).expand(len(raw), -1, -1)
        return boxes, torch.stack([raw, 0.5 * raw], -1)

    return detector(network, decode, image_size=64, target_layers="", score_threshold=0.0)


def test_detection_score_of_a_moved_box() -> None:
    adapter = two_boxes()
    image = torch.full((1, 3, 64, 64), 0.2)
    image[:, :, 8:24, 8:24] = 0.8
    batch = adapter.prepare_tensor(image)
    output = adapter.outputs(adapter.forward(batch), batch)[0]
    targets = [BoxTarget((8, 8, 24, 16), 0), BoxTarget((40, 32, 56, 48), 1), BoxTarget((0, 60, 4, 64), 0)]
    torch.testing.assert_close(iou_weighted_scores(output, targets), torch.tensor([0.5 * 0.8, 0.5 * 0.2, 0.0]))
    pins = adapter.predict(image[0])[0]
    order = pins.boxes_xyxy[:, 0].argsort().tolist()
    sources = [pins.source[index] for index in order]
    swapped = [BoxTarget((8, 8, 24, 24), 0, sources[1]), BoxTarget((8, 8, 24, 24), 0, sources[0])]
    torch.testing.assert_close(iou_weighted_scores(output, swapped, pinned=True), torch.tensor([0.0, 0.8]))


def test_boxes_masks_and_coordinates_are_searched_together() -> None:
    adapter = two_boxes()
    image = checkered()[0]
    pins = adapter.predict(image)[0]
    boxes = [
        BoxTarget(tuple(box), 0, source) for box, source in zip(pins.boxes_xyxy.tolist(), pins.source, strict=True)
    ]
    logit = BoxTarget(boxes[0].box_xyxy, 0, boxes[0].source, quantity="logit")
    found = tensors(VPS(adapter, regions=16)(image, [[*boxes, logit]]))[0]
    for heatmap, box in zip(found, [*boxes, logit], strict=True):
        x1, y1, x2, y2 = (int(value) for value in box.box_xyxy)
        assert heatmap[y1:y2, x1:x2].mean() > 3 * heatmap.mean()
    alone = tensors(VPS(adapter, regions=16)(image, [[boxes[1]]]))[0]
    torch.testing.assert_close(alone[0], found[1], atol=1e-6, rtol=0)


def test_a_mask_is_searched() -> None:
    from detcam.adapters import segmenter

    last = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.ones_(last.weight)
    network = nn.Sequential(nn.Identity(), last).eval()
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:16, 48:] = True
    adapter = segmenter(network, target_layers="0", image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    heatmap = tensors(VPS(adapter, regions=16)(checkered()[0], [MaskTarget(1, mask)]))[0][0]
    assert heatmap[mask].mean() > 3 * heatmap.mean()


def test_result_does_not_depend_on_seeds_batches_and_laziness() -> None:
    model = TinyCNN()
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    targets = [ClassifierOutputTarget(0), ClassifierOutputTarget(2)]
    cam = VPS(adapt(model), regions=9)
    together = tensors(cam(images, targets))
    torch.manual_seed(5)
    cam.batch_size = 1
    torch.testing.assert_close(tensors(cam(images, targets)), together, atol=1e-5, rtol=0)
    result = cam.explain(images[:1], [targets])[0]
    count = int(superpixels(images[0], 9).max()) + 1
    assert result.sampling is not None
    assert result.sampling.passes <= 2 * count * (count + 1)
    # One target takes K (K + 1) looks, but for sets that were looked at before; a lazy search would save a third.
    alone = cam.explain(images[:1], [targets[:1]])[0].sampling
    assert alone is not None and 0.9 * count * (count + 1) < alone.passes <= count * (count + 1)
    torch.testing.assert_close(torch.as_tensor(result.heatmaps)[0], together[0], atol=1e-5, rtol=0)


def test_invalid_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 regions"):
        VPS(TinyCNN(), regions=1)
    with pytest.raises(ValueError, match="select of at least 1"):
        VPS(TinyCNN(), select=0)
