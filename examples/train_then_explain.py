"""Train a detector, find its shortcut with the audit, take the shortcut out of the data, and train again.

    python examples/train_then_explain.py  # offline, on drawn harbours, see below
    python examples/train_then_explain.py --quick  # begin with the detector that comes with detcam, trained so

In the first training set every boat under way has a wake, and boats at anchor are not labelled: a boat is what has a
wake. The audit says so. In the second set some wakes have no boat and every boat is labelled; training goes on with it.
"""

import argparse
from pathlib import Path

import torch

import detcam
from detcam import adapt
from detcam.demo.labels import label_anchored_boats, write_coco
from detcam.demo.model import build_demo_detector, load_demo_detector
from detcam.demo.train import fine_tune
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene


def with_shortcut(seed):
    return draw_scene(seed, demo=False)


def without_shortcut(seed):
    return label_anchored_boats(draw_scene(5000 + seed))  # some of the wakes here have no boat


def audit(model, folder, out):
    adapter = adapt(model, names=DEMO_NAMES)
    options = {"score_threshold": 0.5, "explain_missed": 0, "resume": True}
    found = detcam.audit(adapter, folder / "images", folder / "annotations.json", out=out, **options)
    counts = found.analysis.counts()
    print(f"average precision {found.analysis.average_precision:.2f}; errors: {dict(counts)}")
    for group in found.groups[:3]:
        print(f"  {group.sentence}")
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
    write_coco(args.out, [label_anchored_boats(draw_scene(seed)) for seed in range(1000, 1016)])
    model = load_demo_detector() if args.quick else build_demo_detector()
    if not args.quick:
        print("Training on boats under way")
        fine_tune(model, [with_shortcut(seed) for seed in range(args.scenes)], args.steps)
    first = audit(model, args.out, args.out / "before")
    context = [case for case in first.explained if case.background_type == "context" and case.verdict == "confirmed"]
    print(f"{len(context)} of {len(first.explained)} false positives are confirmed to rest on their surroundings.\n")

    print("Training goes on: wakes without boats, every boat labelled")
    fine_tune(model, [without_shortcut(seed) for seed in range(args.scenes)], args.steps // 2)
    second = audit(model, args.out, args.out / "after")
    print(f"\nFalse positives above 0.5: {len(first.explained)} before, {len(second.explained)} after.")
    print(f"See {first.report} and {second.report}")
    return second.report


if __name__ == "__main__":
    main()
