"""Which pixels and edges? Guided backpropagation and Guided Grad-CAM as colour images.

    python examples/guided_backprop.py                                       # offline, see below
    python examples/guided_backprop.py --image dog.jpg --weights published   # torchvision's ResNet-50

Guided backpropagation is sharp, but hardly knows one class from another: all three things light up for each of them.
Times GradCAM's map, it stays with the class. Beside them stands what a control makes of it: Sobel's edges, which know
nothing of the network.

Without --weights a network of four convolutions is fitted in seconds to cut-outs of drawn harbours: boat, buoy or gull?
"""

import argparse
from pathlib import Path

import numpy as np
from _common import three_things
from classification import load_classifier

from detcam import GuidedBackprop, GuidedGradCAM, deprocess_image, explain, sobel_cam
from detcam.data.images import load_image, to_uint8
from detcam.detections import class_name
from detcam.visualize.overlay import grid, save_image


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn one")
    parser.add_argument("--model", default="resnet50", help="a name of torchvision's, or timm:NAME; with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--classes", type=int, default=3, help="how many of the best classes")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = to_uint8(load_image(args.image or three_things()))
    adapter = load_classifier(args)
    found = adapter.predict(image, top_k=args.classes)[0]
    panels, titles = [image], ["original"]
    for method in (GuidedBackprop, GuidedGradCAM):
        cam = method(adapter)
        (result,) = cam.explain(image, [found])
        for label, colors in zip(found.labels.tolist(), cam.colors(result), strict=True):
            panels.append(deprocess_image(colors.numpy()))
            titles.append(f"{method.name} {class_name(adapter.names, label)}")
        if method is GuidedBackprop:  # the control stands under the original
            panels.append(np.repeat(sobel_cam(image)[..., None], 3, axis=2))
            titles.append("sobel")
        explanation = explain(adapter, image, cam.name, top_k=args.classes)[0]
        explanation.save(args.out)  # the maps in [0, 1]
        print("\n".join(f"{cam.name:14}  {caption}" for caption in explanation.captions))
    figure = save_image(args.out / "guided_backprop.png", grid(panels, titles=titles, columns=1 + len(found)))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
