"""Attention is seen however a model computes it, and the model computes what it always did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.methods.common.attention_capture import AttentionRecorder, AttentionRun, SamplingPoints
from detcam.trace import guarded
from tests.helpers import Snapshot
from tests.methods.transformers import TinyDETR, loud, timm_vit, torchvision_vit


def recorded(
    model: nn.Module, *inputs: Tensor, images: int | None = None, **options: Any
) -> tuple[Any, list[AttentionRun]]:
    """What a model puts out while it is watched, and the attention seen; what it puts out alone must be the same."""
    model.eval()
    before = Snapshot(model)
    with torch.no_grad():
        alone = model(*inputs, **options)
    with guarded(model, gradients=True), AttentionRecorder(model, images or len(inputs[0])) as recorder:
        output = model(*inputs, **options)
    before.check()
    torch.testing.assert_close(output, alone, atol=1e-5, rtol=1e-5)
    return output, recorder.attentions


def by_rows(query: Tensor, key: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Attention probabilities (B, heads, Q, K), float64, one row at a time."""
    found = torch.zeros(*query.shape[:-1], key.shape[-2], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                scores = [float(query[b, h, i].double() @ k) / query.shape[-1] ** 0.5 for k in key[b, h].double()]
                powers = [
                    torch.tensor(s, dtype=torch.float64).exp() * (1.0 if allowed is None else float(allowed[i, j]))
                    for j, s in enumerate(scores)
                ]
                total = sum(powers)
                for j, power in enumerate(powers):
                    found[b, h, i, j] = power / total if float(total) > 0 else 0.0
    return found


class Fused(nn.Module):
    """Queries, keys and values as they come; options go to torch."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **options)


class Explicit(nn.Module):
    """Attention spelled out, in one of the ways that people write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.softmax = nn.Softmax(-1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if self.way == "einsum":
            return torch.einsum("bhij,bhjd->bhid", F.dropout(F.softmax(scores, -1), training=False), value)
        if self.way == "bmm":
            found = torch.bmm(torch.softmax(scores.flatten(0, 1), dim=2), value.flatten(0, 1))
            return found.view(query.shape)
        if self.way == "transposed":
            return (value.transpose(-2, -1) @ scores.softmax(dim=-1).transpose(-2, -1)).transpose(-2, -1)
        return torch.matmul(self.dropout(self.softmax(scores)).to(value.dtype), value)


def heads(seed: int, queries: int = 4, keys: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, queries, 5), (2, 3, keys, 5), (2, 3, keys, 5))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("way", ["einsum", "bmm", "transposed", "matmul", "fused"])
def test_every_attention_call_is_recorded_with_its_gradient(way: str) -> None:
    inputs = heads(0, 4, 6)
    output, (attention,) = recorded(Fused() if way == "fused" else Explicit(way), *inputs)
    seen = attention.by_head(attention.tensor)
    torch.testing.assert_close(seen.double(), by_rows(inputs[0], inputs[1]), atol=1e-6, rtol=0)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradient = attention.by_head(torch.autograd.grad((output * weights).sum(), attention.tensor)[0])
    for b, h, i, j in ((0, 0, 0, 0), (1, 2, 3, 5), (0, 1, 2, 4)):  # output = sum over j of probability times value
        assert float(gradient[b, h, i, j]) == pytest.approx(float(weights[b, h, i] @ inputs[2][b, h, j]), abs=1e-5)
    assert (attention.queries, attention.keys, attention.windows, attention.points) == (4, 6, 1, None)


def test_masks_causality_scale_and_shared_heads() -> None:
    query, key, value = heads(1)
    allowed = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1]]).bool()
    for options, mask in (
        ({"attn_mask": allowed}, allowed),
        ({"attn_mask": torch.zeros(4, 4).masked_fill(~allowed, float("-inf"))}, allowed),
        ({"is_causal": True}, torch.ones(4, 4).tril().bool()),
    ):
        _, (attention,) = recorded(Fused(), query, key, value, **options)
        torch.testing.assert_close(attention.tensor.double(), by_rows(query, key, mask), atol=1e-6, rtol=0)
    _, (scaled,) = recorded(Fused(), query, key, value, scale=2.0)
    torch.testing.assert_close(scaled.tensor.double(), by_rows(query * 2 * 5**0.5, key), atol=1e-6, rtol=0)
    _, (shared,) = recorded(Fused(), query, key[:, :1], value[:, :1], enable_gqa=True)
    torch.testing.assert_close(
        shared.tensor.double(), by_rows(query, key[:, :1].expand(-1, 3, -1, -1)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_gives_equal_weights(batch_first: bool) -> None:
    layer = loud(nn.MultiheadAttention(8, 2, dropout=0.3, bias=True, batch_first=batch_first))
    generator = torch.Generator().manual_seed(2)
    target, memory = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    if not batch_first:
        target, memory = target.transpose(0, 1), memory.transpose(0, 1)
    padding = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    with torch.no_grad():
        _, expected = layer(target, memory, memory, key_padding_mask=padding, average_attn_weights=False)
    for options in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        _, (attention,) = recorded(layer, target, memory, memory, images=2, key_padding_mask=padding, **options)
        torch.testing.assert_close(attention.tensor, expected, atol=1e-6, rtol=0)
        assert attention.is_cross
    _, (attention,) = recorded(layer, target, target, target, images=2)
    assert not attention.is_cross


def test_layers_are_ordered_with_their_modules() -> None:
    model = torchvision_vit()
    _, attentions = recorded(model, torch.rand(2, 3, 32, 32))
    names = {module: name for name, module in model.named_modules()}
    assert [names[one.modules[-1]] for one in attentions] == [
        f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(3)
    ]
    model = TinyDETR()
    names = {module: name for name, module in model.named_modules()}
    _, attentions = recorded(model, torch.rand(2, 3, 32, 48))
    decoder = [f"decoder.layers.{i}.{kind}" for i in range(3) for kind in ("self_attn", "multihead_attn")]
    assert [names[one.modules[-1]] for one in attentions] == [
        f"encoder.layers.{i}.self_attn" for i in range(2)
    ] + decoder
    assert [(one.queries, one.keys) for one in attentions] == [(24, 24)] * 2 + [(5, 5), (5, 24)] * 3


def test_timm_fused_or_not() -> None:
    model, images = timm_vit(), torch.rand(2, 3, 32, 32)
    _, fused = recorded(model, images)
    for block in model.blocks:
        block.attn.fused_attn = False
    _, plain = recorded(model, images)
    assert len(fused) == len(plain) == 3
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one.tensor, other.tensor, atol=1e-6, rtol=0)


class Gate(nn.Module):
    """Softmaxes that weigh channels, are never multiplied as a matrix, or run over the rows: no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        x = x * x.softmax(1) + x.flatten(2).softmax(-1).view(x.shape)
        return x.softmax(2) @ x.mT


def test_other_softmaxes_are_ignored() -> None:
    assert recorded(Gate(), torch.rand(2, 3, 8, 8))[1] == []


class Deformable(nn.Module):
    """Deformable attention over two levels, with samples and weights as they come."""

    def __init__(self, grids: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.grids = grids

    def forward(self, values: Tensor, locations: Tensor, scores: Tensor) -> Tensor:
        images, _, heads, width = values.shape
        queries = scores.shape[1]
        weights = F.softmax(scores, -1)
        levels = values.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in self.grids], -1)
        around = (2 * locations - 1).permute(0, 2, 1, 3, 4).flatten(0, 1).split(3, -2)
        read = [
            F.grid_sample(level.unflatten(-1, size), grid, mode="bilinear", align_corners=False)
            for level, grid, size in zip(levels, around, self.grids, strict=True)
        ]
        flat = weights.permute(0, 2, 1, 3).reshape(images * heads, 1, queries, -1)
        return (torch.cat(read, -1) * flat).sum(-1).view(images, heads * width, queries)


def test_sampling_points_are_distributed_to_their_cells() -> None:
    grids, generator = ((3, 4), (2, 2)), torch.Generator().manual_seed(4)
    tokens = 16
    locations = torch.rand(2, 5, 3, 6, 2, generator=generator) * 1.2 - 0.1  # some lie beyond the border
    scores = torch.randn(2, 5, 3, 6, generator=generator)
    # Each token's value is a unit vector of its own, so what comes out is how much of each token was read.
    values = torch.eye(tokens)[None, :, None].expand(2, tokens, 3, tokens).contiguous()
    output, (attention,) = recorded(Deformable(grids), values, locations, scores)
    assert (attention.queries, attention.keys) == (5, tokens)
    dense = attention.per_key(attention.by_head(attention.tensor))
    torch.testing.assert_close(dense, output.view(2, 3, tokens, 5).mT, atol=1e-6, rtol=0)


class Twice(nn.Module):
    """The same deformable attention at two sets of locations."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Deformable(((3, 4), (2, 2)))

    def forward(self, values: Tensor, locations: Tensor, scores: Tensor) -> Tensor:
        return self.shared(values, locations, scores) + self.shared(values, 1 - locations, scores)


def test_a_deformable_layer_that_runs_twice() -> None:
    generator = torch.Generator().manual_seed(4)
    locations, scores = torch.rand(2, 5, 3, 6, 2, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)
    values = torch.eye(16)[None, :, None].expand(2, 16, 3, 16).contiguous()
    output, attentions = recorded(Twice(), values, locations, scores)
    assert len(attentions) == 2
    both = sum(one.per_key(one.by_head(one.tensor)) for one in attentions)
    torch.testing.assert_close(both, output.view(2, 3, 16, 5).mT, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("aligned", "location", "expected"),
    [
        (False, (0.0, 0.0), [0, 0, 0, 0, 1, 0, 0, 0, 0]),  # the middle of a 3 x 3 grid is its middle cell's center
        (False, (-1.0, -1.0), [0.25, 0, 0, 0, 0, 0, 0, 0, 0]),  # its corner is read to a quarter, the rest is padding
        (False, (1 / 3, 0.0), [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0]),  # half-way between two centers, 2/3 apart
        (True, (-1.0, -1.0), [1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (True, (0.5, 1.0), [0, 0, 0, 0, 0, 0, 0, 0.5, 0.5]),
    ],
)
def test_a_point_by_hand(aligned: bool, location: tuple[float, float], expected: list[float]) -> None:
    points = SamplingPoints(((3, 3),), (torch.tensor([[[location]]]),), aligned)
    assert points.to_keys(torch.tensor([[[[2.0]]]])).flatten().tolist() == pytest.approx([2 * x for x in expected])


def test_hooks_and_modes_are_removed_after_an_error() -> None:
    model = torchvision_vit()
    image = torch.rand(1, 3, 16, 32)
    before = Snapshot(model)
    with pytest.raises(AssertionError, match="Wrong image height"), AttentionRecorder(model, 1):
        model(image)
    before.check()
    probabilities = torch.rand(2, 4, 4).softmax(-1)
    recorder = AttentionRecorder(model, 2)
    with recorder:
        pass
    probabilities @ torch.rand(2, 4, 4)
    assert recorder.attentions == []
