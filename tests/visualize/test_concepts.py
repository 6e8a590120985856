"""Concepts drawn over an image: colors, numbers and the legend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detcam import create_labels_legend, show_factorization_on_image
from detcam.visualize.concepts import concept_colors
from detcam.visualize.drawing import TEXT_COLOR
from tests.drawn import colored

RED, BLUE = (200, 30, 40), (20, 60, 220)


def make_image(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def halves(height: int = 60, width: int = 80) -> np.ndarray:
    """Two maps: one on the left, fading downwards, one on the right."""
    maps = np.zeros((2, height, width), np.float32)
    maps[0, :, : width // 2] = np.linspace(1, 0, height)[:, None]
    maps[1, :, width // 2 :] = 1
    return maps


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_each_pixel_is_blended_with_its_strongest_concept(weight: float) -> None:
    image = make_image()
    maps = np.random.default_rng(1).random((3, 60, 80)).astype(np.float32)
    colors = [RED, BLUE, (0, 255, 0)]
    shown = show_factorization_on_image(image, maps, colors, image_weight=weight)
    for y, x in np.random.default_rng(2).integers(0, (60, 80), (200, 2)):
        best = max(range(3), key=lambda k: maps[k, y, x])
        opacity = (1 - weight) * float(maps[best, y, x])
        expected = [(1 - opacity) * image[y, x, i] + opacity * colors[best][i] for i in range(3)]
        np.testing.assert_allclose(shown[y, x], expected, atol=0.51)
    assert shown.shape == image.shape and shown.dtype == np.uint8


def test_colors_of_any_form_and_tensor_maps() -> None:
    image = make_image()
    expected = show_factorization_on_image(image, halves(), [RED, (0, 0, 255)])
    unit = [np.array([200 / 255, 30 / 255, 40 / 255, 1.0]), "blue"]
    np.testing.assert_array_equal(show_factorization_on_image(image / 255, torch.from_numpy(halves()), unit), expected)


@pytest.mark.parametrize("count", [1, 5, 8, 16])
def test_colors_are_distinct(count: int) -> None:
    colors = np.array(concept_colors(count), int)
    assert len(colors) == count and (255, 255, 255) not in concept_colors(count)
    apart = np.abs(colors[:, None] - colors[None]).sum(-1)[~np.eye(count, dtype=bool)]
    assert not len(apart) or apart.min() > 60


def test_numbers_on_the_image_and_labels_in_the_legend() -> None:
    image = np.full((400, 480, 3), 128, np.uint8)
    maps = halves(400, 480)
    labels = ["left thing 0.91\nand more 0.05", "right thing 0.99"]
    bare = show_factorization_on_image(image, maps, [RED, BLUE])
    shown = show_factorization_on_image(image, maps, [RED, BLUE], concept_labels=labels)
    assert shown.shape[0] == 400 and shown.shape[1] > 480
    changed = (shown[:, :480] != bare).any(axis=2)
    for half, color in ((slice(0, 240), RED), (slice(240, 480), BLUE)):
        rows, columns = np.nonzero(colored(shown[:, :480], color)[:, half] & changed[:, half])
        assert len(rows) > 100
        middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
        # The left concept leads with at least half its strength in the upper half, the right one everywhere.
        np.testing.assert_allclose(middle, (100 if color is RED else 200, 120), atol=25)
    assert changed.mean() < 0.02, "a number covers the image"
    legend = shown[:, 480:]
    tops = [np.nonzero(colored(legend, color).any(axis=1))[0].min() for color in (RED, BLUE)]
    heights = [int(colored(legend, color).any(axis=1).sum()) for color in (RED, BLUE)]
    assert tops[1] - tops[0] > 1.5 * heights[0], "two lines of text take more room than one"
    right_of = np.nonzero(colored(legend, RED).any(axis=0))[0].max() + 1
    assert (legend[tops[0] : tops[1], right_of:] < 90).all(axis=2).sum() > 100, "text beside the number"
    other = show_factorization_on_image(image, maps, [RED, BLUE], concept_labels=["left thing", "right thing 0.99"])
    assert other.shape[1] <= shown.shape[1]


def test_concept_without_a_dominant_region_has_no_number() -> None:
    maps = np.concatenate([halves(400, 480), np.full((1, 400, 480), 0.01, np.float32)])
    maps[0] = np.maximum(maps[0], 0.02)
    image = np.full((400, 480, 3), 128, np.uint8)
    shown = show_factorization_on_image(image, maps, [RED, BLUE, (0, 255, 0)], concept_labels=["a", "b", "c"])
    assert not colored(shown[:, :480], (0, 255, 0)).any() and colored(shown[:, 480:], (0, 255, 0)).any()


def test_small_image_is_enlarged_and_long_legend_fits() -> None:
    maps = np.random.default_rng(0).random((16, 60, 80))
    shown = show_factorization_on_image(make_image(), maps, concept_labels=["a class 0.99\nanother 0.01"] * 16)
    assert shown.shape[0] > 4 * 60 and shown.shape[1] > 4 * 80
    assert (shown[240:, :320] == 255).all()
    ink = (shown[:, 320:] <= max(TEXT_COLOR)).all(axis=2).any(axis=1)
    assert ink[-40:].any(), "the last label is drawn"


def test_legend_lists_the_best_classes() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]])
    names = {0: "cat, tabby", 1: "dog"}
    assert create_labels_legend(scores, names) == ["dog 0.70\nclass 2 0.20", "cat 0.50\nclass 2 0.50"]
    assert create_labels_legend(scores.numpy(), ["cat", "dog", "owl"], top_k=1) == ["dog 0.70", "cat 0.50"]


def test_wrong_input_raises() -> None:
    image, maps = make_image(), halves()
    with pytest.raises(ValueError, match="take one image's entry"):
        show_factorization_on_image(image, maps[None])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        show_factorization_on_image(image, maps * 2)
    with pytest.raises(ValueError, match="one per concept"):
        show_factorization_on_image(image, maps, [RED])
    with pytest.raises(ValueError, match="a list of one per concept"):
        show_factorization_on_image(image, maps, concept_labels="left")
    with pytest.raises(ValueError, match="image_weight"):
        show_factorization_on_image(image, maps, image_weight=1.5)
    with pytest.raises(ValueError, match="top_k"):
        create_labels_legend(np.zeros((1, 2)), ["a", "b"], 0)
