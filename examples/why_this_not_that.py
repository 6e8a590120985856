"""Why a boat rather than a buoy? Heatmaps of the difference between two class logits.

    python examples/why_this_not_that.py
    python examples/why_this_not_that.py --image pets.jpg --weights published --label dog --against cat

Much of the evidence for a class is evidence for other classes too. The difference of two logits keeps the evidence for
one class only; the opposite difference shows the evidence for the other class.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.detections import label_index
from detcam.models.load import load_model
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget
from detcam.visualize.overlay import grid, save_image


def load_detector(weights):
    if weights is None:
        print("Using the demo detector of boats and buoys; select another with --weights.")
        return adapt(load_demo_detector(), names=DEMO_NAMES)
    return load_model("fasterrcnn_resnet50_fpn_v2", weights=None if weights == "published" else weights)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--label", default="boat", help="class of the explained boxes")
    parser.add_argument("--against", default="buoy", help="class to compare with")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    adapter = load_detector(args.weights)
    label, other = (label_index(adapter.names, name) for name in (args.label, args.against))
    detections = adapter.predict(image, score_threshold=0.5, labels=args.label, top_k=3)[0]
    boxes = list(zip(detections.boxes_xyxy.tolist(), detections.source, strict=True))
    targets = [
        BoxTarget(box, first, source, quantity="logit", against=second)
        for box, source in boxes
        for first, second in ((label, other), (other, label))
    ]
    explanation = explain(adapter, image, args.method, targets=[targets])[0]

    print("\n".join(explanation.captions))
    explanation.save(args.out)
    panels = [explanation.overlay(i, caption=False) for i in range(len(targets))] or [explanation.image]
    titles = [f"{args.label} rather than {args.against}", f"{args.against} rather than {args.label}"] * len(boxes) or [
        ""
    ]
    figure = grid(panels, titles=titles, columns=2)
    figure = save_image(args.out / "why_this_not_that.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
