"""LeGrad and Chefer's method on detectors with queries: a small DETR in float64, and RT-DETR's sampling points."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam.adapters import adapt, detector
from detcam.cam import BaseCAM
from detcam.methods.attention_rollout import AttentionRollout
from detcam.methods.chefer_cam import CheferCAM
from detcam.methods.common.attention_base import NoAttentionError
from detcam.methods.legrad import LeGrad
from detcam.targets import BoxTarget
from tests.helpers import Snapshot, tensors
from tests.methods.transformers import TinyDETR, attention_rows, decode, tiny_detr
from tests.zoo import example, wake

IMAGES = [torch.rand(3, *size, generator=torch.Generator().manual_seed(8)) for size in ((40, 60), (32, 48))]


class Slow:
    """The small DETR on one image (1, 3, 32, 48), in float64, attention row by row.

    Attributes:
        kinds: per attention layer, in order, "image", "queries" or "cross".
        maps: per attention layer, the probabilities (heads, Q, K), standing in one graph.
        outputs: per decoder layer, the queries (Q, C).
    """

    def __init__(self, model: TinyDETR, image: Tensor) -> None:
        self.model = model = copy.deepcopy(model).double()
        self.kinds: list[str] = []
        self.maps: list[Tensor] = []
        self.outputs: list[Tensor] = []
        tokens = model.backbone(image.double()).flatten(2)[0].T
        memory = tokens + model.positions
        layer: Any
        for layer in model.encoder.layers:
            memory = layer.norm1(memory + self._attend("image", layer.self_attn, memory, memory))
            memory = layer.norm2(memory + layer.linear2(layer.linear1(memory).relu()))
        found = model.queries
        for layer in model.decoder.layers:
            found = layer.norm1(found + self._attend("queries", layer.self_attn, found, found))
            found = layer.norm2(found + self._attend("cross", layer.multihead_attn, found, memory))
            found = layer.norm3(found + layer.linear2(layer.linear1(found).relu()))
            self.outputs.append(found)

    def _attend(self, kind: str, layer: Any, queries: Tensor, keys: Tensor) -> Tensor:
        weights, biases = layer.in_proj_weight.split(16), layer.in_proj_bias.split(16)
        query = queries @ weights[0].T + biases[0]
        key, value = (keys @ weights[i].T + biases[i] for i in (1, 2))
        self.kinds.append(kind)
        self.maps.append(attention_rows(query, key))
        mixed = torch.cat([one @ value[:, 8 * h : 8 * h + 8] for h, one in enumerate(self.maps[-1])], 1)
        return layer.out_proj(mixed)

    def read(self, query: int, label: int, layer: int = -1) -> Tensor:
        """The class score of a query, as the head computes it from a decoder layer."""
        return self.model.classes(self.outputs[layer])[query, label].sigmoid()

    def chefer(self, score: Tensor, query: int) -> Tensor:
        """Equations 5 to 10 of the paper, in order; the query's row (tokens)."""
        gradients = torch.autograd.grad(score, self.maps, retain_graph=True)
        tokens, queries = self.maps[0].shape[-1], len(self.outputs[0])
        r_ii, r_qq = torch.eye(tokens).double(), torch.eye(queries).double()
        r_qi = torch.zeros(queries, tokens).double()
        for kind, probabilities, gradient in zip(self.kinds, self.maps, gradients, strict=True):
            weighted = sum((p * g).clamp(min=0) for p, g in zip(probabilities, gradient, strict=True)) / 2
            if kind == "image":
                r_ii = r_ii + weighted @ r_ii
            elif kind == "queries":
                r_qi = r_qi + weighted @ r_qi
                r_qq = r_qq + weighted @ r_qq
            else:
                r_qi = r_qi + evened(r_qq).T @ weighted @ evened(r_ii)
        return r_qi[query]

    def legrad(self, query: int, label: int) -> Tensor:
        """The mean over decoder layers, heads and queries of the gradient's positive part (tokens)."""
        crosses = [probabilities for kind, probabilities in zip(self.kinds, self.maps, strict=True) if kind == "cross"]
        total = torch.zeros(crosses[0].shape[-1]).double()
        for layer, probabilities in enumerate(crosses):
            score = self.read(query, label, layer)
            (gradient,) = torch.autograd.grad(score, probabilities, retain_graph=True)
            for head in gradient:
                for row in head:
                    total += row.clamp(min=0) / (len(gradient) * len(head) * len(crosses))
        return total


def evened(relevance: Tensor) -> Tensor:
    """What is beside the identity, with rows that sum to 1 where they sum to anything, and the identity."""
    found = torch.eye(len(relevance)).double()
    for i, row in enumerate(relevance - found):
        if float(row.detach().sum()) > 0:
            found[i] += row / row.sum()
    return found


