"""What attention methods cannot explain is refused, with the reason and what does explain it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.methods.attention_rollout import AttentionRollout
from detcam.methods.chefer_cam import CheferCAM
from detcam.methods.common.attention_base import AttentionCAM, NoAttentionError
from detcam.methods.legrad import LeGrad
from detcam.methods.refine_cam import RefineCAM
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN, tensors
from tests.methods.transformers import torchvision_vit

ALL = [LeGrad, AttentionRollout, CheferCAM]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ALL)
def test_a_model_without_attention_is_refused(method: type[AttentionCAM]) -> None:
    model = TinyCNN()
    before = Snapshot(model)
    with pytest.raises(NoAttentionError, match="TinyCNN has none that is supported; use HiResCAM"):
        method(model)(IMAGES, [ClassifierOutputTarget(0)] * 3)
    before.check()


@pytest.mark.parametrize("method", ALL)
def test_windowed_attention_is_refused(method: type[AttentionCAM]) -> None:
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=4).eval()
    with pytest.raises(NoAttentionError, match="SwinTransformer attends within 4 windows"):
        method(model)(IMAGES, [ClassifierOutputTarget(0)] * 3)


class Merging(nn.Module):
    """Self-attention on 16 tokens, then on 4."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        tokens = tokens + self.first(tokens, tokens, tokens)[0]
        tokens = F.avg_pool1d(tokens.mT, 4).mT
        return (tokens + self.second(tokens, tokens, tokens)[0]).mean(1)


@pytest.mark.parametrize("method", ALL)
def test_layers_with_different_tokens_are_refused(method: type[AttentionCAM]) -> None:
    with pytest.raises(NoAttentionError, match=r"see different tokens \(4, 16 of them\)"):
        method(Merging().eval())(IMAGES, [ClassifierOutputTarget(0)] * 3)


class InPlace(nn.Module):
    """Two blocks, the second of which adds to what the first put out, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks[0](self.embed(x).flatten(2).mT)
        tokens += 1
        return self.blocks[1](tokens).mean(1)


class Coarser(nn.Module):
    """16 tokens that attend, twice, to the 4 means of 4 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        for layer in self.layers:
            few = F.avg_pool1d(tokens.mT, 4).mT
            tokens = tokens + layer(tokens, few, few)[0]
        return tokens.mean(1)


@pytest.mark.parametrize("method", ALL)
def test_attention_to_a_coarser_grid_is_refused(method: type[AttentionCAM]) -> None:
    with pytest.raises(NoAttentionError, match="in each layer of Coarser, 16 tokens attend to 4 others"):
        method(Coarser().eval())(IMAGES, [ClassifierOutputTarget(0)] * 3)


def test_lost_or_unused_attention_raises() -> None:
    model, targets = InPlace().eval(), [ClassifierOutputTarget(0)] * 3
    with pytest.raises(RuntimeError, match="modifies the output of its TransformerEncoderLayer in place"):
        LeGrad(model)(IMAGES, targets)
    assert float(tensors(LeGrad(model, depth=1)(IMAGES, targets)).amax()) > 0.999
    with pytest.raises(RuntimeError, match="does not depend on the attention of InPlace"):
        CheferCAM(model)(IMAGES, [lambda output: torch.ones(())] * 3)


def test_unsupported_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="eigen_smooth needs a layer's channels"):
        CheferCAM(torchvision_vit())(IMAGES, [ClassifierOutputTarget(0)] * 3, eigen_smooth=True)
    with pytest.raises(ValueError, match="expected reshape_transform to turn tokens"):
        CheferCAM(torchvision_vit(), reshape_transform=lambda x: x)(IMAGES, [ClassifierOutputTarget(0)] * 3)
    with pytest.raises(TypeError, match="CheferCAM cannot be the base of another method"):
        RefineCAM(torchvision_vit(), base_method=CheferCAM)(IMAGES, [ClassifierOutputTarget(0)] * 3)
