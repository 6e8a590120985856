"""Decode functions that reorder or drop rows, that return what is not expected, and networks of a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import ODAM, explain
from detcam.adapters import detector
from detcam.diagnostics import ReachWarning
from detcam.targets import BoxTarget

SIDE = 16
ROW = {"a": 0, "b": 5}
"""Cells of the bright squares, of 2 x 3 cells in all."""

pytestmark = pytest.mark.filterwarnings("ignore::detcam.diagnostics.ReachWarning")


class Brightness(nn.Module):
    """The score of each of 2 x 3 cells is its mean brightness, so that evidence for a cell is in that cell alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        self.conv.weight.data.fill_(1 / 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = nn.functional.avg_pool2d(self.conv(x), SIDE).flatten(1).clamp(0, 1)
        y, x = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
        boxes = SIDE * torch.stack([x, y, x + 1, y + 1], -1).flatten(0, 1).float()
        return boxes.expand(len(scores), -1, -1), scores[..., None]


def in_place(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return output


def sort(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    order = output[1][..., 0].argsort(1, descending=True)[..., None]
    return output[0].gather(1, order.expand(-1, -1, 4)), output[1].gather(1, order)


def with_index(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    order = output[1][..., 0].argsort(1, descending=True)
    return *sort(output), order


def threshold(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    boxes, scores = sort(output)
    count = int((scores > 0.3).sum(1).max())
    return boxes[:, :count], scores[:, :count]


DECODES = {f.__name__: f for f in (in_place, sort, with_index, threshold)}


@pytest.fixture
def image() -> Tensor:
    image = torch.zeros(3, 2 * SIDE, 3 * SIDE)
    image[:, :SIDE, :SIDE] = 0.9
    image[:, SIDE:, 2 * SIDE :] = 0.8
    return image


@pytest.mark.parametrize("decode", DECODES.values(), ids=DECODES)
@pytest.mark.parametrize("method", ["odam", "occlusion:grid=12,window=4", "vps:regions=20"])
def test_evidence_is_that_of_the_box_in_whatever_order(decode: Any, method: str, image: Tensor) -> None:
    adapter = detector(Brightness().eval(), decode, image_size=(2 * SIDE, 3 * SIDE), target_layers="conv")
    assert adapter.rows_are_sources == (decode is in_place)
    (explanation,) = explain(adapter, image, method)
    assert [round(float(score), 1) for score in explanation.scores] == [0.9, 0.8]
    for heatmap, (rows, columns) in zip(explanation.heatmaps, (((0, SIDE),) * 2, ((SIDE, 32), (32, 48))), strict=True):
        inside = heatmap[rows[0] : rows[1], columns[0] : columns[1]]
        assert inside.max() == heatmap.max() == 1 and inside.sum() > 0.6 * heatmap.sum()


@pytest.mark.parametrize("decode", [sort, with_index, threshold], ids=["sort", "with_index", "threshold"])
def test_a_box_that_is_gone_has_no_score(decode: Any, image: Tensor) -> None:
    adapter = detector(Brightness().eval(), decode, image_size=(2 * SIDE, 3 * SIDE), target_layers="conv")
    (found,) = adapter.predict(image)
    dark = image.clone()
    dark[:, SIDE:] = 0
    for batch in (adapter.prepare([dark]), adapter.prepare([dark * 0])):
        (output,) = adapter.outputs(adapter.forward(batch), batch)
        scores = output.candidates(adapter.targets_of(found)).class_scores  # type: ignore[arg-type]
        assert float(scores[1]) == 0


def test_no_candidate_at_all() -> None:
    empty = lambda output: (output[0][:, :0], output[1][:, :0])  # noqa: E731
    adapter = detector(Brightness().eval(), empty, image_size=(32, 48), target_layers="conv")
    assert len(adapter.predict(torch.rand(3, 32, 48))[0]) == 0
    assert explain(adapter, torch.rand(3, 32, 48))[0].heatmaps.shape == (0, 32, 48)
    assert explain(adapter, torch.rand(3, 32, 48), "occlusion", [BoxTarget((0, 0, 9, 9), 0)])[0].heatmaps.max() == 0
    with pytest.raises(RuntimeError, match="no box for a noise image.*target_layers="):
        detector(Brightness().eval(), empty, image_size=(32, 48))


class Raw(nn.Module):
    """A network whose output is constant, (1, 4 + C, N) as ultralytics': center, size and class scores."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.T[None])
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows + 0 * self.conv(x).mean()


def centers(output: Tensor) -> tuple[Tensor, Tensor]:
    rows = output.mT
    return torch.cat([rows[..., :2] - rows[..., 2:4] / 2, rows[..., :2] + rows[..., 2:4] / 2], -1), rows[..., 4:]


@pytest.mark.peers
def test_suppression_at_the_border_is_that_of_ultralytics() -> None:
    nms = pytest.importorskip("ultralytics.utils.nms")
    random = torch.Generator().manual_seed(3)
    center, size = 64 * torch.rand(200, 2, generator=random), 8 + 40 * torch.rand(200, 2, generator=random)
    rows = torch.cat([center, size, torch.rand(200, 3, generator=random)], 1)
    adapter = detector(
        Raw(rows).eval(), centers, image_size=64, target_layers="conv", iou_threshold=0.45, max_detections=300
    )
    (found,) = adapter.predict(torch.rand(3, 64, 64))
    theirs = nms.non_max_suppression(rows.T[None].clone(), 0.25, 0.45)[0]
    assert len(found) == len(theirs) > 20
    torch.testing.assert_close(found.boxes_xyxy, theirs[:, :4].clamp(0, 64))
    torch.testing.assert_close(found.scores, theirs[:, 4])
    assert found.labels.tolist() == theirs[:, 5].tolist()


def test_boxes_that_overlap_only_where_they_are_clipped_are_both_kept() -> None:
    """Their overlap is 1/2 of the union; clipped to the image, the boxes are equal."""
    rows = torch.tensor([[0.0, 32, 32, 16, 0.9], [8.0, 32, 16, 16, 0.8], [-40, 32, 20, 20, 0.7]])
    adapter = detector(Raw(rows).eval(), centers, image_size=64, target_layers="conv", iou_threshold=0.6)
    (found,) = adapter.predict(torch.rand(3, 64, 64))
    assert found.boxes_xyxy.tolist() == [[0, 24, 16, 40], [0, 24, 16, 40]]  # the third is outside of the image


def refused(decode: Callable[[Any], Any], **options: Any) -> Callable[[], Any]:
    options = {"image_size": (32, 48), "target_layers": "conv", "score_threshold": 0.1, **options}
    return lambda: ODAM(detector(Brightness().eval(), decode, **options)).explain(torch.ones(3, 32, 48) * 0.5)


REFUSED = {
    "detached": (refused(lambda o: (o[0], o[1].detach())), RuntimeError, "must not detach.*drise or occlusion"),
    "NumPy": (refused(lambda o: tuple(torch.tensor(p.detach().numpy()) for p in o)), RuntimeError, "must not detach"),
    "NaN": (refused(lambda o: (o[0], o[1] * float("nan"))), ValueError, "are NaN"),
    "logits": (refused(lambda o: (o[0], o[1] * 9)), ValueError, "apply sigmoid or softmax"),
    "fractions": (refused(lambda o: (o[0] / 48, o[1])), ValueError, "Multiply x by the input's width 48 and y"),
    "xywh": (
        refused(lambda o: (torch.cat([o[0][..., :2], o[0][..., 2:] - o[0][..., :2]], -1), o[1])),
        ValueError,
        "x2 <= x1 or y2 <= y1.*box_convert",
    ),
    "dictionaries": (
        refused(lambda o: [{"boxes": o[0][0], "scores": o[1][0]}]),
        TypeError,
        r"a result per image(.|\n)*max_batch_size=1",
    ),
    "one score a box": (refused(lambda o: (o[0], o[1][..., 0])), ValueError, r"scores\[..., None\]"),
    "one tensor": (refused(lambda o: o[0]), TypeError, r"got float32 \(1, 6, 4\)"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_decode_must_not_return(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_detached_scores_serve_methods_without_gradients(image: Tensor) -> None:
    adapter = detector(Brightness().eval(), lambda o: (o[0], o[1].detach()), image_size=(32, 48), target_layers="conv")
    (explanation,) = explain(adapter, image, "occlusion:grid=6,window=2")
    assert explanation.heatmaps[1][SIDE:, 32:].max() == 1


@pytest.mark.parametrize("fixed", [lambda x: x.reshape(1, 3, 32, 48), lambda x: x.reshape(1, 3, -1, 48)])
def test_a_network_of_fixed_batch_size_gets_one_image_at_a_time(fixed: Any, image: Tensor) -> None:
    class Export(Brightness):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(fixed(x))

    adapter = detector(Export().eval(), in_place, image_size=(32, 48), target_layers="conv")
    assert adapter.max_batch_size == 1 and adapter.rows_are_sources
    assert [len(found) for found in adapter.predict([image, image, image])] == [2, 2, 2]
    assert detector(Brightness().eval(), in_place, image_size=(32, 48), target_layers="conv").max_batch_size is None
    (explanation,) = explain(adapter, image, "occlusion:grid=6,window=2")
    assert explanation.heatmaps[1][SIDE:, 32:].max() == 1


def test_a_default_layer_of_short_reach_is_reported() -> None:
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)]

    def decode(output: Tensor) -> tuple[Tensor, Tensor]:
        rows = output.flatten(2).mT
        y, x = torch.meshgrid(*(torch.arange(n) * 4.0 for n in output.shape[-2:]), indexing="ij")
        corner = torch.stack([x, y], -1).flatten(0, 1).expand(len(rows), -1, -1)
        return torch.cat([corner, corner + 8], -1), rows[..., 4:].sigmoid()

    with pytest.warns(ReachWarning, match="no layer of Sequential reaches half of the image.*target_layers="):
        adapter = detector(nn.Sequential(*body).eval(), decode, image_size=64)
    assert adapter.layer_names == ["1"]


def test_the_layer_that_makes_the_boxes_is_no_default() -> None:
    """One cell of its coarse grid is a larger fraction than nine cells of the fine one, and a map of it is one cell."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 4, 1)).eval()

    def decode(output: Tensor) -> tuple[Tensor, Tensor]:
        rows = output.flatten(2).mT
        y, x = torch.meshgrid(*(torch.arange(n) * 16.0 for n in output.shape[-2:]), indexing="ij")
        corner = torch.stack([x, y], -1).flatten(0, 1).expand(len(rows), -1, -1)
        return torch.cat([corner, corner + 16], -1), rows[..., 4:].sigmoid()

    with pytest.warns(ReachWarning, match="reaches half of the image.*; 1 is the target layer"):
        assert detector(model, decode, image_size=96).layer_names == ["1"]


@pytest.mark.parametrize("side", [96, 256])
@pytest.mark.parametrize(
    ("convolutions", "expected"),
    [
        ([(3, 2), (3, 2), (3, 2), (3, 2)], "3"),
        ([(3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 1)], "3"),
        ([(3, 1), (3, 2)] * 4, "5"),
        ([(8, 8), (3, 1), (3, 1)], "1"),
    ],
    ids=["strided", "mixed", "VGG", "patches"],
)
def test_a_default_layer_of_short_reach_lies_in_the_middle(
    convolutions: list[tuple[int, int]], expected: str, side: int
) -> None:
    """It keeps 80% of the reach of the first layer, whatever the input's size."""
    layers: list[nn.Module] = []
    for kernel, stride in convolutions:
        layers += [nn.Conv2d(8 if layers else 3, 8, kernel, stride, kernel // 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 6, 1)).eval()

    def decode(output: Tensor) -> tuple[Tensor, Tensor]:
        rows, step = output.flatten(2).mT, side / output.shape[-1]
        y, x = torch.meshgrid(*(torch.arange(n) * step for n in output.shape[-2:]), indexing="ij")
        corner = torch.stack([x, y], -1).flatten(0, 1).expand(len(rows), -1, -1)
        return torch.cat([corner, corner + step], -1), rows[..., 4:].sigmoid()

    assert detector(model, decode, image_size=side).layer_names == [expected]
