"""Smoothing is for every method: six views with the targets that belong to them, and principal components."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detcam.cam import BaseCAM
from tests.zoo import pairs, quick, shared, shared_targets

pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = ("own_detector", "own_segmenter", "own_detr")


def maps(cam: BaseCAM, image: Tensor, targets: list[Any], **options: Any) -> Tensor:
    return torch.as_tensor(cam.explain([image], [targets], **options)[0].heatmaps)


@pytest.mark.parametrize(("model", "name"), pairs(MODELS))
def test_aug_smooth_is_the_mean_of_six_views(model: str, name: str) -> None:
    """Computed view by view: a mirrored image has the mirrored target, and its map is mirrored back."""
    case = shared(model)
    cam, image = quick(name, case.adapter), 0.9 * case.images[0]  # room for a brighter view
    targets = case.adapter.targets_of(shared_targets(model)[0])
    width = image.shape[-1]
    mirrored = [target.hflip(width) if hasattr(target, "hflip") else target for target in targets]
    views = []
    for factor in (1.0, 0.9, 1.1):
        views.append(maps(cam, image * factor, targets))
        views.append(maps(cam, image.flip(-1) * factor, mirrored).flip(-1))
    found = maps(cam, image, targets, aug_smooth=True)
    torch.testing.assert_close(found, torch.stack(views).mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("model", "name"), pairs(MODELS))
def test_eigen_smooth_gives_a_map_or_raises(model: str, name: str) -> None:
    case = shared(model)
    cam, image = quick(name, case.adapter), 0.9 * case.images[0]  # room for a brighter view
    targets = case.adapter.targets_of(shared_targets(model)[0])
    try:
        found = maps(cam, image, targets, eigen_smooth=True)
    except ValueError as reason:
        assert "eigen_smooth" in str(reason) or "principal component" in str(reason)
        return
    assert torch.isfinite(found).all() and float(found.amin()) >= 0 and float(found.amax()) <= 1
    again = maps(cam, image, targets, eigen_smooth=True)
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)