def inputs_of(adapter: Any, image: Tensor) -> Tensor:
    return adapter.prepare([image]).inputs


@pytest.mark.parametrize("queries", [5, 24])  # 24 are as many as the image has tokens
@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
def test_a_box_is_explained_by_its_query(method: type[BaseCAM], queries: int) -> None:
    model, adapter = tiny_detr(queries=queries)
    found = [one.filter(top_k=3) for one in adapter.predict(IMAGES)]
    before = Snapshot(model)
    results = method(adapter).explain(IMAGES, found)
    before.check()
    for image, one, result in zip(IMAGES, found, results, strict=True):
        assert result.heatmaps.shape == (3, *image.shape[1:]) and float(torch.as_tensor(result.heatmaps).amax()) > 0.999
        assert len({source.anchor for source in one.source}) == 3
        slow = Slow(model, inputs_of(adapter, image))
        for index, (label, source) in enumerate(zip(one.labels.tolist(), one.source, strict=True)):
            score = slow.read(source.anchor, label)
            assert float(result.scores[index]) == pytest.approx(float(score.detach()), abs=1e-5)
            if method is LeGrad:
                expected = slow.legrad(source.anchor, label).view(4, 6)
            else:
                expected = slow.chefer(score, source.anchor).detach().view(4, 6)
            saliency = result.saliency[0][index].double()
            torch.testing.assert_close(saliency, expected, atol=2e-4 * float(expected.max()), rtol=0)


def test_an_undetected_box_and_a_coordinate() -> None:
    model, adapter = tiny_detr()
    box = (10.0, 5.0, 35.0, 30.0)
    missed, width = BoxTarget(box, 1), BoxTarget(box, 1, quantity="width")
    result = CheferCAM(adapter).explain(IMAGES[1], [[missed, width]])[0]
    slow = Slow(model, inputs_of(adapter, IMAGES[1]))
    with torch.no_grad():
        boxes, scores = decode(model(inputs_of(adapter, IMAGES[1])))
    own = int((box_iou(torch.tensor([box]), boxes[0])[0] * scores[0, :, 1]).argmax())
    extent = slow.model.boxes(slow.outputs[-1])[own, 2].sigmoid() * 0.4 * 48
    for index, score in enumerate((slow.read(own, 1), extent)):
        expected = slow.chefer(score, own).detach().view(4, 6)
        saliency = result.saliency[0][index].double()
        torch.testing.assert_close(saliency, expected, atol=2e-4 * float(expected.max()), rtol=0)


def test_an_undetected_box_keeps_its_query_in_every_layer() -> None:
    model, adapter = tiny_detr()
    inputs = inputs_of(adapter, IMAGES[1])
    slow = Slow(model, inputs)
    with torch.no_grad():
        per_layer = [decode((model.boxes(x).sigmoid(), model.classes(x))) for x in _behind_each_layer(model, inputs)]
    found = []
    for x1, y1 in ((0.0, 15.0), (0.0, 20.0), (3.0, 22.0), (0.0, 25.0), (-6.0, 21.0)):
        box = (x1, y1, x1 + 18, y1 + 10)
        best = [int((box_iou(torch.tensor([box]), b[0])[0] * s[0, :, 1]).argmax()) for b, s in per_layer]
        found.append((BoxTarget(box, 1), best[-1], len(set(best)) > 1))
    assert any(differs for _, _, differs in found), "another query fits at an earlier layer, or nothing was tested"
    result = LeGrad(adapter).explain(IMAGES[1], [[target for target, _, _ in found]])[0]
    for index, (_, own, _) in enumerate(found):
        expected = slow.legrad(own, 1).view(4, 6)
        saliency = result.saliency[0][index].double()
        torch.testing.assert_close(saliency, expected, atol=2e-4 * float(expected.max()), rtol=0)


def _behind_each_layer(model: TinyDETR, inputs: Tensor) -> list[Tensor]:
    """What each decoder layer puts out (1, Q, C)."""
    held: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda m, i, output: held.append(output)) for layer in model.decoder.layers]
    model(inputs)
    for handle in handles:
        handle.remove()
    return held


@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
def test_a_decoder_layer_that_runs_several_times(method: type[BaseCAM]) -> None:
    model, adapter = tiny_detr()
    model.decoder.layers = nn.ModuleList([model.decoder.layers[0]] * 3)
    found = adapter.predict(IMAGES[1])[0].filter(top_k=1)
    if method is LeGrad:  # what the head would read of each run cannot be distinguished
        with pytest.raises(NoAttentionError, match="runs the same attention several times"):
            method(adapter)(IMAGES[1], [found])
        return
    result = method(adapter).explain(IMAGES[1], [found])[0]
    slow, own = Slow(model, inputs_of(adapter, IMAGES[1])), found.source[0].anchor
    expected = slow.chefer(slow.read(own, int(found.labels[0])), own).detach().view(4, 6)
    torch.testing.assert_close(result.saliency[0][0], expected, atol=2e-4 * float(expected.max()), rtol=0)


