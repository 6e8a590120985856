"""ReciproCAM against its formula, cell by cell."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import ReciproCAM
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN
from tests.methods.perturbing import IMAGES, TARGETS, Tokens, changed_scores
from tests.zoo import example

pytestmark = pytest.mark.filterwarnings("ignore")


KERNEL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double() / 16


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("name", ["conv1", "relu2"])
def test_recipro_cam_equals_its_formula(name: str, gaussian: bool) -> None:
    model = TinyCNN(inplace=True)
    before = Snapshot(model)
    results = ReciproCAM(model, [name], gaussian=gaussian).explain(IMAGES, TARGETS)
    before.check()
    slow = copy.deepcopy(model).double()
    for image, targets, result in zip(IMAGES.double(), TARGETS, results, strict=True):
        height, width = result.saliency[0].shape[1:]
        for target, found in zip(targets, result.saliency[0], strict=True):
            for i in range(height):
                for j in range(width):
                    mask = torch.zeros(height + 2, width + 2, dtype=torch.float64)
                    mask[i : i + 3, j : j + 3] = KERNEL
                    if not gaussian:
                        mask = (mask == 0.25).double()
                    seen = mask[1:-1, 1:-1]
                    score = changed_scores(slow, getattr(slow, name), image, target, lambda o, seen=seen: o * seen)
                    assert float(found[i, j]) == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_recipro_cam_of_tokens_shows_one_patch_beside_the_class_token() -> None:
    model = Tokens().eval()
    image, target = torch.rand(3, 20, 28), ClassifierOutputTarget(1)
    found = ReciproCAM(model, ["norm"], gaussian=False).explain(image[None], [[target]])[0].saliency[0][0]

    def hide(output: Tensor, patch: int) -> Tensor:
        kept = output[:, 1 + patch].clone()
        output[:, 1:] = 0
        output[:, 1 + patch] = kept
        return output

    expected = [
        changed_scores(model, model.norm, image, target, lambda output, n=n: hide(output, n)) for n in range(35)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).reshape(5, 7), atol=1e-5, rtol=1e-4)


def test_recipro_cam_on_a_pyramid_and_boxes() -> None:
    case = example("faster_rcnn")
    adapter, image = case.adapter, case.images[0]
    target = BoxTarget((10.0, 12.0, 40.0, 50.0), 2, quantity="logit")
    result = ReciproCAM(adapter, gaussian=False).explain(image, [[target]])[0]
    batch = adapter.prepare([image])
    for y, x in ((2, 3), (4, 5), (11, 15)):

        def hide(
            module: nn.Module, inputs: Any, output: dict[str, Tensor], y: int = y, x: int = x
        ) -> dict[str, Tensor]:
            seen = torch.zeros_like(output["0"])
            seen[:, :, y, x] = output["0"][:, :, y, x]
            return {**output, "0": seen}

        handle = case.model.backbone.register_forward_hook(hide)  # type: ignore[union-attr,operator]
        with torch.no_grad():
            ((expected,),) = adapter.score(adapter.outputs(adapter.forward(batch), batch), [[target]])
        handle.remove()
        assert float(result.saliency[0][0, y, x]) == pytest.approx(float(expected), abs=1e-4)
    fine, coarse = (float(level[0].max() - level[0].min()) for level in result.saliency[:2])
    assert fine > 1e-3 and coarse == 0, "the box lies on the fine level alone"
