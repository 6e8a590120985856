"""Occlusion against its formula, flat and refined."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detcam import Occlusion
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN
from tests.methods.perturbing import IMAGES, TARGETS
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore")


class Sum(nn.Module):
    """Scores that are sums over the image: of its first channel, and of its second channel's left half."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return torch.stack([x[:, 0].sum((1, 2)), x[:, 1, :, : x.shape[3] // 2].sum((1, 2)), x[:, 2, 0, 0]], 1)


def test_occlusion_equals_its_formula() -> None:
    model = TinyCNN()
    before = Snapshot(model)
    results = Occlusion(model, grid=5, window=2).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    rows, columns = [round(i * 4) for i in range(6)], [round(i * 5.6) for i in range(6)]
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        assert result.sampling is not None and result.sampling.passes == 16
        for target, found in zip(targets, result.saliency[0], strict=True):
            total, count = torch.zeros(20, 28).double(), torch.zeros(20, 28).double()
            for i in range(4):
                for j in range(4):
                    hidden = image.clone()
                    here = (slice(rows[i], rows[i + 2]), slice(columns[j], columns[j + 2]))
                    hidden[:, here[0], here[1]] = 0
                    with torch.no_grad():
                        loss = float(target(slow(image[None])[0])) - float(target(slow(hidden[None])[0]))
                    total[here] += loss / 4
                    count[here] += 1
            expected = (total / count).float()
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-6, rtol=0)


def test_occlusion_refined_everywhere_is_occlusion_of_single_cells() -> None:
    model = TinyCNN()
    fine = Occlusion(model, grid=8, window=1).explain(IMAGES[:1], TARGETS[:1])[0]
    refined = Occlusion(model, grid=8, refine=0.0).explain(IMAGES[:1], TARGETS[:1])[0]
    torch.testing.assert_close(refined.saliency[0], fine.saliency[0], atol=1e-6, rtol=1e-5)
    assert refined.sampling is not None and refined.sampling.passes == 16 + 64


def test_occlusion_refines_where_the_score_reacts() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[0, 0, 3:5, 9:11] = 1  # reacts in four cells around a corner of the grid, in one coarse block
    image[0, 1, 20, 8] = 1
    cam = Occlusion(Sum(), grid=16, refine=0.5)
    both = cam.explain(image, [[ClassifierOutputTarget(0), ClassifierOutputTarget(1)]])[0]
    assert both.sampling is not None and both.sampling.passes == 16 + 2 * 4 + 2 * 4 + 4
    expected = torch.zeros(32, 32)
    expected[2:6, 8:12] = 1
    torch.testing.assert_close(both.saliency[0][0], expected)
    expected = torch.zeros(32, 32)
    expected[20:22, 8:10] = 1
    torch.testing.assert_close(both.saliency[0][1], expected)
    for k in range(2):
        alone = cam.explain(image, [ClassifierOutputTarget(k)])[0]
        torch.testing.assert_close(alone.saliency[0][0], both.saliency[0][k])
    nothing = cam.explain(image, [ClassifierOutputTarget(2)])[0]
    assert nothing.sampling is not None and nothing.sampling.passes == 16 and float(nothing.heatmaps.max()) == 0


def test_occlusion_on_a_padded_image_with_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[1]
    found = adapter.predict(image)[0].filter(top_k=2)
    result = Occlusion(adapter, grid=4, window=1).explain(image, [found])[0]
    batch = adapter.prepare([image])
    rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
    hidden = batch.inputs.clone()
    high, wide = (rows.stop - rows.start), (columns.stop - columns.start)
    hidden[:, :, rows.start + round(high / 4) : rows.start + round(high / 2), columns.start : round(wide / 4)] = 0
    with torch.no_grad():
        seen = replace(batch, inputs=hidden)
        ((one, two),) = adapter.score(adapter.outputs(adapter.forward(seen), seen), [adapter.targets_of(found)])
    expected = found.scores - torch.stack([one, two])
    torch.testing.assert_close(
        result.saliency[0][:, rows.start + round(high / 4), columns.start], expected, atol=1e-5, rtol=0
    )
    for wrong in ({"window": 0}, {"window": 17}, {"refine": 2.0}, {"refine": 0.5, "grid": 12}):
        with pytest.raises(ValueError, match="expected"):
            Occlusion(adapter, **wrong)  # type: ignore[arg-type]
