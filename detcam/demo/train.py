"""Trains the demo detector on harbour scenes and certifies what it learned.

Run it as `python -m detcam.demo.train --out detcam/demo/demo_detector.pt --seed 0`.
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
from tqdm import tqdm

from detcam.demo.model import build_demo_detector
from detcam.synthetic.harbour import BOAT_LABEL, HarbourScene, draw_scene
from detcam.synthetic.sprites import FloatArray

SCORE_THRESHOLD = 0.5
HELD_OUT_SEEDS = range(1000, 1050)
TRAINING_SCENES = 1200
BATCH_SIZE = 8


def scene_tensor(scene: HarbourScene) -> Tensor:
    """Returns the scene as the detector takes it: (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255


def _training_pair(scene: HarbourScene, mirror: bool) -> tuple[Tensor, dict[str, Tensor]]:
    image, boxes = scene_tensor(scene), torch.from_numpy(scene.boxes_xyxy).clone()
    if mirror:
        image = image.flip(-1)
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image, {"boxes": boxes, "labels": torch.from_numpy(scene.labels)}


def train_demo_detector(seed: int, steps: int) -> FasterRCNN:
    """Trains a demo detector from scratch, from a seed.

    Args:
        seed: Seeds the weights, the samplers and the order of the scenes; seeds PyTorch's global generator.
        steps: Optimiser steps of BATCH_SIZE scenes each.

    Returns:
        The detector, in evaluation mode.
    """
    torch.manual_seed(seed)
    scenes = [draw_scene(index, demo=False) for index in tqdm(range(TRAINING_SCENES), "drawing")]
    return train_on(build_demo_detector(), scenes, steps, seed)


def train_on(detector: FasterRCNN, scenes: Sequence[HarbourScene], steps: int, seed: int = 0) -> FasterRCNN:
    """Trains a detector on scenes, mirrored at random, from the weights that it has.

    Args:
        detector: Is trained in place.
        scenes: At least BATCH_SIZE of them.
        steps: Optimiser steps of BATCH_SIZE scenes each.
        seed: Of the order of the scenes.

    Returns:
        The same detector, in evaluation mode.
    """
    order = random.Random(seed)
    detector.train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    progress = tqdm(range(steps), "training")
    for _ in progress:
        pairs = [_training_pair(scene, order.random() < 0.5) for scene in order.sample(list(scenes), BATCH_SIZE)]
        images, targets = zip(*pairs, strict=True)
        loss = torch.stack(list(detector(list(images), list(targets)).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return detector.eval()


@torch.inference_mode()
def detect(detector: FasterRCNN, scene: HarbourScene) -> dict[str, Tensor]:
    """Returns the detections that score at least SCORE_THRESHOLD, as torchvision's dict of tensors."""
    found = detector([scene_tensor(scene)])[0]
    keep = found["scores"] >= SCORE_THRESHOLD
    return {key: value[keep] for key, value in found.items()}


def fires_at(found: dict[str, Tensor], box_xyxy: Tensor | FloatArray, label: int, min_iou: float = 0.3) -> bool:
    """Tells whether a detection of that label overlaps the box."""
    return _overlapping(found, box_xyxy, label, min_iou).numel() > 0


def _overlapping(found: dict[str, Tensor], box_xyxy: Tensor | FloatArray, label: int, min_iou: float) -> Tensor:
    overlap = box_iou(torch.as_tensor(box_xyxy)[None], found["boxes"])[0]
    return torch.nonzero((overlap >= min_iou) & (found["labels"] == label))[:, 0]


@dataclass(frozen=True)
class WakeVerdict:
    """What became of one wake without a boat.

    Attributes:
        seed: The demo scene.
        wake: The wake's name in it.
        box_xyxy: (x0, y0, x1, y1) in pixels of the false positive it caused, or None if there was none.
        outside: Share of the wake's pixels outside that box, in [0, 1].
        gone_without_wake: The false positive vanishes when the scene is redrawn without the wake.
        stays_without_gull: It stays when the scene is redrawn without a gull.
    """

    seed: int
    wake: str
    box_xyxy: tuple[float, float, float, float] | None
    outside: float = 0.0
    gone_without_wake: bool = False
    stays_without_gull: bool = False

    @property
    def certified(self) -> bool:
        """The wake, and not just any change to the image, is what makes the detector fire."""
        return self.gone_without_wake and self.stays_without_gull


def certify_wake(detector: FasterRCNN, scene: HarbourScene, wake: str) -> WakeVerdict:
    """Redraws a scene without a boatless wake, then without a gull, and compares what the detector says.

    Raises:
        ValueError: `wake` is not a wake without a boat in this scene.
    """
    if wake not in scene.ghost_boxes_xyxy:
        raise ValueError(f"wakes without a boat here are {sorted(scene.ghost_boxes_xyxy)}, not {wake!r}")
    found = detect(detector, scene)
    hits = _overlapping(found, scene.ghost_boxes_xyxy[wake], BOAT_LABEL, min_iou=0.3)
    if hits.numel() == 0:
        return WakeVerdict(scene.seed, wake, None)
    box = found["boxes"][hits[found["scores"][hits].argmax()]]
    x0, y0, x1, y1 = box.tolist()
    rows, columns = np.nonzero(scene.object(wake).mask)
    inside = (columns + 0.5 > x0) & (columns + 0.5 < x1) & (rows + 0.5 > y0) & (rows + 0.5 < y1)
    without_wake = detect(detector, scene.without([wake]))
    without_gull = detect(detector, scene.without([scene.of_kind("gull")[0].name]))
    return WakeVerdict(
        seed=scene.seed,
        wake=wake,
        box_xyxy=(x0, y0, x1, y1),
        outside=1 - float(inside.mean()),
        gone_without_wake=not fires_at(without_wake, box, BOAT_LABEL),
        stays_without_gull=fires_at(without_gull, box, BOAT_LABEL),
    )


@dataclass(frozen=True)
class DemoScores:
    """How the detector behaves on demo scenes; the shares are in [0, 1].

    Attributes:
        recall: Share of the labelled boats and buoys found at IoU 0.5.
        boat_recall: The same of boats alone.
        precision: Share of the detections that match a label at IoU 0.5.
        wakes: Number of wakes without a boat.
        fired: Number of those at which the detector sees a boat.
        certified: Number of those that vanish with the wake and stay without a gull.
        outside: Number of certified false positives with at least 90 % of their wake outside the box.
        anchored: Share of the boats at anchor (without label, without wake) at which the detector fires.
    """

    recall: float
    boat_recall: float
    precision: float
    wakes: int
    fired: int
    certified: int
    outside: int
    anchored: float


def evaluate_demo_detector(detector: FasterRCNN, seeds: Iterable[int] = HELD_OUT_SEEDS) -> DemoScores:
    """Measures on demo scenes what the detector finds, where it is fooled, and by what."""
    hits: list[bool] = []
    of_boat: list[bool] = []
    right: list[bool] = []
    anchored: list[bool] = []
    verdicts: list[WakeVerdict] = []
    for seed in seeds:
        scene = draw_scene(seed)
        found = detect(detector, scene)
        for box, label in zip(scene.boxes_xyxy, scene.labels.tolist(), strict=True):
            hits.append(fires_at(found, box, label, min_iou=0.5))
            of_boat.append(label == BOAT_LABEL)
        for box, label in zip(found["boxes"], found["labels"], strict=True):
            overlap = box_iou(box[None], torch.from_numpy(scene.boxes_xyxy))[0]
            right.append(bool(((overlap >= 0.5) & (torch.from_numpy(scene.labels) == label)).any()))
        anchored += [fires_at(found, thing.box_xyxy, BOAT_LABEL) for thing in scene.of_kind("anchored")]
        verdicts += [certify_wake(detector, scene, wake) for wake in scene.ghost_boxes_xyxy]
    certified = [verdict for verdict in verdicts if verdict.certified]
    return DemoScores(
        recall=float(np.mean(hits)),
        boat_recall=float(np.mean(np.array(hits)[np.array(of_boat)])),
        precision=float(np.mean(right)),
        wakes=len(verdicts),
        fired=sum(verdict.box_xyxy is not None for verdict in verdicts),
        certified=len(certified),
        outside=sum(verdict.outside >= 0.9 for verdict in certified),
        anchored=float(np.mean(anchored)),
    )


def save_demo_detector(detector: FasterRCNN, path: Path) -> None:
    """Writes the weights as float16, first to a temporary file beside the path, then renamed."""
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in detector.state_dict().items()
    }
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the training from the command line."""
    parser = argparse.ArgumentParser(prog="python -m detcam.demo.train", description="Trains the demo detector.")
    parser.add_argument("--out", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    options = parser.parse_args(arguments)
    detector = train_demo_detector(options.seed, options.steps)
    save_demo_detector(detector, options.out)
    scores = evaluate_demo_detector(detector)
    print(f"recall {scores.recall:.3f} (boats {scores.boat_recall:.3f}), precision {scores.precision:.3f}")
    print(f"boats at anchor taken for boats under way: {scores.anchored:.3f}")
    print(
        f"wakes without a boat: {scores.wakes}; false positives there: {scores.fired}; "
        f"certified: {scores.certified}; wake outside the box: {scores.outside}"
    )


if __name__ == "__main__":
    main()
