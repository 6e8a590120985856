"""The passes on noise by which an adapter learns what a network returns stay small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter, adapt, detector, segmenter


class PixelTokens(nn.Module):
    """Attention over the pixels: its memory grows with the fourth power of the side."""

    def __init__(self, *, dense: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)
        self.dense = dense
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        if x.shape[0] * x[0, 0].numel() > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        maps = self.head(self.embed(x))
        return maps if self.dense else maps.mean((2, 3))

    limit = 2 * 64 * 64


def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(len(raw), raw[0, 0].numel(), 4)
    return boxes, raw.sigmoid().flatten(2).mT


MAKERS: dict[str, Callable[..., Adapter]] = {
    "classifier": lambda **options: adapt(PixelTokens().eval(), **options),
    "segmenter": lambda **options: segmenter(PixelTokens(dense=True).eval(), **options),
    "detector": lambda **options: detector(PixelTokens(dense=True).eval(), decode, **options),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_probes_are_small_and_not_repeated(make: Callable[..., Adapter]) -> None:
    adapter = make(target_layers=["embed"])
    model = adapter.model
    assert isinstance(model, PixelTokens)
    assert model.seen and all(shape[0] * shape[2] * shape[3] <= 2 * 64 * 64 for shape in model.seen)
    count = len(model.seen)
    adapter.with_layers(["head"], None)
    adapter.without_layers()
    if hasattr(adapter, "score_threshold"):
        adapter.with_score_threshold(0.01)
    adapt(adapter, target_layers=["head"])
    assert len(model.seen) == count


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_lack_of_memory_is_told(make: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelTokens, "limit", 10)
    with pytest.raises(RuntimeError, match="memory does not suffice for one image .* image_size="):
        make(target_layers=["embed"])
