"""Training of the demo detector on harbor scenes, and certification of the shortcut that it learns.

Usage: ``python -m detcam.demo.train --out detcam/demo/demo_detector.pt --seed 0``.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from detcam.demo.model import build_demo_detector
from detcam.synthetic.harbor import BOAT_LABEL, HarborScene, draw_scene
from detcam.synthetic.sprites import FloatArray
from detcam.synthetic.training import scene_tensor, training_pair
from detcam.utils.console import ProgressBar, track

SCORE_THRESHOLD = 0.5
MIN_GHOST_IOU = 0.3
HELD_OUT_SEEDS = range(1000, 1050)
TRAINING_SCENES = 1200
BATCH_SIZE = 8


def train_demo_detector(seed: int, steps: int) -> FasterRCNN:
    """Train a demo detector from scratch.

    Args:
        seed: seed of the weights, the samplers and the order of the scenes. PyTorch's global generator is seeded.
        steps: optimizer steps, of BATCH_SIZE scenes each.

    Returns:
        The detector, in evaluation mode.
    """
    torch.manual_seed(seed)
    scenes = [draw_scene(index, demo=False) for index in track(range(TRAINING_SCENES), "drawing")]
    return fine_tune(build_demo_detector(), scenes, steps, seed)


def fine_tune(detector: FasterRCNN, scenes: Sequence[HarborScene], steps: int, seed: int = 0) -> FasterRCNN:
    """Train a detector on randomly mirrored scenes, starting from its current weights.

    Args:
        detector: detector to train, in place.
        scenes: training scenes, at least BATCH_SIZE.
        steps: optimizer steps, of BATCH_SIZE scenes each.
        seed: seed of the order of the scenes and of the mirroring.

    Returns:
        The same detector, in evaluation mode.

    Raises:
        ValueError: there are too few scenes.
    """
    if len(scenes) < BATCH_SIZE:
        raise ValueError(f"expected at least {BATCH_SIZE} training scenes; got {len(scenes)}")
    order = random.Random(seed)
    detector.train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    with ProgressBar("training", steps) as bar:
        for _ in range(steps):
            pairs = [training_pair(scene, order.random() < 0.5) for scene in order.sample(list(scenes), BATCH_SIZE)]
            images, targets = zip(*pairs, strict=True)
            loss = torch.stack(list(detector(list(images), list(targets)).values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            bar.advance(description=f"training, loss {loss.item():.3f}")
    return detector.eval()


@torch.inference_mode()
def detect(detector: FasterRCNN, scene: HarborScene) -> dict[str, Tensor]:
    """Return the detections with a score of at least SCORE_THRESHOLD, as torchvision's dict of tensors."""
    output = detector([scene_tensor(scene)])[0]
    keep = output["scores"] >= SCORE_THRESHOLD
    return {key: value[keep] for key, value in output.items()}


def has_detection(
    detections: dict[str, Tensor], box_xyxy: Tensor | FloatArray, label: int, min_iou: float = MIN_GHOST_IOU
) -> bool:
    """Return whether a detection of that label overlaps the box."""
    return _overlapping(detections, box_xyxy, label, min_iou).numel() > 0


def _overlapping(detections: dict[str, Tensor], box_xyxy: Tensor | FloatArray, label: int, min_iou: float) -> Tensor:
    overlap = box_iou(torch.as_tensor(box_xyxy)[None], detections["boxes"])[0]
    return torch.nonzero((overlap >= min_iou) & (detections["labels"] == label))[:, 0]


@dataclass(frozen=True)
class WakeCertification:
    """Effect of removing one wake without a boat.

    Attributes:
        seed: seed of the demo scene.
        wake: name of the wake.
        box_xyxy: box (x1, y1, x2, y2) of the false positive beside the wake in pixels, or None if there is none.
        outside_fraction: fraction of the wake's pixels outside that box, in [0, 1].
        gone_without_wake: whether the false positive vanishes if the scene is drawn without the wake.
        stays_without_gull: whether it stays if the scene is drawn without a gull.
    """

    seed: int
    wake: str
    box_xyxy: tuple[float, float, float, float] | None
    outside_fraction: float = 0.0
    gone_without_wake: bool = False
    stays_without_gull: bool = False

    @property
    def certified(self) -> bool:
        """Whether the wake causes the false positive: it vanishes without the wake and stays without a gull."""
        return self.gone_without_wake and self.stays_without_gull


