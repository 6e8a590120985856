"""How do I remove a shortcut, and prove it? Audit a detector, repair its errors, fine-tune, and compare two audits.

    python examples/train_then_explain.py  # offline, minutes

The demonstration's detector has learned that boats have wakes, and finds boats beside wakes without one. The audit
confirms it, `detcam.repair` writes counterfactual pairs, half of each batch of a short training comes from them, and
`detcam.compare_audits` shows on fresh scenes which causes are gone, and whether any is new.
"""

import argparse
from pathlib import Path

import torch
from _common import fine_tune, load_pairs

import detcam
from detcam import adapt
from detcam.demo.labels import label_anchored_boats, write_coco
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.synthetic.training import training_pair


def audit(model, folder, out, explain):
    adapter = adapt(model, names=DEMO_NAMES)
    options = {"score_threshold": 0.5, "explain": explain, "explain_missed": 0, "resume": True}
    found = detcam.audit(adapter, folder / "images", folder / "annotations.json", out=out, **options)
    for cause in found.causes:
        print(f"  {len(cause)} explained errors rest on: {cause.name}")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--scenes", type=int, default=24, help="audited scenes, and as many fresh ones")
    parser.add_argument("--explain", type=int, default=24, help="errors to explain per audit")
    parser.add_argument("--out", type=Path, default=Path("train-then-explain"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    audited, fresh = args.out / "audited", args.out / "fresh"
    for folder, first in ((audited, 20_000), (fresh, 30_000)):
        write_coco(folder, [label_anchored_boats(draw_scene(first + number)) for number in range(args.scenes)])
    model = load_demo_detector()

    print("The detector's false positives:")
    report = audit(model, audited, args.out / "report", args.explain)
    repaired = detcam.repair(report, args.out / "repair", images=audited / "images")
    print(f"The remedy: {repaired.remedies[0].action}; {repaired.remedies[0].reason}.\n")

    print("On fresh scenes, before:")
    before = audit(model, fresh, args.out / "before", args.explain)
    usual = [training_pair(draw_scene(seed, demo=False), False) for seed in range(100)]
    fine_tune(model, usual, list(load_pairs(args.out / "repair" / "counterfactual")), args.steps)
    print("after:")
    after = audit(model, fresh, args.out / "after", args.explain)
    comparison = detcam.compare_audits(before, after, out=args.out / "comparison")
    print("\n".join(["", *comparison.headline(), f"See {comparison.report}"]))
    return comparison.report


if __name__ == "__main__":
    main()
