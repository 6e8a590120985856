"""Sobel's edges: by hand, as grad-cam has them, and blind to the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detcam import Sobel, adapt, sobel_cam
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN, tensors
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ClassAgnosticWarning", "ignore::detcam.EmptyMapWarning")


def make_image(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_loops(image: np.ndarray) -> np.ndarray:
    """The formula, pixel by pixel, with the border mirrored about its outermost pixels."""
    gray = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    padded = np.pad(gray, 1, mode="reflect")
    found = np.zeros(gray.shape)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            window = padded[y : y + 3, x : x + 3]
            parts = [min(abs((window * one).sum()), 255) for one in (kernel, kernel.T)]
            found[y, x] = sum(parts) / 2
    return found


def test_equals_its_formula() -> None:
    found = sobel_cam(make_image())
    assert found.dtype == np.uint8
    apart = np.abs(found - by_loops(make_image()))  # a gray level half-way between two may be rounded either way
    assert apart.max() <= 2 and (apart > 0.5).mean() < 0.02


@pytest.mark.peers
def test_equals_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.sobel_cam", reason="grad-cam is not installed")
    expected = peer.sobel_cam(make_image())
    np.testing.assert_array_equal(sobel_cam(make_image()), expected)
    np.testing.assert_array_equal(sobel_cam(make_image().astype(np.float32) / 255), expected)
    (heatmap,) = tensors(Sobel(example("classifier").adapter)(make_image()))[0].numpy()
    scaled = (expected - float(expected.min())) / (float(expected.max()) - expected.min())
    np.testing.assert_allclose(heatmap, scaled, atol=1e-6)


def test_an_edge_by_hand() -> None:
    image = np.zeros((5, 6, 3), np.uint8)
    image[:, 3:] = 40  # S_x is 4 * 40 in the two columns at the step, S_y is 0 but for nothing
    expected = np.zeros((5, 6))
    expected[:, 2:4] = 80
    np.testing.assert_array_equal(sobel_cam(image), expected)


def test_depends_on_the_image_only() -> None:
    model = TinyCNN()
    before = Snapshot(model)
    image = make_image(50, 70)
    adapter = adapt(model, image_size=32)
    results = [
        Sobel(one).explain(image, [[ClassifierOutputTarget(0), ClassifierOutputTarget(2)]])[0]
        for one in (adapter, example("classifier").adapter)
    ]
    before.check()
    expected = torch.from_numpy(sobel_cam(image) / np.float32(255))
    for result in results:
        assert result.heatmaps.shape == (2, 50, 70)
        torch.testing.assert_close(result.saliency[0][1], expected)
        assert torch.equal(torch.as_tensor(result.heatmaps)[0], torch.as_tensor(result.heatmaps)[1])
        assert result.scores[0] != result.scores[1]
    assert torch.equal(torch.as_tensor(results[0].heatmaps), torch.as_tensor(results[1].heatmaps))


def test_a_normalized_input_is_denormalized() -> None:
    adapter = adapt(TinyCNN(), image_size=(30, 40), mean=(0.5, 0.4, 0.3), std=(0.1, 0.25, 0.5))
    image = torch.from_numpy(make_image()).permute(2, 0, 1).float() / 255
    ready = (image - torch.tensor(adapter.mean)[:, None, None]) / torch.tensor(adapter.std)[:, None, None]
    (found,) = tensors(Sobel(adapter)(ready[None]))
    torch.testing.assert_close(found, tensors(Sobel(adapter)(make_image()))[0][0], atol=1e-6, rtol=0)


def test_views_are_flipped_back() -> None:
    adapter = example("classifier").adapter
    image = (make_image() * 0.9).astype(np.uint8)  # views times 1.1 would be cut at white
    plain = tensors(Sobel(adapter)(image))[0]
    smooth = tensors(Sobel(adapter)(image, aug_smooth=True))[0]
    torch.testing.assert_close(smooth, plain, atol=0.12, rtol=0)
    assert float((smooth - plain.flip(-1)).abs().mean()) > 3 * float((smooth - plain).abs().mean())


def test_an_image_without_edges_or_targets() -> None:
    adapter = example("classifier").adapter
    assert not Sobel(adapter)(np.full((20, 30, 3), 90, np.uint8))[0].any()
    (result,) = Sobel(adapter).explain(make_image(), [[]])
    assert result.heatmaps.shape == (0, 30, 40)
    with pytest.raises(ValueError, match="img"):
        sobel_cam(np.zeros((4, 5), np.uint8))