def certify_wake(detector: FasterRCNN, scene: HarborScene, wake: str) -> WakeCertification:
    """Draw a scene without a wake, then without a gull, and compare the detections.

    Args:
        detector: the demo detector.
        scene: a demo scene.
        wake: name of a wake without a boat.

    Raises:
        ValueError: `wake` is not the name of a wake without a boat in this scene.
    """
    if wake not in scene.ghost_boxes_xyxy:
        raise ValueError(f"expected one of the wakes without a boat, {sorted(scene.ghost_boxes_xyxy)}; got {wake!r}")
    detections = detect(detector, scene)
    hits = _overlapping(detections, scene.ghost_boxes_xyxy[wake], BOAT_LABEL, MIN_GHOST_IOU)
    if hits.numel() == 0:
        return WakeCertification(scene.seed, wake, None)
    box = detections["boxes"][hits[detections["scores"][hits].argmax()]]
    x1, y1, x2, y2 = box.tolist()
    rows, columns = np.nonzero(scene.object(wake).mask)
    inside = (columns + 0.5 > x1) & (columns + 0.5 < x2) & (rows + 0.5 > y1) & (rows + 0.5 < y2)
    without_wake = detect(detector, scene.without([wake]))
    without_gull = detect(detector, scene.without([scene.of_kind("gull")[0].name]))
    return WakeCertification(
        seed=scene.seed,
        wake=wake,
        box_xyxy=(x1, y1, x2, y2),
        outside_fraction=1 - float(inside.mean()),
        gone_without_wake=not has_detection(without_wake, box, BOAT_LABEL),
        stays_without_gull=has_detection(without_gull, box, BOAT_LABEL),
    )


@dataclass(frozen=True)
class DemoEvaluation:
    """Behavior of the detector on demo scenes; fractions are in [0, 1].

    Attributes:
        recall: recall of labeled boats and buoys at IoU 0.5.
        boat_recall: recall of labeled boats at IoU 0.5.
        precision: precision at IoU 0.5.
        wakes: number of wakes without a boat.
        fired: number of those with a detected boat.
        certified: number of those that vanish without the wake and stay without a gull.
        outside: number of certified false positives with at least 90 % of their wake outside the box.
        anchored: fraction of the boats at anchor (no label, no wake) with a detection.
    """

    recall: float
    boat_recall: float
    precision: float
    wakes: int
    fired: int
    certified: int
    outside: int
    anchored: float


def evaluate_demo_detector(detector: FasterRCNN, seeds: Iterable[int] = HELD_OUT_SEEDS) -> DemoEvaluation:
    """Measure recall, precision, and the effect of the wakes on demo scenes."""
    hits: list[bool] = []
    is_boat: list[bool] = []
    correct: list[bool] = []
    anchored: list[bool] = []
    certifications: list[WakeCertification] = []
    for seed in seeds:
        scene = draw_scene(seed)
        detections = detect(detector, scene)
        for box, label in zip(scene.boxes_xyxy, scene.labels.tolist(), strict=True):
            hits.append(has_detection(detections, box, label, min_iou=0.5))
            is_boat.append(label == BOAT_LABEL)
        for box, label in zip(detections["boxes"], detections["labels"], strict=True):
            overlap = box_iou(box[None], torch.from_numpy(scene.boxes_xyxy))[0]
            correct.append(bool(((overlap >= 0.5) & (torch.from_numpy(scene.labels) == label)).any()))
        anchored += [has_detection(detections, item.box_xyxy, BOAT_LABEL) for item in scene.of_kind("anchored")]
        certifications += [certify_wake(detector, scene, wake) for wake in scene.ghost_boxes_xyxy]
    certified = [item for item in certifications if item.certified]
    return DemoEvaluation(
        recall=float(np.mean(hits)),
        boat_recall=float(np.mean(np.array(hits)[np.array(is_boat)])),
        precision=float(np.mean(correct)),
        wakes=len(certifications),
        fired=sum(item.box_xyxy is not None for item in certifications),
        certified=len(certified),
        outside=sum(item.outside_fraction >= 0.9 for item in certified),
        anchored=float(np.mean(anchored)),
    )


def save_demo_detector(detector: FasterRCNN, path: Path) -> None:
    """Write the weights as float16, under a temporary name that is then renamed."""
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in detector.state_dict().items()
    }
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Train, save and evaluate a demo detector from the command line."""
    parser = argparse.ArgumentParser(prog="python -m detcam.demo.train", description="Train the demo detector.")
    parser.add_argument("--out", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    options = parser.parse_args(arguments)
    detector = train_demo_detector(options.seed, options.steps)
    save_demo_detector(detector, options.out)
    scores = evaluate_demo_detector(detector)
    print(f"recall {scores.recall:.3f} (boats {scores.boat_recall:.3f}), precision {scores.precision:.3f}")
    print(f"boats at anchor with a detection: {scores.anchored:.3f}")
    print(
        f"wakes without a boat: {scores.wakes}; false positives there: {scores.fired}; "
        f"certified: {scores.certified}; wake outside the box: {scores.outside}"
    )


if __name__ == "__main__":
    main()
