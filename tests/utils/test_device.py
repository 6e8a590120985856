"""A model that runs on another device for a while, and comes back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import detcam
from detcam import adapt
from detcam.utils.device import on_device, pick_device
from tests.helpers import TinyCNN

IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


class Traveler(TinyCNN):
    """Notes the devices that it is moved to, and where it is when it runs; its parameters stay."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[str] = []

    def to(self, device: torch.device) -> Traveler:  # type: ignore[override]
        self.journal.append(str(device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.journal += ["run"] * (self.journal[-1:] != ["run"])
        return super().forward(x)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_devices_by_name(two_gpus: None) -> None:
    assert [str(pick_device(name)) for name in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    assert pick_device(torch.device("cuda", 0)) == torch.device("cuda:0")
    with pytest.raises(ValueError, match="expected a device such as cpu"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="this machine has no device cuda:2"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("device", "moves"), [(None, []), ("cpu", []), ("cuda:1", ["cuda:1"]), ("auto", ["cuda"])])
def test_explain_runs_there_and_moves_the_model_back(two_gpus: None, device: str | None, moves: list[str]) -> None:
    model = Traveler()
    adapter = adapt(model, image_size=32)
    model.journal.clear()
    detcam.explain(adapter, IMAGE, device=device)
    assert model.journal == [*moves, "run", *(["cpu"] if moves else [])]


def test_benchmark_runs_there_and_moves_the_model_back(two_gpus: None) -> None:
    model = Traveler()
    adapter = adapt(model, image_size=32)
    model.journal.clear()
    detcam.benchmark(adapter, [IMAGE], ["gradcam"], ["sparseness"], controls=False, device="cuda")
    assert model.journal == ["cuda", "run", "cpu"]


def test_the_model_comes_back_after_an_error(two_gpus: None) -> None:
    model = Traveler()
    with pytest.raises(KeyError), on_device(model, "cuda"):
        raise KeyError
    assert model.journal == ["cuda", "cpu"]


def test_parts_on_several_devices() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    message = r"one device; its parts are on cpu, meta\. Move it, or leave out device="
    with pytest.raises(ValueError, match=message), on_device(model, "cpu"):
        pass
    with on_device(model, None):
        pass
