"""Every example runs offline, and its heatmaps cover the known evidence."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from detcam.adapters import ADAPTERS
from detcam.explanation.writer import read_heatmap
from detcam.synthetic.harbor import HarborScene, draw_scene
from detcam.visualize.concepts import concept_colors

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_"))
ZOOM = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore::detcam.ReachWarning"),
    pytest.mark.filterwarnings("ignore:the maps of:UserWarning"),
]


@dataclass
class Run:
    """A finished run of an example.

    Attributes:
        module: The example's module.
        out: Output folder.
        figure: Path of the figure or report, as returned by `main`.
    """

    module: ModuleType
    out: Path
    figure: Path

    def targets(self, folder: str = ".") -> list[dict[str, Any]]:
        """Return the targets in ``explanations.json``, each with its `values` and its `drawing` (the overlay)."""
        images = json.loads((self.out / folder / "explanations.json").read_text())["images"]
        targets = [target for image in images for target in image["targets"]]
        for target in targets:
            target["values"] = read_heatmap(self.out / folder / target["heatmap"])
            target["drawing"] = np.array(Image.open(self.out / folder / target["overlay"]))
        return targets


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    """Import examples with their folder on the path, as a script does; undo imports and registrations afterwards."""
    before, adapters = set(sys.modules), set(ADAPTERS)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - before:
        if name in NAMES or name == "_common":
            del sys.modules[name]
    for name in set(ADAPTERS) - adapters:
        ADAPTERS.unregister(name)


@pytest.fixture(scope="module", autouse=True)
def shared_training(modules: Callable[[str], ModuleType]) -> None:
    """Train the classifier of several examples once."""
    module: Any = modules("classification")
    train, harbor_crops = module.train, functools.cache(module.harbor_crops)
    trained = functools.cache(lambda steps: train(module.small_network(), *harbor_crops(), steps=steps))
    module.harbor_crops = harbor_crops
    module.train = lambda network, images, classes, steps: copy.deepcopy(trained(steps))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the example accesses the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def run(modules: Callable[[str], ModuleType], tmp_path: Path, offline: None) -> Callable[..., Run]:
    def call(name: str, *arguments: str) -> Run:
        module = modules(name)
        folder = "--output-dir" if name == "classification" else "--out"
        return Run(module, tmp_path, module.main([*arguments, folder, str(tmp_path)]))

    return call


def energy(heatmap: np.ndarray, region: np.ndarray, margin: int = 0) -> float:
    """Fraction of a heatmap's sum in a region dilated by a margin."""
    dilated = cv2.dilate(region.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) > 0
    return float(heatmap[dilated].sum() / heatmap.sum())


