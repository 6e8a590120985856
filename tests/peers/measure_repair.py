"""Whether counterfactual pairs repair a detector with a known shortcut, beside the usual remedies at equal budget.

    python tests/peers/measure_repair.py --family two-stage --out build/repair
    python tests/peers/measure_repair.py --family yolo --scenes 30 --steps 160 --explain 24 --out build/repair

The detectors have learned that a boat has a wake, and find boats where a wake has none. Each remedy adds as many images
to the training data, and trains for as many steps, half of each batch from the added images. The table counts false
boats beside wakes in fresh scenes, average precision in neutral scenes, which have neither wakes without a boat nor
unlabeled boats, and the causes that ``detcam.compare_audits`` calls new.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

import detcam
from detcam.adapters import Adapter, adapt
from detcam.benchmarking.planted.detectors import torchvision_loss
from detcam.benchmarking.planted.ultralytics_training import build_network, network_loss
from detcam.data.annotations import Annotations
from detcam.demo.labels import label_anchored_boats, write_coco
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, SCENE_SIZE_HW, HarborScene, draw_scene
from detcam.synthetic.training import training_pair

BATCH_SIZE = 8
THRESHOLD = 0.5
FIRST_AUDITED = 20_000
FRESH, NEUTRAL = range(30_000, 30_060), range(40_000, 40_060)
Pair = tuple[Tensor, dict[str, Tensor]]


class Family:
    """A detector family: its loss, its adapter, and its label of the first class."""

    def __init__(self, name: str) -> None:
        self.first_label = 1 if name == "two-stage" else 0
        self.loss = torchvision_loss if name == "two-stage" else network_loss

    def adapter(self, model: nn.Module) -> Adapter:
        return adapt(model, names=DEMO_NAMES) if self.first_label else adapt(model)

    def train(
        self, model: nn.Module, scenes: Sequence[Pair], added: Sequence[Pair], steps: int, seed: int, rate: float = 1e-3
    ) -> nn.Module:
        """Train with half of each batch from the added images, if there are any."""
        torch.manual_seed(seed)
        order = random.Random(seed)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            half = BATCH_SIZE // 2 if added else 0
            batch = (
                order.sample(list(scenes), BATCH_SIZE - half) + order.choices(list(added), k=half)
                if half
                else (order.sample(list(scenes), BATCH_SIZE))
            )
            pairs = [_flipped(pair) if order.random() < 0.5 else pair for pair in batch]
            targets = [{**target, "labels": target["labels"] - 1 + self.first_label} for _, target in pairs]
            loss = self.loss(model, [image for image, _ in pairs], targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        return model.eval()


def _flipped(pair: Pair) -> Pair:
    image, target = pair
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image.flip(-1), {**target, "boxes": boxes}


def scene_pairs(scenes: Sequence[HarborScene]) -> list[Pair]:
    return [training_pair(scene, False) for scene in scenes]


def load_pairs(folder: Path) -> list[Pair]:
    """A training set that ``detcam.repair`` wrote."""
    annotations = Annotations.load(folder / "annotations.json", folder / "images")
    pairs = []
    for image in annotations:
        pixels = torch.from_numpy(np.array(Image.open(image.path).convert("RGB"))).permute(2, 0, 1).float() / 255
        pairs.append((pixels, {"boxes": image.boxes_xyxy, "labels": image.category_ids}))
    return pairs


def background_images(count: int) -> list[Pair]:
    """Scenes without boats, wakes and buoys."""
    scenes = [draw_scene(50_000 + seed, demo=False) for seed in range(count)]
    bare = [
        scene.without([item.name for item in scene.objects if item.kind in ("boat", "wake", "anchored", "buoy")])
        for scene in scenes
    ]
    return scene_pairs(bare)


def erased(pairs: Sequence[Pair], count: int, seed: int = 0) -> list[Pair]:
    """Random erasing: training images with one to three gray rectangles of 0.5 to 4 % of the image."""
    draw, result = np.random.default_rng(seed), []
    for index in draw.choice(len(pairs), count).tolist():
        image, target = pairs[index]
        image, (height, width) = image.clone(), image.shape[-2:]
        for _ in range(int(draw.integers(1, 4))):
            area, ratio = draw.uniform(0.005, 0.04) * height * width, draw.uniform(0.4, 2.5)
            h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            top, left = int(draw.integers(0, height - h)), int(draw.integers(0, width - w))
            image[:, top : top + h, left : left + w] = float(draw.uniform(0, 1))
        result.append((image, target))
    return result


def neutral_scene(seed: int) -> HarborScene:
    scene = draw_scene(seed, demo=False)
    return scene.without([item.name for item in scene.objects if item.kind == "anchored"])


def wake_errors(family: Family, model: nn.Module, scenes: Sequence[HarborScene]) -> int:
    """Number of wakes without a boat beside which the detector finds one."""
    adapter, count = family.adapter(model), 0
    for scene in scenes:
        found = adapter.predict([scene.image])[0]
        boats = found.boxes_xyxy[(found.labels == family.first_label) & (found.scores >= THRESHOLD)]
        for box in scene.ghost_boxes_xyxy.values():
            count += bool((box_iou(torch.from_numpy(box)[None], boats) >= 0.3).any()) if len(boats) else False
    return count


def audit(family: Family, model: nn.Module, labels: Path, out: Path, explain: int) -> Path:
    """Audit a model on scenes, unless the folder has a finished audit."""
    if not (out / "index.html").exists():
        options = {"score_threshold": THRESHOLD, "explain": explain, "explain_missed": 0, "resume": True}
        detcam.audit(family.adapter(model), labels.parent / "images", labels, out=out, **options)
    return out


def load_detector(name: str, family: Family, weights: Path, steps: int) -> nn.Module:
    """The demo detector, or a YOLO that learns the same shortcut; it is trained once."""
    if name == "two-stage":
        return load_demo_detector()
    model = build_network("yolo11n.yaml", DEMO_NAMES[1:], SCENE_SIZE_HW)
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()
    family.train(model, scene_pairs([draw_scene(seed, demo=False) for seed in range(400)]), [], steps, 0, 2e-3)
    torch.save(model.state_dict(), weights)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--family", choices=("two-stage", "yolo"), default="two-stage")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=60, help="audited scenes")
    parser.add_argument("--explain", type=int, default=60, help="false positives to explain per audit")
    parser.add_argument("--yolo-steps", type=int, default=900, help="steps of the training with the shortcut")
    parser.add_argument("--remedies", default="counterfactual,audited,background,erasing")
    parser.add_argument("--out", type=Path, default=Path("build/repair"))
    args = parser.parse_args()
    family, out = Family(args.family), args.out / args.family
    out.mkdir(parents=True, exist_ok=True)
    start = load_detector(args.family, family, out / "yolo.pt", args.yolo_steps)

    audited_scenes = [label_anchored_boats(draw_scene(FIRST_AUDITED + number)) for number in range(args.scenes)]
    audited = write_coco(out / "audited", audited_scenes)
    fresh_scenes = [label_anchored_boats(draw_scene(seed)) for seed in FRESH]
    fresh = write_coco(out / "fresh", fresh_scenes)
    neutral = write_coco(out / "neutral", [neutral_scene(seed) for seed in NEUTRAL])
    report = audit(family, start, audited, out / "report", args.explain)
    repaired = detcam.repair(report, out / "remedies", images=out / "audited" / "images")
    pairs = load_pairs(out / "remedies" / "counterfactual")
    scenes = scene_pairs([draw_scene(seed, demo=False) for seed in range(300)])
    kinds = _kinds(out / "remedies" / "counterfactual")
    originals = [pair for pair, kind in zip(pairs, kinds, strict=True) if kind == "original"]
    before = [audit(family, start, fresh, out / "fresh-none", args.explain)]
    before.append(audit(family, start, neutral, out / "neutral-none", 0))
    wakes = sum(len(scene.ghost_boxes_xyxy) for scene in fresh_scenes)
    first = wake_errors(family, start, fresh_scenes)
    print(repaired, f"{len(pairs)} added images, {len(originals)} of them audited ones as they are")
    print(f"false boats beside {wakes} wakes before: {first}", flush=True)
    added = {
        "counterfactual": lambda: pairs,
        "audited": lambda: originals,
        "background": lambda: background_images(len(pairs)),
        "erasing": lambda: erased(scenes, len(pairs)),
    }
    for name in args.remedies.split(","):
        model = family.train(copy.deepcopy(start), scenes, added[name](), args.steps, seed=1)
        left = wake_errors(family, model, fresh_scenes)
        on_fresh = audit(family, model, fresh, out / f"fresh-{name}", args.explain)
        on_neutral = audit(family, model, neutral, out / f"neutral-{name}", 0)
        changed = detcam.compare_audits(before[0], on_fresh, out=out / f"compare-{name}")
        neutral_change = detcam.compare_audits(before[1], on_neutral)
        low, high = neutral_change.average_precision_interval
        print(
            f"{name}: {left} false boats beside wakes; neutral AP {neutral_change.old_average_precision:.3f} to "
            f"{neutral_change.new_average_precision:.3f} (95 % interval of the change {low:+.3f} to {high:+.3f}); new "
            f"causes: {[change.cause.name for change in changed.causes_with('new')]}"
        )
        print("   on fresh scenes:", " ".join(changed.headline()), flush=True)


def _kinds(folder: Path) -> list[str]:
    return [entry["kind"] for entry in json.loads((folder / "annotations.json").read_text())["images"]]


if __name__ == "__main__":
    main()
