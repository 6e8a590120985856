"""Smoothing is for every method: six views with the targets that belong to them, and principal components."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detcam import METHODS
from detcam.cam import BaseCAM
from detcam.methods.common.attention_base import NoAttentionError
from tests.contract.test_contract import QUICK, asked
from tests.zoo import Example, example

pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = ("own_detector", "own_segmenter", "own_detr")


def make(name: str, case: Example) -> BaseCAM:
    cam = METHODS[name](case.adapter, **QUICK.get(name, {}))
    if case.adapter.task not in cam.tasks:
        pytest.skip(f"{name} does not explain {case.adapter.task}")
    return cam


def maps(cam: BaseCAM, image: Tensor, targets: list[Any], **options: Any) -> Tensor:
    try:
        return cam.explain([image], [targets], **options)[0].heatmaps
    except NoAttentionError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", list(METHODS))
def test_aug_smooth_is_the_mean_of_six_views(model: str, name: str) -> None:
    """Told one by one: a mirrored image is asked for the mirrored box or mask, and its map is mirrored back."""
    case = example(model)
    cam, image = make(name, case), 0.9 * case.images[0]  # room for a brighter view
    targets = case.adapter.targets_of(asked(case)[0])
    width = image.shape[-1]
    mirrored = [target.hflip(width) if hasattr(target, "hflip") else target for target in targets]
    views = []
    for factor in (1.0, 0.9, 1.1):
        views.append(maps(cam, image * factor, targets))
        views.append(maps(cam, image.flip(-1) * factor, mirrored).flip(-1))
    found = maps(cam, image, targets, aug_smooth=True)
    torch.testing.assert_close(found, torch.stack(views).mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", list(METHODS))
def test_eigen_smooth_gives_a_map_or_says_why_not(model: str, name: str) -> None:
    case = example(model)
    cam, image = make(name, case), 0.9 * case.images[0]  # room for a brighter view
    targets = case.adapter.targets_of(asked(case)[0])
    try:
        found = maps(cam, image, targets, eigen_smooth=True)
    except ValueError as reason:
        assert "eigen_smooth" in str(reason) or "principal component" in str(reason)
        return
    assert torch.isfinite(found).all() and float(found.amin()) >= 0 and float(found.amax()) <= 1
    again = maps(cam, image, targets, eigen_smooth=True)
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)
