"""RISE, D-RISE and what they share: masks from a seed, sums that chunks do not change, stopping when halves agree."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import DRISE, RISE, SamplingWarning
from detcam.adapters import detector
from detcam.methods.drise import detection_similarity, drise
from detcam.perturbation.random_masks import BLOCK_SIZE, MIN_PASSES, RandomMasks, peak_rank_correlation
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import TASKS, example

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
TARGETS = [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)], [ClassifierOutputTarget(1)]]
CPU = torch.device("cpu")


def slow_masks(count: int, size_hw: tuple[int, int], grid: int, probability: float, seed: int) -> list[Tensor]:
    """Masks painted as the paper says: enlarged by one cell more than needed, then cut out at an offset."""
    masks = RandomMasks(size_hw, grid, probability, seed, CPU, torch.float64)
    painted: list[Tensor] = []
    while len(painted) < count:
        for cells, (top, left) in zip(*(values.tolist() for values in masks.draw(BLOCK_SIZE)), strict=True):
            cell = [-(-side // grid) for side in size_hw]
            large = F.interpolate(
                torch.tensor(cells, dtype=torch.float64)[None, None],
                ((grid + 1) * cell[0], (grid + 1) * cell[1]),
                mode="bilinear",
            )[0, 0]
            painted.append(large[top : top + size_hw[0], left : left + size_hw[1]])
    return painted[:count]


def estimate(scores: list[float], masks: list[Tensor], probability: float) -> Tensor:
    """RISE's sum, with the mean score's part of it replaced by what that is expected to be."""
    mean = sum(scores) / len(scores)
    total = torch.full_like(masks[0], mean)
    for score, mask in zip(scores, masks, strict=True):
        total += (score - mean) * mask / (len(scores) * probability)
    return total


def test_masks_are_those_of_the_paper() -> None:
    masks = RandomMasks((20, 28), 7, 0.3, 5, CPU, torch.float64)
    found = torch.cat([masks.render(*masks.draw(BLOCK_SIZE)) for _ in range(8)])
    torch.testing.assert_close(found, torch.stack(slow_masks(8 * BLOCK_SIZE, (20, 28), 7, 0.3, 5)))
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    assert float(found.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(found.std(0).min()) > 0.1, "every pixel is hidden at times"


def test_rise_equals_its_formula() -> None:
    model = TinyCNN()
    before = Snapshot(model)
    results = RISE(model, passes=70, grid=5, probability=0.4, seed=3).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    masks = slow_masks(70, (20, 28), 5, 0.4, 3)
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        assert result.sampling is not None and result.sampling.passes == 70 and result.sampling.seed == 3
        for target, found in zip(targets, result.saliency[0], strict=True):
            with torch.no_grad():
                expected = estimate([float(target(slow((image * mask)[None])[0])) for mask in masks], masks, 0.4)
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_rise_by_hand() -> None:
    """A grid of one cell shows all or nothing, so the map is constant."""
    model = TinyCNN()
    result = RISE(model, passes=40, grid=1).explain(IMAGES[:1], [ClassifierOutputTarget(0)])[0]
    shown = int(RandomMasks((20, 28), 1, 0.5, 0, CPU, torch.float32).draw(BLOCK_SIZE)[0][:40].sum())
    assert 0 < shown < 40
    with torch.no_grad():
        light, dark = float(result.scores[0]), float(model(torch.zeros(1, 3, 20, 28))[0, 0])
    mean = (shown * light + (40 - shown) * dark) / 40
    expected = mean + shown * (light - mean) / (40 * 0.5)
    torch.testing.assert_close(
        result.saliency[0], torch.full((1, 20, 28), expected, dtype=torch.float64), rtol=1e-4, atol=1e-5
    )


def test_rise_equals_the_estimate_of_the_paper() -> None:
    """The mean score over all sixteen masks of a grid that show a cell, for a score that multiplies two cells."""

    class Product(Spot):
        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return (x[:, 0, 2, 2] * x[:, 0, 2, 13])[:, None]

    result = RISE(Product(), ["unused"], passes=20000, grid=2).explain(torch.ones(1, 3, 16, 16), [lambda y: y[0]])[0]
    masks = slow_masks(20000, (16, 16), 2, 0.5, 0)
    paper = sum(float(mask[2, 2] * mask[2, 13]) * mask for mask in masks) / (20000 * 0.5)
    torch.testing.assert_close(result.saliency[0][0].double(), paper, atol=0.01, rtol=0)
    assert float(paper.max() - paper.min()) > 0.1


class Spot(nn.Module):
    """Scores the brightness of two pixels: (3, 4) and, on the right half only, (12, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return torch.stack([x[:, 0, 3, 4], x[:, 0, 12, 20], x[:, 0, 3, 4] * 0], 1)


def test_sampling_stops_when_the_halves_agree() -> None:
    cam = RISE(Spot(), ["unused"])
    one = cam.explain(torch.ones(1, 3, 20, 28), [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    assert one.sampling is not None and one.sampling.agreement is not None
    assert MIN_PASSES <= one.sampling.passes < cam.max_passes and one.sampling.passes % BLOCK_SIZE == 0
    assert min(one.sampling.agreement) >= 0.8
    for heatmap, (y, x) in zip(torch.as_tensor(one.heatmaps), ((3, 4), (12, 20)), strict=True):
        top, left = divmod(int(heatmap.argmax()), 28)
        assert abs(top - y) <= 3 and abs(left - x) <= 4
    cam.max_passes = 300
    blind = cam.explain(torch.ones(1, 3, 20, 28), [ClassifierOutputTarget(2)])[0]
    assert blind.sampling is not None and blind.sampling.passes == 300 and blind.sampling.agreement == (0.0,)


def test_rank_correlation() -> None:
    one = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    other = torch.tensor([[10.0, 20.0, 30.0, 1e6], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert peak_rank_correlation(one, other, tied_fraction=0).tolist() == pytest.approx([1.0, -1.0, 0.0])
    # The lower half tied: ranks 0.5, 0.5, 2, 3 against 0.5, 0.5, 3, 2.
    tied = peak_rank_correlation(
        torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[2.0, 1.0, 9.0, 8.0]]), tied_fraction=0.5
    )
    assert float(tied) == pytest.approx(float(np.corrcoef([0.5, 0.5, 2, 3], [0.5, 0.5, 3, 2])[0, 1]))


@pytest.mark.parametrize("method", [RISE, DRISE])
def test_maps_depend_on_seeds_but_not_on_chunks(method: Any) -> None:
    case = example("faster_rcnn")
    case.model.double()  # a batch of another size rounds otherwise, and random networks tell masks apart by little
    image = case.images[1]
    found = case.adapter.predict(image)[0].filter(top_k=2)
    cam = method(case.adapter, passes=16, seed=1)
    before = Snapshot(case.model)
    together = cam.explain(image, [found])[0]
    before.check()
    cam.batch_size = 5
    again = cam.explain([image, case.images[0]], [found, found[:0]])[0]
    torch.testing.assert_close(torch.as_tensor(again.heatmaps), torch.as_tensor(together.heatmaps), atol=1e-5, rtol=0)
    other = method(case.adapter, passes=16, seed=2).explain(image, [found])[0]
    assert float((torch.as_tensor(other.heatmaps) - torch.as_tensor(together.heatmaps)).abs().max()) > 0.05


def slow_similarity(box: Tensor, vector: Tensor, boxes: Tensor, vectors: Tensor, background: int | None) -> float:
    best = 0.0
    for other, scores in zip(boxes.tolist(), vectors, strict=True):
        width = min(float(box[2]), other[2]) - max(float(box[0]), other[0])
        height = min(float(box[3]), other[3]) - max(float(box[1]), other[1])
        shared = max(width, 0.0) * max(height, 0.0)
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box.tolist(), other)]
        iou = shared / (sum(areas) - shared) if shared else 0.0
        cosine = float(vector @ scores / (vector.norm() * scores.norm()))
        things = [float(score) for index, score in enumerate(scores) if index != background]
        best = max(best, iou * cosine * max(things))
    return best


def test_drise_equals_its_formula() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[0]
    found = adapter.predict(image)[0].filter(top_k=2)
    missed = BoxTarget((30.0, 20.0, 90.0, 80.0), 3)
    targets = [*adapter.targets_of(found), missed]
    result = DRISE(adapter, passes=12, grid=6, seed=4).explain(image, [targets])[0]
    batch = adapter.prepare([image])
    (plain,) = adapter.outputs(adapter.forward(batch), batch)
    with torch.no_grad():
        vectors = list(plain.candidates(targets[:2]).class_scores) + [torch.tensor([0.0, 0.0, 0.0, 1.0])]
    boxes = torch.tensor([target.box_xyxy for target in targets])
    rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    masks = slow_masks(12, size, 6, 0.5, 4)
    weights: list[list[float]] = [[], [], []]
    for mask in masks:
        inputs = batch.inputs.clone()
        inputs[0, :, rows, columns] *= mask.float()
        with torch.no_grad():
            seen = type(batch)(inputs, batch.geometries)
            (output,) = adapter.outputs(adapter.forward(seen), seen)
            candidate_boxes, scores = output.raw_candidates()
        for k in range(3):
            weights[k].append(slow_similarity(boxes[k], vectors[k], candidate_boxes, scores, 0))
    expected = torch.stack([estimate(row, masks, 0.5) for row in weights])
    inside = result.saliency[0][:, rows, columns]
    torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-4)
    assert result.saliency[0].shape[-2:] == batch.inputs.shape[-2:]
    assert result.scores[:2].tolist() == pytest.approx(found.scores.tolist(), abs=1e-4)


