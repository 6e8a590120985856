"""Why did the detector not fire there? A box that it never reported is explained as well as one that it did.

    python examples/missed_objects.py                     # a boat at anchor that the demo's detector overlooks
    python examples/missed_objects.py --image street.jpg --weights published --box 40,60,210,330 --label car

The box is handed to the detector's head as a proposal. Its score is low; two maps say why: what speaks for the class
in spite of it, and what speaks for the background instead. For comparison stands a box that was found.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.detections import label_index
from detcam.models.load import load_model
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget
from detcam.visualize.overlay import grid, save_image

ZOOM = 3
BACKGROUND = 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn harbour")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--box", help="x1,y1,x2,y2 in pixels of the missed object; by default a boat at anchor")
    parser.add_argument("--label", default="boat", help="what it is")
    parser.add_argument("--method", default="reachcam", help="see 'detcam methods'")
    parser.add_argument("--layer", help="where to look; by default what the method finds best")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    scene = draw_scene(28)
    image = args.image or scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    if args.weights is None:
        print("Using the small detector of boats and buoys that comes with detcam; --weights takes another.")
        adapter = adapt(load_demo_detector(), names=DEMO_NAMES, target_layers=args.layer)
    else:
        weights = None if args.weights == "published" else args.weights
        adapter = load_model("fasterrcnn_resnet50_fpn_v2", weights=weights, target_layers=args.layer)
    label = label_index(adapter.names, args.label)
    box = [float(value) for value in args.box.split(",")] if args.box else scene.of_kind("anchored")[0].box_xyxy * ZOOM

    found = adapter.predict(image, score_threshold=0.5, labels=[label], top_k=1)[0]
    targets = [
        BoxTarget(box, label, quantity="logit", against=BACKGROUND),
        BoxTarget(box, BACKGROUND, quantity="logit", against=label),
        *(BoxTarget(found.boxes_xyxy[0], label, found.source[0], quantity="logit", against=BACKGROUND) for _ in found),
    ]
    explanation = explain(adapter, image, args.method, targets=[targets])[0]
    score = explain(adapter, image, args.method, targets=[[BoxTarget(box, label)]])[0].scores[0]

    print(f"The head gives the missed box a score of {score:.3f} as {args.label}.")
    titles = [f"missed: what speaks for {args.label}", f"missed: what speaks against {args.label}"]
    titles += [f"found: what speaks for {args.label}"] * len(found)
    figure = grid([explanation.overlay(i, caption=False) for i in range(len(titles))], titles=titles, columns=3)
    explanation.save(args.out)
    figure = save_image(args.out / "missed_objects.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
