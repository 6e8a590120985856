"""Why did the detector not fire there? Heatmaps of a box that it did not report.

    python examples/missed_objects.py                     # a boat at anchor that the demo detector misses
    python examples/missed_objects.py --image street.jpg --weights published --box 40,60,210,330 --label car

The detector's head scores the box as a proposal. Two heatmaps show the evidence for and against the class. A detected
box of the class is shown for comparison.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.detections import label_index
from detcam.models.load import load_model
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget, with_quantity
from detcam.visualize.overlay import grid, save_image

ZOOM = 3
BACKGROUND = 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--box", help="x1,y1,x2,y2 of the missed object in pixels; default: a boat at anchor")
    parser.add_argument("--label", default="boat", help="class of the missed object")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--layer", help="target layer; default: the method's choice")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    scene = draw_scene(28)
    image = args.image or scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    if args.weights is None:
        print("Using the demo detector of boats and buoys; select another with --weights.")
        adapter = adapt(load_demo_detector(), names=DEMO_NAMES, target_layers=args.layer)
    else:
        weights = None if args.weights == "published" else args.weights
        adapter = load_model("fasterrcnn_resnet50_fpn_v2", weights=weights, target_layers=args.layer)
    label = label_index(adapter.names, args.label)
    box = [float(value) for value in args.box.split(",")] if args.box else scene.of_kind("anchored")[0].box_xyxy * ZOOM

    detected = adapter.predict(image, score_threshold=0.5, labels=args.label, top_k=1)[0]
    targets = [
        BoxTarget(box, label, quantity="logit", against=BACKGROUND),
        BoxTarget(box, BACKGROUND, quantity="logit", against=label),
        *(with_quantity(target, "logit", BACKGROUND) for target in adapter.targets_of(detected)),
    ]
    explanation = explain(adapter, image, args.method, targets=[targets])[0]
    score = explain(adapter, image, args.method, targets=[[BoxTarget(box, label)]])[0].scores[0]

    print(f"Score of the missed box as {args.label}: {score:.3f}")
    titles = [f"missed: evidence for {args.label}", f"missed: evidence against {args.label}"]
    titles += [f"detected: evidence for {args.label}"] * len(detected)
    figure = grid([explanation.overlay(i, caption=False) for i in range(len(titles))], titles=titles, columns=3)
    explanation.save(args.out)
    figure = save_image(args.out / "missed_objects.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
