"""A map depends on the image and the target: not on company, nor on how many images or changes share a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import detcam.perturbation.replay
from detcam import METHODS
from detcam.cam import BaseCAM
from detcam.methods.common.attention_base import NoAttentionError
from detcam.perturbation.base import PerturbationCAM
from detcam.results import ImageHeatmaps
from tests.contract.test_contract import QUICK, asked
from tests.zoo import Example, example

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
    for model in ("own_segmenter", "own_detector", "faster_rcnn")
    for name, method in METHODS.items()
    for heavy in [model == "faster_rcnn" and issubclass(method, PerturbationCAM)]
]
"""Of each kind of output one model; classifiers are in the engine's tests."""


def make(name: str, case: Example) -> BaseCAM:
    cam = METHODS[name](case.adapter, **QUICK.get(name, {}))
    if case.adapter.task not in cam.tasks:
        pytest.skip(f"{name} does not explain {case.adapter.task}")
    return cam


def agree(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=CLOSE, rtol=0)


def maps(results: list[ImageHeatmaps]) -> list[Tensor]:
    return [result.heatmaps for result in results]


@pytest.fixture
def one_variant_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Methods that re-run what lies behind a layer do so for one variant after the other."""
    monkeypatch.setattr(detcam.perturbation.replay, "MAX_PASS_BYTES", 1)
    yield


def three(case: Example) -> tuple[list[Any], list[Any]]:
    """Three images, two of one size so that they share a pass, and what is asked of each."""
    images = [case.images[0], case.images[1], case.images[0].flip(-1)]
    widened = Example(case.model, case.adapter, images)
    return images, asked(widened)


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_batches_chunks_and_company_change_nothing(model: str, name: str) -> None:
    case = enlivened(model)
    cam = make(name, case)
    images, targets = three(case)
    cam.batch_size = 32
    try:
        together = cam.explain(images, targets)
    except NoAttentionError as reason:
        pytest.skip(str(reason))
    for size in (1, 2):
        cam.batch_size = size
        found = cam.explain(images, targets)
        agree(maps(found), maps(together))
        agree([result.scores for result in found], [result.scores for result in together])
    agree(maps(cam.explain(images[1:2], targets[1:2])), maps(together[1:2]))
    rows = [case.adapter.targets_of(row) for row in targets]
    last = cam.explain(images, [row[-1:] for row in rows])  # each target without the others of its image
    agree(maps(last), [result.heatmaps[-1:] for result in together])


@pytest.mark.parametrize("model", ["own_segmenter", "own_detector"])
@pytest.mark.parametrize("name", ["ablationcam", "reciprocam"])
def test_chunks_of_what_lies_behind_a_layer_change_nothing(
    model: str, name: str, one_variant_at_a_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = enlivened(model)
    images, targets = three(case)
    cam = make(name, case)
    one_by_one = cam.explain(images[:1], targets[:1])
    monkeypatch.undo()
    agree(maps(cam.explain(images[:1], targets[:1])), maps(one_by_one))
