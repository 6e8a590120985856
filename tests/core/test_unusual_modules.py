"""Quantized, checkpointed, parametrized and pruned modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from detcam import METHODS, GradCAM, HiResCAM, adapt, explain
from tests.helpers import Snapshot, TinyCNN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*quant.*"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
    pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning"),
]

IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def float_model() -> nn.Sequential:
    torch.manual_seed(0)
    body: list[Any] = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    for layer, value in ((body[0], 0.3), (body[4], 1.0)):
        nn.init.constant_(layer.weight, value)
    return nn.Sequential(torch.ao.quantization.QuantStub(), *body, torch.ao.quantization.DeQuantStub()).eval()


def static_int8(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare(model)
    prepared(IMAGE[None])
    return torch.ao.quantization.convert(prepared)  # type: ignore[no-any-return]


def dynamic_int8(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})  # type: ignore[no-any-return]


QUANTIZED = {"static": static_int8, "dynamic": dynamic_int8}


@pytest.mark.parametrize("quantize", QUANTIZED.values(), ids=QUANTIZED)
class TestQuantized:
    def test_methods_that_change_the_image_agree_with_the_float_model(self, quantize: Any) -> None:
        image = torch.full((3, 32, 32), 0.1)
        image[:, 16:, 16:] = 1.0
        options: dict[str, Any] = {"image_size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        (expected,) = explain(float_model(), image, "occlusion:grid=8,window=2", labels=[0], **options)
        adapter = adapt(quantize(float_model()), **options)
        assert adapter.layer_names == []
        (found,) = explain(adapter, image, "occlusion:grid=8,window=2", labels=[0])
        torch.testing.assert_close(found.scores, expected.scores, atol=0.1, rtol=0)
        assert np.corrcoef(found.heatmaps.ravel(), expected.heatmaps.ravel())[0, 1] > 0.8

    @pytest.mark.parametrize("method", ["gradcam", "guidedbackprop", "eigencam", "scorecam"])
    def test_methods_that_need_gradients_or_layers_name_the_others(self, quantize: Any, method: str) -> None:
        with pytest.raises(TypeError, match=r"is quantized \(int8\).*(gradients|layers).*rise, occlusion or drise"):
            explain(quantize(float_model()), IMAGE, method, image_size=32)


def test_adapting_a_dynamic_model_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    model = dynamic_int8(model)
    recwarn.clear()
    assert adapt(model, image_size=32).layer_names == []
    assert not recwarn.list


def test_a_dynamic_model_has_float_layers() -> None:
    model = dynamic_int8(float_model())
    heatmaps = METHODS["scorecam"](model, ["2"])(IMAGE[None])
    assert heatmaps.shape == (1, 32, 32)


class Checkpointed(TinyCNN):
    reentrant = False

    def forward(self, x: Tensor) -> Any:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


def weight_norm(model: TinyCNN) -> nn.Module:
    parametrizations.weight_norm(model.conv1)
    return model


def spectral_norm(model: TinyCNN) -> nn.Module:
    parametrizations.spectral_norm(model.conv2)
    return model


def pruned(model: TinyCNN) -> nn.Module:
    prune.l1_unstructured(model.conv2, "weight", amount=0.3)
    return model


def literal(model: nn.Module, layer: nn.Module) -> np.ndarray:
    """Saliency (h, w) of HiResCAM for the first class, by plain autograd."""
    seen: list[Tensor] = []
    with layer.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        score = model(IMAGE[None].requires_grad_(True))[0, 0]
    (gradient,) = torch.autograd.grad(score, seen[0])
    return (seen[0] * gradient).sum(1)[0].detach().numpy()


CHANGES: dict[str, Callable[[TinyCNN], nn.Module]] = {
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "pruned": pruned,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_parametrized_and_pruned_modules(change: Any, layer: str) -> None:
    model = change(TinyCNN()).eval()
    before = Snapshot(model)
    before.check = (lambda: None) if change is pruned else before.check  # type: ignore[method-assign]  # it has hooks
    result = HiResCAM(model, [layer]).explain(IMAGE[None], [lambda output: output[0]])[0]
    before.check()
    expected = literal(model, model.get_submodule(layer))
    np.testing.assert_allclose(result.saliency[0][0].numpy(), expected, atol=1e-6)
    explain(model, IMAGE, "rise:passes=4", target_layers=layer, image_size=32)
    before.check()
    assert torch.equal(torch.cat([t.flatten() for t in before.state.values()]), flat(model))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
@pytest.mark.parametrize("layer", ["relu1", "conv2"])
def test_gradient_checkpointing_changes_nothing(kind: type[Checkpointed], layer: str) -> None:
    plain, model = TinyCNN(), kind()
    model.load_state_dict(plain.state_dict())
    before = Snapshot(model)
    for method in (GradCAM, HiResCAM):
        expected = method(plain, [layer])(IMAGE[None], [lambda output: output[0]])
        np.testing.assert_allclose(method(model, [layer])(IMAGE[None], [lambda o: o[0]]), expected, atol=1e-5)
    before.check()
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"


@pytest.mark.parametrize("method", ["rise", "probecam", "ablationcam", "fullgrad"])
def test_a_network_that_changes_its_input_in_place_is_given_copies(method: str) -> None:
    class Normalizing(nn.Module):
        def __init__(self, *, in_place: bool) -> None:
            super().__init__()
            self.network, self.in_place = TinyCNN(), in_place

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.sub_(0.4).div_(0.2) if self.in_place else (x - 0.4) / 0.2)

    torch.manual_seed(0)
    plain, changing = Normalizing(in_place=False).eval(), Normalizing(in_place=True).eval()
    changing.load_state_dict(plain.state_dict())
    tensor = IMAGE[None].clone()
    maps = [METHODS[method](model, target_layers=["network.conv2"])(tensor) for model in (plain, changing)]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5)
    assert maps[0].any() and torch.equal(tensor[0], IMAGE)
