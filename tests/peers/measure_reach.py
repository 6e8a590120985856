"""Localization of certified causes of false positives: wakes without a boat in demo scenes.

    python tests/peers/measure_reach.py

Each row gives the fraction of heatmaps whose maximum lies on the wake that caused the detection, the mean energy on the
wake, the same two numbers for the wake's bounding box, the mean reach of the gradients, and the median convergence
delta.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from detcam import ODAM, GradCAM, HiResCAM, LayerCAM, ProbeCAM, ReachCAM, adapt
from detcam.cam import BaseCAM
from detcam.demo.model import load_demo_detector
from detcam.demo.train import HELD_OUT_SEEDS, certify_wake
from detcam.synthetic.harbor import HarborScene, draw_scene
from detcam.targets import BoxTarget


@dataclass(frozen=True)
class CertifiedCase:
    """A certified false positive: scene, target, and masks (H, W) bool of the causing wake and of its box."""

    scene: HarborScene
    target: BoxTarget
    wake: np.ndarray
    wake_box: np.ndarray


def certified_cases(seeds: range) -> list[CertifiedCase]:
    """Return the false positives that vanish without their wake and persist without a gull."""
    detector = load_demo_detector()
    adapter = adapt(detector)
    cases = []
    for seed in seeds:
        scene = draw_scene(seed)
        (detections,) = adapter.predict(scene.image)
        for name in scene.ghost_boxes_xyxy:
            certification = certify_wake(detector, scene, name)
            if certification.box_xyxy is None or not certification.certified:
                continue
            index = int(box_iou(torch.tensor(certification.box_xyxy)[None], detections.boxes_xyxy)[0].argmax())
            wake = scene.object(name)
            x1, y1, x2, y2 = wake.box_xyxy.astype(int)
            wake_box = np.zeros_like(wake.mask)
            wake_box[y1:y2, x1:x2] = True
            target = adapter.targets_of(detections)[index]
            cases.append(CertifiedCase(scene, target, wake.mask, wake_box))  # type: ignore[arg-type]
    return cases


def measure(cam: BaseCAM, cases: list[CertifiedCase]) -> list[float]:
    """Return a row of the table."""
    rows = []
    for case in cases:
        result = cam.explain(case.scene.image, [case.target])[0]
        heatmap = result.heatmaps[0]
        row = []
        for region in (case.wake, case.wake_box):
            row += [float(region.flat[heatmap.argmax()]), float(heatmap[region].sum() / max(heatmap.sum(), 1e-9))]
        reach = result.reach[0].fraction if result.reach else float("nan")
        delta = float("nan") if result.convergence_delta is None else float(result.convergence_delta.max())
        rows.append([*row, reach, delta])
    table = torch.tensor(rows)
    return [*table[:, :5].mean(0).tolist(), float(table[:, 5].median())]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=len(HELD_OUT_SEEDS), help="number of demo scenes")
    count = parser.parse_args().scenes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = certified_cases(HELD_OUT_SEEDS[:count])
    detector = load_demo_detector()
    print(f"{len(cases)} certified false positives")
    print(f"{'':38} peak energy | box: peak energy | reach  delta")
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
