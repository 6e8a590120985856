"""PhaseWin against a literal version of its search, sets computed by hand, and planted causes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detcam import VPS, PhaseWin
from detcam.methods.common.region_search import RegionSets
from detcam.methods.phase_win import PhaseSearch
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN, tensors

DEFAULTS: dict[str, Any] = {"prune": 0.05, "accept": 0.6, "batch": 0.99, "exit_change": 0.02, "exit_ratio": 0.98}


def literal_search(
    f: Callable[[frozenset[int]], float],
    regions: int,
    *,
    window: int,
    prune: float,
    accept: float,
    batch: float,
    exit_change: float,
    exit_ratio: float,
    seed: int,
) -> list[int]:
    """The search, one phase after the other, with nothing but lists and sets."""
    generator = random.Random(seed)
    chosen: list[int] = []
    rest, aside = list(range(regions)), []
    while rest:
        gains = {r: f(frozenset(chosen) | {r}) for r in rest}
        anchor = max(rest, key=lambda r: gains[r])
        if gains[anchor] <= 0:
            break
        chosen.append(anchor)
        rest.remove(anchor)
        history = [gains[anchor]]
        if not rest:
            break
        gains = {r: f(frozenset(chosen) | {r}) for r in rest}
        best = max(gains.values())
        if best <= 0:
            continue
        aside += [r for r in rest if gains[r] < prune * best]
        rest = [r for r in rest if gains[r] >= prune * best]
        queue = sorted((r for r in rest if gains[r] >= accept * best), key=lambda r: -gains[r])
        middle = [r for r in rest if gains[r] < accept * best]
        inside, waiting = queue[:window], queue[window:]
        put_back: list[int] = []
        is_over = False
        while not is_over and (inside or waiting):
            while len(inside) < window and waiting:
                r = waiting.pop(0)
                if generator.random() < 0.5 and r not in put_back:
                    put_back.append(r)
                    waiting.append(r)
                else:
                    inside.append(r)
            now = {r: f(frozenset(chosen) | {r}) for r in inside}
            good = [r for r in inside if now[r] >= max(accept * best, batch * max(now.values()))]
            is_over = not good
            for r in good:
                ratios = [*history[-2:], now[r]]
                falls = len(ratios) == 3 and ratios[1] / ratios[2] - ratios[0] / ratios[1] > exit_change
                if not falls or now[r] >= exit_ratio * history[-1]:
                    chosen.append(r)
                    inside.remove(r)
                    history.append(now[r])
                if falls:
                    is_over = True
                    break
        rest = inside + waiting + middle
    for left in (rest, aside):
        last = {r: f(frozenset(chosen) | {r}) for r in left}
        chosen += sorted(left, key=lambda r: -last[r])
    return chosen


def coverage(seed: int, regions: int, noise: float) -> Callable[[int], float]:
    """The weight of the points that the regions of a set cover, plus noise without ties."""
    generator = torch.Generator().manual_seed(seed)
    covers = torch.rand(regions, 40, generator=generator) < 0.2
    weights = torch.rand(40, generator=generator, dtype=torch.float64)

    def y(shown: int) -> float:
        members = [region for region in range(regions) if shown >> region & 1]
        covered = float(weights[covers[members].any(0)].sum() / weights.sum()) if members else 0.0
        return covered + noise * random.Random(shown * 31 + seed).random()

    return y


@pytest.mark.parametrize("seed", range(12))
def test_the_order_equals_the_literal_search(seed: int) -> None:
    regions = 6 + seed
    y = coverage(seed, regions, noise=(1e-3, 0.2, 0.6)[seed % 3])
    everything = (1 << regions) - 1
    options = {**DEFAULTS, "prune": (0.05, 0.6)[seed % 2], "accept": (0.6, 0.9)[seed // 2 % 2], "window": 3}

    def f(shown: int) -> float:
        return y(shown) + 1 - y(everything ^ shown)

    search = PhaseSearch(lambda sets: [f(shown) for shown in sets], regions, seed=seed, **options)
    expected = literal_search(lambda chosen: f(sum(1 << r for r in chosen)), regions, seed=seed, **options)
    assert search.run(regions) == expected
    partial = PhaseSearch(lambda sets: [f(shown) for shown in sets], regions, seed=seed, **options)
    assert partial.run(3) == expected[:3]


def test_a_phase_by_hand() -> None:
    """F = 1 + the sum of the values: 0 is the anchor, the window takes 1 and 2 together, 4 is set aside."""
    gains = [4.0, 3.0, 3.0, 1.0, -0.9]
    evaluated: list[int] = []

    def values(sets: Any) -> list[float]:
        evaluated.extend(sets)
        return [1 + sum(gain for region, gain in enumerate(gains) if shown >> region & 1) for shown in sets]

    search = PhaseSearch(values, 5, window=2, **{**DEFAULTS, "prune": 0.6, "accept": 0.7}, seed=0)
    assert search.run(5) == [0, 1, 2, 3, 4]
    # Five regions for the anchor, four after it: 8, 8, 6, 4.1; 4.1 < .6 * 8 is set aside, 6 >= .7 * 8 waits behind the
    # window {1, 2}, which is taken as a whole. Then 3 alone in the window, and 4 at the end.
    assert [bin(shown) for shown in evaluated[5:9]] == ["0b11", "0b101", "0b1001", "0b10001"]
    assert evaluated[9:11] == [0b11, 0b101]
    assert evaluated[11] == 0b1111
    assert evaluated[12:] == [0b11111]


def squares(raw: Tensor) -> Tensor:
    """Score of 16 regions, of which 5 and 10 together make the target."""
    return torch.stack([0.2 * raw[:, 5] + 0.2 * raw[:, 10] + 0.6 * raw[:, 5] * raw[:, 10]], 1).double()


def test_fewer_passes_than_the_greedy_search_and_the_same_first_regions() -> None:
    greedy, phases = (RegionSets(lambda visible: squares(visible.float()), 16) for _ in range(2))
    by_greedy = VPS(TinyCNN(), regions=16).rank(greedy, 1)
    by_phases = PhaseWin(TinyCNN(), regions=16).rank(phases, 1)
    assert by_greedy[0].topk(2).indices.tolist() == by_phases[0].topk(2).indices.tolist() == [5, 10]
    assert phases.passes < 0.6 * greedy.passes
    torch.testing.assert_close(by_phases[0, [5, 10]], by_greedy[0, [5, 10]])


def test_saliency_is_the_tail_sum_of_the_gains() -> None:
    saliency = PhaseWin(TinyCNN(), regions=16).rank(RegionSets(lambda visible: squares(visible.float()), 16), 1)[0]
    # F() = 0 + 1 - 1; F(5) = .2 + 1 - .2; F(5, 10) = 1 + 1 - 0.
    assert saliency[[5, 10]].tolist() == pytest.approx([2.0, 1.0])
    without = PhaseWin(TinyCNN(), regions=16, own_gain=False)
    saliency = without.rank(RegionSets(lambda visible: squares(visible.float()), 16), 1)[0]
    assert saliency[[5, 10]].tolist() == pytest.approx([1.0, 0.0])


def test_targets_share_passes_and_do_not_change_each_other() -> None:
    images = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    targets = [ClassifierOutputTarget(0), ClassifierOutputTarget(2)]
    cam = PhaseWin(TinyCNN(), regions=12)
    together = cam.explain(images, [targets])[0]
    alone = [cam.explain(images, [[target]])[0] for target in targets]
    for index, result in enumerate(alone):
        torch.testing.assert_close(tensors([result.heatmaps[0]])[0], tensors([together.heatmaps[index]])[0])
    assert together.sampling is not None
    counts = [result.sampling.passes for result in alone if result.sampling is not None]
    assert max(counts) < together.sampling.passes < sum(counts)
    assert math.isfinite(float(together.scores[0]))


def test_invalid_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 regions"):
        PhaseWin(TinyCNN(), regions=1)
    with pytest.raises(ValueError, match="window of at least 1"):
        PhaseWin(TinyCNN(), window=0)
    with pytest.raises(ValueError, match="accept greater than 0 and at most 1; got 1.5"):
        PhaseWin(TinyCNN(), accept=1.5)
