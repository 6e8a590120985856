"""Checkpoint files and models that are wrong on purpose, and a hub that cannot be reached."""

from __future__ import annotations

import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from detcam import GradCAM, adapt
from detcam.models import hub
from detcam.models.checkpoints import read_checkpoint, state_dict_of
from detcam.models.load import load_model


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def each_other() -> dict[str, Any]:
    content: dict[str, Any] = {"state_dict": {}}
    content["state_dict"]["model"] = content
    return content


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "integer keys": (lambda: {1: torch.zeros(2), 2: torch.zeros(1)}, "names of weights as text .* got 1"),
    "mixed keys": (lambda: {"state_dict": {1: torch.zeros(2), "a": torch.zeros(1)}}, "names of weights as text"),
    "itself": (itself, "expected weights"),
    "each other": (each_other, "expected weights"),
    "nothing": (dict, "it holds nothing"),
    "a number": (lambda: 5, "it holds int"),
}


@pytest.mark.parametrize(("make", "message"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_state_dict_is_a_value_error_that_names_the_file(
    tmp_path: Path, make: Callable[[], Any], message: str
) -> None:
    path = tmp_path / "odd.pt"
    torch.save(make(), path)
    with pytest.raises(ValueError, match=rf"{message}|odd\.pt.*{message}") as caught:
        load_model("resnet18", weights=path)
    assert "odd.pt" in str(caught.value)


def test_weights_within_entries_are_found() -> None:
    weights = {"a": torch.zeros(1)}
    assert state_dict_of({"model": {"net": {"state_dict": weights}}}, Path("x.pt")) is weights


def damaged(path: Path, cut: int) -> Path:
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value[:cut] + b"\xff\xfe" + value[cut:] if name.endswith("data.pkl") else value)
    return path


@pytest.mark.parametrize("cut", [3, 40])
def test_nobody_is_asked_to_trust_a_damaged_file(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*damaged\.pt as a checkpoint \(.+\); is the file") as caught:
        read_checkpoint(damaged(tmp_path / "damaged.pt", cut), trust=False)
    assert "--trust-checkpoint" not in str(caught.value)


def test_a_file_with_code_names_it_and_the_option(tmp_path: Path) -> None:
    torch.save(resnet18(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"more than tensors \(.*ResNet.*--trust-checkpoint"):
        read_checkpoint(tmp_path / "whole.pt", trust=False)


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = resnet18().eval()
    for make in (lambda: adapt(model), lambda: GradCAM(model, ["layer4"])):
        with pytest.raises(ValueError, match="conv1.weight of ResNet is on the meta device.*to_empty"):
            make()


def test_a_hub_that_cannot_be_reached_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("timm")
    calls: list[Any] = []

    def refuse(address: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub, "getproxies", dict)
    for name in ("timm:hf-hub:nobody/nothing", "timm:resnet18"):
        with pytest.raises(OSError, match="not in the cache and cannot be downloaded.*On a connected machine"):
            load_model(name)
    assert [address[1] for address in calls] == [443, 443]
    assert constants.HF_HUB_OFFLINE is False


def test_a_proxy_is_not_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.can_connect("https://host.invalid")
