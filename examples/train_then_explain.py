"""How do I remove a shortcut? Train a detector, audit it, remove the shortcut from the data, and train again.

    python examples/train_then_explain.py  # offline, see below
    python examples/train_then_explain.py --quick  # start with the demo detector, which has the shortcut

In the first training set every labeled boat has a wake, and boats at anchor, which have none, are not labeled. The
audit reveals that the detector relies on the wake. In the second set some wakes have no boat, and every boat is
labeled; training continues on it.
"""

import argparse
from pathlib import Path

import torch

import detcam
from detcam import adapt
from detcam.demo.labels import label_anchored_boats, write_coco
from detcam.demo.model import build_demo_detector, load_demo_detector
from detcam.demo.train import fine_tune
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene


def draw_with_shortcut(seed):
    return draw_scene(seed, demo=False)


def draw_without_shortcut(seed):
    return label_anchored_boats(draw_scene(5000 + seed))  # these scenes contain wakes without a boat


def audit(model, folder, out):
    adapter = adapt(model, names=DEMO_NAMES)
    options = {"score_threshold": 0.5, "explain_missed": 0, "resume": True}
    result = detcam.audit(adapter, folder / "images", folder / "annotations.json", out=out, **options)
    counts = result.analysis.counts()
    print(f"average precision {result.analysis.average_precision:.2f}; errors: {dict(counts)}")
    for group in result.groups[:3]:
        print(f"  {group.sentence}")
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="training steps; the second training takes half")
    parser.add_argument("--scenes", type=int, default=300, help="number of training scenes")
    parser.add_argument("--quick", action="store_true", help="skip the first training")
    parser.add_argument("--out", type=Path, default=Path("train-then-explain"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    # Test data: new scenes with every boat labeled, and with wakes without a boat.
    write_coco(args.out, [label_anchored_boats(draw_scene(seed)) for seed in range(1000, 1016)])
    model = load_demo_detector() if args.quick else build_demo_detector()
    if not args.quick:
        print("Training with the shortcut")
        fine_tune(model, [draw_with_shortcut(seed) for seed in range(args.scenes)], args.steps)
    first = audit(model, args.out, args.out / "before")
    context = [case for case in first.explained if case.background_type == "context" and case.confirmed]
    print(f"{len(context)} of {len(first.explained)} false positives are confirmed as caused by context.\n")

    print("Training without the shortcut")
    fine_tune(model, [draw_without_shortcut(seed) for seed in range(args.scenes)], args.steps // 2)
    second = audit(model, args.out, args.out / "after")
    print(f"\nFalse positives above 0.5: {len(first.explained)} before, {len(second.explained)} after.")
    print(f"See {first.report} and {second.report}")
    return second.report


if __name__ == "__main__":
    main()
