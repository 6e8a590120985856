"""Why this class? Heatmaps of a classifier's top classes.

    python examples/classification.py                                            # offline, see below
    python examples/classification.py --image-path dog.jpg --weights published   # torchvision's ResNet-50
    python examples/classification.py --image-path dog.jpg --weights published --model timm:tf_efficientnet_lite0

Without --weights, a network of four convolutions is trained for seconds on crops of drawn boats, buoys and gulls. The
explained image shows one of each, so that every heatmap can be checked.
"""

import argparse
from pathlib import Path

import torch
from _common import MEAN, NAMES, STD, draw_three_objects, harbor_crops, train
from torch import nn

from detcam import METHODS, adapt, explain
from detcam.models.load import load_model
from detcam.visualize.overlay import save_image


def small_network():
    torch.manual_seed(0)
    channels = [3, 16, 32, 48, 48]
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        for inputs, outputs, stride in zip(channels, channels[1:], (2, 2, 2, 1), strict=False)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(NAMES)))


def load_classifier(args):
    if args.weights is None:
        print("Training a small classifier of boats, buoys and gulls; select another with --weights.")
        network = train(small_network(), *harbor_crops(), steps=200).to(args.device)
        return adapt(network, names=NAMES, image_size=96, mean=MEAN, std=STD)
    weights = None if args.weights == "published" else args.weights
    return load_model(args.model, weights=weights, device=args.device)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-path", help="image file; default: a drawn image")
    parser.add_argument("--model", default="resnet50", help="torchvision name or timm:NAME, with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--method", default="gradcam", choices=list(METHODS))
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--aug-smooth", action="store_true", help="average the heatmaps of six views of the image")
    parser.add_argument("--eigen-smooth", action="store_true", help="first principal component instead of the sum")
    parser.add_argument("--output-dir", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    image = args.image_path or draw_three_objects()
    smooth = {"aug_smooth": args.aug_smooth, "eigen_smooth": args.eigen_smooth}
    explanation = explain(load_classifier(args), image, args.method, top_k=3, **smooth)[0]
    print("\n".join(explanation.captions))
    explanation.save(args.output_dir)
    figure = save_image(args.output_dir / "classification.png", explanation.grid(columns=4))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