DETECTORS = sorted(name for name, task in TASKS.items() if task == "detection")
MASK_QUERIES = {"hf_mask2former"}
"""Detectors whose segments compete for pixels, so that a segment's box is not that of its query."""


def test_drise_supports_boxes_only() -> None:
    with pytest.raises(TypeError, match="use RISE"):
        DRISE(TinyCNN(), passes=2).explain(IMAGES[:1], [ClassifierOutputTarget(0)])
    with pytest.raises(TypeError, match="BoxTarget"):
        DRISE(example("fcos").adapter, passes=2).explain(IMAGES[0], [[lambda output: torch.ones(1)]])
    for wrong in ({"passes": 0}, {"passes": "all"}, {"grid": 0}, {"probability": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            RISE(TinyCNN(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - MASK_QUERIES))
def test_proposals_contain_the_best_detection(name: str) -> None:
    case = example(name)
    for image in case.images:
        batch = case.adapter.prepare([image])
        with torch.no_grad():
            output: Any = case.adapter.outputs(case.adapter.forward(batch), batch)[0]
            best, (boxes, scores) = output.detections()[0], output.raw_candidates()
        assert not boxes.requires_grad and scores.shape == (len(boxes), output.classes)
        near = (boxes - output.geometry.clip(best.boxes_xyxy)).abs().amax(1) < 1e-2
        reported = scores[near, int(best.labels)]
        assert len(reported) and float((reported - best.scores).abs().min()) < 1e-5


@pytest.mark.parametrize("name", sorted(MASK_QUERIES))
def test_proposals_of_mask_queries(name: str) -> None:
    """One per query, with the box of its own mask."""
    case = example(name)
    batch = case.adapter.prepare([case.images[1]])
    with torch.no_grad():
        output: Any = case.adapter.outputs(case.adapter.forward(batch), batch)[0]
        best, (boxes, scores) = output.detections()[0], output.raw_candidates()
    queries = range(len(output.logits))
    masks = output.probabilities(torch.arange(len(queries))) >= 0.5
    for query in queries:
        ys, xs = masks[query].nonzero(as_tuple=True)
        assert boxes[query].tolist() == [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
    assert scores.shape == (len(queries), output.classes)
    assert float(scores[best.source[0].anchor, int(best.labels)]) == pytest.approx(float(best.scores))


@pytest.mark.parametrize("name", DETECTORS)
def test_an_undetected_box_can_be_pinned(name: str) -> None:
    case = example(name)
    batch = case.adapter.prepare([case.images[0]])
    free = BoxTarget((20.0, 15.0, 70.0, 66.0), 1)
    with torch.no_grad():
        (output,) = case.adapter.outputs(case.adapter.forward(batch), batch)
        source = output.source_of(free)  # type: ignore[attr-defined]
        fixed = replace(free, source=source)
        found, expected = (output.candidates([target]) for target in (fixed, free))  # type: ignore[attr-defined]
    torch.testing.assert_close(found.class_scores, expected.class_scores)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)
    assert (source is None) == ("rcnn" in name), "a two-stage head takes the box itself"


def test_padding_is_unchanged() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return super().forward(x)

    model = nn.Sequential(Watch(3, 2, 3, 16, 1))

    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[[0.0, 0.0, 32.0, 32.0]]]).expand(len(raw), -1, -1), raw.mean((2, 3)).sigmoid()[:, None]

    adapter = detector(model, decode, image_size=64, letterbox=True, target_layers=["0"])
    seen.clear()  # of the passes on noise
    result = RISE(adapter, passes=6).explain(torch.ones(3, 20, 40), [[BoxTarget((1.0, 1.0, 9.0, 9.0), 0)]])[0]
    masked = torch.cat(seen[1:])
    assert len(masked) == 6 and float((masked[:, :, :16] - 114 / 255).abs().max()) < 1e-6
    assert float(masked[:, :, 16:48].std()) > 0.1
    torch.testing.assert_close(result.saliency[0][:, :16], result.saliency[0][:, 16:17].expand(-1, 16, -1))


