"""VX-CODE against a literal version of its search, sets computed by hand, and planted causes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam import VXCODE, Detections
from detcam.adapters import detector, segmenter
from detcam.methods.vxcode import PatchSearch, patch_labels, patches_near, patches_per_side
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget
from tests.helpers import TinyCNN, tensors

Mode = Literal["deletion", "insertion"]


def literal_search(
    y: Any, count: int, ranked: Sequence[int], mode: Mode, together: int, candidates: int, share: float
) -> Tensor:
    """The paper's search over some of the patches, set by set: the saliency of each patch."""
    everything = frozenset(range(count))
    sign = 1 if mode == "insertion" else -1

    def reward(chosen: frozenset[int]) -> float:
        return sign * y(chosen if mode == "insertion" else everything - chosen)

    chosen: list[int] = []
    rewards: list[float] = []
    while rest := sorted(set(ranked) - set(chosen)):
        start = frozenset(chosen)
        if together > 1 and len(chosen) < share * len(ranked) and len(rest) > 1:
            pool = sorted(rest, key=lambda patch: -reward(start | {patch}))[:candidates]
            size = min(together, len(pool))
            group = max(itertools.combinations(sorted(pool), size), key=lambda patches: reward(start | set(patches)))
            order = max(
                itertools.permutations(group),
                key=lambda order: sum(reward(start | set(order[:n])) for n in range(1, size + 1)),
            )
        else:
            order = (max(rest, key=lambda patch: reward(start | {patch})),)
        for patch in order:
            chosen.append(patch)
            rewards.append(sign * reward(frozenset(chosen)))
    saliency = torch.zeros(count, dtype=torch.float64)
    for index, patch in enumerate(chosen):
        before = rewards[index - 1]
        saliency[patch] = 1.0 if index == 0 else 1 - before if mode == "insertion" else before
    return saliency


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
@pytest.mark.parametrize("together", [1, 2, 3])
def test_the_saliency_equals_the_literal_search(mode: Mode, together: int) -> None:
    values = torch.rand(2**7, generator=torch.Generator().manual_seed(together), dtype=torch.float64)
    search = PatchSearch(
        lambda sets: values[list(sets)], 7, range(7), mode=mode, together=together, candidates=4, combined=0.5 * 7
    )
    search.run(7)
    expected = literal_search(
        lambda shown: float(values[sum(1 << p for p in shown)]), 7, range(7), mode, together, 4, 0.5
    )
    torch.testing.assert_close(search.saliency(), expected)


def pair_scores(sets: Sequence[int]) -> Tensor:
    """Patch 3 alone loses a tenth, patches 0 and 5 together everything, one of them nothing."""
    rows = []
    for shown in sets:
        has = [bool(shown >> patch & 1) for patch in range(8)]
        rows.append((0.9 + 0.1 * has[3]) * (has[0] or has[5]))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("together", "first"), [(1, [3]), (2, [0, 5])])
def test_a_pair_is_found_together(together: int, first: list[int]) -> None:
    search = PatchSearch(pair_scores, 8, range(8), mode="deletion", together=together, candidates=8, combined=2)
    search.run(len(first))
    assert sorted(search.order) == first


def test_patches_follow_the_size_of_the_box() -> None:
    assert [patches_per_side(share) for share in (0.005, 0.01, 0.05, 0.2, 0.21)] == [24, 24, 16, 16, 8]
    labels = patch_labels((40, 60), 8)
    assert labels.shape == (40, 60) and labels[0, 0] == 0 and labels[0, 8] == 1 and labels[5, 0] == 8
    ragged = patch_labels((42, 42), 8)  # 5 pixels each, and a ninth row and column of 2
    assert int(ragged.max()) == 80 and int((ragged == 80).sum()) == 4
    # Patches of 10 pixels with centers at 5, 15, ...; 80 / 7 = 11.4 pixels around the box.
    near = patches_near((30, 30, 40, 40), (80, 80), 8)
    assert near == [row * 8 + column for row in (2, 3, 4) for column in (2, 3, 4)]


class Dots(nn.Module):
    """Two fixed boxes whose two class logits are the brightness of one square each, relative to the background's."""

    squares = ((0, 0), (16, 24))

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: Tensor) -> Tensor:
        means = [x[:, :, top : top + 8, left : left + 8].mean((1, 2, 3)) for top, left in self.squares]
        return torch.stack(means, 1) * self.scale


BOXES = torch.tensor([[0.0, 0, 16, 12], [20.0, 14, 32, 30]])


def dots(*, background: bool) -> Any:
    """A detector of the two boxes, with a softmax over background and two classes, or sigmoids without background."""

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.diag_embed(raw)
        scores = F.pad(logits, (1, 0), value=2.0).softmax(-1) if background else (logits - 3).sigmoid()
        return BOXES.expand(len(raw), -1, -1), scores

    return detector(Dots().eval(), decode, image_size=32, target_layers="", score_threshold=0.0)


