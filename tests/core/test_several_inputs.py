"""Networks of several inputs: one heatmap per input, also where the inputs share layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detcam
from detcam import AblationCAM, GradCAM, HiResCAM, ProbeCAM, ReachCAM, adapt
from detcam.targets import ClassifierOutputTarget

pytestmark = pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")

SIZE = (32, 48)
TARGETS = [ClassifierOutputTarget(1)]
PLACES = ((8, 8), (24, 40))
"""Where each input is bright: row and column of the center."""


def square(row: int, column: int) -> Tensor:
    image = torch.zeros(1, 3, *SIZE)
    image[..., row - 4 : row + 4, column - 4 : column + 4] = 1
    return image


INPUTS = tuple(square(*place) for place in PLACES)


class Siamese(nn.Module):
    """The score of class 1 is the sum of the brightness of both inputs, by a backbone that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1, bias=False), nn.ReLU())
        self.body[0].weight.data.fill_(1.0)

    def pooled(self, features: Tensor) -> Tensor:
        return features.square().mean((1, 2, 3))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = self.pooled(self.body(first)) + self.pooled(self.body(second))
        return torch.stack([-total, total], 1)


class Joined(Siamese):
    """The same in one batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = sum(self.pooled(part) for part in self.body(torch.cat([first, second])).chunk(2))
        return torch.stack([-total, total], 1)  # type: ignore[list-item, operator]


class Separate(Siamese):
    """The same with a backbone for each; the second input is a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1, bias=False), nn.ReLU())
        self.other[0].weight.data.fill_(1.0)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = self.pooled(self.body(first)) + self.pooled(self.other(second))
        return torch.stack([-total, total], 1)


def peak(heatmap: np.ndarray) -> tuple[int, int]:
    return divmod(int(heatmap.argmax()), heatmap.shape[-1])


def lies_at(heatmap: np.ndarray, key: int) -> bool:
    inside = heatmap[PLACES[key][0] - 8 : PLACES[key][0] + 8, PLACES[key][1] - 8 : PLACES[key][1] + 8]
    return float(inside.sum()) > 0.95 * float(heatmap.sum()) > 0


@pytest.mark.parametrize("key", [0, 1])
@pytest.mark.parametrize("network", [Siamese, Joined])
@pytest.mark.parametrize("method", [GradCAM, HiResCAM, "scorecam"])
def test_each_input_has_its_own_map(
    network: type[Siamese], key: int, method: str | Callable[..., detcam.GradCAM]
) -> None:
    (explanation,) = detcam.explain(network().eval(), INPUTS, method, TARGETS, target_layers="body", input_key=key)
    assert lies_at(explanation.heatmaps[0], key) and len(explanation.saliency) == 1
    assert np.array_equal(explanation.image, (INPUTS[key][0] * 255).byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("method", [AblationCAM, ReachCAM])
def test_methods_that_read_each_run_of_a_layer(method: type[detcam.GradCAM]) -> None:
    for key in (0, 1):
        cam = method(adapt(Siamese().eval(), target_layers="body", input_key=key))
        assert lies_at(cam(INPUTS, TARGETS)[0], key)


@pytest.mark.parametrize("method", ["rise:passes=200", "occlusion:grid=8,window=2"])
@pytest.mark.parametrize("key", [0, 1])
def test_methods_that_change_the_image_change_the_explained_input(key: int, method: str) -> None:
    (explanation,) = detcam.explain(Siamese().eval(), INPUTS, method, TARGETS, target_layers="body", input_key=key)
    row, column = peak(explanation.heatmaps[0])
    assert abs(row - PLACES[key][0]) < 12 and abs(column - PLACES[key][1]) < 12


def test_inputs_of_different_sizes_and_by_keyword() -> None:
    wide = torch.zeros(1, 3, 40, 64)
    wide[..., 30:38, 50:58] = 1
    adapter = adapt(Separate().eval(), target_layers="other", input_key="second")
    heatmap = HiResCAM(adapter)((INPUTS[0],), TARGETS, model_kwargs={"second": wide})[0]
    assert heatmap.shape == (40, 64)
    row, column = peak(heatmap)
    assert abs(row - 34) < 6 and abs(column - 54) < 6
    with pytest.raises(ValueError, match="expected this input among model_kwargs"):
        HiResCAM(adapter)(INPUTS, TARGETS)


def test_files_are_prepared_as_other_images(tmp_path: Path) -> None:
    paths = []
    for name, image in zip("ab", INPUTS, strict=True):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy()).save(paths[-1])
    options = {"target_layers": "body", "image_size": SIZE, "mean": (0, 0, 0), "std": (1, 1, 1)}
    for key in (0, 1):
        (explanation,) = detcam.explain(Siamese().eval(), tuple(paths), "hirescam", TARGETS, input_key=key, **options)
        assert lies_at(explanation.heatmaps[0], key) and explanation.path == paths[key]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(RuntimeError, match="target layer body does not depend on input 1.*target_layers="):
        detcam.explain(Separate().eval(), INPUTS, "gradcam", TARGETS, target_layers="body", input_key=1)
    with pytest.raises(ValueError, match=r"expected a tuple of the network's inputs.*more than 2; got 2"):
        detcam.explain(Siamese().eval(), INPUTS, "gradcam", TARGETS, target_layers="body", input_key=2)
    with pytest.raises(ValueError, match="ProbeCAM does not tell the inputs apart that share target layer body"):
        ProbeCAM(adapt(Siamese().eval(), target_layers="body", input_key=1))(INPUTS, TARGETS)
