"""LeGrad, attention rollout and Chefer's method on classifiers and embedders, against slow literal versions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters import adapt, embedder
from detcam.diagnostics import ClassAgnosticWarning
from detcam.geometry import normalize
from detcam.methods.attention_rollout import AttentionRollout
from detcam.methods.chefer_cam import CheferCAM
from detcam.methods.common.attention_base import AttentionCAM
from detcam.methods.finer_cam import FinerCAM
from detcam.methods.legrad import LeGrad
from detcam.targets import ClassifierOutputTarget, SimilarityToConceptTarget
from tests.helpers import Snapshot, tensors
from tests.methods.transformers import attention_rows, timm_vit, torchvision_vit

ALL = [LeGrad, AttentionRollout, CheferCAM]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
CONCEPT = torch.randn(16, generator=torch.Generator().manual_seed(6))


class Slow:
    """A ViT on one image in float64, attention row by row.

    Args:
        model: torchvision's or timm's; a copy of it runs.
        image: (1, 3, 32, 32).
        score: from the model and what its blocks put out, normalized, to the target's scalar.
        nudge: layer, head, row and column of a probability that grows by the last entry.

    Attributes:
        maps: per block, the probabilities (heads, N, N), standing in one graph.
        outputs: per block, its tokens (1, N, C).
    """

    def __init__(
        self,
        model: Any,
        image: Tensor,
        score: Callable[[Any, Tensor], Tensor],
        nudge: tuple[int, int, int, int, float] | None = None,
    ) -> None:
        model = copy.deepcopy(model).double()
        self.model, self.score, self.nudge = model, score, nudge
        self.maps: list[Tensor] = []
        self.outputs: list[Tensor] = []
        if hasattr(model, "encoder"):
            tokens = torch.cat([model.class_token, model._process_input(image.double())], 1)
            tokens, blocks, self.norm = tokens + model.encoder.pos_embedding, model.encoder.layers, model.encoder.ln
        else:
            tokens, blocks, self.norm = model._pos_embed(model.patch_embed(image.double())), model.blocks, model.norm
        for block in blocks:
            tokens = self._block(block, tokens)
            self.outputs.append(tokens)

    def _block(self, block: Any, tokens: Tensor) -> Tensor:
        if hasattr(block, "ln_1"):
            first, second, attention = block.ln_1, block.ln_2, block.self_attention
            weight, bias, out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        else:
            first, second, attention = block.norm1, block.norm2, block.attn
            weight, bias, out = attention.qkv.weight, attention.qkv.bias, attention.proj
        query, key, value = (first(tokens)[0] @ weight.T + bias).split(16, 1)
        probabilities = attention_rows(query, key)
        if self.nudge and self.nudge[0] == len(self.maps):
            extra = torch.zeros_like(probabilities)
            extra[self.nudge[1:4]] = self.nudge[4]
            probabilities = probabilities + extra
        self.maps.append(probabilities)
        mixed = torch.cat([one @ value[:, 8 * h : 8 * h + 8] for h, one in enumerate(probabilities)], 1)
        tokens = tokens + out(mixed)[None]
        return tokens + block.mlp(second(tokens))

    def read(self, layer: int = -1) -> Tensor:
        """The score that the model's head gives to a block's tokens."""
        return self.score(self.model, self.norm(self.outputs[layer]))

    @property
    def value(self) -> float:
        return float(self.read().detach())


def slow_legrad(slow: Slow, read: list[int], depth: int = 3) -> Tensor:
    total = torch.zeros(slow.maps[0].shape[-1], dtype=torch.float64)
    for layer in range(3 - depth, 3):
        (gradient,) = torch.autograd.grad(slow.read(layer), slow.maps[layer], retain_graph=True)
        heads, rows, _ = gradient.shape
        for h in range(heads):
            for i in range(rows):
                total += gradient[h, i].clamp(min=0) / (heads * rows * depth)
    return total


def slow_rollout(slow: Slow, read: list[int]) -> Tensor:
    identity = torch.eye(slow.maps[0].shape[-1], dtype=torch.float64)
    found = identity
    for probabilities in slow.maps:
        mean = (probabilities[0] + probabilities[1]) / 2
        found = (0.5 * mean + 0.5 * identity) @ found
    return torch.stack([found[row] for row in read]).mean(0)


def slow_chefer(slow: Slow, read: list[int]) -> Tensor:
    gradients = torch.autograd.grad(slow.read(), slow.maps, retain_graph=True)
    relevance = torch.eye(slow.maps[0].shape[-1], dtype=torch.float64)
    for probabilities, gradient in zip(slow.maps, gradients, strict=True):
        weighted = torch.zeros_like(relevance)
        for h in range(2):
            weighted += (gradient[h] * probabilities[h]).clamp(min=0) / 2
        relevance = relevance + weighted @ relevance
    return torch.stack([relevance[row] for row in read]).mean(0)


SLOW = {LeGrad: slow_legrad, AttentionRollout: slow_rollout, CheferCAM: slow_chefer}

ViT = tuple[Callable[[], Any], int, list[int]]
"""How it is made, its prefix tokens, and the tokens that its head reads."""
VITS: dict[str, ViT] = {
    "torchvision": (torchvision_vit, 1, [0]),
    "timm": (timm_vit, 1, [0]),
    "timm, patches averaged": (lambda: timm_vit(class_token=False, global_pool="avg"), 0, list(range(16))),
    "timm, patches averaged beside a class token": (lambda: timm_vit(global_pool="avg"), 1, list(range(1, 17))),
    "timm, registers": (lambda: timm_vit(reg_tokens=2), 3, [0]),
}


def head(label: int) -> Callable[[Any, Tensor], Tensor]:
    """A class's logit from normalized tokens, by torchvision's or timm's head."""

    def score(model: Any, tokens: Tensor) -> Tensor:
        logits = model.heads(tokens[:, 0]) if hasattr(model, "heads") else model.forward_head(tokens)
        return logits[0, label]

    return score


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", list(VITS))
def test_equals_a_direct_implementation(name: str, method: type[AttentionCAM]) -> None:
    make, prefix, read = VITS[name]
    model = make()
    targets = [[ClassifierOutputTarget(2), ClassifierOutputTarget(0)], [ClassifierOutputTarget(1)], []]
    before = Snapshot(model)
    with nullcontext() if method.class_discriminative else pytest.warns(ClassAgnosticWarning):
        results = method(model).explain(IMAGES, targets)
    before.check()
    for image, row, result in zip(IMAGES, targets, results, strict=True):
        assert result.heatmaps.shape == (len(row), 32, 32)
        for index, target in enumerate(row):
            slow = Slow(model, image[None], head(target.category))
            expected = SLOW[method](slow, read)[prefix:].view(4, 4).detach()
            assert float(result.scores[index]) == pytest.approx(slow.value, abs=1e-4)
            scale = float(expected.max())
            torch.testing.assert_close(result.saliency[0][index].double(), expected, atol=1e-4 * scale, rtol=0)
            resized = F.interpolate(normalize(expected[None])[None], (32, 32), mode="bilinear")[0]
            torch.testing.assert_close(
                torch.as_tensor(result.heatmaps)[index].double(), normalize(resized)[0], atol=1e-3, rtol=0
            )


