"""Every example runs offline as a newcomer would run it, and its heat lies where it is known to belong."""

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

from detcam.explanation.writer import read_heatmap
from detcam.synthetic.harbour import HarbourScene, draw_scene
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
    """What an example left behind.

    Attributes:
        module: the example.
        out: the folder it wrote into.
        figure: what it returned.
    """

    module: ModuleType
    out: Path
    figure: Path

    def targets(self, folder: str = ".") -> list[dict[str, Any]]:
        """The explained targets as listed in the index, with `heat` and `shown` (the overlay) beside each."""
        images = json.loads((self.out / folder / "explanations.json").read_text())["images"]
        found = []
        for target in (target for image in images for target in image["targets"]):
            target["heat"] = read_heatmap(self.out / folder / target["heatmap"])
            target["shown"] = np.array(Image.open(self.out / folder / target["overlay"]))
            found.append(target)
        return found


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    """Imports an example as `python examples/name.py` would see its neighbours, and forgets it afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - before:
        if name in NAMES or name == "_common":
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def one_fit(modules: Callable[[str], ModuleType]) -> None:
    """Three examples fit the same classifier to the same cut-outs; here it is fitted once."""
    module: Any = modules("classification")
    fit, cut_outs = module.fit, functools.cache(module.cut_outs)
    fitted = functools.cache(lambda steps: fit(module.small_network(), *cut_outs(), steps=steps))
    module.cut_outs = cut_outs
    module.fit = lambda net, images, classes, steps: copy.deepcopy(fitted(steps))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def run(modules: Callable[[str], ModuleType], tmp_path: Path, offline: None) -> Callable[..., Run]:
    def call(name: str, *arguments: str) -> Run:
        module = modules(name)
        folder = "--output-dir" if name == "classification" else "--out"
        return Run(module, tmp_path, module.main([*arguments, folder, str(tmp_path)]))

    return call


def share(heat: np.ndarray, region: np.ndarray, margin: int = 0) -> float:
    """The part of the heat that lies in a region grown by a margin, both of the same image."""
    grown = cv2.dilate(region.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) > 0
    return float(heat[grown].sum() / heat.sum())


def inside(target: dict[str, Any], margin: int = 0) -> float:
    """The part of the heat that lies in the target's box."""
    region = np.zeros(target["heat"].shape, bool)
    x1, y1, x2, y2 = (round(value) for value in target["box_xyxy"])
    region[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return share(target["heat"], region, margin)


def region(scene: HarbourScene, *kinds: str, zoom: int = ZOOM) -> np.ndarray:
    """The pixels of all things of some kinds."""
    mask = np.any([thing.mask for thing in scene.objects if thing.kind in kinds], axis=0)
    return mask.repeat(zoom, axis=0).repeat(zoom, axis=1)


def is_drawn(target: dict[str, Any], image: np.ndarray) -> bool:
    """Whether the overlay shows the plain image where it is cold, and something else where it is hot."""
    height, width = image.shape[:2]
    change = np.abs(target["shown"][:height, :width].astype(int) - image).max(-1)
    hot, cold = target["heat"] > 0.6 * target["heat"].max(), target["heat"] < 0.01
    return bool(change[hot].mean() > 10 and (change[cold] > 8).mean() < 0.02)


def zoomed(scene: HarbourScene) -> np.ndarray:
    return scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_how_to_run_it(
    name: str, modules: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 80
    assert f"python examples/{name}.py" in text
    with pytest.raises(SystemExit) as stop:
        modules(name).main(["--help"])
    assert stop.value.code == 0
    assert text.splitlines()[0].strip('"') in " ".join(capsys.readouterr().out.split())


def test_faster_rcnn_finds_buoys_by_themselves_and_boats_by_their_wakes(run: Callable[..., Run]) -> None:
    done, scene = run("faster_rcnn"), draw_scene(28)
    targets = done.targets()
    assert sorted(target["name"] for target in targets) == ["boat"] * 4 + ["buoy"] * 2
    for target in targets:
        assert is_drawn(target, zoomed(scene))
        in_wakes = share(target["heat"], region(scene, "wake"), margin=4 * ZOOM)
        assert inside(target) > 0.6 if target["name"] == "buoy" else in_wakes > 0.5
    assert min(np.array(Image.open(done.figure)).shape[:2]) > 2 * 192 * ZOOM


def test_faster_rcnn_at_the_last_layer_stays_in_the_box(run: Callable[..., Run]) -> None:
    boats = [target for target in run("faster_rcnn", "--method", "odam").targets() if target["name"] == "boat"]
    assert all(inside(target) > 0.5 for target in boats)


def test_faster_rcnn_takes_a_image_and_weights_of_ones_own(
    run: Callable[..., Run], tmp_path: Path, modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    demo = modules("faster_rcnn").load_detector(None, None)

    def load(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return demo

    monkeypatch.setattr(modules("faster_rcnn"), "load_model", load)
    Image.fromarray(draw_scene(42).image).save(tmp_path / "mine.png")
    run("faster_rcnn", "--image", str(tmp_path / "mine.png"), "--weights", "mine.pth", "--names", "boat,buoy")
    assert asked == {"name": "fasterrcnn_resnet50_fpn_v2", "weights": "mine.pth", "names": ["boat", "buoy"]}
    assert list(tmp_path.glob("mine.reachcam.1.*.png"))


def test_a_wake_makes_it_a_boat_and_not_a_buoy(run: Callable[..., Run]) -> None:
    scene = draw_scene(28)
    targets = run("why_this_not_that").targets()
    assert [(t["label"], t["against"]) for t in targets] == [(1, 2), (2, 1)] * 3
    truth = torch.from_numpy(scene.boxes_xyxy) * ZOOM
    for boat, buoy in zip(targets[::2], targets[1::2], strict=True):
        assert boat["value"] == pytest.approx(-buoy["value"], rel=1e-4)
        wakes = region(scene, "wake")
        assert share(boat["heat"], wakes, margin=4 * ZOOM) > 0.5
        assert share(buoy["heat"], wakes, margin=4 * ZOOM) < 0.2
        if box_iou(torch.tensor([buoy["box_xyxy"]]), truth).max() > 0.5:
            assert inside(buoy) > 0.5


def test_a_missed_boat_is_explained_where_it_lies(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    done, scene = run("missed_objects"), draw_scene(28)
    missed, against, found = done.targets()
    assert missed["box_xyxy"] == pytest.approx((scene.of_kind("anchored")[0].box_xyxy * ZOOM).tolist())
    assert missed["value"] == pytest.approx(-against["value"], rel=1e-4)
    assert missed["value"] < 0 < found["value"]
    assert float(capsys.readouterr().out.split("score of ")[1].split()[0]) < 0.05
    for target in (missed, against):
        assert inside(target, margin=2 * ZOOM) > 0.5
    assert share(found["heat"], region(scene, "wake"), margin=4 * ZOOM) > 0.5


def test_mask_rcnn_explains_boxes_and_the_masks_it_fitted(
    run: Callable[..., Run], modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, module, kept = draw_scene(45), modules("mask_rcnn"), []
    fit = module.fit_masks
    monkeypatch.setattr(module, "fit_masks", lambda: kept.append(fit()) or kept[0])
    done = run("mask_rcnn")
    scores, masks = done.targets("score"), done.targets("mask")
    assert [target["box_xyxy"] for target in scores] == [target["box_xyxy"] for target in masks]
    assert {target["quantity"] for target in masks} == {"mask"}
    for target in (target for target in (*scores, *masks) if target["name"] == "buoy"):
        assert inside(target, margin=2 * ZOOM) > 0.6
    (found,) = kept[0].predict(scene.image, score_threshold=0.5)
    for thing in (*scene.of_kind("boat"), *scene.of_kind("buoy")):
        overlap = [(mask & thing.mask).sum() / (mask | thing.mask).sum() for mask in found.masks.numpy()]
        assert max(overlap) > 0.6


def test_semantic_segmentation_looks_at_boats_and_buoys(run: Callable[..., Run]) -> None:
    scene = draw_scene(42)
    boat, buoy = run("semantic_segmentation").targets()
    assert (boat["name"], buoy["name"]) == ("boat", "buoy")
    assert is_drawn(buoy, zoomed(scene))
    boats = region(scene, "boat", "anchored", "wake")
    assert share(boat["heat"], boats, margin=2 * ZOOM) > 0.6
    assert share(buoy["heat"], region(scene, "buoy"), margin=2 * ZOOM) > 0.6


def three_things(kind: str) -> np.ndarray:
    """Where a thing is in the image of three things, grown by its surroundings of about a cell."""
    mask = region(draw_scene(1023, demo=False), kind, zoom=1)[86:182, 108:204].repeat(4, axis=0).repeat(4, axis=1)
    return cv2.dilate(mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0


def test_classification_tells_boat_buoy_and_gull_apart(run: Callable[..., Run]) -> None:
    done = run("classification", "--aug-smooth")
    targets = {target["name"]: target for target in done.targets()}
    assert done.targets()[0]["name"] == "boat"
    image = done.module.three_things()
    for name, target in targets.items():
        assert is_drawn(target, image)
        assert share(target["heat"], three_things(name)) > 2 * three_things(name).mean()


def test_embeddings_find_what_each_cut_out_shows(run: Callable[..., Run]) -> None:
    targets = run("embedding_similarity").targets()
    for name, target in zip(("boat", "buoy", "gull"), targets, strict=True):
        others = [three_things(other) for other in ("boat", "buoy", "gull") if other != name]
        assert share(target["heat"], three_things(name)) > 2 * three_things(name).mean()
        assert all(share(target["heat"], other) < 2 * other.mean() for other in others)


def test_transformers_see_the_boat(run: Callable[..., Run]) -> None:
    done = run("vit_and_swin")
    targets = done.targets()
    assert [target["name"] for target in targets] == ["boat", "boat"]
    assert all(share(t["heat"], three_things("boat")) > 1.8 * three_things("boat").mean() for t in targets)


def test_a_detector_of_ones_own_finds_the_boats(run: Callable[..., Run]) -> None:
    scene = draw_scene(28)
    targets = run("custom_detector").targets()
    boxes = torch.tensor([target["box_xyxy"] for target in targets]) / ZOOM
    boats = torch.from_numpy(scene.boxes_xyxy[scene.labels == 1])
    assert (box_iou(boats, boxes).max(1).values > 0.75).all()
    assert all(is_drawn(target, zoomed(scene)) for target in targets)
    wakes = region(scene, "wake")
    assert sum(wakes[np.unravel_index(target["heat"].argmax(), wakes.shape)] for target in targets) >= 3


@pytest.mark.parametrize(("photo", "wanted"), [("bus.jpg", ["bus"]), ("dog_cat.png", ["dog", "cat"])])
def test_fastestdet_finds_what_is_in_a_photograph(
    run: Callable[..., Run], data: Path, photo: str, wanted: list[str]
) -> None:
    pytest.importorskip("onnx2torch", reason="FastestDet needs onnx2torch")
    weights = [
        "--onnx",
        str(data / "fastestdet" / "fastestdet.onnx"),
        "--names",
        str(data / "fastestdet" / "coco.names"),
    ]
    targets = run("custom_detector", "--image", str(data / "photos" / photo), *weights, "--method", "odam").targets()
    best = {target["name"]: target for target in reversed(targets)}  # the best of each class comes first
    for name in wanted:
        x1, y1, x2, y2 = best[name]["box_xyxy"]
        area = (x2 - x1) * (y2 - y1) / best[name]["heat"].size
        assert best[name]["score"] > 0.6
        assert inside(best[name]) > area + 0.6 * (1 - area)


def test_yolo_learns_one_harbour_by_heart_and_looks_at_its_boats(run: Callable[..., Run]) -> None:
    pytest.importorskip("ultralytics", reason="needs the extra ultralytics")
    scene = draw_scene(28)
    targets = run("yolo").targets()
    boats = torch.from_numpy(scene.boxes_xyxy[scene.labels == 1])
    found = torch.tensor([target["box_xyxy"] for target in targets if target["name"] == "boat"]) / ZOOM
    assert (box_iou(boats, found).max(1).values > 0.5).all()
    for target in targets:
        assert is_drawn(target, zoomed(scene))
        # A boat takes 2 % of the image; the net also reads the wake beside it, so not all heat is in the box.
        assert inside(target) > 0.3


def test_guided_grad_cam_keeps_to_the_class_and_guided_backpropagation_does_not(run: Callable[..., Run]) -> None:
    done = run("guided_backprop")
    targets = {(target["heatmap"].split(".")[1], target["name"]): target["heat"] for target in done.targets()}
    assert len(targets) == 6
    for name in ("boat", "buoy", "gull"):
        own = three_things(name)
        lift = {
            method: share(targets[method, name], own) / own.mean() for method in ("guidedbackprop", "guidedgradcam")
        }
        assert lift["guidedgradcam"] > max(2.0, lift["guidedbackprop"])
    image = done.module.three_things()
    figure = np.array(Image.open(done.figure))
    assert figure.shape[0] > 2 * image.shape[0] and figure.shape[1] > 4 * image.shape[1]
    colors = figure[: figure.shape[0] // 2, figure.shape[1] // 4 :].astype(int)
    assert (np.ptp(colors, axis=2) > 60).mean() > 0.01, "gradients are shown in colour"


def test_concepts_are_what_was_drawn(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    done = run("deep_feature_factorization")
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split()[1] for line in lines if re.match(r" ?\d+  ", line)]
    assert len(labels) == 5 and {"boat", "buoy", "gull", "water"} == set(labels)
    (left,) = [int(line.split("%")[0].split()[-1]) for line in lines if line.endswith("left over")]
    assert 0 < left < 50
    # The first panel's image begins behind the grid's margin; each number's colour is that of the package.
    image = done.module.three_things()
    size = image.shape[0]
    margin = max(4, round(size * 0.025))
    shown = np.array(Image.open(done.figure))[margin : margin + size, margin : margin + size].astype(int)
    for name in ("buoy", "gull"):
        tint = np.array(concept_colors(5)[labels.index(name)])
        towards = np.abs(image.astype(int) - tint).sum(-1) - np.abs(shown - tint).sum(-1)
        assert np.median(towards[three_things(name)]) > 30 + max(np.median(towards[~three_things(name)]), 0)


def test_a_function_is_explained_by_the_wakes_it_looks_at(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    scene = draw_scene(28)
    run("drise_any_black_box", "--passes", "400")
    pattern = re.compile(r"(\w+) [\d.]+ in \[(.*)\] is hottest at (\d+), (\d+)")
    found = [match.groups() for match in map(pattern.match, capsys.readouterr().out.splitlines()) if match]
    assert sorted(name for name, *_ in found) == ["boat"] * 4 + ["buoy"] * 2
    wakes = cv2.dilate(region(scene, "wake", zoom=1).astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
    for name, box, x, y in found:
        x1, y1, x2, y2 = (int(side) for side in box.split(","))
        beside = not (x1 <= int(x) < x2 and y1 <= int(y) < y2)
        assert wakes[int(y), int(x)] and beside if name == "boat" else abs(int(x) - (x1 + x2) / 2) < 12


def test_a_network_that_opencv_runs_is_explained(
    run: Callable[..., Run], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = data / "fastestdet"
    arguments = ["--onnx", str(files / "fastestdet.onnx"), "--names", str(files / "coco.names"), "--passes", "200"]
    run("drise_any_black_box", "--image", str(data / "photos" / "dog_cat.png"), *arguments)
    lines = capsys.readouterr().out.splitlines()
    for name in ("dog", "cat"):
        line = next(line for line in lines if line.startswith(name))
        x1, y1, x2, y2 = (int(side) for side in line.split("[")[1].split("]")[0].split(","))
        x, y = (int(part) for part in line.split("hottest at ")[1].split(","))
        assert x1 <= x < x2 and y1 <= y < y2


def test_metrics_tell_a_heatmap_from_its_opposite(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    done = run("metrics")
    said = capsys.readouterr().out
    combined = float(said.split("halved: ")[1].split(";")[0])
    assert combined > 0
    boxes = {line.split()[0]: line for line in said.splitlines() if "is better)" in line}
    insertion, deletion = (
        [float(cell.split()[-1]) for cell in boxes[name].split("better)  ")[1].split("  ")]
        for name in ("insertion", "deletion")
    )
    assert len(insertion) == len(deletion) == 6
    assert min(insertion) > 0.6 > 0.3 > max(deletion)
    assert np.array(Image.open(done.figure)).std() > 10


def test_choosing_a_method_ends_in_a_recommendation_and_its_reason(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("choose_a_method", "--methods", "odam,gradcam,reachcam")
    said = capsys.readouterr().out
    name = said.split("\nTake ")[1].split(".")[0]
    assert name == "reachcam"
    assert said.split("\nTake ")[1].splitlines()[1].startswith("reachcam: insertion:steps=12 0.9")
    assert "gradcam (-0." in said.split("to the filled box (")[0]
    rows = json.loads((done.figure.parent / "benchmark.json").read_text())["rows"]
    assert {"odam", "gradcam", "reachcam", "filled box", "random", "randomcam"} <= {row["method"] for row in rows}
    assert len(list((done.out / "images").glob("*.png"))) == 12


def test_false_positives_are_traced_to_their_wakes(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    done = run("false_positives", "--explain", "4")
    said = capsys.readouterr().out
    audit = json.loads((done.figure.parent / "audit.json").read_text())
    explained = [case for case in audit["cases"] if case["method"] and case["is_false_positive"]]
    assert len(explained) == 4 and all(case["background_type"] == "context" for case in explained)
    assert "4 of 4 confirmed" in said or said.count("confirmed; ") > 1
    surest = max(explained, key=lambda case: case["score"])
    assert f"{surest['file_name']}: {surest['sentence']}" in said
    assert "(context)" in said and "background error" in said


@pytest.mark.slow
def test_a_shortcut_is_found_and_trained_away(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    done = run("train_then_explain", "--quick", "--steps", "200", "--scenes", "120")
    said = capsys.readouterr().out
    before, after = (
        [case for case in json.loads((done.out / name / "audit.json").read_text())["cases"] if case["method"]]
        for name in ("before", "after")
    )
    assert len(before) >= 15 and sum(case["background_type"] == "context" for case in before) >= 0.9 * len(before)
    assert len(after) <= 0.4 * len(before), "a hundred steps take most of them away"
    assert f"False positives above 0.5: {len(before)} before, {len(after)} after." in said
