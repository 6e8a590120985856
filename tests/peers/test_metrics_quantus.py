"""Metrics against quantus, where its definitions are the same.

quantus asks for opencv-python, which fills the same folder as opencv-python-headless, so it is no part of the extras:
``pip install --no-deps quantus cachetools`` beside pandas, scikit-learn and matplotlib lets these tests run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam.metrics import CurveSettings, Entropy, Sparseness, score_curves
from detcam.metrics.imputation import Fill
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN

quantus = pytest.importorskip("quantus", reason="quantus needs opencv-python; see above for how to have it anyway")

MAPS = np.random.default_rng(0).random((3, 12, 16)).astype(np.float32)
INPUTS = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
CLASSES = np.array([0, 1, 2])


def ask(metric: Any) -> np.ndarray:
    call = {"model": TinyCNN(), "x_batch": INPUTS.numpy(), "y_batch": CLASSES, "a_batch": MAPS[:, None]}
    return np.asarray(metric(**call, softmax=True, device="cpu"))


def test_sparseness() -> None:
    theirs = ask(quantus.Sparseness(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Sparseness()(MAPS), theirs, atol=1e-5)


def test_entropy() -> None:
    theirs = ask(quantus.Complexity(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Entropy()(MAPS) * np.log(MAPS[0].size), theirs, atol=1e-4)


class Zero(Fill):
    """Zeros."""

    name = "zero"

    def __call__(self, pictures: Tensor, removed: Tensor) -> Tensor:
        return pictures * ~removed[:, None]


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
