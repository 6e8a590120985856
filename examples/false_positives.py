"""Why did my detector fire there? An audit of its errors on annotated images.

    python examples/false_positives.py  # offline: the demo detector on drawn harbors
    python examples/false_positives.py --model yolo11n.pt --images val2017 --annotations instances_val2017.json

The report is an HTML page that opens from disk.
"""

import argparse
from pathlib import Path

import detcam
from detcam import adapt
from detcam.demo.labels import write_coco
from detcam.demo.model import load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbor import DEMO_NAMES, DEMO_SEEDS, draw_scene


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model file or name; default: the demo detector")
    parser.add_argument("--images", type=Path, help="folder of images, with --model")
    parser.add_argument("--annotations", type=Path, help="COCO JSON file, with --model")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="minimum score of an audited detection")
    parser.add_argument(
        "--explain", type=int, default=50, help="number of explained false positives, highest scores first"
    )
    parser.add_argument("--out", type=Path, default=Path("false-positives"))
    args = parser.parse_args(argv)

    if args.model:
        adapter = load_model(args.model, trust_checkpoint=True)  # ultralytics files can run code
        images, annotations = args.images, args.annotations
    else:
        print("Using the demo detector on drawn harbors; select your own with --model.")
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
        resume=True,  # continue an interrupted audit in the same folder
    )
    analysis = audit.analysis
    print(f"Average precision {analysis.average_precision:.3f}. Errors by type, with their delta AP:")
    for error_type, delta_ap in analysis.delta_ap.by_type.items():
        print(f"  {error_type:14} {analysis.counts()[error_type]:4}  {delta_ap:.3f}")
    print("Groups of similar errors, largest delta AP first:")
    for group in audit.groups:
        print(f"  {group.sentence}")
    print(f"Single cases: {sum(case.group is None for case in audit.explained)}")
    print("Confirmed explanations, largest effect on the score first:")
    for case in sorted(audit.confirmed, key=lambda case: -case.score * case.effect)[:5]:
        print(f"  {case.file_name}: {case.sentence}")
    print(f"See {audit.report}")
    return audit.report


if __name__ == "__main__":
    main()