def energy_in_box(target: dict[str, Any], margin: int = 0) -> float:
    """Fraction of a heatmap's sum in the target's box."""
    region = np.zeros(target["values"].shape, bool)
    x1, y1, x2, y2 = (round(value) for value in target["box_xyxy"])
    region[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return energy(target["values"], region, margin)


def region(scene: HarborScene, *kinds: str, zoom: int = ZOOM) -> np.ndarray:
    """Pixels of all objects of the given kinds."""
    mask = np.any([item.mask for item in scene.objects if item.kind in kinds], axis=0)
    return mask.repeat(zoom, axis=0).repeat(zoom, axis=1)


def is_drawn(target: dict[str, Any], image: np.ndarray) -> bool:
    """Whether the overlay changes the image where the heatmap is high, and nowhere else."""
    height, width = image.shape[:2]
    change = np.abs(target["drawing"][:height, :width].astype(int) - image).max(-1)
    high, low = target["values"] > 0.6 * target["values"].max(), target["values"] < 0.01
    return bool(change[high].mean() > 10 and (change[low] > 8).mean() < 0.02)


def zoomed(scene: HarborScene) -> np.ndarray:
    return scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short_and_documents_its_command(
    name: str, modules: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 80
    assert f"python examples/{name}.py" in text
    with pytest.raises(SystemExit) as stop:
        modules(name).main(["--help"])
    assert stop.value.code == 0
    assert text.splitlines()[0].strip('"') in " ".join(capsys.readouterr().out.split())


def test_faster_rcnn_heatmaps_lie_on_buoys_and_on_the_wakes_of_boats(run: Callable[..., Run]) -> None:
    result, scene = run("faster_rcnn"), draw_scene(28)
    targets = result.targets()
    assert sorted(target["name"] for target in targets) == ["boat"] * 4 + ["buoy"] * 2
    for target in targets:
        assert is_drawn(target, zoomed(scene))
        in_wakes = energy(target["values"], region(scene, "wake"), margin=4 * ZOOM)
        assert energy_in_box(target) > 0.6 if target["name"] == "buoy" else in_wakes > 0.5
    assert min(np.array(Image.open(result.figure)).shape[:2]) > 2 * 192 * ZOOM


def test_faster_rcnn_heatmaps_of_the_last_layer_stay_in_the_box(run: Callable[..., Run]) -> None:
    boats = [target for target in run("faster_rcnn", "--method", "odam").targets() if target["name"] == "boat"]
    assert all(energy_in_box(target) > 0.5 for target in boats)


def test_faster_rcnn_takes_an_image_and_weights(
    run: Callable[..., Run], tmp_path: Path, modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {}
    demo = modules("faster_rcnn").load_detector(None, None)

    def load(name: str, **options: Any) -> Any:
        arguments.update(options, name=name)
        return demo

    monkeypatch.setattr(modules("faster_rcnn"), "load_model", load)
    Image.fromarray(draw_scene(42).image).save(tmp_path / "mine.png")
    run("faster_rcnn", "--image", str(tmp_path / "mine.png"), "--weights", "mine.pth", "--names", "boat,buoy")
    assert arguments == {"name": "fasterrcnn_resnet50_fpn_v2", "weights": "mine.pth", "names": ["boat", "buoy"]}
    assert list(tmp_path.glob("mine.reachcam.1.*.png"))


def test_wakes_are_evidence_for_boats_rather_than_buoys(run: Callable[..., Run]) -> None:
    scene = draw_scene(28)
    targets = run("why_this_not_that").targets()
    assert [(t["label"], t["against"]) for t in targets] == [(1, 2), (2, 1)] * 3
    truth = torch.from_numpy(scene.boxes_xyxy) * ZOOM
    for boat, buoy in zip(targets[::2], targets[1::2], strict=True):
        assert boat["value"] == pytest.approx(-buoy["value"], rel=1e-4)
        wakes = region(scene, "wake")
        assert energy(boat["values"], wakes, margin=4 * ZOOM) > 0.5
        assert energy(buoy["values"], wakes, margin=4 * ZOOM) < 0.2
        if box_iou(torch.tensor([buoy["box_xyxy"]]), truth).max() > 0.5:
            assert energy_in_box(buoy) > 0.5


def test_heatmap_of_a_missed_boat_lies_on_the_boat(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    result, scene = run("missed_objects"), draw_scene(28)
    missed, against, detected = result.targets()
    assert missed["box_xyxy"] == pytest.approx((scene.of_kind("anchored")[0].box_xyxy * ZOOM).tolist())
    assert missed["value"] == pytest.approx(-against["value"], rel=1e-4)
    assert missed["value"] < 0 < detected["value"]
    assert float(capsys.readouterr().out.split("as boat: ")[1].split()[0]) < 0.05
    for target in (missed, against):
        assert energy_in_box(target, margin=2 * ZOOM) > 0.5
    assert energy(detected["values"], region(scene, "wake"), margin=4 * ZOOM) > 0.5


def test_mask_rcnn_explains_boxes_and_masks(
    run: Callable[..., Run], modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, module = draw_scene(45), modules("mask_rcnn")
    adapter = module.train_mask_head()
    monkeypatch.setattr(module, "train_mask_head", lambda: adapter)
    result = run("mask_rcnn")
    scores, masks = result.targets("score"), result.targets("mask")
    assert [target["box_xyxy"] for target in scores] == [target["box_xyxy"] for target in masks]
    assert {target["quantity"] for target in masks} == {"mask"}
    for target in (target for target in (*scores, *masks) if target["name"] == "buoy"):
        assert energy_in_box(target, margin=2 * ZOOM) > 0.6
    (detections,) = adapter.predict(scene.image, score_threshold=0.5)
    for item in (*scene.of_kind("boat"), *scene.of_kind("buoy")):
        overlaps = [(mask & item.mask).sum() / (mask | item.mask).sum() for mask in detections.masks.numpy()]
        assert max(overlaps) > 0.6


def test_semantic_segmentation_heatmaps_lie_on_boats_and_buoys(run: Callable[..., Run]) -> None:
    scene = draw_scene(42)
    boat, buoy = run("semantic_segmentation").targets()
    assert (boat["name"], buoy["name"]) == ("boat", "buoy")
    assert is_drawn(buoy, zoomed(scene))
    boats = region(scene, "boat", "anchored", "wake")
    assert energy(boat["values"], boats, margin=2 * ZOOM) > 0.6
    assert energy(buoy["values"], region(scene, "buoy"), margin=2 * ZOOM) > 0.6


def object_region(kind: str) -> np.ndarray:
    """Region of an object in the image of three objects, dilated by about a cell."""
    mask = region(draw_scene(1023, demo=False), kind, zoom=1)[86:182, 108:204].repeat(4, axis=0).repeat(4, axis=1)
    return cv2.dilate(mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0


def test_classification_locates_boat_buoy_and_gull(run: Callable[..., Run]) -> None:
    result = run("classification", "--aug-smooth")
    targets = {target["name"]: target for target in result.targets()}
    assert result.targets()[0]["name"] == "boat"
    image = result.module.draw_three_objects()
    for name, target in targets.items():
        assert is_drawn(target, image)
        assert energy(target["values"], object_region(name)) > 2 * object_region(name).mean()


def test_embedding_similarity_locates_the_object_of_each_crop(run: Callable[..., Run]) -> None:
    targets = run("embedding_similarity").targets()
    for name, target in zip(("boat", "buoy", "gull"), targets, strict=True):
        others = [object_region(other) for other in ("boat", "buoy", "gull") if other != name]
        assert energy(target["values"], object_region(name)) > 2 * object_region(name).mean()
        assert all(energy(target["values"], other) < 2 * other.mean() for other in others)


def test_transformer_heatmaps_lie_on_the_boat(run: Callable[..., Run]) -> None:
    result = run("vit_and_swin")
    targets = result.targets()
    assert [target["name"] for target in targets] == ["boat", "boat"]
    assert all(energy(t["values"], object_region("boat")) > 1.8 * object_region("boat").mean() for t in targets)


def test_custom_detector_detects_the_boats(run: Callable[..., Run]) -> None:
    scene = draw_scene(28)
    targets = run("custom_detector").targets()
    boxes = torch.tensor([target["box_xyxy"] for target in targets]) / ZOOM
    boats = torch.from_numpy(scene.boxes_xyxy[scene.labels == 1])
    assert (box_iou(boats, boxes).max(1).values > 0.75).all()
    assert all(is_drawn(target, zoomed(scene)) for target in targets)
    wakes = region(scene, "wake")
    assert sum(wakes[np.unravel_index(target["values"].argmax(), wakes.shape)] for target in targets) >= 3


@pytest.mark.parametrize(("photo", "expected"), [("bus.jpg", ["bus"]), ("dog_cat.png", ["dog", "cat"])])
def test_fastestdet_heatmaps_lie_in_the_boxes_of_a_photograph(
    run: Callable[..., Run], data: Path, photo: str, expected: list[str]
) -> None:
    pytest.importorskip("onnx2torch", reason="FastestDet needs onnx2torch")
    weights = [
        "--onnx",
        str(data / "fastestdet" / "fastestdet.onnx"),
        "--names",
        str(data / "fastestdet" / "coco.names"),
    ]
    targets = run("custom_detector", "--image", str(data / "photos" / photo), *weights, "--method", "odam").targets()
    best = {target["name"]: target for target in reversed(targets)}  # the highest score of each class
    for name in expected:
        x1, y1, x2, y2 = best[name]["box_xyxy"]
        area = (x2 - x1) * (y2 - y1) / best[name]["values"].size
        assert best[name]["score"] > 0.6
        assert energy_in_box(best[name]) > area + 0.6 * (1 - area)


def test_yolo_heatmaps_lie_on_the_boats_of_the_training_image(run: Callable[..., Run]) -> None:
    pytest.importorskip("ultralytics", reason="needs the extra ultralytics")
    scene = draw_scene(28)
    targets = run("yolo").targets()
    boats = torch.from_numpy(scene.boxes_xyxy[scene.labels == 1])
    detected = torch.tensor([target["box_xyxy"] for target in targets if target["name"] == "boat"]) / ZOOM
    assert (box_iou(boats, detected).max(1).values > 0.5).all()
    for target in targets:
        assert is_drawn(target, zoomed(scene))
        # A boat covers 2 % of the image. The network also uses the wake next to the box.
        assert energy_in_box(target) > 0.3


def test_guided_grad_cam_is_more_class_specific_than_guided_backpropagation(run: Callable[..., Run]) -> None:
    result = run("guided_backprop")
    targets = {(target["heatmap"].split(".")[1], target["name"]): target["values"] for target in result.targets()}
    assert len(targets) == 6
    for name in ("boat", "buoy", "gull"):
        pixels = object_region(name)
        lift = {
            method: energy(targets[method, name], pixels) / pixels.mean()
            for method in ("guidedbackprop", "guidedgradcam")
        }
        assert lift["guidedgradcam"] > max(2.0, lift["guidedbackprop"])
    image = result.module.draw_three_objects()
    figure = np.array(Image.open(result.figure))
    assert figure.shape[0] > 2 * image.shape[0] and figure.shape[1] > 4 * image.shape[1]
    colors = figure[: figure.shape[0] // 2, figure.shape[1] // 4 :].astype(int)
    assert (np.ptp(colors, axis=2) > 60).mean() > 0.01, "gradients are drawn in color"


def test_concepts_are_the_drawn_classes(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    result = run("deep_feature_factorization")
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split()[1] for line in lines if re.match(r" ?\d+  ", line)]
    assert len(labels) == 5 and {"boat", "buoy", "gull", "water"} == set(labels)
    (error,) = [int(line.split()[-1].rstrip("%")) for line in lines if "reconstruction error" in line]
    assert 0 < error < 50
    # The image of the first panel starts after the margin of the grid.
    image = result.module.draw_three_objects()
    size = image.shape[0]
    margin = max(4, round(size * 0.025))
    drawing = np.array(Image.open(result.figure))[margin : margin + size, margin : margin + size].astype(int)
    for name in ("buoy", "gull"):
        tint = np.array(concept_colors(5)[labels.index(name)])
        toward = np.abs(image.astype(int) - tint).sum(-1) - np.abs(drawing - tint).sum(-1)
        assert np.median(toward[object_region(name)]) > 30 + max(np.median(toward[~object_region(name)]), 0)


def test_drise_locates_the_wakes_used_by_a_function(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    scene = draw_scene(28)
    run("drise_any_black_box", "--passes", "400")
    pattern = re.compile(r"(\w+) [\d.]+ in \[(.*)\]: heatmap maximum at (\d+), (\d+)")
    printed = [match.groups() for match in map(pattern.match, capsys.readouterr().out.splitlines()) if match]
    assert sorted(name for name, *_ in printed) == ["boat"] * 4 + ["buoy"] * 2
    wakes = cv2.dilate(region(scene, "wake", zoom=1).astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
    for name, box, x, y in printed:
        x1, y1, x2, y2 = (int(value) for value in box.split(","))
        outside = not (x1 <= int(x) < x2 and y1 <= int(y) < y2)
        assert wakes[int(y), int(x)] and outside if name == "boat" else abs(int(x) - (x1 + x2) / 2) < 12


def test_drise_explains_a_network_run_by_opencv(
    run: Callable[..., Run], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = data / "fastestdet"
    arguments = ["--onnx", str(files / "fastestdet.onnx"), "--names", str(files / "coco.names"), "--passes", "200"]
    run("drise_any_black_box", "--image", str(data / "photos" / "dog_cat.png"), *arguments)
    lines = capsys.readouterr().out.splitlines()
    for name in ("dog", "cat"):
        line = next(line for line in lines if line.startswith(name))
        x1, y1, x2, y2 = (int(value) for value in line.split("[")[1].split("]")[0].split(","))
        x, y = (int(part) for part in line.split("maximum at ")[1].split(","))
        assert x1 <= x < x2 and y1 <= y < y2


def test_metrics_of_good_heatmaps(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    result = run("metrics")
    printed = capsys.readouterr().out
    combined = float(printed.split("ROADCombined: ")[1].split()[0])
    assert combined > 0
    boxes = {line.split()[0]: line for line in printed.splitlines() if "is better)" in line}
    insertion, deletion = (
        [float(cell.split()[-1]) for cell in boxes[name].split("better)  ")[1].split("  ")]
        for name in ("insertion", "deletion")
    )
    assert len(insertion) == len(deletion) == 6
    assert min(insertion) > 0.6 > 0.3 > max(deletion)
    assert np.array(Image.open(result.figure)).std() > 10


def test_choose_a_method_prints_a_recommendation_and_its_reason(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("choose_a_method", "--methods", "odam,gradcam,reachcam", "--limit", "6")
    printed = capsys.readouterr().out
    name = printed.split("\nRecommended method: ")[1].split()[0]
    assert name == "reachcam"
    assert printed.split("\nRecommended method: ")[1].splitlines()[1].startswith("reachcam: insertion:steps=12 0.9")
    assert "gradcam (-0." in printed.split("to the filled box (")[0]
    rows = json.loads((result.figure.parent / "benchmark.json").read_text())["rows"]
    assert {"odam", "gradcam", "reachcam", "filled box", "random", "randomcam"} <= {row["method"] for row in rows}
    assert len(list((result.out / "images").glob("*.png"))) == 6


def test_false_positives_are_traced_to_wakes(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    result = run("false_positives", "--explain", "4")
    printed = capsys.readouterr().out
    audit = json.loads((result.figure.parent / "audit.json").read_text())
    explained = [case for case in audit["cases"] if case["method"] and case["is_false_positive"]]
    assert len(explained) == 4 and all(case["background_type"] == "context" for case in explained)
    assert {case["verdict"] for case in explained} == {"strong"}
    groups = [int(size) for size, same in re.findall(r"(\d+) of (\d+) confirmed", printed) if size == same]
    single = int(re.search(r"Single cases: (\d+)", printed)[1])  # type: ignore[index]
    assert sum(groups) + single == 4 and len(groups) == printed.count(" confirmed; ")
    best = max(explained, key=lambda case: case["score"])
    assert f"{best['file_name']}: {best['sentence']}" in printed
    assert "(context)" in printed and "background error" in printed


@pytest.mark.slow
def test_repair_removes_a_shortcut_without_a_new_cause(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("train_then_explain", "--steps", "80", "--scenes", "10", "--explain", "10")
    printed = capsys.readouterr().out
    data = json.loads((result.out / "comparison" / "comparison.json").read_text())
    assert data["counts"]["fixed"] >= 0.8 * (data["counts"]["fixed"] + data["counts"]["unchanged"])
    assert data["new_average_precision"] > data["old_average_precision"] + 0.1
    assert not [cause for cause in data["causes"] if cause["status"] in ("new", "grown")]
    assert "The remedy: counterfactual pairs" in printed and data["headline"][0] in printed
