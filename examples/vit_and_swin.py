"""How do I explain a vision transformer? Heatmaps of ViT and Swin; their tokens are reshaped automatically.

    python examples/vit_and_swin.py                                                # offline, see below
    python examples/vit_and_swin.py --image dog.jpg --weights published            # torchvision's vit_b_16 and swin_t
    python examples/vit_and_swin.py --image dog.jpg --weights published --models timm:deit_tiny_patch16_224

detcam selects the target layer and reshapes its tokens to a grid. For an architecture that it does not know, call
adapt(model, target_layers=[...], reshape_transform=...).

Without --weights, two small transformers are trained for seconds on crops of drawn boats, buoys and gulls.
"""

import argparse
from pathlib import Path

import torch
from _common import MEAN, NAMES, SIZE, STD, draw_three_objects, harbor_crops, train
from torchvision.models import SwinTransformer, VisionTransformer

from detcam import adapt, explain
from detcam.models.load import load_model
from detcam.visualize.overlay import grid, save_image


def small_transformers():
    torch.manual_seed(0)
    vit = VisionTransformer(SIZE, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=len(NAMES))
    swin = SwinTransformer([8, 8], 48, [2, 2], [4, 4], [4, 4], stochastic_depth_prob=0, num_classes=len(NAMES))
    return vit, swin


def load_models(args):
    if args.weights is None:
        print("Training two small transformers on boats, buoys and gulls; select others with --weights.")
        data = harbor_crops()
        options = {"names": NAMES, "mean": MEAN, "std": STD, "image_size": SIZE}
        networks = [train(each, *data, steps=args.steps, learning_rate=2e-3) for each in small_transformers()]
        return [adapt(network, **options) for network in networks]
    weights = None if args.weights == "published" else args.weights
    return [load_model(name, weights=weights) for name in args.models]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn image")
    parser.add_argument("--weights", help="a .pth or .safetensors file of one model, or 'published' (may download)")
    parser.add_argument("--models", nargs="+", default=["vit_b_16", "swin_t"], help="torchvision names or timm:NAME")
    parser.add_argument("--steps", type=int, default=150, help="training steps without --weights")
    parser.add_argument("--method", default="gradcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    panels, titles = [], []
    for adapter in load_models(args):
        print(adapter)
        explanation = explain(adapter, args.image or draw_three_objects(), args.method)[0]
        explanation.save(args.out)
        panels.append(explanation.overlay())
        titles.append(explanation.model)
    figure = grid(panels, titles=titles, original=explanation.image, columns=3)
    figure = save_image(args.out / "vit_and_swin.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
