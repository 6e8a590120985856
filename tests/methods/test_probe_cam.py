"""ProbeCAM by loops, by hand, and on a cause that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import ProbeCAM, ReachCAM, adapt
from detcam.adapters import detector
from detcam.adapters.base import Adapter
from detcam.demo.model import load_demo_detector
from detcam.methods import probe_cam
from detcam.methods.common.region_proposals import color_segments, propose_regions
from detcam.methods.probe_cam import render_regions
from detcam.perturbation.fills import LinearFill
from detcam.synthetic.harbor import draw_scene
from detcam.targets import BoxTarget, ClassifierOutputTarget
from detcam.utils.filters import blur
from tests.helpers import tensors

pytestmark = pytest.mark.filterwarnings("ignore")


def literal(adapter: Adapter, image: Tensor, target: BoxTarget, rival: int, probes: int) -> np.ndarray:
    """One target's map over the network's input, of an image that fills it, region by region."""
    reach = ReachCAM(adapter)
    levels = [level[0] for level in reach.explain(image, [target])[0].saliency]
    batch = adapter.prepare([image])
    size = batch.inputs.shape[-2:]
    heat = []
    for level in levels:
        positive = F.interpolate(level.clamp(min=0)[None, None].double(), size, mode="bilinear", align_corners=False)
        heat.append((positive[0, 0] / positive.max()).numpy())
    regions = propose_regions(torch.tensor(np.stack(heat)), color_segments(batch.inputs[0]), probes).numpy()

    def score(inputs: Tensor) -> float:
        with torch.no_grad():
            output = adapter.outputs(adapter.forward(replace(batch, inputs=inputs)), batch)[0]
            scores = output.candidates([target]).class_scores[0]
        return float(scores[target.label] - scores[rival])

    whole = score(batch.inputs)
    lost, held = [], []
    for region in regions:
        gone = torch.from_numpy(binary_dilation(region, np.ones((3, 3))))
        lost.append(max(0.0, whole - score(LinearFill()(batch.inputs, gone[None]))))
        held.append(sum(np.prod([one[y, x] for one in heat]) for y, x in zip(*np.nonzero(region), strict=True)))
    smooth = blur(torch.tensor(sum(heat))[None], 0.01 * max(size))[0].numpy()
    found = np.zeros(size)
    for region, loss, own in zip(regions, lost, held, strict=True):
        inside = binary_erosion(region, np.ones((3, 3)), border_value=1)
        inside = inside if inside.any() else region
        outside = np.argwhere(~inside)
        deep = {(y, x): np.hypot(*(outside - (y, x)).T).min() for y, x in zip(*np.nonzero(inside), strict=True)}
        brightest = max(smooth[at] * far for at, far in deep.items())
        weight = (loss / max(lost)) ** 4 * (own / max(held)) ** 0.5
        for at, far in deep.items():
            found[at] = max(found[at], weight * (0.3 + 0.7 * smooth[at] * far / brightest))
    return found


@pytest.mark.parametrize("seed", [28, 2])
def test_equals_the_formula_by_region(seed: int) -> None:
    adapter = adapt(load_demo_detector())
    image = torch.from_numpy(draw_scene(seed).image).permute(2, 0, 1).float() / 255
    found = adapter.predict(image)[0]
    target = adapter.targets_of(found)[int((found.labels == 1).nonzero()[0])]
    assert isinstance(target, BoxTarget)
    scores = adapter.outputs(adapter.forward(adapter.prepare([image])), adapter.prepare([image]))[0]
    table = scores.candidates([target]).class_scores[0]
    rival = max((0, 2), key=lambda label: float(table[label]))
    result = ProbeCAM(adapter, probes=5).explain(image, [target])[0]
    assert result.sampling is not None and result.sampling.passes == 5
    expected = literal(adapter, image, target, rival, 5)
    np.testing.assert_allclose(result.saliency[0][0].numpy(), expected, atol=2e-4)
    assert expected.max() > 0.2


def test_regions_are_weighted_by_score_drop_and_saliency() -> None:
    level = torch.zeros(1, 12, 24)
    level[0, 2:7, 2:7] = 0.25
    level[0, 2:7, 14:19] = 1.0
    regions = torch.zeros(3, 12, 24, dtype=torch.bool)
    regions[0, 2:7, 2:7], regions[1, 2:7, 14:19], regions[2, 8:11, 2:5] = True, True, True
    # By hand: the first loses all, and holds a quarter of what the hottest does: 1 x sqrt(1/4). The second loses half:
    # (1/2)^4 x 1. The third holds no heat. The maximum of a region shows its full weight, and its rim is cut off.
    found = render_regions(level, regions, torch.tensor([2.0, 1.0, 2.0]))
    assert float(found[3:6, 3:6].max()) == pytest.approx(0.5)
    assert float(found[3:6, 15:18].max()) == pytest.approx(1 / 16)
    assert float(found[8:11, 2:5].max()) == 0
    assert float(found[2, 2:7].max()) == 0 and float(found[:, 8:13].max()) == 0
    assert not render_regions(level, regions, torch.tensor([-1.0, 0.0, -2.0])).any(), "what is not missed is no cause"
    assert not render_regions(level, regions[:0], torch.zeros(0)).any()


class Bright(nn.Module):
    """Adds up what is bright in the left half; its first layer lights up on the right, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        total = x[:, :, :, : x.shape[-1] // 2].clamp(min=0).sum((1, 2, 3))
        return torch.stack([total, -total], 1)


def test_a_classifier_and_images_without_targets() -> None:
    image = torch.zeros(1, 3, 48, 64)
    image[:, :, 10:20, 10:22] = 1.0
    image[:, :, 10:20, 40:52] = 1.0
    cam = ProbeCAM(Bright(), ["layer"])
    (heat,) = tensors(cam(image, [ClassifierOutputTarget(0)]))
    assert float(heat[9:21, 9:23].sum() / heat.sum()) > 0.95 and float(heat.max()) == pytest.approx(1)
    adapter = adapt(load_demo_detector())
    empty = tensors(ProbeCAM(adapter)(draw_scene(28).image, [[]]))
    assert empty[0].shape == (0, 192, 256)


class Misleading(nn.Module):
    """Scores what is bright in a box; nearly all of its gradient lies on another thing."""

    def __init__(self, effect: float = 8) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.effect = effect

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        inside, other = x[:, :, 8:24, 8:24].mean((1, 2, 3)), x[:, :, 36:52, 40:56].mean((1, 2, 3))
        return self.effect * inside.detach() - 4 + 1e-3 * inside + 0.1 * other


TWO_THINGS = torch.zeros(3, 64, 64)
TWO_THINGS[:, 10:22, 10:22] = TWO_THINGS[:, 36:52, 40:56] = 1.0


def misleading(effect: float = 8) -> Adapter:
    def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[[8.0, 8.0, 24.0, 24.0]]]).expand(len(raw), 1, 4), raw.sigmoid()[:, None, None]

    return detector(Misleading(effect), decode, target_layers=["layer"])