def test_a_score_that_several_queries_share_is_explained_by_its_source() -> None:
    model, _ = tiny_detr()

    def shared(raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return decode(raw)[0], raw[1].softmax(1)  # over queries: each has a part in every score

    options: dict[str, Any] = {"image_size": (32, 48), "score_threshold": 0.0, "iou_threshold": 1.0}
    adapter = detector(model, shared, target_layers="backbone", **options)
    found = adapter.predict(IMAGES[1])[0].filter(top_k=3)
    result = CheferCAM(adapter).explain(IMAGES[1], [found])[0]
    slow = Slow(model, inputs_of(adapter, IMAGES[1]))
    for index, (label, source) in enumerate(zip(found.labels.tolist(), found.source, strict=True)):
        score = slow.model.classes(slow.outputs[-1]).softmax(0)[source.anchor, label]
        expected = slow.chefer(score, source.anchor).detach().view(4, 6)
        saliency = result.saliency[0][index].double()
        torch.testing.assert_close(saliency, expected, atol=2e-4 * float(expected.max()), rtol=0)


@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
def test_maps_do_not_depend_on_the_batch(method: type[BaseCAM]) -> None:
    _, adapter = tiny_detr()
    found = [one.filter(top_k=top) for one, top in zip(adapter.predict(IMAGES), (3, 1), strict=True)]
    cam = method(adapter)
    together = tensors(cam(IMAGES, found))
    for image, one, maps in zip(IMAGES, found, together, strict=True):
        for index in range(len(one)):
            torch.testing.assert_close(tensors(cam(image, [one[index]]))[0], maps[index : index + 1], atol=1e-5, rtol=0)
    empty = tensors(cam(IMAGES, [found[0][[]], found[1]]))
    assert empty[0].shape == (0, 40, 60)
    torch.testing.assert_close(empty[1], together[1], atol=1e-5, rtol=0)
    assert [maps.shape for maps in tensors(cam(IMAGES, [one[[]] for one in found]))] == [(0, 40, 60), (0, 32, 48)]


class Interrupted(Exception):
    """Raised half-way on purpose."""


@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
@pytest.mark.parametrize("where", ["target", "layer"])
def test_a_failure_restores_the_model(method: type[BaseCAM], where: str) -> None:
    model, adapter = tiny_detr()
    found = adapter.predict(IMAGES)
    before = Snapshot(model)

    def fails(*inputs: Any, **kwargs: Any) -> Tensor:
        raise Interrupted

    cam = method(adapter)
    layer: Any = model.decoder.layers[1]
    plain = layer.linear1.forward
    if where == "layer":
        layer.linear1.forward = fails
    try:
        with pytest.raises(Interrupted):
            cam.explain(IMAGES, found if where == "layer" else [[fails], [fails]])
    finally:
        layer.linear1.forward = plain
        del layer.linear1.forward
    before.check()
    assert not any("forward" in vars(module) for module in model.modules())


def test_unsupported_models_raise() -> None:
    _, adapter = tiny_detr()
    with pytest.raises(TypeError, match="AttentionRollout does not explain detection"):
        AttentionRollout(adapter)(IMAGES, adapter.predict(IMAGES))
    case = example("yolo")
    with pytest.raises(NoAttentionError, match="no query of DetectionModel attends to the image"):
        CheferCAM(case.adapter)(case.images, case.adapter.predict(case.images))


@pytest.fixture(scope="module")
def rtdetr() -> tuple[Any, Any]:
    """RT-DETR with seeded weights, louder in its decoder, where what ultralytics starts with attends evenly."""
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
    torch.manual_seed(9)
    architecture = tasks.yaml_model_load("yolov8n-rtdetr.yaml")
    architecture["head"][-1][-1] = ["nc", 256, 60, 4, 8, 3]  # 60 queries and three layers, instead of 300 and six
    model = tasks.RTDETRDetectionModel(architecture, nc=3, verbose=False).eval()
    wake(model, torch.rand(8, 3, 64, 96))
    for parameter in model.model[-1].decoder.layers.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape)
    return model, adapt(model, image_size=(64, 96), conf=0.0, max_det=3)


