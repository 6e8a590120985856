"""Tracing: one pass, no parameter gradients, unchanged activations, no hooks afterwards."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from detcam.trace import Trace, guarded
from tests.helpers import Snapshot, TinyCNN


def run(model: nn.Module, layers: list[nn.Module], image: Tensor, *, gradients: bool = True) -> tuple[Trace, Tensor]:
    names = [f"layer{i}" for i in range(len(layers))]
    with guarded(model, gradients=gradients):
        trace = Trace(layers, names, gradients=gradients)
        with trace:
            output = model(image)
    return trace, output


def test_gradients_equal_plain_autograd_at_every_layer() -> None:
    model, image = TinyCNN().double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    layers = [model.conv1, model.relu1, model.conv2, model.relu2]
    trace, output = run(model, layers, image)
    actual = trace.gradients(output[:, 1].sum(), retain_graph=False)
    kept: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda m, i, o: kept.append(o)) for layer in layers]
    score = model(image)[:, 1].sum()
    for handle in handles:
        handle.remove()
    for ours, slow in zip(actual, torch.autograd.grad(score, kept), strict=True):
        torch.testing.assert_close(ours[0], slow)


def test_graph_starts_at_the_earliest_layer_without_parameters() -> None:
    model, image = TinyCNN(), torch.rand(1, 3, 16, 16)
    trace, output = run(model, [model.conv2], image)
    assert trace.held()[0].is_leaf and trace.held()[0].grad_fn is None
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(next_node for next_node, _ in node.next_functions)
    convolutions = [node for node in seen if "Convolution" in type(node).__name__]
    leaves = [node for node in seen if type(node).__name__ == "AccumulateGrad"]
    assert not convolutions, "the convolution before the layer entered the graph"
    assert len(leaves) == 1, "a parameter entered the graph"


def test_in_place_operations_do_not_change_recorded_activations() -> None:
    inplace, plain = TinyCNN(inplace=True), TinyCNN(inplace=False)
    image = torch.rand(1, 3, 16, 16)
    actual, output = run(inplace, [inplace.conv2], image)
    expected, other = run(plain, [plain.conv2], image)
    assert (expected.activations()[0][0] < 0).any(), "the test needs a negative activation"
    torch.testing.assert_close(actual.activations(), expected.activations())
    torch.testing.assert_close(
        actual.gradients(output[0, 0], retain_graph=False), expected.gradients(other[0, 0], retain_graph=False)
    )


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.neck = Neck()
        self.shared = nn.Conv2d(3, 1, 1)
        self.unused = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.neck(self.body(x))
        return torch.cat([self.shared(level).mean((2, 3)) for level in levels.values()], 1)


class Neck(nn.Module):
    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(a=x * 2, b=nn.functional.avg_pool2d(x, 2))


def test_pyramids_and_repeated_layers_are_levels() -> None:
    model, image = Pyramid().eval(), torch.rand(1, 3, 8, 8)
    trace, output = run(model, [model.neck, model.shared], image)
    assert [tuple(level.shape[-2:]) for layer in trace.activations() for level in layer] == [(8, 8), (4, 4)] * 2
    neck, shared = trace.gradients(output[0, 1], retain_graph=False)
    assert neck[0].abs().sum() == 0 and shared[0].abs().sum() == 0, "level a has no part in output 1"
    torch.testing.assert_close(neck[1][0, :, 0, 0], model.shared.weight[0, :, 0, 0].detach() / 16)


def test_silent_layers_and_cut_gradients_are_errors() -> None:
    model, image = Pyramid().eval(), torch.rand(1, 3, 8, 8)
    trace, _ = run(model, [model.unused], image)
    with pytest.raises(RuntimeError, match="layer0 never ran"):
        trace.activations()
    trace, output = run(model, [model.neck], image)
    with pytest.raises(RuntimeError, match="does not depend on target layer layer0"):
        trace.gradients(torch.ones(()), retain_graph=False)
    with pytest.raises(RuntimeError, match="does not depend"):
        trace.gradients(torch.ones((), requires_grad=True) * 2, retain_graph=False)


def test_guarded_restores_the_model_after_an_error() -> None:
    model = TinyCNN()
    model.train()
    model.conv2.eval()
    model.conv1.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = Snapshot(model)
    with pytest.warns(UserWarning, match="training mode"), guarded(model, gradients=True):
        assert not any(p.requires_grad for p in model.parameters()) and not model.training
        assert torch.is_grad_enabled()
        torch.rand(3)
    before.check()
    model.training = False  # the module itself; its parts stay as mixed as they were
    before.flags[""] = False
    with torch.no_grad(), pytest.raises(KeyError), guarded(model, gradients=True):
        raise KeyError("half-way")
    with torch.inference_mode(), guarded(model, gradients=True):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    before.check()


def test_inference_tensors_are_replaced_and_restored() -> None:
    with torch.inference_mode():
        model = TinyCNN()
    assert model.conv1.weight.is_inference()
    image = torch.rand(1, 3, 16, 16)
    before = Snapshot(model)
    trace, output = run(model, [model.conv1], image)
    assert trace.gradients(output[0, 0], retain_graph=False)[0][0].abs().sum() > 0
    before.check()


class Recurrent(nn.Module):
    """Reads the rows of an image one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.lstm = nn.LSTM(2 * 8, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.conv.training, self.lstm.training))
        return self.lstm(self.conv(x).transpose(1, 2).flatten(2))[0][:, -1]  # type: ignore[no-any-return]


def test_recurrent_layers_run_in_the_mode_in_which_cudnn_has_gradients() -> None:
    model, image = Recurrent().eval(), torch.rand(1, 3, 8, 8)
    expected = model(image)
    before = Snapshot(model)
    trace, output = run(model, [model.conv], image)
    assert model.modes[-1] == (False, True)
    torch.testing.assert_close(output, expected)  # no dropout
    assert trace.gradients(output[0, 0], retain_graph=False)[0][0].abs().sum() > 0
    before.check()
    assert model.lstm.dropout == 0.5


def test_quantized_layers_are_refused() -> None:
    class Quantize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)

    model = nn.Sequential(Quantize())
    with pytest.raises(TypeError, match="float model"):
        run(model, [model[0]], torch.rand(1, 3, 4, 4))
