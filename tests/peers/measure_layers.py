"""Where do maps of detections fall, by target layer and method? Peak in the box, and energy in it beyond its area.

    python tests/peers/measure_layers.py fastestdet|fasterrcnn|yolo [--layers NAME ...] [--images 8]

Needs the reference data beside the repository. The second number is the share of the heatmap's energy inside the box
minus the box's share of the image: 0 is chance, and a box that is filled evenly gives 1 minus that share.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detcam import adapt, get_method
from detcam.adapters import detector
from detcam.adapters.base import Adapter
from detcam.detections import Detections

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
METHODS = ("gradcam", "gradcamplusplus", "hirescam", "layercam", "eigengradcam", "eigencam")
NAMES = ["background", "RBC", "WBC", "Platelets"]


def reference() -> Any:
    """The module that builds the reference models."""
    spec = importlib.util.spec_from_file_location("reference_models", DATA / "models" / "build.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"the reference models are not at {DATA}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str) -> tuple[Adapter, list[Path]]:
    """An adapter and the images it is measured on."""
    cells = sorted((DATA / "bccd" / "images").glob("*.jpg"))
    if name == "fasterrcnn":
        return adapt(reference().bccd_fasterrcnn(), names=NAMES), cells
    if name == "yolo":
        return adapt(reference().bccd_yolo(), image_size=320), cells
    import onnx2torch

    from tests.adapters.test_custom_detector import fastestdet_decode

    network = onnx2torch.convert(str(DATA / "fastestdet" / "fastestdet.onnx")).eval()
    adapter = detector(network, fastestdet_decode, image_size=352, preprocess=lambda x: x.flip(0), max_batch_size=1)
    return adapter, sorted((DATA / "photos").iterdir())


def score(heatmaps: Tensor, found: Detections) -> list[tuple[bool, float]]:
    """Per detection: whether the peak lies in the box, and the energy in it beyond its share of the image."""
    rows = []
    for heatmap, box in zip(heatmaps, found.boxes_xyxy.round().int().tolist(), strict=True):
        x1, y1, x2, y2 = (max(value, 0) for value in box)
        y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
        energy = float(heatmap[y1:y2, x1:x2].sum() / heatmap.sum().clamp(min=1e-9))
        rows.append((x1 <= x < x2 and y1 <= y < y2, energy - (x2 - x1) * (y2 - y1) / heatmap.numel()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["fastestdet", "fasterrcnn", "yolo"])
    parser.add_argument("--layers", nargs="*", help="layers to compare, commas join several; default: the adapter's")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--score-threshold", type=float, default=0.6)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    adapter, images = load(arguments.model)
    images = images[: arguments.images]
    found = adapter.predict(images, score_threshold=arguments.score_threshold)
    print(f"{adapter}: {sum(len(one) for one in found)} detections on {len(images)} images")
    print(f"{'layer':40}" + "".join(f"{name:>18}" for name in METHODS))
    for layer in arguments.layers or [",".join(adapter.layer_names)]:
        cells = []
        for name in METHODS:
            results = get_method(name)(adapter, layer.split(",")).explain(images, found)
            rows = [
                row
                for result, one in zip(results, found, strict=True)
                for row in score(torch.from_numpy(result.heatmaps), one)
            ]
            peak = sum(inside for inside, _ in rows) / len(rows)
            cells.append(f"{peak:>10.2f} {sum(energy for _, energy in rows) / len(rows):+6.2f} ")
        print(f"{layer:40}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
