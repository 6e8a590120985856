"""Draws the images of the documentation: ``make docs-images``, or ``python docs/draw_images.py gallery layers``."""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.demo.run import run_demo
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import grid

IMAGES = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parents[1] / "examples"
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


DRAWINGS = {"gallery": gallery, "layers": layers, "demo": demo}

if __name__ == "__main__":
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or DRAWINGS:
            DRAWINGS[name](Path(temporary))
