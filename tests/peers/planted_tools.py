"""Heatmap tools of other packages as explainers of the planted benchmark, with their code unchanged.

    python tests/peers/planted_tools.py --out planted --cases 12

Each function takes the detector, the image and the target, and uses its package as that package's tutorial for
detectors does, or, without one, its default settings with the score of the box as the output. The module's functions
are also explainers of the command: ``detcam benchmark --planted --explainer planted_tools:captum_occlusion`` in this
folder.
``make planted-peers`` installs the packages. A tool whose package is missing, or which does not support a detector, is
left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detcam.benchmarking.planted.results import MethodRow
from detcam.benchmarking.planted.run import benchmark_planted
from detcam.detections import Detections
from detcam.methods.spec import parse_method
from detcam.synthetic.shortcut_scenarios import NAMES
from detcam.targets import BoxTarget
from detcam.utils.markdown import markdown_table
from detcam.utils.proportions import wilson_interval

DRISE_MASKS, DRISE_GRID, DRISE_PROBABILITY = 200, 8, 0.5  # those of xaitk-saliency's example
OCCLUSION_WINDOW, OCCLUSION_STRIDE = (3, 15, 15), (3, 8, 8)  # those of captum's tutorial for images
METHODS = ("probecam", "odam")
"""Methods of detcam that are measured beside the tools."""


def to_batch(image: np.ndarray) -> Tensor:
    """Convert an (H, W, 3) uint8 image to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def is_torchvision(model: nn.Module) -> bool:
    """Whether the model is a detector of torchvision."""
    return hasattr(model, "roi_heads") or hasattr(model, "anchor_generator")


def box_scores(model: nn.Module, batch: Tensor, target: BoxTarget) -> Tensor:
    """The score (B,) of the target's class at the target's box, 0 where nothing overlaps it; differentiable."""
    own = torch.tensor([target.box_xyxy])
    if is_torchvision(model):
        scores = []
        for output in model(list(batch)):
            overlap = box_iou(own, output["boxes"].detach())[0] * (output["labels"] == target.label)
            good = len(overlap) > 0 and float(overlap.max()) > 0.5
            scores.append(output["scores"][overlap.argmax()] if good else batch.sum() * 0)
        return torch.stack(scores)
    predictions = model(batch)[0]  # (B, 4 + classes, candidates): center and size, then scores
    center, size = predictions[:, :2], predictions[:, 2:4]
    corners = torch.cat([center - size / 2, center + size / 2], 1).transpose(1, 2).detach()
    boxes = corners.clamp(min=0).minimum(torch.tensor(batch.shape[:1:-1] * 2))
    scores = predictions[:, 4 + target.label]
    best = [(box_iou(own, each)[0] * score.detach()).argmax() for each, score in zip(boxes, scores, strict=True)]
    return torch.stack([score[index] for score, index in zip(scores, best, strict=True)])


class BoxScore:
    """The target of grad-cam's tutorial for the output of torchvision's detectors."""

    def __init__(self, target: BoxTarget) -> None:
        from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget

        self.target = FasterRCNNBoxScoreTarget([target.label], torch.tensor([target.box_xyxy]))

    def __call__(self, output: Any) -> Tensor:
        return self.target(output)


def reshape_pyramid(levels: Mapping[str, Tensor]) -> Tensor:
    """The reshape transform of grad-cam's tutorial, for a pyramid without a level "pool"."""
    size = list(levels.values())[-1].shape[-2:]
    return torch.cat([nn.functional.interpolate(level.abs(), size, mode="bilinear") for level in levels.values()], 1)


