"""Stability: shifts are undone, findings that are gone do not count, and the cost is counted as it is."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import GradCAM, Occlusion, adapt
from detcam.cam import BaseCAM
from detcam.data.images import load_image
from detcam.demo.model import load_demo_detector
from detcam.metrics.cost import count_work, measure_cost
from detcam.metrics.stability import PERTURBATIONS, Perturbation, StabilityCheck, match_targets, stability
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget, ClassTarget, MaskTarget
from tests.helpers import TinyCNN, tensors

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning")

SHIFT = Perturbation("shift", shift=(0.05, 0.1))


class Brightness(BaseCAM, abstract=True):
    """Its map is the image itself, so it moves with the image, to the pixel."""

    name, paper, uses_gradients = "brightness", "none", False

    def explain(self, images: Any, targets: Any = None, **options: Any) -> Any:
        return [
            SimpleNamespace(heatmaps=image.mean(0).expand(len(row), -1, -1).clone(), targets=row)
            for image, row in zip(images, targets, strict=True)
        ]


class Fixed(Brightness, abstract=True):
    """Its map hangs in the frame, whatever the image."""

    def explain(self, images: Any, targets: Any = None, **options: Any) -> Any:
        results = super().explain(images, targets)
        for result in results:
            height, width = result.heatmaps.shape[-2:]
            result.heatmaps = torch.rand(result.heatmaps.shape, generator=torch.Generator().manual_seed(height * width))
        return results


def scene() -> tuple[Any, Tensor, list[Any]]:
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
    image = load_image(draw_scene(28).image)
    found = adapter.predict(image, score_threshold=0.5)[0]
    return adapter, image, adapter.targets_of(found)


def test_a_shift_is_undone_before_comparison() -> None:
    adapter, image, targets = scene()
    moved = stability(Brightness(adapter), image, targets, perturbations=[SHIFT])
    there = moved.persistent[0]
    assert there.sum() >= 4
    assert moved.ssim[0, there].min() == pytest.approx(1, abs=1e-6)
    assert moved.rank_correlation[0, there].min() == pytest.approx(1, abs=1e-6)
    hanging = stability(Fixed(adapter), image, targets, perturbations=[SHIFT])
    assert hanging.rank_correlation[0, there].max() < 0.1


def test_a_box_is_matched_after_the_shift() -> None:
    adapter, image, targets = scene()
    changed, moved = SHIFT.apply(image, 0)
    assert moved == (round(0.05 * 256), round(0.1 * 192))
    assert torch.equal(changed[:, 19:, 13:], image[:, :-19, :-13])
    again = match_targets(adapter, changed, targets, moved)
    pairs = [(before, after) for before, after in zip(targets, again, strict=True) if after is not None]
    assert len(pairs) >= 4
    for before, after in pairs:
        assert after.label == before.label
        assert np.abs(np.subtract(after.box_xyxy, before.box_xyxy) - [13, 19, 13, 19]).max() < 10
        assert after.source != before.source


def test_lost_detections_are_excluded() -> None:
    adapter, image, targets = scene()

    def black() -> Any:
        from albumentations import RandomBrightnessContrast

        return RandomBrightnessContrast((-1, -1), (0, 0), p=1)

    found = stability(Brightness(adapter), image, targets, perturbations=[Perturbation("black", black), SHIFT])
    assert not found.persistent[0].any()
    assert found.persistent[1].any()
    other = BoxTarget((1.0, 1.0, 9.0, 9.0), 1)
    assert match_targets(adapter, image, [other, targets[0]])[0] is None
    with pytest.raises(ValueError, match="at least one perturbation"):
        stability(Brightness(adapter), image, targets, perturbations=[])


def test_classes_and_regions_count_if_they_persist() -> None:
    model = TinyCNN()
    adapter = adapt(model, image_size=32, target_layers=["conv2"])
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1))
    top = int(adapter.predict(image)[0].labels[0])
    other = (top + 1) % 3
    now = match_targets(adapter, image, [ClassTarget(top), ClassTarget(other)])
    assert (now[0].category, now[1]) == (top, None)

    from detcam.adapters import segmenter

    half = torch.nn.Conv2d(3, 2, 1)
    half.weight.data = torch.tensor([[0.0, 0, 0], [1, 1, 1]])[..., None, None]
    half.bias.data = torch.tensor([0.75, 0.0])
    regions = segmenter(half.eval(), image_size=32, mean=[0, 0, 0], std=[1, 1, 1], target_layers=[half])
    bright = torch.zeros(3, 32, 32)
    bright[:, 8:24, 4:20] = 1
    mask = bright[0] > 0
    assert match_targets(regions, bright, [MaskTarget(1, mask)])[0].mask.sum() == mask.sum()
    changed, moved = Perturbation("far", shift=(0.25, 0.25)).apply(bright, 0)
    assert moved == (8, 8)
    assert match_targets(regions, changed, [MaskTarget(1, mask)], moved)[0] is not None
    assert match_targets(regions, changed, [MaskTarget(1, mask)])[0] is None  # without the shift it is elsewhere


def test_the_perturbations_are_seeded_small_and_keep_the_size() -> None:
    image = load_image(draw_scene(3).image)
    for perturbation in PERTURBATIONS:
        (one, _), (two, _), (other, _) = (perturbation.apply(image, seed) for seed in (0, 0, 1))
        assert torch.equal(one, two)
        assert one.shape == image.shape
        assert torch.equal(one, other) == (perturbation.name != "noise")
    noise, brightness, jpeg, _ = (p.apply(image, 0)[0] - image for p in PERTURBATIONS)
    assert float(noise.std()) == pytest.approx(0.03, abs=0.004)
    assert float(brightness.mean()) == pytest.approx(0.1, abs=0.02)
    assert 0.001 < float(jpeg.abs().mean()) < 0.05
    crop = Perturbation("crop", lambda: __import__("albumentations").CenterCrop(50, 50, p=1))
    with pytest.raises(ValueError, match="changed the image's size"):
        crop.apply(image, 0)


def test_the_metric_is_the_mean_over_persisting_targets() -> None:
    adapter, image, targets = scene()
    cam = GradCAM(adapter)
    maps = [torch.as_tensor(result.heatmaps) for result in cam.explain([image], [targets[:3]])]
    values = StabilityCheck(seed=2).measure(
        adapter,
        [image],
        [targets[:3]],
        maps,
        method=lambda adapter, images, targets: tensors(cam(images, targets)),
    )
    found = stability(cam, image, targets[:3], seed=2)
    for column, value in enumerate(values.tolist()):
        known = [c for c in found.rank_correlation[:, column].tolist() if c == c]
        assert value == pytest.approx(sum(known) / len(known))
    assert (values < 1).all()


def test_work_is_counted_in_plain_passes_and_calls_of_autograd() -> None:
    model = TinyCNN()
    adapter = adapt(model, image_size=32, target_layers=["conv2"])
    image = torch.rand(3, 32, 32)
    batch = torch.rand(5, 3, 32, 32)

    def five_images_and_two_gradients() -> None:
        with torch.no_grad():
            model(batch)
        x = torch.rand(3, requires_grad=True)
        total = (x * x).sum()
        torch.autograd.grad(total, x, retain_graph=True)
        total.backward()

    work = count_work(adapter, image, five_images_and_two_gradients)
    assert (work.passes, work.backward) == (pytest.approx(5), 2)
    # GradCAM: the whole pass once, backward through the head alone, and the map's way to the image's 32 rows
    grad = count_work(adapter, image, lambda: tensors(GradCAM(adapter)([image], [[ClassTarget(0)]])))
    conv = 2 * (4 * 27 * 16 * 16 + 5 * 36 * 8 * 8)
    head = 2 * 5 * 3
    assert grad.backward == 1
    resize = 2 * 32 * 8 * 32  # columns are interpolated without a product
    assert grad.passes == pytest.approx((conv + 2 * head + resize) / (conv + head), abs=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pointwise_convolutions_count_in_perturbed_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1, groups=2), nn.AdaptiveAvgPool2d(1))
    adapter = adapt(nn.Sequential(model, nn.Flatten()).eval(), image_size=32, target_layers=["0.2"])
    call = partial(Occlusion(adapter, grid=4, window=1).explain, [torch.rand(3, 32, 32)], [[ClassTarget(0)]])
    folding = 2  # the image as it is, and again as changed ones run
    work = count_work(adapter, torch.rand(3, 32, 32), call)
    assert work.passes == pytest.approx(1 + folding + 16, abs=0.5)


def test_memory_is_what_the_call_adds() -> None:
    result, cost = measure_cost(lambda: float(torch.ones(48, 2**20).sum()), torch.device("cpu"))
    assert result == 48 * 2**20
    if cost.peak_mib is None:
        pytest.skip("this system does not tell a process's peak of memory")
    assert 180 < cost.peak_mib < 260
    assert measure_cost(lambda: None, torch.device("cpu"))[1].peak_mib < 60


def test_work_of_a_module_that_reads_a_view_without_gradients_is_counted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    adapter = adapt(network, target_layers=["0"], image_size=32)

    def call() -> None:
        values = torch.rand(2, 2, requires_grad=True) * 1
        with torch.no_grad():
            network[3](values.T)

    assert count_work(adapter, torch.rand(3, 32, 32), call).passes > 0
