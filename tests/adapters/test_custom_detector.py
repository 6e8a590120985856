"""Detectors of one's own: a hand-set network with known answers, and a real one that other people trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import METHODS, ODAM, EmptyMapWarning, GradCAM, HiResCAM
from detcam.adapters import detector
from detcam.targets import BoxTarget
from tests.adapters.custom_models import fastestdet_decode
from tests.helpers import tensors

STRIDE = 8


class SquareFinder(nn.Module):
    """Fires at cells where it is bright (class 0, red; class 1, green), by the mean over 3x3 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(3, 2, STRIDE, stride=STRIDE, bias=False)
        self.smooth = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
        with torch.no_grad():
            self.pool.weight.zero_()
            self.pool.weight[0, 0] = self.pool.weight[1, 1] = 1 / STRIDE**2
            self.smooth.weight.fill_(1 / 9)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return 12 * self.smooth(torch.relu(self.pool(x))) - 7


def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
    """A box of three cells around every cell; class scores by sigmoid."""
    _, _, height, width = raw.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centers = torch.stack([x, y], -1).reshape(1, -1, 2) * STRIDE
    boxes = torch.cat([centers - 1.5 * STRIDE, centers + 1.5 * STRIDE], -1).expand(len(raw), -1, -1)
    return boxes, raw.sigmoid().flatten(2).transpose(1, 2)


def scene(size_hw: tuple[int, int], squares: list[tuple[int, tuple[int, int, int, int]]]) -> Tensor:
    """Black with bright squares: (channel, box)."""
    image = torch.zeros(3, *size_hw)
    for channel, (x1, y1, x2, y2) in squares:
        image[channel, y1:y2, x1:x2] = 1
    return image


def peak(heatmap: Tensor) -> tuple[int, int]:
    """x and y of the greatest value."""
    y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
    return x, y


BOXES: list[dict[int, tuple[int, int, int, int]]] = [
    {0: (16, 24, 40, 48), 1: (112, 56, 136, 80)},
    {0: (60, 130, 100, 170), 1: (10, 20, 50, 60)},
    {1: (32, 8, 56, 32)},
    {},
]
SIZES = [(96, 160), (200, 120), (64, 64), (128, 128)]
SCENES = [scene(size, list(boxes.items())) for size, boxes in zip(SIZES, BOXES, strict=True)]


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
@pytest.mark.parametrize("layout", ["own size", "stretched", "letterboxed", "top-left"])
@pytest.mark.parametrize("name", ["gradcam", "hirescam", "odam", "layercam", "gradcamplusplus", "xgradcam"])
def test_peak_lies_in_the_right_box_whatever_the_layout(layout: str, name: str) -> None:
    options: dict[str, Any] = {
        "own size": {},
        "stretched": {"image_size": (128, 192)},
        "letterboxed": {"image_size": 160, "letterbox": True},
        "top-left": {"image_size": 160, "letterbox": "top-left"},
    }[layout]
    adapter = detector(SquareFinder(), decode, names=["red", "green"], target_layers=["pool"], **options)
    found = adapter.predict(SCENES)
    assert [sorted(set(one.labels.tolist())) for one in found] == [[0, 1], [0, 1], [1], []]
    results = METHODS[name](adapter).explain(SCENES, found)
    for image, one, truth, result in zip(SCENES, found, BOXES, results, strict=True):
        assert result.heatmaps.shape == (len(one), *image.shape[-2:])
        torch.testing.assert_close(result.scores, one.scores, atol=1e-6, rtol=0)
        for heatmap, label in zip(torch.as_tensor(result.heatmaps), one.labels.tolist(), strict=True):
            x, y = peak(heatmap)
            x1, y1, x2, y2 = truth[label]
            assert x1 <= x < x2 and y1 <= y < y2, f"peak of class {label} at {x}, {y}; object at {truth[label]}"


