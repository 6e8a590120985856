"""Which pixels and edges? Guided backpropagation and Guided Grad-CAM as color images.

    python examples/guided_backprop.py                                       # offline, see below
    python examples/guided_backprop.py --image dog.jpg --weights published   # torchvision's ResNet-50

Guided backpropagation is sharp but hardly class-specific: other objects light up too. Guided Grad-CAM, its product with
the GradCAM heatmap, keeps to the class. Sobel edges, which do not depend on the network, are the control.

Without --weights, a network of four convolutions is trained for seconds on crops of drawn boats, buoys and gulls.
"""

import argparse
from pathlib import Path

import numpy as np
from _common import draw_three_objects
from classification import load_classifier

from detcam import GuidedBackprop, GuidedGradCAM, deprocess_image, explain, sobel_cam
from detcam.data.images import load_image, to_uint8
from detcam.detections import class_name
from detcam.visualize.overlay import grid, save_image


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn image")
    parser.add_argument("--model", default="resnet50", help="torchvision name or timm:NAME, with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--classes", type=int, default=3, help="number of classes, best first")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = to_uint8(load_image(args.image or draw_three_objects()))
    adapter = load_classifier(args)
    predictions = adapter.predict(image, top_k=args.classes)[0]
    panels, titles = [image], ["original"]
    for method in (GuidedBackprop, GuidedGradCAM):
        cam = method(adapter)
        (result,) = cam.explain(image, [predictions])
        for label, colors in zip(predictions.labels.tolist(), cam.colors(result), strict=True):
            panels.append(deprocess_image(colors))
            titles.append(f"{method.name} {class_name(adapter.names, label)}")
        if method is GuidedBackprop:  # the control is below the original
            panels.append(np.repeat(sobel_cam(image)[..., None], 3, axis=2))
            titles.append("sobel")
        explanation = explain(adapter, image, cam.name, top_k=args.classes)[0]
        explanation.save(args.out)  # heatmaps in [0, 1]
        print("\n".join(f"{cam.name:14}  {caption}" for caption in explanation.captions))
    figure = save_image(args.out / "guided_backprop.png", grid(panels, titles=titles, columns=1 + len(predictions)))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
