"""Why did Faster R-CNN fire there? One heatmap for every box.

    python examples/faster_rcnn.py                                         # offline: a small detector on a drawn scene
    python examples/faster_rcnn.py --image street.jpg --weights published  # torchvision's, 80 classes of COCO
    python examples/faster_rcnn.py --image cells.jpg --weights my_cells.pth --names RBC,WBC

Works alike for every detector of torchvision: put its name in place of fasterrcnn_resnet50_fpn_v2.
ReachCAM shows evidence wherever it lies; --method odam asks the last layer, which sees the box and little around it.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import save_image


def load_detector(weights, names):
    if weights is None:
        print("Using the small detector of boats and buoys that comes with detcam; --weights takes another.")
        return adapt(load_demo_detector(), names=DEMO_NAMES)
    published = weights == "published"
    return load_model("fasterrcnn_resnet50_fpn_v2", weights=None if published else weights, names=names)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn harbour")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--names", help="class names of the file's weights, with commas between them")
    parser.add_argument("--method", default="reachcam", help="see 'detcam methods'")
    parser.add_argument("--layer", help="where to look; by default what the method finds best")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    adapter = load_detector(args.weights, args.names and args.names.split(","))
    explanation = explain(adapter, image, args.method, target_layers=args.layer, score_threshold=0.5)[0]

    for i, caption in enumerate(explanation.captions):
        heat = explanation.heatmaps[i]
        x1, y1, x2, y2 = (round(value) for value in explanation.box_xyxy(i))
        inside = heat[y1:y2, x1:x2].sum() / heat.sum()
        print(f"{caption:14}  {inside:4.0%} of its heat is in the box")
    explanation.save(args.out)
    figure = save_image(args.out / "faster_rcnn.png", explanation.grid(columns=4))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