def gradcam_eigencam(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """EigenCAM of grad-cam, as in its tutorials for Faster R-CNN (the backbone) and YOLO (the last layer but one)."""
    from pytorch_grad_cam import EigenCAM

    if is_torchvision(model):
        with EigenCAM(model, [model.backbone], reshape_transform=reshape_pyramid) as cam:  # type: ignore[list-item]
            return cam(to_batch(image), targets=[BoxScore(target)])[0]
    with EigenCAM(model, [model.model[-2]]) as cam:  # type: ignore[index]
        return cam(to_batch(image), targets=[])[0]


def gradcam_gradcam(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """GradCAM of grad-cam at the last layer of the backbone, with the target of its tutorial for Faster R-CNN."""
    from pytorch_grad_cam import GradCAM

    with GradCAM(model, [last_layer(model)]) as cam:
        return cam(to_batch(image), targets=[BoxScore(target)])[0]


def torchcam_layercam(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """LayerCAM of torch-cam at the last layer of the backbone, with the score of the box as the target."""
    from torchcam.methods import LayerCAM

    score = BoxScore(target)
    with LayerCAM(model, target_layer=last_layer(model)) as extractor:
        outputs = model(list(to_batch(image)))
        (level,) = extractor(scores=outputs, targets=[score])
    resized = nn.functional.interpolate(level[:, None].float(), image.shape[:2], mode="bilinear")
    return resized[0, 0].nan_to_num().detach().numpy()


def last_layer(model: Any) -> nn.Module:
    """The last convolutional stage of the backbone."""
    layer: nn.Module = model.backbone.stride32
    return layer


def captum_integrated_gradients(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """Integrated gradients of captum, positive part of the sum over channels, black baseline, 50 steps."""
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(lambda batch: box_scores(model, batch, target))
    return explainer.attribute(to_batch(image), internal_batch_size=10)[0].sum(0).detach().numpy()


def captum_occlusion(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """Sliding occlusion of captum with the windows of its tutorial."""
    from captum.attr import Occlusion

    explainer = Occlusion(lambda batch: box_scores(model, batch, target))
    with torch.no_grad():
        attribution = explainer.attribute(
            to_batch(image), OCCLUSION_WINDOW, strides=OCCLUSION_STRIDE, baselines=0, perturbations_per_eval=16
        )
    return attribution[0].sum(0).numpy()


def xaitk_drise(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """D-RISE of xaitk-saliency with the settings of its example: 200 masks, a grid of 8 x 8, probability 0.5."""
    from smqtk_detection.interfaces.detect_image_objects import DetectImageObjects
    from smqtk_image_io.bbox import AxisAlignedBoundingBox
    from xaitk_saliency.impls.gen_object_detector_blackbox_sal.drise import DRISEStack

    import detcam

    adapter = detcam.adapt(model)
    labels = range(len(NAMES) + 1)

    class BlackBox(DetectImageObjects):  # type: ignore[misc]
        def detect_objects(
            self, img_iter: Iterable[np.ndarray]
        ) -> Iterator[list[tuple[AxisAlignedBoundingBox, dict[Hashable, float]]]]:
            for found in adapter.predict([np.ascontiguousarray(each) for each in img_iter], batch_size=16):
                yield [_described(found, row) for row in range(len(found))]

        def get_config(self) -> dict[str, Any]:
            return {}

    def _described(found: Detections, row: int) -> tuple[AxisAlignedBoundingBox, dict[Hashable, float]]:
        x1, y1, x2, y2 = found.boxes_xyxy[row].tolist()
        scores: dict[Hashable, float] = dict.fromkeys(labels, 0.0)
        scores[int(found.labels[row])] = float(found.scores[row])
        return AxisAlignedBoundingBox((x1, y1), (x2, y2)), scores

    explainer = DRISEStack(n=DRISE_MASKS, s=DRISE_GRID, p1=DRISE_PROBABILITY, seed=0)
    explainer.fill = image.reshape(-1, 3).mean(0).astype(np.uint8)
    scores = np.array([[float(label == target.label) for label in labels]])
    maps = explainer.generate(image, np.array([target.box_xyxy]), scores, BlackBox())
    return np.asarray(maps[0]) if len(maps) else np.zeros(image.shape[:2])


def ultralytics_visualize(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
    """The heatmap of ``predict(visualize=True)`` of ultralytics, for all detections of the image at once."""
    from ultralytics import YOLO
    from ultralytics.utils import plotting

    yolo = YOLO("yolo11n.yaml", task="detect", verbose=False)
    yolo.model = deepcopy(model)  # predict fuses its layers
    seen: list[np.ndarray] = []
    color = cv2.applyColorMap

    def record(values: np.ndarray, colormap: int) -> np.ndarray:
        """Keep the heatmap, of which only a colored overlay is saved."""
        seen.append(values)
        return color(values, colormap)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(plotting.cv2, "applyColorMap", record):
        size = [int(side) for side in image.shape[:2]]
        yolo.predict(image[..., ::-1], imgsz=size, visualize=True, verbose=False, project=folder, save=False)
    return seen[0]


Explain = Callable[[nn.Module, np.ndarray, BoxTarget], np.ndarray]


@dataclass(frozen=True)
class Tool:
    """A tool of another package: its package, its function, and the detector families that it supports."""

    package: str
    explain: Explain
    families: tuple[str, ...]


TOOLS: dict[str, Tool] = {
    "ultralytics visualize=True": Tool("ultralytics", ultralytics_visualize, ("yolo",)),
    "grad-cam EigenCAM": Tool("pytorch_grad_cam", gradcam_eigencam, ("two-stage", "yolo")),
    "grad-cam GradCAM": Tool("pytorch_grad_cam", gradcam_gradcam, ("two-stage",)),
    "torch-cam LayerCAM": Tool("torchcam", torchcam_layercam, ("two-stage",)),
    "xaitk-saliency D-RISE": Tool("xaitk_saliency", xaitk_drise, ("two-stage", "yolo")),
    "captum integrated gradients": Tool("captum", captum_integrated_gradients, ("two-stage", "yolo")),
    "captum occlusion": Tool("captum", captum_occlusion, ("two-stage", "yolo")),
}


def installed_tools(family: str, text: str = "") -> dict[str, Explain]:
    """The tools that support a family, whose package is installed, and whose name contains a text, by name."""
    family = "yolo" if family.startswith("yolo") else family  # a tool for one YOLO is a tool for all of them
    return {
        name: tool.explain
        for name, tool in TOOLS.items()
        if family in tool.families and text in name and importlib.util.find_spec(tool.package) is not None
    }


def share_table(rows: Iterable[MethodRow]) -> str:
    """Format the share of peaks on the cause by tool and scenario, with the interval over all cases."""
    groups: dict[str, list[MethodRow]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    scenarios = list(dict.fromkeys(row.scenario for group in groups.values() for row in group))
    lines = []
    for name, group in groups.items():
        count = sum(row.summary.cases for row in group)
        hits = sum(row.summary.peak * row.summary.cases for row in group)
        energy = sum(row.summary.energy * row.summary.cases for row in group) / max(count, 1)
        low, high = wilson_interval(hits / max(count, 1), count)
        cells = []
        for scenario in scenarios:
            own = [row.summary for row in group if row.scenario == scenario and row.summary.cases]
            total = sum(summary.cases for summary in own)
            cells.append(f"{100 * sum(s.peak * s.cases for s in own) / total:.0f} %" if total else "-")
        share = f"{100 * hits / max(count, 1):.0f} % ({100 * low:.0f}-{100 * high:.0f})"
        lines.append((name, str(count), share, f"{energy:.2f}", *cells))
    columns = ("tool", "cases", "on the cause", "energy", *scenarios)
    return markdown_table(columns, lines, right=columns[1:])


def main() -> None:
    """Measure the tools and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="planted", help="folder of the detectors")
    parser.add_argument("--cases", type=int, default=12, help="cases per family, scenario and set of test scenes")
    parser.add_argument("--family", nargs="+", default=["two-stage", "yolo"])
    parser.add_argument("--scenario", nargs="+", default=["context", "mark", "look-alike"])
    parser.add_argument("--seeds", nargs="+", default=["hold-out"])
    parser.add_argument("--tool", default="", help="tools whose name contains this text")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[MethodRow] = []
    for family, scenario in product(arguments.family, arguments.scenario):
        own: dict[str, Any] = {name: method_explainer(name) for name in METHODS if arguments.tool in name}
        result = benchmark_planted(
            arguments.out,
            (),
            explainers={**own, **installed_tools(family, arguments.tool)},
            audit=False,
            family_names=[family],
            scenarios=[scenario],
            seed_sets=arguments.seeds,
            cases=arguments.cases,
        )
        rows += result.methods
        print(f"{family} {scenario}\n{share_table(result.methods)}", flush=True)
    print(f"all\n{share_table(rows)}")
    missing = sorted({tool.package for tool in TOOLS.values() if importlib.util.find_spec(tool.package) is None})
    print(f"not installed: {', '.join(missing) or 'none'}")


def method_explainer(name: str) -> Explain:
    """A method of detcam as an explainer."""
    import detcam

    cams: dict[int, Any] = {}

    def explain(model: nn.Module, image: np.ndarray, target: BoxTarget) -> np.ndarray:
        cam = cams.setdefault(id(model), None) or parse_method(name)(detcam.adapt(model))
        cams[id(model)] = cam  # it keeps the model, so that no other gets its id
        return cam.explain(image, [target])[0].heatmaps[0]

    return explain


if __name__ == "__main__":
    main()