class RedFinder:
    """A detector that is no module: one box around what is red, as sure as there is red; and a blue one."""

    def __init__(self, *, vectors: bool = False) -> None:
        self.vectors = vectors
        self.images = 0

    def __call__(self, images: list[np.ndarray]) -> list[Mapping[str, Any]]:
        self.images += len(images)
        assert all(image.dtype == np.uint8 and image.shape == (40, 60, 3) for image in images)
        return [self.one(image.astype(float)) for image in images]

    def one(self, image: np.ndarray) -> Mapping[str, Any]:
        found: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
        for label, channel, box in ((1, 0, (10, 8, 25, 20)), (2, 2, (35, 20, 55, 36))):
            score = image[box[1] : box[3], box[0] : box[2], channel].mean() / 255
            if score > 0.05:
                found["boxes"].append(box)
                found["labels"].append(label)
                found["scores"].append(score)
        if self.vectors:
            found["class_scores"] = np.eye(3)[found["labels"]].reshape(-1, 3) * np.reshape(found["scores"], (-1, 1))
        return found


def scene() -> Tensor:
    image = torch.zeros(3, 40, 60)
    image[0, 8:20, 10:25] = 1
    image[2, 20:36, 35:55] = 1
    return image


@pytest.mark.parametrize("vectors", [False, True])
def test_drise_of_a_function(vectors: bool) -> None:
    function = RedFinder(vectors=vectors)
    before = torch.get_rng_state()
    result = drise(function, scene(), passes=300, grid=8, seed=2, batch_size=7)
    assert torch.equal(before, torch.get_rng_state())
    assert function.images == 301 and result.sampling is not None and result.sampling.passes == 300
    assert [target.label for target in result.targets] == [1, 2]  # type: ignore[attr-defined]
    assert result.scores.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    for heatmap, (x1, y1, x2, y2) in zip(
        torch.as_tensor(result.heatmaps), ((10, 8, 25, 20), (35, 20, 55, 36)), strict=True
    ):
        y, x = divmod(int(heatmap.argmax()), 60)
        assert y1 <= y < y2 and x1 <= x < x2
    masks = slow_masks(300, (40, 60), 8, 0.5, 2)
    found = [float((scene() * 255 * mask.float()).round()[0, 8:20, 10:25].mean() / 255) for mask in masks]
    expected = estimate([score if score > 0.05 else 0.0 for score in found], masks, 0.5)
    torch.testing.assert_close(result.saliency[0][0].double(), expected, atol=1e-5, rtol=1e-4)
    other = drise(function, scene(), [BoxTarget((10, 8, 25, 20), 2)], passes=50)
    assert float(other.heatmaps.max()) == 0, "the right box of the wrong class matches nothing"


