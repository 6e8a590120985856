"""Where maps put the cause of false positives whose cause is certified: wakes without a boat in demo scenes.

    python tests/peers/measure_reach.py

Each row: share of the maps whose greatest pixel lies on the wake that caused the detection, mean share of the map's
sum on it, the same for the wake's bounding box, how far the gradients reach, and the median convergence delta.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam import ODAM, GradCAM, HiResCAM, LayerCAM, ProbeCAM, ReachCAM, adapt
from detcam.cam import BaseCAM
from detcam.demo.model import load_demo_detector
from detcam.demo.train import HELD_OUT_SEEDS, certify_wake
from detcam.synthetic.harbour import HarbourScene, draw_scene
from detcam.targets import BoxTarget


@dataclass(frozen=True)
class AuditCase:
    """One certified false positive: the scene, its target, and the pixels (H, W) bool of its cause."""

    scene: HarbourScene
    target: BoxTarget
    cause: Tensor
    around: Tensor


def certified_cases(seeds: range) -> list[AuditCase]:
    """Every false positive that vanishes with its wake and stays without a gull."""
    detector = load_demo_detector()
    adapter = adapt(detector)
    cases = []
    for seed in seeds:
        scene = draw_scene(seed)
        found = adapter.predict(scene.image)[0]
        for wake in scene.ghost_boxes_xyxy:
            verdict = certify_wake(detector, scene, wake)
            if verdict.box_xyxy is None or not verdict.certified:
                continue
            index = int(box_iou(torch.tensor(verdict.box_xyxy)[None], found.boxes_xyxy)[0].argmax())
            cause = torch.from_numpy(scene.object(wake).mask)
            x1, y1, x2, y2 = scene.object(wake).box_xyxy.astype(int).tolist()
            around = torch.zeros_like(cause)
            around[y1:y2, x1:x2] = True
            cases.append(AuditCase(scene, adapter.targets_of(found)[index], cause, around))  # type: ignore[arg-type]
    return cases


def measure(cam: BaseCAM, cases: list[AuditCase]) -> list[float]:
    """One row of the table."""
    rows = []
    for case in cases:
        result = cam.explain(case.scene.image, [case.target])[0]
        heatmap, peak = torch.as_tensor(result.heatmaps)[0], int(result.heatmaps[0].argmax())
        row = [float(f(region)) for region in (case.cause, case.around) for f in _judges(heatmap, peak)]
        reach = result.reach[0].fraction if result.reach else float("nan")
        error = float("nan") if result.convergence_delta is None else float(result.convergence_delta.max())
        rows.append([*row, reach, error])
    table = torch.tensor(rows)
    return [*table[:, :5].mean(0).tolist(), float(table[:, 5].median())]


def _judges(heatmap: Tensor, peak: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return lambda region: region.flatten()[peak], lambda region: heatmap[region].sum() / heatmap.sum().clamp(min=1e-9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measures maps against certified causes.")
    parser.add_argument("--scenes", type=int, default=len(HELD_OUT_SEEDS), help="how many demo scenes")
    count = parser.parse_args().scenes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = certified_cases(HELD_OUT_SEEDS[:count])
    detector = load_demo_detector()
    print(f"{len(cases)} certified false positives")
    print(f"{'':38} peak energy | box: peak energy | reach  error")
    early = [f"backbone.stride{stride}" for stride in (2, 4, 8)]
    cams: dict[str, BaseCAM] = {}
    for method in (GradCAM, LayerCAM, HiResCAM, ODAM):
        cams[f"{method.__name__} at its default layer"] = method(detector)
        cams |= {f"{method.__name__} at {layer}": method(detector, [layer]) for layer in early[1:]}
    cams["ProbeCAM"] = ProbeCAM(detector)
    cams |= {f"ReachCAM, {steps} steps": ReachCAM(detector, steps=steps) for steps in (1, 2, 4, 8)}
    cams["ReachCAM without contrast"] = ReachCAM(detector, contrast=False)
    cams |= {f"ReachCAM at {layer}": ReachCAM(detector, [layer]) for layer in early}
    cams["ReachCAM at strides 4 and 8"] = ReachCAM(detector, early[1:])
    cams["ReachCAM at strides 2, 4 and 8"] = ReachCAM(detector, early)
    for name, cam in cams.items():
        row = measure(cam, cases)
        print("{:38} {:4.2f}   {:4.2f} |      {:4.2f}   {:4.2f} |  {:4.2f}  {:5.2f}".format(name, *row))


if __name__ == "__main__":
    main()