@pytest.mark.parametrize("method", ALL)
def test_embeddings(method: type[AttentionCAM]) -> None:
    model = timm_vit()

    def score(copied: Any, tokens: Tensor) -> Tensor:
        return F.cosine_similarity(copied.forward_head(tokens, pre_logits=True)[0], CONCEPT.double(), dim=0)

    result = method(embedder(model)).explain(IMAGES[:1], [SimilarityToConceptTarget(CONCEPT)])[0]
    slow = Slow(model, IMAGES[:1], score)
    expected = SLOW[method](slow, [0])[1:].view(4, 4).detach()
    assert float(result.scores[0]) == pytest.approx(slow.value, abs=1e-5)
    torch.testing.assert_close(result.saliency[0][0].double(), expected, atol=1e-4 * float(expected.max()), rtol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_legrad_of_the_last_layers(depth: int) -> None:
    model = torchvision_vit()
    result = LeGrad(model, depth=depth).explain(IMAGES[:1], [ClassifierOutputTarget(3)])[0]
    expected = slow_legrad(Slow(model, IMAGES[:1], head(3)), [0], depth)[1:].view(4, 4)
    torch.testing.assert_close(result.saliency[0][0].double(), expected, atol=1e-4 * float(expected.max()), rtol=0)
    with pytest.raises(ValueError, match="depth of at least 1"):
        LeGrad(model, depth=0)


@pytest.mark.parametrize("layer", [0, 1])
def test_legrad_is_the_gradient_of_attention(layer: int) -> None:
    """The gradient in the literal version itself, by differences: a block's score with a little more attention."""
    model, entry = torchvision_vit(), (1, 0, 7)
    slow = Slow(model, IMAGES[:1], head(1))
    (gradient,) = torch.autograd.grad(slow.read(layer), slow.maps[layer])
    more, less = (
        float(Slow(model, IMAGES[:1], head(1), nudge=(layer, *entry, step)).read(layer).detach())
        for step in (1e-4, -1e-4)
    )
    assert float(gradient[entry]) == pytest.approx((more - less) / 2e-4, rel=1e-4)


class ByHand(nn.Module):
    """Four pixels that attend evenly to one another, and a score that is their mean, or the first of them."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT * self.scale
        nothing = torch.zeros_like(tokens)
        mixed = F.scaled_dot_product_attention(nothing, nothing, tokens)
        return mixed.mean(1) if self.mean else mixed[:, 0]


@pytest.mark.parametrize(
    ("method", "mean", "expected"),
    [
        # Output of the pixel i: sum over j of A_ij v_j with A_ij = 1/4; the score is a quarter of their sum.
        # dS/dA_ij = v_j / 4, whose positive part, averaged over the 4 rows, is again v_j / 4 where v_j > 0.
        (LeGrad, True, [0.25, 0.0, 0.75, 0.125]),
        # Only the first row has a gradient, v_j: a quarter of it after averaging over rows.
        (LeGrad, False, [0.25, 0.0, 0.75, 0.125]),
        # I + A-bar with A-bar_ij = (1/4)(v_j / 4)+; mean over rows: 1/4 + v_j / 16.
        (CheferCAM, True, [0.25 + 1 / 16, 0.25, 0.25 + 3 / 16, 0.25 + 0.5 / 16]),
        # First row: (1, 0, 0, 0) + v_j / 4.
        (CheferCAM, False, [1.25, 0.0, 0.75, 0.125]),
        # (A + I) / 2, first row: (1/4 + 1) / 2 and (1/4) / 2.
        (AttentionRollout, False, [0.625, 0.125, 0.125, 0.125]),
        (AttentionRollout, True, [0.25, 0.25, 0.25, 0.25]),
    ],
)
@pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")
def test_by_hand(method: type[AttentionCAM], mean: bool, expected: list[float]) -> None:
    values = torch.tensor([1.0, -2.0, 3.0, 0.5]).view(1, 1, 2, 2)
    model = ByHand(mean).eval()
    adapter = adapt(model, image_size=2, target_layers=[model])  # attention of 224 x 224 tokens would take 20 GB
    result = method(adapter).explain(values, [ClassifierOutputTarget(0)])[0]
    assert float(result.scores[0]) == pytest.approx(0.625)
    assert result.saliency[0].flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", list(VITS))
@pytest.mark.filterwarnings("ignore::detcam.ClassAgnosticWarning")
def test_maps_do_not_depend_on_the_batch(name: str, method: type[AttentionCAM]) -> None:
    cam = method(VITS[name][0]())
    targets = [[ClassifierOutputTarget(i) for i in row] for row in ((2, 0), (1,), (3, 2, 0))]
    together = tensors(cam(IMAGES, targets))
    cam.batch_size = 2
    for one, other in zip(tensors(cam(IMAGES, targets)), together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for image, row, maps in zip(IMAGES, targets, together, strict=True):
        for target, heatmap in zip(row, maps, strict=True):
            torch.testing.assert_close(tensors(cam(image[None], [target]))[0], heatmap, atol=1e-5, rtol=0)


def test_a_query_that_pools_the_tokens() -> None:
    """SigLIP's head: the map is where its query looks, through what self-attention mixed before."""
    model = timm_vit(class_token=False, global_pool="map")
    result = {method: method(model).explain(IMAGES[:1], [ClassifierOutputTarget(1)])[0] for method in ALL}
    pool = copy.deepcopy(model.attn_pool).double()
    looks: list[Tensor] = []

    def score(copied: Any, tokens: Tensor) -> Tensor:
        query = pool.q(pool.latent)[0].view(2, 1, 8)
        key, value = pool.kv(tokens)[0].view(16, 2, 2, 8).permute(1, 2, 0, 3)
        powers = (query @ key.mT / 8**0.5).exp()
        looks.append(powers / powers.sum(-1, keepdim=True))
        pooled = pool.proj((looks[-1] @ value).view(1, 16))
        return copied.head(copied.fc_norm(pooled + pool.mlp(pool.norm(pooled))))[0, 1]

    slow = Slow(model, IMAGES[:1], score)
    legrad = torch.zeros(16, dtype=torch.float64)
    for layer in range(3):
        value = slow.read(layer)
        legrad += torch.autograd.grad(value, looks[-1], retain_graph=True)[0].clamp(min=0).mean((0, 1)) / 3
    seen = looks[-1]
    gradients = torch.autograd.grad(value, [*slow.maps, seen])
    identity = torch.eye(16, dtype=torch.float64)
    among, rolled = identity, identity
    for probabilities, gradient in zip(slow.maps, gradients[:-1], strict=True):
        among = among + (probabilities * gradient).clamp(min=0).mean(0) @ among
        rolled = (probabilities.mean(0) + identity) / 2 @ rolled
    beside = among - identity
    chefer = (seen * gradients[-1]).clamp(min=0).mean(0) @ (beside / beside.sum(1, keepdim=True) + identity)
    expected = {LeGrad: legrad, AttentionRollout: seen.mean(0) @ rolled, CheferCAM: chefer}
    for method, found in result.items():
        wanted = expected[method].detach().view(4, 4)
        assert float(found.scores[0]) == pytest.approx(float(value.detach()), abs=1e-4)
        torch.testing.assert_close(found.saliency[0][0].double(), wanted, atol=1e-4 * float(wanted.max()), rtol=0)


@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
def test_finer_cam_compares_classes_by_attention(method: type[AttentionCAM]) -> None:
    model = torchvision_vit()
    finer = FinerCAM(model, base_method=method, comparisons=1)
    result = finer.explain(IMAGES[:1], [ClassifierOutputTarget(2)])[0]
    logits = model(IMAGES[:1])[0].detach()
    nearest = min((i for i in range(4) if i != 2), key=lambda i: abs(float(logits[i] - logits[2])))
    expected = method(model).explain(IMAGES[:1], [lambda output: output[2] - output[nearest]])[0]
    torch.testing.assert_close(torch.as_tensor(result.heatmaps), torch.as_tensor(expected.heatmaps), atol=1e-4, rtol=0)
    assert float(result.scores[0]) == pytest.approx(float(logits[2]), abs=1e-4)


def test_images_of_any_size_and_a_given_reshape_transform() -> None:
    model = torchvision_vit()
    photo = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(7))
    whole = CheferCAM(adapt(model, image_size=32)).explain(photo, [[ClassifierOutputTarget(1)]])[0]
    assert whole.heatmaps.shape == (1, 50, 70) and float(whole.heatmaps.max()) > 0.999
    mirrored = CheferCAM(model, reshape_transform=lambda x: x[:, 1:].mT.unflatten(2, (4, 4)).flip(3))
    plain = CheferCAM(model).explain(IMAGES, [ClassifierOutputTarget(1)] * 3)
    for one, other in zip(mirrored.explain(IMAGES, [ClassifierOutputTarget(1)] * 3), plain, strict=True):
        assert torch.equal(one.saliency[0].flip(2), other.saliency[0])
