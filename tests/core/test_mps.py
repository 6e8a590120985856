"""Devices without float64, as Apple's MPS: emulated, since there is none in continuous integration."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detcam.adapters import Adapter
from tests.zoo import quick, shared

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    *(("classifier", method) for method in ("gradcam", "layercam", "scorecam", "ablationcam", "rise", "kpcacam")),
    *(("classifier", method) for method in ("reachcam", "fullgrad", "eigencam", "guidedbackprop")),
    *((model, "odam") for model in ("faster_rcnn", "retinanet", "yolo", "own_detector")),
    ("own_detector", "drise"),
    ("own_segmenter", "gradcam"),
    ("vit", "chefercam"),
]


class WithoutFloat64(TorchFunctionMode):
    """Every tensor is on the device but those made without a device, copied to the CPU, or computed from such alone."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        given = list(_tensors((args, kwargs)))
        created = not given and kwargs.get("device") is None
        copied = name in ("cpu", "numpy", "item", "tolist", "from_numpy") or (name == "to" and "cpu" in map(str, args))
        host = created or copied or (bool(given) and all(id(tensor) in self.on_host for tensor in given))
        for tensor in _tensors(result):
            if host:
                self.on_host[id(tensor)] = tensor
            elif tensor.dtype == torch.float64 and not name.startswith("_"):
                frame = next((f for f in reversed(traceback.extract_stack()[:-1]) if "detcam" in f.filename), None)
                raise TypeError(f"float64 on the device: {name} in {frame and (frame.filename, frame.lineno)}")
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> WithoutFloat64:
    for name, module in list(sys.modules.items()):
        if name.startswith("detcam.") and hasattr(module, "float64_on"):
            monkeypatch.setattr(module, "float64_on", lambda device: torch.float32)
        if name.startswith("detcam."):
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()  # of tensors that another test has made on the CPU
    return WithoutFloat64()


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_no_tensor_on_the_device_is_float64(model: str, method: str, without_float64: WithoutFloat64) -> None:
    example = shared(model)
    adapter: Adapter = example.adapter
    with without_float64:
        cam = quick(method, adapter)
        cam.explain([torch.rand(3, 48, 64)])


def test_the_emulation_finds_one(without_float64: WithoutFloat64) -> None:
    with without_float64:
        image = torch.rand(2)
        assert (torch.arange(2, dtype=torch.float64) * 2).float().dtype == torch.float32
        assert image.cpu().double().dtype == torch.float64
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="float64 on the device"), without_float64:
        model(image).double()