class Watched:
    """RT-DETR's decoder on one image, with explicit attention: probabilities, sampling locations, weights."""

    def __init__(self, adapter: Any, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        from ultralytics.nn.modules import transformer

        self.among: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.locations: list[Tensor] = []
        self.grids: list[tuple[int, int]] = []
        plain = transformer.multi_scale_deformable_attn_pytorch

        def sampled(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
            self.grids = [tuple(shape) for shape in shapes]
            self.locations.append(locations.detach()[0])
            self.weights.append(weights)
            return plain(value, shapes, locations, weights)

        def attend(layer: nn.MultiheadAttention) -> Any:
            def forward(query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None) -> tuple[Tensor, None]:
                weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
                parts = [
                    (x[:, 0] @ w.T + b).unflatten(1, (layer.num_heads, -1)).transpose(0, 1)
                    for x, w, b in zip((query, key, value), weights, biases, strict=True)
                ]
                self.among.append((parts[0] @ parts[1].mT / parts[0].shape[-1] ** 0.5).softmax(-1))
                return layer.out_proj((self.among[-1] @ parts[2]).transpose(0, 1).flatten(1))[:, None], None

            return forward

        monkeypatch.setattr(transformer, "multi_scale_deformable_attn_pytorch", sampled)
        for layer in adapter.head.decoder.layers:
            monkeypatch.setattr(layer.self_attn, "forward", attend(layer.self_attn))
        batch = adapter.prepare([image])
        self.output = adapter.outputs(adapter.forward(batch), batch)[0]

    def dense(self, layer: int, values: Tensor) -> Tensor:
        """Numbers per head and point (Q, heads, points) as numbers per token (Q, tokens), the mean over heads."""
        per_level = values.shape[2] // len(self.grids)
        found = []
        for level, (rows, columns) in enumerate(self.grids):
            basis = torch.eye(rows * columns).view(1, rows * columns, rows, columns)
            part = slice(level * per_level, (level + 1) * per_level)
            locations = self.locations[layer][:, :, part].flatten(0, 1)[None] * 2 - 1
            read = F.grid_sample(basis, locations, align_corners=False)[0].unflatten(1, values.shape[:2])
            found.append(torch.einsum("nqhp,qhp->qn", read, values[:, :, part]) / values.shape[1])
        return torch.cat(found, 1)

    def on_finest(self, tokens: Tensor) -> Tensor:
        """All levels (tokens) added up on the finest grid; a coarse cell's number is shared out evenly."""
        rows, columns = self.grids[0]
        total = torch.zeros(rows, columns)
        for (h, w), level in zip(self.grids, tokens.split([h * w for h, w in self.grids]), strict=True):
            spread = F.interpolate(level.view(1, 1, h, w), (rows, columns), mode="bilinear", align_corners=False)
            total += spread[0, 0] * (h * w) / (rows * columns)
        return total


@pytest.mark.filterwarnings("ignore")
def test_rtdetr_equals_a_direct_implementation(rtdetr: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapter = rtdetr
    image = IMAGES[0]
    found = adapter.predict(image)[0].filter(top_k=2)
    chefer, legrad = (cam.explain(image, [found])[0] for cam in (CheferCAM(adapter), LeGrad(adapter, depth=1)))
    watched = Watched(adapter, image, monkeypatch)
    queries = len(watched.among[0][0])
    for index, source in enumerate(found.source):
        score = watched.output.logits[source.anchor, found.labels[index]].sigmoid()
        assert float(chefer.scores[index]) == pytest.approx(float(score.detach()), abs=1e-5)
        tensors = [*watched.among, *watched.weights]
        gradients = torch.autograd.grad(score, tensors, retain_graph=True)
        r_qq, r_qi = torch.eye(queries), torch.zeros(queries, sum(h * w for h, w in watched.grids))
        for layer in range(len(watched.weights)):
            among = (watched.among[layer] * gradients[layer]).clamp(min=0).mean(0).detach()
            r_qi = r_qi + among @ r_qi
            r_qq = r_qq + among @ r_qq
            weighted = (watched.weights[layer] * gradients[len(watched.weights) + layer]).clamp(min=0)[0].detach()
            r_qi = r_qi + evened(r_qq.double()).float().T @ watched.dense(layer, weighted)
        helpful = watched.dense(-1, gradients[-1].clamp(min=0)[0]).mean(0)
        for result, tokens in ((chefer, r_qi[source.anchor]), (legrad, helpful)):
            expected, scale = watched.on_finest(tokens), float(tokens.max())
            torch.testing.assert_close(result.saliency[0][index].float(), expected, atol=1e-3 * scale, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [LeGrad, CheferCAM])
def test_rtdetr_alone_and_in_a_batch(rtdetr: tuple[Any, Any], method: type[BaseCAM]) -> None:
    model, adapter = rtdetr
    found = adapter.predict(IMAGES)
    before = Snapshot(model)
    together = method(adapter).explain(IMAGES, found)
    before.check()
    for image, one, result in zip(IMAGES, found, together, strict=True):
        assert len(one) == 3 and result.heatmaps.shape == (3, *image.shape[1:])
        alone = method(adapter).explain(image, [one[[1]]])[0]
        torch.testing.assert_close(
            torch.as_tensor(alone.heatmaps)[0], torch.as_tensor(result.heatmaps)[1], atol=1e-4, rtol=0
        )
