"""Why a boat rather than a buoy? The evidence that tells two classes apart, next to the evidence for one alone.

    python examples/why_this_not_that.py
    python examples/why_this_not_that.py --image pets.jpg --weights published --label dog --against cat

A score says how sure a detector is of a class, and much of its evidence speaks for several classes at once. The
difference of two logits leaves what speaks for the one and not for the other.
"""

import argparse
from pathlib import Path

from detcam import adapt, explain
from detcam.demo.model import load_demo_detector
from detcam.demo.scenes import DEMO_NAMES, draw_scene
from detcam.loading import load_model
from detcam.visualize import grid, save_image


def load_detector(weights):
    if weights is None:
        print("Using the small detector of boats and buoys that comes with detcam; --weights takes another.")
        return adapt(load_demo_detector(), names=DEMO_NAMES)
    return load_model("fasterrcnn_resnet50_fpn_v2", weights=None if weights == "published" else weights)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a picture; by default a drawn harbour")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--label", default="boat", help="class of the boxes to explain")
    parser.add_argument("--against", default="buoy", help="class to compare it with")
    parser.add_argument("--method", default="odam", help="see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    adapter = load_detector(args.weights)
    asked = {"labels": [args.label], "quantity": "logit", "score_threshold": 0.5, "top_k": 4}
    alone = explain(adapter, image, args.method, **asked)[0]
    contrast = explain(adapter, image, args.method, against=args.against, **asked)[0]

    for plain, compared in zip(alone.captions, contrast.captions, strict=True):
        print(f"{plain}; {compared}")
    contrast.save(args.out)
    panels = [item.overlay(i) for i in range(len(alone)) for item in (alone, contrast)]
    figure = save_image(args.out / "why_this_not_that.png", grid(panels or [alone.image], columns=2))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
