"""Why did my detector fire there? An audit of its errors on annotated images, from Python.

    python examples/false_positives.py  # offline: the package's own detector on harbours that it draws
    python examples/false_positives.py --model yolo11n.pt --images val2017 --annotations instances_val2017.json

The report opens from disk in any browser.
"""

import argparse
from pathlib import Path

import detcam
from detcam import adapt
from detcam.demo.labels import write_coco
from detcam.demo.model import load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbour import DEMO_NAMES, DEMO_SEEDS, draw_scene


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a file, or a name that detcam knows; by default the package's detector")
    parser.add_argument("--images", type=Path, help="folder of the images")
    parser.add_argument("--annotations", type=Path, help="COCO JSON file")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score that matters")
    parser.add_argument("--explain", type=int, default=50, help="how many false positives, the highest scores first")
    parser.add_argument("--out", type=Path, default=Path("false-positives"))
    args = parser.parse_args(argv)

    if args.model:
        adapter = load_model(args.model, trust_checkpoint=True)  # ultralytics' files hold code: only those you trust
        images, annotations = args.images, args.annotations
    else:
        print("Using the detector and the harbours that come with detcam; --model takes your own.")
        adapter = adapt(load_demo_detector(), names=DEMO_NAMES)
        annotations = write_coco(args.out, [draw_scene(seed) for seed in DEMO_SEEDS])
        images = args.out / "images"

    audit = detcam.audit(
        adapter,
        images,
        annotations,
        out=args.out / "report",
        score_threshold=args.score_threshold,
        explain=args.explain,
        resume=True,  # go on where an interrupted audit in the folder stopped
    )
    analysis = audit.analysis
    print(f"Average precision {analysis.average_precision:.3f}. What each type of error costs:")
    for kind, lost in analysis.delta_ap.by_type.items():
        print(f"  {kind:14} {analysis.counts()[kind]:4}  {lost:.3f}")
    print("What the false positives have in common, the costliest first:")
    for group in audit.groups:
        print(f"  {group.sentence}")
    print("The surest of them:")
    for case in sorted(audit.confirmed, key=lambda case: -case.score)[:5]:
        print(f"  {case.file_name}: {case.sentence}")
    print(f"See {audit.report}")
    return audit.report


if __name__ == "__main__":
    main()