def test_regions_in_the_box_are_probed_if_no_other_has_an_effect() -> None:
    adapter, target = misleading(), BoxTarget((8, 8, 24, 24), 0)
    (result,) = ProbeCAM(adapter, ["layer"], probes=1).explain(TWO_THINGS, [target])
    row, column = divmod(int(torch.as_tensor(result.heatmaps)[0].argmax()), 64)
    assert 10 <= row < 22 and 10 <= column < 22
    assert result.sampling is not None and result.sampling.passes == 2
    image = TWO_THINGS.clone()
    image[:, 36:52, 40:56] = 0.0  # the first proposal has an effect
    (alone,) = ProbeCAM(adapter, ["layer"], probes=1).explain(image, [target])
    assert alone.sampling is not None and alone.sampling.passes == 1


def test_no_region_is_removed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[Tensor] = []

    def propose(*args: Any) -> Tensor:
        proposed.append(propose_regions(*args))
        return proposed[-1]

    monkeypatch.setattr(probe_cam, "propose_regions", propose)
    one_thing = TWO_THINGS.clone()
    one_thing[:, 32:] = 0.0
    (result,) = ProbeCAM(misleading(effect=0), ["layer"]).explain(one_thing, [BoxTarget((8, 8, 24, 24), 0)])
    assert len(proposed) == 2 and result.sampling is not None
    assert result.sampling.passes == len(torch.cat(proposed).unique(dim=0)) < sum(map(len, proposed))


def test_the_number_of_probes_is_checked() -> None:
    with pytest.raises(ValueError, match="probes of at least 1; got 0"):
        ProbeCAM(Bright(), ["layer"], probes=0)


def test_highlights_the_wake() -> None:
    adapter = adapt(load_demo_detector())
    scene = draw_scene(1_000_000)
    found = adapter.predict(scene.image)[0]
    name, box = next(iter(scene.ghost_boxes_xyxy.items()))
    at = int((found.boxes_xyxy - torch.as_tensor(box)).abs().sum(1).argmin())
    heat = tensors(ProbeCAM(adapter)(scene.image, [[adapter.targets_of(found)[at]]]))[0][0]
    wake = torch.from_numpy(scene.object(name).mask)
    assert wake.flatten()[int(heat.argmax())] and float(heat[wake].sum() / heat.sum()) > 0.5
