"""Why did Faster R-CNN fire there? One heatmap for every box.

    python examples/faster_rcnn.py                                         # offline: a small detector on a drawn scene
    python examples/faster_rcnn.py --image street.jpg --weights published  # torchvision's, 80 classes of COCO
    python examples/faster_rcnn.py --image cells.jpg --weights my_cells.pth --names RBC,WBC

Every torchvision detector works the same way: replace the name fasterrcnn_resnet50_fpn_v2. ReachCAM shows evidence
inside and outside the box; --method odam explains the last layer, whose gradients hardly reach beyond the box.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import save_image


def load_detector(weights, names):
    if weights is None:
        print("Using the demo detector of boats and buoys; select another with --weights.")
        return adapt(load_demo_detector(), names=DEMO_NAMES)
    weights = None if weights == "published" else weights
    return load_model("fasterrcnn_resnet50_fpn_v2", weights=weights, names=names)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--names", help="class names of the weights, comma-separated")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--layer", help="target layer; default: the method's choice")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    adapter = load_detector(args.weights, args.names and args.names.split(","))
    explanation = explain(adapter, image, args.method, target_layers=args.layer, score_threshold=0.5)[0]

    for i, caption in enumerate(explanation.captions):
        heatmap = explanation.heatmaps[i]
        x1, y1, x2, y2 = (round(value) for value in explanation.box_xyxy(i))
        energy = heatmap[y1:y2, x1:x2].sum() / heatmap.sum()
        print(f"{caption:14}  {energy:4.0%} of the heatmap's energy is in the box")
    explanation.save(args.out)
    figure = save_image(args.out / "faster_rcnn.png", explanation.grid(columns=4))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
