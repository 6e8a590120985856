"""Metrics against quantus, where its definitions are the same.

They are for sparseness, complexity (our entropy, undivided), pixel flipping (our deletion), the pointing game without
a tolerance (of several hottest pixels quantus counts a hit where any hits, we their share) and the share of the heat in
the object (attribution localisation). They are not for selectivity and region perturbation, which remove patches in the
order of their mean heat instead of pixels; for its ROAD, which removes shares of 1 to 99 percent and reports an
accuracy over images; and for its parameter randomisation, which draws new weights by each layer's own initialisation.

quantus asks for opencv-python, which fills the same folder as opencv-python-headless, so it is no part of the extras:
`make env` installs it without its dependencies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam.metrics import CurveSettings, EnergyPointingGame, Entropy, PointingGame, Sparseness, score_curves
from detcam.perturbation.fills import Fill
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN

quantus = pytest.importorskip("quantus", reason="quantus is not installed; make env does it")

MAPS = np.random.default_rng(0).random((3, 12, 16)).astype(np.float32)
INPUTS = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
CLASSES = np.array([0, 1, 2])


def ask(metric: Any, **more: Any) -> np.ndarray:
    call = {"model": TinyCNN(), "x_batch": INPUTS.numpy(), "y_batch": CLASSES, "a_batch": MAPS[:, None], **more}
    return np.asarray(metric(**call, softmax=True, device="cpu"))


def test_sparseness() -> None:
    theirs = ask(quantus.Sparseness(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Sparseness()(MAPS), theirs, atol=1e-5)


def test_entropy() -> None:
    theirs = ask(quantus.Complexity(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Entropy()(MAPS) * np.log(MAPS[0].size), theirs, atol=1e-4)


def test_localisation() -> None:
    objects = np.zeros((3, 12, 16), bool)
    for row, heat in enumerate(MAPS):
        top, left = np.unravel_index(heat.argmax(), heat.shape)
        place = (slice(0, 5), slice(2, 9)) if row == 2 else (slice(max(top - 2, 0), top + 3), slice(left, left + 5))
        objects[row][place] = True
    assert not objects[2].flat[MAPS[2].argmax()], "one that misses"
    truth = list(torch.from_numpy(objects)[:, None])
    maps = list(torch.from_numpy(MAPS)[:, None])
    options = {"abs": True, "normalise": False, "disable_warnings": True}
    theirs = ask(quantus.PointingGame(**options), s_batch=objects[:, None])
    found = PointingGame().measure(None, None, None, maps, truth=truth)
    assert found.tolist() == theirs.astype(float).tolist() == [1, 1, 0]
    theirs = ask(quantus.AttributionLocalisation(**options), s_batch=objects[:, None])
    found = EnergyPointingGame().measure(None, None, None, maps, truth=truth)
    np.testing.assert_allclose(found, theirs, atol=1e-6)


class Zero(Fill):
    """Zeros."""

    name = "zero"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return images * ~removed[:, None]


def test_deletion_is_pixel_flipping() -> None:
    def flip(arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        flipped = arr.copy()
        flipped[np.arange(len(arr))[:, None], indices] = 0
        return flipped

    pixels, steps = MAPS[0].size, 12
    theirs = ask(
        quantus.PixelFlipping(
            features_in_step=3 * pixels // steps,  # a pixel is three features, one a channel
            normalise=False,
            perturb_func=flip,
            disable_warnings=True,
        )
    )
    targets = [ClassifierOutputTarget(int(label)) for label in CLASSES]
    ours = score_curves(
        TinyCNN(), INPUTS, targets, MAPS, kind="deletion", settings=CurveSettings(fill=Zero(), steps=steps)
    )
    found = torch.stack([curve.scores for curve in ours])
    np.testing.assert_allclose(found[:, 1:], theirs, atol=1e-5)
