"""A map depends on image and target, not on the batch, the chunks or the number of variants per pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import detcam.perturbation.replay
from detcam import METHODS
from detcam.perturbation.base import PerturbationCAM
from detcam.results import ImageHeatmaps
from detcam.testing.methods import default_targets
from tests.zoo import Example, example, pairs, quick

pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = 1e-5


def enlivened(name: str) -> Example:
    """A model whose scores answer to the image by more than their rounding."""
    case = example(name)
    model: Any = case.model
    last = model.roi_heads.box_predictor.cls_score if name == "faster_rcnn" else model[-1]
    with torch.no_grad():
        last.weight *= 10
    return case


PAIRS = [
    pytest.param(model, name, marks=[pytest.mark.slow] if heavy else [], id=f"{model}-{name}")
    for model, name in pairs(("own_segmenter", "own_detector", "faster_rcnn"))
    for heavy in [model == "faster_rcnn" and issubclass(METHODS[name], PerturbationCAM)]
]
"""Of each kind of output one model; classifiers are in the engine's tests."""


def agree(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=CLOSE, rtol=0)


def maps(results: list[ImageHeatmaps]) -> list[Tensor]:
    return [torch.as_tensor(result.heatmaps) for result in results]


@pytest.fixture
def one_variant_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes replaying methods process one variant per pass."""
    monkeypatch.setattr(detcam.perturbation.replay, "MAX_PASS_BYTES", 1)
    yield


def three(case: Example) -> tuple[list[Any], list[Any]]:
    """Three images, two of one size so that they share a pass, and their targets."""
    images = [case.images[0], case.images[1], case.images[0].flip(-1)]
    return images, list(default_targets(case.adapter, images))


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_maps_do_not_depend_on_batches_and_chunks(model: str, name: str) -> None:
    case = enlivened(model)
    cam = quick(name, case.adapter)
    images, targets = three(case)
    cam.batch_size = 32
    together = cam.explain(images, targets)
    for size in (1, 2):
        cam.batch_size = size
        found = cam.explain(images, targets)
        agree(maps(found), maps(together))
        agree([result.scores for result in found], [result.scores for result in together])
    agree(maps(cam.explain(images[1:2], targets[1:2])), maps(together[1:2]))
    rows = [case.adapter.targets_of(row) for row in targets]
    last = cam.explain(images, [row[-1:] for row in rows])  # each target without the others of its image
    agree(maps(last), [torch.as_tensor(result.heatmaps)[-1:] for result in together])


@pytest.mark.parametrize("model", ["own_segmenter", "own_detector"])
@pytest.mark.parametrize("name", ["ablationcam", "reciprocam"])
def test_chunks_of_downstream_passes_change_nothing(
    model: str, name: str, one_variant_at_a_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = enlivened(model)
    images, targets = three(case)
    cam = quick(name, case.adapter)
    one_by_one = cam.explain(images[:1], targets[:1])
    monkeypatch.undo()
    agree(maps(cam.explain(images[:1], targets[:1])), maps(one_by_one))
