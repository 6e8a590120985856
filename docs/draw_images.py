"""Draws the images of the documentation: ``make docs-images``, or ``python docs/draw_images.py gallery layers``."""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from detcam import adapt, explain
from detcam.benchmarking.planted.audit_check import error_image, explain_error, scene_donors
from detcam.benchmarking.planted.certification import certify_cases
from detcam.benchmarking.planted.detectors import detector_families
from detcam.benchmarking.planted.training_cache import TrainingCache, detector_name
from detcam.demo.model import load_demo_detector
from detcam.demo.run import run_demo
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.synthetic.shortcut_scenarios import SCENARIOS
from detcam.visualize.drawing import draw_boxes
from detcam.visualize.overlay import grid, overlay_heatmap

IMAGES = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = Path(__file__).parents[2] / "shared" / "data"
PLANTED = Path(__file__).parents[1] / "build" / "planted"
BLOOD_CELLS = Path(__file__).parents[1] / "build" / "blood-cells"
GALLERY = (
    "faster_rcnn",
    "yolo",
    "mask_rcnn",
    "semantic_segmentation",
    "classification",
    "embedding_similarity",
    "vit_and_swin",
    "custom_detector",
    "missed_objects",
    "why_this_not_that",
    "drise_any_black_box",
    "guided_backprop",
    "deep_feature_factorization",
    "metrics",
)
"""Examples that draw one figure."""
LAYERS = ("backbone.stride2", "backbone.stride4", "backbone.stride8", "backbone.stride16", "backbone.pyramid")
MAX_WIDTH = 1200
SCREEN_HW = (900, 1280)


def save(image: Image.Image, name: str) -> None:
    """Write an image as JPEG, at most 1200 pixels wide."""
    image = image.convert("RGB")
    image.thumbnail((MAX_WIDTH, 2 * MAX_WIDTH), Image.Resampling.LANCZOS)
    path = IMAGES / f"{name}.jpg"
    path.parent.mkdir(exist_ok=True)
    image.save(path, quality=82, optimize=True)
    print(f"{path.relative_to(IMAGES.parent)}: {image.width} x {image.height}, {path.stat().st_size / 1e3:.0f} kB")


def gallery(folder: Path) -> None:
    """The figure of each example."""
    sys.path.insert(0, str(EXAMPLES))
    for name in GALLERY:
        out = "--output-dir" if name == "classification" else "--out"
        figure = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([out, str(folder / name)])
        save(Image.open(figure), f"gallery/{name}")


def layers(_: Path) -> None:
    """One false boat at three layers."""
    adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
    image = draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    (found,) = adapter.predict(image, score_threshold=0.5)
    left, top, _, bottom = found.boxes_xyxy.T.numpy()
    wrong = np.flatnonzero((left > 500) & (bottom < 400) & (bottom - top > 60))  # open water, right of a wake
    panels, titles = [], []
    for layer in LAYERS:
        explanation = explain(adapter, image, "hirescam", [found[wrong[:1].tolist()]], target_layers=layer)[0]
        panels.append(explanation.overlay(caption=False))
        titles.append(f"{layer}, reach {explanation.reach[0].fraction:.0%}")
    save(Image.fromarray(grid(panels, titles=titles, columns=3)), "layers")


def demo(folder: Path) -> None:
    """The first scene of the demonstration, and its report in a browser."""
    from playwright.sync_api import sync_playwright

    run_demo(folder / "demo")
    save(Image.open(folder / "demo" / "scene-10.png"), "demo")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": SCREEN_HW[1], "height": SCREEN_HW[0]})
        page.goto((folder / "demo" / "report" / "index.html").as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=folder / "report.png")
        browser.close()
    save(Image.open(folder / "report.png"), "report")


def blood_cells(_: Path) -> None:
    """The first proposals of the relabel queue that ``make blood-cells`` wrote (BCCD data set, MIT license)."""
    queue = BLOOD_CELLS / "repair" / "relabel" / "coco.json"
    if not queue.exists():
        print(f"blood-cells is left out: {queue} is not here")
        return
    content = json.loads(queue.read_bytes())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    proposals = [entry for entry in content["annotations"] if "score" in entry]
    panels, titles = [], []
    for entry in sorted(proposals, key=lambda entry: entry["attributes"]["rank"])[:16]:
        image = np.asarray(Image.open(DATA / "bccd" / "images" / files[entry["image_id"]]).convert("RGB"))
        left, top, width, height = entry["bbox"]
        drawn = draw_boxes(image, [(left, top, left + width, top + height)])
        side = round(0.8 * max(width, height)) + 20
        center_x, center_y = round(left + width / 2), round(top + height / 2)
        padded = np.pad(drawn, ((side, side), (side, side), (0, 0)), constant_values=255)
        crop = padded[center_y : center_y + 2 * side, center_x : center_x + 2 * side]
        panels.append(np.asarray(Image.fromarray(crop).resize((200, 200))))
        titles.append(f"{names[entry['category_id']]} {entry['score']:.2f}")
    save(Image.fromarray(grid(panels, titles=titles, columns=8)), "blood-cells")


def planted(_: Path) -> None:
    """A case of each planted cause whose detector ``detcam benchmark --planted --out build/planted`` has trained."""
    cache = TrainingCache(PLANTED / "detectors")
    family = detector_families()["two-stage"]
    panels, titles = [], []
    for scenario in SCENARIOS:
        name = detector_name(scenario)
        if not (cache.folder / f"{family.name}-{name}.safetensors").exists():
            continue
        adapter = family.adapter(cache.detector(family, name))
        found = certify_cases(adapter, family.first_label, scenario, min_cases=1, seeds="hold-out")
        images = [(case, error_image(adapter, case, family.first_label)) for case in found.cases[:8]]
        case, image = next(pair for pair in images if pair[1] is not None)
        donors = scene_donors(adapter, found.cases, family.first_label)
        maps = explain_error(adapter, None, image, donors).maps
        scene = case.scene.image.repeat(2, axis=0).repeat(2, axis=1)
        box = [2 * value for value in case.target.box_xyxy]
        cause = np.where(case.cause.numpy()[..., None], case.scene.image, case.scene.image // 4)
        heatmap = np.zeros(case.cause.shape) if maps is None else np.asarray(maps.heatmap) / 255
        panels += [
            draw_boxes(scene, [box]),
            cause.repeat(2, axis=0).repeat(2, axis=1),
            draw_boxes(overlay_heatmap(scene, heatmap.repeat(2, axis=0).repeat(2, axis=1)), [box]),
        ]
        titles += [scenario, "certified cause", "heatmap of the audit"]
    if not panels:
        print(f"planted is left out: {PLANTED} has no detectors")
        return
    save(Image.fromarray(grid(panels, titles=titles, columns=6)), "planted")


DRAWINGS = {"gallery": gallery, "layers": layers, "demo": demo, "blood-cells": blood_cells, "planted": planted}

if __name__ == "__main__":
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or DRAWINGS:
            DRAWINGS[name](Path(temporary))
