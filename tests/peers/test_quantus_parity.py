"""Parity with quantus, for metrics with the same definition.

The definitions agree for sparseness, complexity (detcam's entropy before division), pixel flipping (deletion), the
pointing game without a tolerance (of several maximal pixels, quantus counts a hit if any is inside, detcam the fraction
inside) and attribution localization (energy pointing game). They differ for selectivity and region perturbation, which
remove patches by mean relevance instead of pixels; for ROAD, which removes 1 to 99 percent and reports an accuracy over
images; and for parameter randomization, which re-initializes each layer.

quantus requires opencv-python, which conflicts with opencv-python-headless. It is therefore not an extra: `make env`
installs it without its dependencies.
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


def evaluate(metric: Any, **options: Any) -> np.ndarray:
    arguments = {"x_batch": INPUTS.numpy(), "y_batch": CLASSES, "a_batch": MAPS[:, None], **options}
    return np.asarray(metric(model=TinyCNN(), **arguments, softmax=True, device="cpu"))


def test_sparseness() -> None:
    theirs = evaluate(quantus.Sparseness(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Sparseness()(MAPS), theirs, atol=1e-5)


def test_entropy() -> None:
    theirs = evaluate(quantus.Complexity(abs=True, normalise=False, disable_warnings=True))
    np.testing.assert_allclose(Entropy()(MAPS) * np.log(MAPS[0].size), theirs, atol=1e-4)


def test_localization() -> None:
    objects = np.zeros((3, 12, 16), bool)
    for row, heatmap in enumerate(MAPS):
        top, left = np.unravel_index(heatmap.argmax(), heatmap.shape)
        window = (slice(0, 5), slice(2, 9)) if row == 2 else (slice(max(top - 2, 0), top + 3), slice(left, left + 5))
        objects[row][window] = True
    assert not objects[2].flat[MAPS[2].argmax()], "the last map must miss"
    truth = list(torch.from_numpy(objects)[:, None])
    maps = list(torch.from_numpy(MAPS)[:, None])
    options = {"abs": True, "normalise": False, "disable_warnings": True}
    theirs = evaluate(quantus.PointingGame(**options), s_batch=objects[:, None])
    values = PointingGame().measure(None, None, None, maps, truth=truth)
    assert values.tolist() == theirs.astype(float).tolist() == [1, 1, 0]
    theirs = evaluate(quantus.AttributionLocalisation(**options), s_batch=objects[:, None])
    values = EnergyPointingGame().measure(None, None, None, maps, truth=truth)
    np.testing.assert_allclose(values, theirs, atol=1e-6)


class Zero(Fill):
    """Fills with zeros."""

    name = "zero"

    def __call__(self, images: Tensor, removed: Tensor) -> Tensor:
        return images * ~removed[:, None]


def test_deletion_is_pixel_flipping() -> None:
    def flip(arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        flipped = arr.copy()
        flipped[np.arange(len(arr))[:, None], indices] = 0
        return flipped

    pixels, steps = MAPS[0].size, 12
    theirs = evaluate(
        quantus.PixelFlipping(
            features_in_step=3 * pixels // steps,  # a pixel is three features, one per channel
            normalise=False,
            perturb_func=flip,
            disable_warnings=True,
        )
    )
    targets = [ClassifierOutputTarget(int(label)) for label in CLASSES]
    ours = score_curves(
        TinyCNN(), INPUTS, targets, MAPS, kind="deletion", settings=CurveSettings(fill=Zero(), steps=steps)
    )
    scores = torch.stack([curve.scores for curve in ours])
    np.testing.assert_allclose(scores[:, 1:], theirs, atol=1e-5)