def literal_similarity(adapter: Any, image: Tensor, target: BoxTarget, reference: Tensor) -> float:
    """The similarity of a target to the best candidate of an image, as the paper defines it."""
    batch = adapter.prepare_tensor(image)
    with torch.no_grad():
        boxes, scores = adapter.outputs(adapter.forward(batch), batch)[0].raw_candidates()
    overlap = box_iou(torch.tensor([target.box_xyxy]), boxes)[0]
    return float((overlap * F.cosine_similarity(scores, reference[None])).max())


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
@pytest.mark.parametrize("background", [False, True])
def test_a_box_equals_the_literal_method(mode: Mode, background: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = dots(background=background)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 0.3 + 0.7
    found: Detections = adapter.predict(image[0])[0]
    row = int((found.boxes_xyxy[:, 0] > 0).nonzero()[0])
    target = BoxTarget(tuple(found.boxes_xyxy[row].tolist()), int(found.labels[row]), found.source[row])
    batch = adapter.prepare_tensor(image)
    with torch.no_grad():
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        reference = output.candidates([target]).class_scores[0]
    if background:
        monkeypatch.setattr(type(output), "background", 0)
    labels = patch_labels((32, 32), 4)

    def y(shown: frozenset[int]) -> float:
        mask = torch.isin(labels, torch.tensor(sorted(shown)))
        changed = image * mask
        batch = adapter.prepare_tensor(changed)
        with torch.no_grad():
            scores = adapter.outputs(adapter.forward(batch), batch)[0].raw_candidates()[1]
        similarity = literal_similarity(adapter, changed, target, reference)
        # No other candidate overlaps. Without a background class, its best class score is a factor.
        return similarity if background else similarity * float(scores[target.source.anchor].max())

    near = patches_near(target.box_xyxy, (32, 32), 4)
    assert len(near) < 16, "the search is not restricted to patches near the box"
    whole = y(frozenset(range(16)))
    expected = literal_search(lambda shown: y(shown) / whole, 16, near, mode, 1, 30, 0.1)
    raw = VXCODE(adapter, grid=4, mode=mode).explain(image[0], [[target]])[0].saliency[0][0]
    torch.testing.assert_close(raw.double(), expected[labels], atol=1e-5, rtol=0)


def test_the_highlighted_patches_are_those_of_the_box() -> None:
    adapter = dots(background=False)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(4)) * 0.3 + 0.7
    found = adapter.predict(image)[0]
    result = VXCODE(adapter, grid=4).explain(image, [found])[0]
    for heatmap, label in zip(torch.as_tensor(result.heatmaps), found.labels.tolist(), strict=True):
        top, left = Dots.squares[label]
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[top : top + 8, left : left + 8] = True
        assert heatmap[inside].min() > heatmap[~inside].max()


def test_classes_and_masks_are_ranked_by_their_score() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    cam = VXCODE(Dots().eval(), grid=4)
    result = cam.explain(image, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    for heatmap, (top, left) in zip(torch.as_tensor(result.heatmaps), Dots.squares, strict=True):
        assert heatmap[top : top + 8, left : left + 8].mean() > 3 * heatmap.mean()
    assert result.sampling is not None and result.sampling.passes <= 2 * (16 * 17 // 2 + 1)
    last = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.ones_(last.weight)
    adapter = segmenter(
        nn.Sequential(nn.Identity(), last).eval(), target_layers="0", image_size=32, mean=(0, 0, 0), std=(1, 1, 1)
    )
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:8, 24:] = True
    heatmap = tensors(VXCODE(adapter, grid=4)(image[0], [MaskTarget(1, mask)]))[0][0]
    assert heatmap[mask].min() > heatmap[~mask].max()


def test_the_number_of_patches_bounds_the_passes() -> None:
    image = torch.rand(1, 3, 16, 16)
    few = VXCODE(TinyCNN(), select=3).explain(image, [[ClassifierOutputTarget(1)]])[0]
    assert few.sampling is not None
    assert few.sampling.passes <= 64 + 63 + 62 + 2
    assert len(few.saliency[0][0].unique()) <= 4


def test_invalid_numbers_are_refused() -> None:
    for options, message in (
        ({"mode": "both"}, "mode 'deletion' or 'insertion'; got 'both'"),
        ({"patches_per_step": 0}, "patches_per_step of at least 1"),
        ({"grid": 1}, "grid of at least 2"),
        ({"select": 0}, "select of at least 1"),
        ({"patches_per_step": 3, "candidates": 2}, "candidates of at least patches_per_step"),
    ):
        with pytest.raises(ValueError, match=message):
            VXCODE(TinyCNN(), **options)  # type: ignore[arg-type]
