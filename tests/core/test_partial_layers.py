"""Target layers in which only some targets have a part: one level of a pyramid, one of two branches."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from detcam import METHODS, EmptyMapWarning, GradCAM, HiResCAM
from detcam.adapters import detector

pytestmark = pytest.mark.filterwarnings("ignore::detcam.diagnostics.ReachWarning")

IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


class TwoLevels(nn.Module):
    """Boxes of cells of 8 pixels from one branch, of 16 pixels from another; an auxiliary branch has none."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 2, 8, 8), nn.Conv2d(3, 2, 16, 16)
        self.aux = nn.Conv2d(3, 2, 8, 8)
        for layer in (self.fine, self.coarse):
            nn.init.constant_(layer.weight, 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.aux(x)
        levels = [(8, self.fine(x)), (16, self.coarse(x))]
        scores = torch.cat([level.sigmoid().flatten(2).mT for _, level in levels], 1)
        return torch.cat([_boxes(stride, level) for stride, level in levels], 1), scores


def _boxes(stride: int, level: Tensor) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(n) * float(stride) for n in level.shape[-2:]), indexing="ij")
    corner = torch.stack([x, y], -1).flatten(0, 1).expand(len(level), -1, -1)
    return torch.cat([corner, corner + stride], -1)


def adapter(layer: str):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return detector(TwoLevels().eval(), lambda output: output, image_size=32, target_layers=layer, score_threshold=0)


@pytest.mark.parametrize("method", ["gradcam", "odam", "layercam", "shapleycam", "reachcam", "ablationcam"])
def test_boxes_of_another_level_have_an_empty_map(method: str) -> None:
    found = adapter("coarse").predict(IMAGE)[0]
    targets = adapter("coarse").targets_of(found)
    is_coarse = [float(box[2] - box[0]) == 16 for box in found.boxes_xyxy]
    fine, coarse = targets[is_coarse.index(False)], targets[is_coarse.index(True)]
    cam = METHODS[method](adapter("coarse"))
    images = [IMAGE, IMAGE]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (alone,) = cam(IMAGE, [fine])
        (both,) = cam(IMAGE, [[fine, coarse]])
        first, second = cam(images, [[fine], [coarse]])
    for one in (alone[0], both[0], first[0]):
        assert one.max() == 0, method
    assert both[1].max() == second[0].max() == 1


def test_the_warning_counts_them() -> None:
    cam = HiResCAM(adapter("coarse"))
    targets = cam.adapter.targets_of(cam.adapter.predict(IMAGE)[0])
    empty = sum(target.source.anchor < 16 for target in targets)  # type: ignore[attr-defined]
    assert 0 < empty < len(targets)
    with pytest.warns(EmptyMapWarning, match=rf"{empty} of {len(targets)} targets.*coarse.*has no part in the score"):
        cam(IMAGE, [targets])


def test_a_layer_without_part_in_the_output_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not depend on target layer aux"):
        GradCAM(adapter("aux"))(IMAGE)