def test_maps_of_chance_are_warned_of() -> None:
    target = BoxTarget((10, 8, 25, 20), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drise(RedFinder(vectors=False), scene(), [target], passes=300, grid=8)

    def detect_by_chance(images: list[np.ndarray]) -> list[dict[str, Any]]:
        """Detect the box in one masked image of ten, whatever it shows."""
        scores = [float(image.sum(dtype=int) % 10 == 0) for image in images]
        return [{"boxes": [target.box_xyxy], "labels": [1], "scores": [score]} for score in scores]

    with pytest.warns(SamplingWarning, match=r"maps of 1 of 1 target may show chance: after 100 passes") as caught:
        drise(detect_by_chance, scene(), [target], passes=100)
    assert caught[0].filename == __file__
    with pytest.warns(SamplingWarning, match="maps of 2 of 3 targets"):
        RISE(TinyCNN(), passes=200, grid=8, seed=1).explain(IMAGES, TARGETS)


def test_drise_of_a_function_with_invalid_output() -> None:
    nothing = drise(lambda images: [{"boxes": [], "labels": [], "scores": []}] * len(images), scene())
    assert nothing.heatmaps.shape == (0, 40, 60)
    for answer, words in (
        ([], "list with 1 entries"),
        ([3], "per image; got int"),
        ([{"boxes": [[0, 0, 1, 1]], "labels": [1, 2], "scores": [1]}], "as many labels"),
        ([{"boxes": [[0, 0, 1, 1]], "labels": [1], "scores": [1], "class_scores": [1]}], "class_scores of shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            drise(lambda images, answer=answer: answer, scene())  # type: ignore[misc]


def test_similarity_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    other = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 10.0]])
    classes = torch.tensor([[0.0, 0.6, 0.8], [0.9, 0.1, 0.0]])
    found = detection_similarity(boxes, torch.tensor([[0.0, 0.0, 1.0]]), other, classes, background=0)
    assert float(found) == pytest.approx(0.5 * 0.8 * 0.8)
    assert float(detection_similarity(boxes, torch.tensor([[0.0, 0.0, 1.0]]), other[:0], classes[:0])) == 0
    assert float(detection_similarity(boxes + 50, torch.tensor([[0.0, 0.0, 1.0]]), other, classes)) == 0
