"""Insertion, deletion and their difference of methods on real photographs, by three protocols, with passes.

    python tests/peers/measure_faithfulness.py [--detector yolox|fastestdet] [--images 6] [--boxes 2] [--out FOLDER]

The most confident detections of the first photographs of ``coco_tiny/val.json``. Beside the methods of
the registry, the rows hold the heatmap that an audit shows for the detection (`portfolio`). The searches over regions
have few regions, so that the table takes minutes. With ``--out``, an interrupted run is continued.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import detcam  # noqa: E402
from detcam.adapters.base import Adapter  # noqa: E402
from detcam.auditing.analysis import analyze_errors  # noqa: E402
from detcam.auditing.case_table import unexplained_case  # noqa: E402
from detcam.auditing.explainer import ErrorExplainer, ErrorImage  # noqa: E402
from detcam.cam import LayerlessCAM  # noqa: E402
from detcam.data.ground_truth import GroundTruth  # noqa: E402
from detcam.detections import Detections  # noqa: E402
from detcam.geometry import Geometry, normalize  # noqa: E402
from detcam.results import Measured, Pass, values_of  # noqa: E402
from detcam.targets import BoxTarget  # noqa: E402
from tests.peers.measure_photographs import DATA, build  # noqa: E402

METHODS = {
    "probecam": "probecam",
    "reachcam": "reachcam",
    "odam": "odam",
    "vps:regions=20": "vps:regions=20",
    "phasewin:regions=20": "phasewin:regions=20",
    "vxcode:grid=6": "vxcode:grid=6",
    "drise:passes=1000": "drise:passes=1000",
}
"""Rows from the registry, by name."""
PROTOCOLS = ("vps", "drise", "odam")
"""How a box is scored in a changed image; see docs/metrics.md."""


class AuditMap(LayerlessCAM):
    """The heatmap that an audit shows for a detection: the evidence of the portfolio, after verification."""

    name = "portfolio"
    uses_gradients = False
    covers_receptive_field = True

    def measure(self, run: Pass) -> Measured:
        maps = []
        for image, row in zip(run.source_images(), run.targets, strict=True):
            heatmaps = [self._heatmap(image, target) for target in row if isinstance(target, BoxTarget)]
            maps.append(torch.stack(heatmaps) if heatmaps else torch.zeros(0, *image.shape[-2:]))
        return Measured([maps], values_of(run.score()), None)

    def _heatmap(self, image: Tensor, target: BoxTarget) -> Tensor:
        size = (int(image.shape[-2]), int(image.shape[-1]))
        score = torch.tensor([float(found) for found in self._scores(image, target)])
        found = Detections(torch.tensor([target.box_xyxy]), torch.tensor([target.label]), score, size, (target.source,))
        truth = GroundTruth.without_objects("image", "image.png", Path("image.png"), size, self.adapter.names)
        analysis = analyze_errors([found], [truth])
        case = unexplained_case(analysis, 0, [found], [truth])
        explainer = ErrorExplainer(self.explained, None, self.adapter.names, 0.3)
        maps = explainer.explain([ErrorImage(image, found, truth, [analysis[0]], [case])])[0][0].maps
        return torch.zeros(size) if maps is None else torch.from_numpy(np.asarray(maps.heatmap)).float() / 255

    def _scores(self, image: Tensor, target: BoxTarget) -> list[float]:
        batch = self.adapter.prepare([image])
        with torch.no_grad():
            outputs = self.adapter.outputs(self.adapter.forward(batch), batch)
            return [float(value) for value in self.adapter.score(outputs, [[target]])[0]]

    def combine(self, levels: list[Tensor], geometry: Geometry) -> Tensor:  # type: ignore[override]
        """Normalize the maps of one image, which are at the image's resolution already."""
        return normalize(levels[0]) if len(levels[0]) else levels[0]


def audit_map(adapter: Adapter) -> AuditMap:
    """The audit's heatmaps for an adapter with its target layers."""
    cam = AuditMap(adapter)
    cam.explained = adapter  # type: ignore[attr-defined]
    return cam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", choices=["yolox", "fastestdet"], default="yolox")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--boxes", type=int, default=2, help="of each image")
    parser.add_argument("--methods", default=",".join(METHODS) + ",portfolio")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    adapter, _ = build(arguments.detector)
    chosen = arguments.methods.split(",")
    methods = {name: audit_map if name == "portfolio" else METHODS.get(name, name) for name in chosen}
    metrics = [
        f"{metric}:steps={arguments.steps},protocol={protocol}"
        for protocol in PROTOCOLS
        for metric in ("insertion", "deletion")
    ]
    result = detcam.benchmark(
        adapter,
        DATA / "coco_tiny" / "images",
        methods,
        metrics,
        DATA / "coco_tiny" / "val.json",
        arguments.out,
        top_k=arguments.boxes,
        limit=arguments.images,
        figure_images=0,
        progress=True,
    )
    print(result.to_text())


if __name__ == "__main__":
    main()
