"""Vision transformers: tokens become maps by themselves, for ViT as for Swin.

    python examples/vit_and_swin.py                                                # offline, see below
    python examples/vit_and_swin.py --image dog.jpg --weights published            # torchvision's vit_b_16 and swin_t
    python examples/vit_and_swin.py --image dog.jpg --weights published --models timm:deit_tiny_patch16_224

detcam finds the layer to look at and turns its tokens into a grid. Where it cannot, say how with
adapt(model, target_layers=[...], reshape_transform=...).

Without --weights two small transformers are fitted in seconds to cut-outs of drawn harbours: boat, buoy or gull?
"""

import argparse
from pathlib import Path

import torch
from _common import MEAN, NAMES, SIZE, STD, cut_outs, fit, three_things
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
        print("Fitting two small transformers to drawn boats, buoys and gulls; --weights takes real ones.")
        data = cut_outs()
        options = {"names": NAMES, "mean": MEAN, "std": STD, "image_size": SIZE}
        return [adapt(fit(net, *data, steps=args.steps, learning_rate=2e-3), **options) for net in small_transformers()]
    weights = None if args.weights == "published" else args.weights
    return [load_model(name, weights=weights) for name in args.models]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn one")
    parser.add_argument("--weights", help="'published', which may download them, or one model's file")
    parser.add_argument(
        "--models", nargs="+", default=["vit_b_16", "swin_t"], help="names of torchvision's or timm:NAME"
    )
    parser.add_argument("--steps", type=int, default=150, help="of fitting, without --weights")
    parser.add_argument("--method", default="gradcam", help="see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    panels, titles = [], []
    for adapter in load_models(args):
        print(adapter)
        explanation = explain(adapter, args.image or three_things(), args.method)[0]
        explanation.save(args.out)
        panels.append(explanation.overlay())
        titles.append(explanation.model)
    figure = grid(panels, titles=titles, original=explanation.image, columns=3)
    figure = save_image(args.out / "vit_and_swin.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