@pytest.mark.parametrize("options", [{}, {"image_size": (192, 320)}, {"image_size": 320, "letterbox": True}])
def test_boxes_come_back_in_image_pixels(options: dict[str, Any]) -> None:
    adapter = detector(SquareFinder(), decode, **options)
    found = adapter.predict(scene((96, 160), [(0, (64, 24, 88, 48))]))[0]
    zoom = 2.0 if options else 1.0
    sides = found.boxes_xyxy[0, 2:] - found.boxes_xyxy[0, :2]
    torch.testing.assert_close(sides, torch.full((2,), 24.0 / zoom), atol=0.01, rtol=0)
    centers = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    torch.testing.assert_close(centers.mean(0), torch.tensor([76.0, 36.0]), atol=4.0, rtol=0)


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
def test_gradient_equals_autograd_through_the_whole_model() -> None:
    model = SquareFinder()
    adapter = detector(model, decode, target_layers=["pool"])
    found = adapter.predict(SCENES[0])[0]
    result = HiResCAM(adapter).explain(SCENES[0], [found])[0]
    kept: list[Tensor] = []
    handle = model.pool.register_forward_hook(lambda m, i, o: kept.append(o))
    scores = decode(model(SCENES[0][None]))[1][0]
    handle.remove()
    assert len(found) >= 2
    for row in range(len(found)):
        score = scores[found.source[row].anchor, found.labels[row]]
        (gradient,) = torch.autograd.grad(score, kept[0], retain_graph=True)
        expected = (gradient * kept[0]).sum(1)[0].detach()
        torch.testing.assert_close(result.saliency[0][row], expected, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
def test_undetected_boxes_contrast_and_coordinates() -> None:
    adapter = detector(SquareFinder(), decode, names=["red", "green"], target_layers=["pool"])
    dim = SCENES[0] * 0.4
    assert len(adapter.predict(dim)[0]) == 0
    missed = BoxTarget((16, 24, 40, 48), 0)
    raw = SquareFinder()(dim[None])[0].detach()
    result = GradCAM(adapter).explain(dim, [[missed]])[0]
    x, y = peak(torch.as_tensor(result.heatmaps)[0])
    assert 16 <= x < 40 and 24 <= y < 48
    assert float(result.scores[0]) == pytest.approx(float(raw[0, 4, 3].sigmoid()), abs=1e-6)
    raw = SquareFinder()(SCENES[0][None])[0].detach()
    rather = BoxTarget((16, 24, 40, 48), 0, against=1)
    logit = BoxTarget((16, 24, 40, 48), 0, quantity="logit")
    values = GradCAM(adapter).explain(SCENES[0], [[rather, logit]])[0].scores
    assert float(values[0]) == pytest.approx(float(raw[0, 4, 3].sigmoid() - raw[1, 4, 3].sigmoid()), abs=1e-5)
    assert float(values[1]) == pytest.approx(float(raw[0, 4, 3]), abs=1e-3)
    edges = [BoxTarget((16, 24, 40, 48), 0, quantity=q) for q in ("x1", "y2", "width")]  # type: ignore[arg-type]
    with pytest.warns(EmptyMapWarning, match="3 of 3 targets"):
        GradCAM(adapter).explain(SCENES[0], [edges])  # these boxes are fixed, so no pixel moves them


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
def test_mirrored_views_use_the_mirrored_box() -> None:
    adapter = detector(SquareFinder(), decode, target_layers=["pool"])
    found = adapter.predict(SCENES[0])[0]
    smooth = tensors(HiResCAM(adapter)(SCENES[0], [found], aug_smooth=True))[0]
    for heatmap, label in zip(smooth, found.labels.tolist(), strict=True):
        x1, y1, x2, y2 = BOXES[0][label]
        inside = heatmap[y1 - 8 : y2 + 8, x1 - 8 : x2 + 8].sum() / heatmap.sum()
        assert float(inside) > 0.9, "a view with the unmirrored box has its energy elsewhere"


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (lambda raw: raw, TypeError, "boxes_xyxy, class_scores"),
        (lambda raw: (1, 2), TypeError, "return tensors"),
        (lambda raw: (torch.zeros(1, 5, 4), torch.zeros(1, 6, 2)), ValueError, r"boxes \(1, N, 4\)"),
        (lambda raw: (torch.zeros(1, 5, 4), torch.full((1, 5, 2), 3.0)), ValueError, "sigmoid or softmax"),
    ],
)
def test_bad_decoders(bad: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        detector(SquareFinder(), bad).predict(SCENES[0])


def test_bad_boxes_and_labels() -> None:
    adapter = detector(SquareFinder(), decode, names=["red", "green"], target_layers=["pool"])
    for target, words in (
        (BoxTarget((500, 0, 510, 10), 0), "outside the image, which is 160 x 96"),
        (BoxTarget((0, 0, 10, 10), 2), "class index from 0 to 1"),
        (BoxTarget((0, 0, 10, 10), 0, against=7), "class index"),
        (BoxTarget((0, 0, 10, 10), 0, quantity="objectness"), "no objectness"),
    ):
        with pytest.raises(ValueError, match=words):
            GradCAM(adapter)(SCENES[0], [[target]])
    with pytest.raises(ValueError, match="x1 < x2"):
        BoxTarget((10, 10, 10, 20), 0)
    with pytest.raises(ValueError, match="letterbox=True needs image_size"):
        detector(SquareFinder(), decode, letterbox=True)
    with pytest.raises(ValueError, match='True, False or "top-left"'):
        detector(SquareFinder(), decode, letterbox="bottom", image_size=64)  # type: ignore[arg-type]


def test_a_top_left_letterbox_pads_right_and_below() -> None:
    adapter = detector(SquareFinder(), decode, image_size=128, letterbox="top-left", target_layers=["pool"])
    inputs = adapter.prepare([torch.zeros(3, 64, 96)]).inputs[0]
    filled = (inputs == 114 / 255).all(0)
    assert not filled[:85].any() and filled[86:].all() and filled.shape == (128, 128)


@pytest.mark.filterwarnings("ignore")
def test_a_third_party_detector(data: Path) -> None:
    onnx2torch = pytest.importorskip("onnx2torch")
    network = onnx2torch.convert(str(data / "fastestdet" / "fastestdet.onnx")).eval()
    names = (data / "fastestdet" / "coco.names").read_text().split("\n")
    adapter = detector(
        network,
        fastestdet_decode,
        image_size=352,
        preprocess=lambda x: x.flip(0),
        score_threshold=0.55,
        max_batch_size=1,  # the exported graph is for one image
        names=names,
    )
    several = adapter.predict([data / "photos" / "bus.jpg", data / "photos" / "dog_cat.png"])
    assert [len(one) > 0 for one in several] == [True, True]
    wanted = {"bus.jpg": ["bus"], "dog_cat.png": ["dog", "cat"], "baseball.jpg": ["person"], "horses.jpg": ["horse"]}
    for photo, classes in wanted.items():
        found = adapter.predict(data / "photos" / photo)[0]
        seen = [found.name(i) for i in range(len(found))]
        result = ODAM(adapter).explain(data / "photos" / photo, [found])[0]
        torch.testing.assert_close(result.scores, found.scores, atol=1e-5, rtol=0)
        for name in classes:
            assert name in seen, f"{photo}: {seen}"
            index = seen.index(name)
            x1, y1, x2, y2 = found.boxes_xyxy[index].round().int().tolist()
            heatmap = torch.as_tensor(result.heatmaps)[index]
            inside = float(heatmap[y1:y2, x1:x2].sum() / heatmap.sum())
            share = (x2 - x1) * (y2 - y1) / heatmap.numel()
            x, y = peak(heatmap)
            assert x1 <= x < x2 and y1 <= y < y2, f"{photo}: the peak of {name} lies outside its box"
            assert inside > min(2 * share, share + 0.2 * (1 - share)), (
                f"{photo}: {name} {inside:.2f} of a share of {share:.2f}"
            )


class OneAtATime(SquareFinder):
    """As exported networks often are: the number of images is fixed."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise RuntimeError(f"expected one image; got {len(x)}")
        return super().forward(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["occlusion", "drise", "probecam", "reachcam", "scorecam", "ablationcam", "reciprocam"]
)
def test_networks_for_single_images_get_one_image_per_call(name: str) -> None:
    options: dict[str, Any] = {"drise": {"passes": 8}, "occlusion": {"grid": 4, "window": 1}}.get(name, {})
    maps = []
    for network, most in ((SquareFinder(), None), (OneAtATime(), 1)):
        adapter = detector(network, decode, names=["red", "green"], target_layers=["pool"], max_batch_size=most)
        target = BoxTarget((16, 24, 40, 48), 0, adapter.predict(SCENES[0])[0][:1].source[0])
        maps.append(tensors(METHODS[name](adapter, **options)([SCENES[0], SCENES[0]], [[target], [target]])))
    for one, other in zip(*maps, strict=True):
        assert bool(one.any())
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


class SpaceToDepth(nn.Module):
    """Moves space to depth before its first convolution, as YOLOX does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4 * channels, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(nn.functional.pixel_unshuffle(x, 2)))


@pytest.mark.filterwarnings("ignore::detcam.ReachWarning")
@pytest.mark.parametrize("options", [{}, {"target_layers": ["first"]}])
def test_channels_of_a_network_that_moves_space_to_depth(options: dict[str, Any]) -> None:
    def read(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, w, h, logit = raw.flatten(2).unbind(1)
        boxes = torch.stack([x - w.exp(), y - h.exp(), x + w.exp(), y + h.exp()], -1)
        return boxes, logit.sigmoid()[..., None]

    for channels in (3, 1):
        assert detector(SpaceToDepth(channels).eval(), read, image_size=64, **options).channels == channels
    twelve = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 5, 8, stride=8)).eval()
    assert detector(twelve, read, image_size=64).channels == 12
