"""Localization of detections by heatmaps of different target layers and methods.

    python tests/peers/measure_layers.py fastestdet|fasterrcnn|yolo [--layers NAME ...] [--images 8]

The script needs the reference data in ../shared/data. For each layer and method it prints the fraction of heatmaps
whose maximum lies in the box, and the mean energy in the box minus the box's fraction of the image: 0 is chance, and a
uniformly filled box gives 1 minus that fraction.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detcam import adapt, get_method
from detcam.adapters import detector
from detcam.adapters.base import Adapter
from detcam.detections import Detections
from tests.peers.measure_audit import DATA, reference_models

METHODS = ("gradcam", "gradcamplusplus", "hirescam", "layercam", "eigengradcam", "eigencam")
NAMES = ["background", "RBC", "WBC", "Platelets"]


def load(name: str) -> tuple[Adapter, list[Path]]:
    """Return an adapter and its images."""
    cells = sorted((DATA / "bccd" / "images").glob("*.jpg"))
    if name == "fasterrcnn":
        return adapt(reference_models().bccd_fasterrcnn(), names=NAMES), cells
    if name == "yolo":
        return adapt(reference_models().bccd_yolo(), image_size=320), cells
    import onnx2torch

    from tests.adapters.custom_models import fastestdet_decode

    network = onnx2torch.convert(str(DATA / "fastestdet" / "fastestdet.onnx")).eval()
    adapter = detector(network, fastestdet_decode, image_size=352, preprocess=lambda x: x.flip(0), max_batch_size=1)
    return adapter, sorted((DATA / "photos").iterdir())


def localization(heatmaps: np.ndarray, detections: Detections) -> list[tuple[bool, float]]:
    """Return whether the maximum lies in the box, and the energy in excess of the box's area, for each detection."""
    rows = []
    for heatmap, box in zip(heatmaps, detections.boxes_xyxy.round().int().tolist(), strict=True):
        x1, y1, x2, y2 = (max(value, 0) for value in box)
        y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
        energy = float(heatmap[y1:y2, x1:x2].sum() / max(heatmap.sum(), 1e-9))
        rows.append((x1 <= x < x2 and y1 <= y < y2, energy - (x2 - x1) * (y2 - y1) / heatmap.size))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["fastestdet", "fasterrcnn", "yolo"])
    parser.add_argument("--layers", nargs="*", help="layer names, comma-separated if combined")
    parser.add_argument("--images", type=int, default=8, help="maximum number of images")
    parser.add_argument("--score-threshold", type=float, default=0.6)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    adapter, images = load(arguments.model)
    images = images[: arguments.images]
    detections = adapter.predict(images, score_threshold=arguments.score_threshold)
    print(f"{adapter}: {sum(map(len, detections))} detections in {len(images)} images")
    print(f"{'layer':40}" + "".join(f"{name:>18}" for name in METHODS))
    for layer in arguments.layers or [",".join(adapter.layer_names)]:
        cells = []
        for name in METHODS:
            results = get_method(name)(adapter, layer.split(",")).explain(images, detections)
            rows = [
                row
                for result, boxes in zip(results, detections, strict=True)
                for row in localization(result.heatmaps, boxes)
            ]
            hits, energy = np.mean(rows, axis=0)
            cells.append(f"{hits:>10.2f} {energy:+6.2f} ")
        print(f"{layer:40}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
