"""Networks that end in probabilities, return several outputs, or return what no rule reads."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import GradCAM, HiResCAM, adapt, explain
from detcam.adapters import segmenter
from detcam.targets import ClassifierOutputTarget, RawScoresOutputTarget

IMAGE = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    """Class scores with known logits, up to a small part that depends on the image."""

    def __init__(self, logits: list[float], end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, len(logits))
        self.fc.weight.data = torch.linspace(-0.01, 0.01, 4 * len(logits)).reshape(-1, 4)
        self.fc.bias.data = torch.tensor(logits)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(torch.relu(self.conv(x)).mean((2, 3))))


def scores(end: Callable[[Tensor], Any], logits: list[float], **options: Any) -> dict[int, float]:
    adapter = adapt(Scores(logits, end).eval(), target_layers="conv", image_size=16, **options)
    (found,) = adapter.predict(IMAGE, top_k=5)
    return {label: round(score, 1) for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)}


SIGMOIDS = {"module": nn.Sigmoid(), "function": torch.sigmoid, "squeezed": lambda x: x.sigmoid()[:, 0]}


@pytest.mark.parametrize("end", SIGMOIDS.values(), ids=SIGMOIDS)
def test_a_sigmoid_is_the_probability_of_class_one(end: Callable[[Tensor], Tensor]) -> None:
    assert scores(end, [-2.2]) == {0: 0.9, 1: 0.1} == scores(nn.Identity(), [-2.2])
    assert scores(end, [2.2]) == {1: 0.9, 0: 0.1}


SOFTMAXES = {
    "module": nn.Softmax(-1),
    "function": lambda x: F.softmax(x, -1),
    "log": nn.LogSoftmax(-1),
    "mean of two": lambda x: (x.softmax(-1) + x.softmax(-1)) / 2,
    "(B, C, 1, 1)": lambda x: x.softmax(-1)[:, :, None, None],
}


@pytest.mark.parametrize("end", SOFTMAXES.values(), ids=SOFTMAXES)
def test_a_softmax_is_reported_as_it_is(end: Callable[[Tensor], Tensor]) -> None:
    assert scores(end, [0.0, 2.9, 0.0]) == {1: 0.9, 0: 0.0, 2: 0.0}


def test_sigmoids_of_several_classes_are_independent() -> None:
    assert scores(nn.Sigmoid(), [2.2, 2.2, -2.2]) == {0: 0.9, 1: 0.9, 2: 0.1}
    joined = lambda x: torch.cat([x[:, :1].sigmoid(), x[:, 1:].sigmoid()], 1)  # noqa: E731
    assert scores(joined, [2.2, 2.2, -2.2]) == {0: 0.9, 1: 0.9, 2: 0.1}
    assert scores(nn.Identity(), [2.2, 2.2, -2.2], output="multilabel") == {0: 0.9, 1: 0.9, 2: 0.1}
    assert scores(nn.Identity(), [2.2, 2.2, -2.2]) == {0: 0.5, 1: 0.5, 2: 0.0}


def test_the_option_overrides_what_is_found() -> None:
    assert scores(lambda x: x * 1.0, [0.1], output="probabilities") == {0: 0.9, 1: 0.1}
    assert scores(nn.Sigmoid(), [0.0, 0.0], output="logits") == {0: 0.5, 1: 0.5}
    with pytest.raises(ValueError, match="logits, probabilities, multilabel"):
        scores(nn.Identity(), [0.0], output="softmax")


def test_repr_tells_what_was_found() -> None:
    def told(end: Any, logits: list[float]) -> str:
        return repr(adapt(Scores(logits, end).eval(), target_layers="conv", image_size=16))

    assert "probabilities (softmax)" in told(nn.Softmax(-1), [0.0, 1.0])
    assert "probabilities (sigmoid, multilabel)" in told(nn.Sigmoid(), [0.0, 1.0])
    assert "output" not in told(nn.Identity(), [0.0, 1.0])


@pytest.mark.parametrize("end", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid()], ids=["softmax", "log", "sigmoid"])
def test_maps_are_those_of_the_logits(end: nn.Module) -> None:
    logits, activated = Scores([40.0, 0.0, 1.0], nn.Identity()).eval(), Scores([40.0, 0.0, 1.0], end).eval()
    activated.load_state_dict(logits.state_dict())
    targets = [ClassifierOutputTarget(0)]  # whose probability is 1 in float32: its gradient is 0
    expected, got = (HiResCAM(net, ["conv"]).explain(IMAGE[None], targets)[0] for net in (logits, activated))
    torch.testing.assert_close(got.saliency[0], expected.saliency[0])
    torch.testing.assert_close(got.scores, expected.scores)


def test_plain_functions_read_the_models_own_output() -> None:
    net = Scores([-2.2], nn.Sigmoid()).eval()
    for target in (lambda output: output[0], RawScoresOutputTarget()):
        (result,) = GradCAM(net, ["conv"]).explain(IMAGE[None], [target])
        assert float(result.scores) == pytest.approx(0.1, abs=0.01)


class Maps(nn.Module):
    def __init__(self, channels: int, end: Callable[[Tensor], Any], bias: float = -2.2) -> None:
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, channels, 1), end
        self.head.weight.data.mul_(0.01)
        self.head.bias.data = torch.tensor([bias, *[2.2] * (channels - 1)])  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(torch.relu(self.conv(x))))


def found(net: nn.Module, **options: Any) -> dict[int, float]:
    (detections,) = segmenter(net.eval(), target_layers="conv", **options).predict(IMAGE)
    labels, values = detections.labels.tolist(), detections.scores.tolist()
    return {label: round(score, 1) for label, score in zip(labels, values, strict=True)}


@pytest.mark.parametrize("end", [nn.Sigmoid(), torch.sigmoid, nn.Identity()], ids=["module", "function", "logit"])
def test_a_mask_of_low_probability_is_no_mask(end: Callable[[Tensor], Tensor]) -> None:
    assert found(Maps(1, end)) == {}
    assert found(Maps(1, end, 2.2)) == {1: 0.9}


def test_maps_of_probabilities() -> None:
    assert found(Maps(3, nn.Sigmoid())) == {1: 0.9, 2: 0.9}
    assert found(Maps(3, nn.Identity()), output="multilabel") == {1: 0.9, 2: 0.9}
    assert found(Maps(2, nn.Softmax(1))) == {1: 1.0}
    larger = lambda x: F.interpolate(x.softmax(1), scale_factor=2, mode="bilinear")  # noqa: E731
    assert found(Maps(2, larger)) == {1: 1.0}


Pair = namedtuple("Pair", "species sex")


@dataclass
class Both:
    species: Tensor
    sex: Tensor


PAIRS = {
    "tuple": (lambda x: (x[:, :2], x[:, 2:]), 1, lambda output: output[1][2]),
    "list": (lambda x: [x[:, :2], x[:, 2:]], 1, lambda output: output[1][2]),
    "dict": (lambda x: {"species": x[:, :2], "sex": x[:, 2:]}, "sex", lambda output: output["sex"][2]),
    "namedtuple": (lambda x: Pair(x[:, :2], x[:, 2:]), "sex", lambda output: output.sex[2]),
    "dataclass": (lambda x: Both(x[:, :2], x[:, 2:]), "sex", lambda output: output.sex[2]),
}


@pytest.mark.parametrize(("end", "key", "read"), PAIRS.values(), ids=PAIRS)
class TestSeveralOutputs:
    LOGITS = (9.0, 9.0, 0.0, 0.0, 2.9)

    def test_a_key_or_a_decode_function_chooses_one(self, end: Any, key: Any, read: Any) -> None:
        assert scores(end, list(self.LOGITS), output_key=key) == {2: 0.9, 0: 0.0, 1: 0.0}
        assert scores(end, list(self.LOGITS), decode=lambda raw: part(raw, key)) == {2: 0.9, 0: 0.0, 1: 0.0}

    def test_a_target_reads_the_output_of_its_image(self, end: Any, key: Any, read: Any) -> None:
        net = Scores(list(self.LOGITS), end).eval()
        results = GradCAM(net, ["conv"]).explain(torch.rand(2, 3, 16, 24), [read, read])
        assert [round(float(result.scores), 1) for result in results] == [2.9, 2.9]

    def test_without_either_the_message_lists_the_outputs(self, end: Any, key: Any, read: Any) -> None:
        net = Scores(list(self.LOGITS), end).eval()
        listed = r"of 2: .*\(\d, 2\).*\(\d, 3\)(.|\n)*adapt\(model, output_key="
        with pytest.raises(TypeError, match=listed):
            adapt(net, image_size=16)
        with pytest.raises(TypeError, match=listed):
            explain(net, IMAGE, target_layers="conv")
        with pytest.raises(TypeError, match="output_key="):
            GradCAM(net, ["conv"])(IMAGE[None], [ClassifierOutputTarget(1)])
        with pytest.raises(TypeError, match="no output 'age'"):
            scores(end, list(self.LOGITS), output_key="age")


def part(raw: Any, key: Any) -> Tensor:
    value: Tensor = getattr(raw, key) if isinstance(key, str) and not isinstance(raw, dict) else raw[key]
    return value


def test_maps_given_to_adapt_are_refused_with_the_line_to_write() -> None:
    with pytest.raises(
        TypeError, match=r"float32 \(1, 3, 224, 224\)(.|\n)*segmenter\(model, decode=lambda output: output\)"
    ):
        adapt(Maps(3, nn.Identity()).eval())
    with pytest.raises(TypeError, match=r"segmenter\(model, decode=lambda output: output\[0\]\)"):
        explain(segmenter(Maps(3, lambda x: [x, x[:, :, ::2, ::2]]).eval()), IMAGE)
    assert found(Maps(2, lambda x: [x, x[:, :, ::2, ::2]]), output_key=0) == {1: 1.0}


def test_boxes_given_to_adapt_are_refused_with_the_lines_to_write() -> None:
    class Detector(nn.Conv2d):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            rows = super().forward(x).flatten(2).mT
            return {"logits": rows, "pred_boxes": rows[..., :4]}

    with pytest.raises(TypeError, match=r"boxes, scores = output\['pred_boxes'\], output\['logits'\]"):
        adapt(Detector(3, 6, 8, 8).eval(), image_size=16)


def test_a_network_of_several_inputs_needs_its_layers() -> None:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.color, self.depth, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, d: Tensor) -> Tensor:
            return self.head(torch.cat([self.color(x), self.depth(d)], 1).relu())

    message = r"cannot probe Depth with one \(1, 3, 224, 224\) image.*target_layers=.*input_key="
    with pytest.raises(RuntimeError, match=message):
        segmenter(Depth().eval())
    inputs = (torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16))
    assert explain(segmenter(Depth().eval(), target_layers="depth"), inputs)[0].heatmaps.shape[1:] == (16, 16)
