"""Train a detector, find its shortcut with the audit, take the shortcut out of the data, and train again.

    python examples/train_then_explain.py  # offline, a few minutes: drawn harbours, see below
    python examples/train_then_explain.py --quick  # begin with the detector that comes with detcam, trained so

In the first training set every boat under way has a wake, and boats at anchor are not labelled: a boat is what has a
wake. The audit says so. In the second set the wakes are gone and every boat is labelled; training goes on with it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import detcam
from detcam import adapt
from detcam.demo.labels import write_coco
from detcam.demo.model import build_demo_detector, load_demo_detector
from detcam.demo.scenes import DEMO_NAMES, draw_scene


def every_boat_labelled(scene):
    boats = [thing.box_xyxy for thing in scene.of_kind("anchored")]
    boxes = np.concatenate([scene.boxes_xyxy, *[box[None] for box in boats]])
    return replace(
        scene, boxes_xyxy=boxes, labels=np.append(scene.labels, np.full(len(boats), DEMO_NAMES.index("boat")))
    )


def with_shortcut(seed):
    return draw_scene(seed, demo=False)


def without_shortcut(seed):
    scene = draw_scene(seed, demo=False)
    return every_boat_labelled(scene.redrawn([wake.name for wake in scene.of_kind("wake")]))


def train(model, draw, steps, scenes):
    model.train()
    data = []
    for scene in map(draw, range(scenes)):
        picture = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        data.append((picture, {"boxes": torch.from_numpy(scene.boxes_xyxy), "labels": torch.from_numpy(scene.labels)}))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pictures, targets = zip(*[data[i] for i in torch.randperm(len(data))[:8].tolist()], strict=True)
        loss = sum(model(list(pictures), list(targets)).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  step {step}: loss {loss.item():.2f}", flush=True)
    return model.eval()


def audit(model, folder, out):
    adapter = adapt(model, names=DEMO_NAMES)
    found = detcam.audit(
        adapter,
        folder / "images",
        folder / "annotations.json",
        out=out,
        score_threshold=0.5,
        explain_missed=0,
        resume=True,
    )
    counts = found.analysis.counts()
    print(f"average precision {found.analysis.average_precision:.2f}; errors: {dict(counts)}")
    for group in found.groups[:3]:
        print(f"  {group.reading}")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of the first training; the second takes half of them")
    parser.add_argument("--scenes", type=int, default=300, help="to train on")
    parser.add_argument("--quick", action="store_true", help="leave the first training out")
    parser.add_argument("--out", type=Path, default=Path("train-then-explain"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    # What the detectors are judged on: new scenes with every boat labelled, and wakes that have lost their boats.
    write_coco(args.out, [every_boat_labelled(draw_scene(seed)) for seed in range(1000, 1016)])
    model = load_demo_detector() if args.quick else build_demo_detector()
    if not args.quick:
        print("Training on boats under way")
        train(model, with_shortcut, args.steps, args.scenes)
    first = audit(model, args.out, args.out / "before")
    context = [case for case in first.explained if case.nature == "context" and case.verdict == "confirmed"]
    print(f"{len(context)} of {len(first.explained)} false positives are confirmed to rest on their surroundings.\n")

    print("Training goes on without wakes, every boat labelled")
    second = audit(train(model, without_shortcut, args.steps // 2, args.scenes), args.out, args.out / "after")
    print(f"\nFalse positives above 0.5: {len(first.explained)} before, {len(second.explained)} after.")
    print(f"See {first.report} and {second.report}")
    return second.report


if __name__ == "__main__":
    main()
