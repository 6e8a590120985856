"""What does a layer tell apart? Its features as a few concepts, where each of them is, and what it means to the model.

    python examples/deep_feature_factorization.py                                      # offline, see below
    python examples/deep_feature_factorization.py --image dog.jpg cat.jpg --weights published --concepts 6
    python examples/deep_feature_factorization.py --image dog.jpg --weights published --layer layer3

The images share their concepts: the same number is the same concept in each. A concept's label is what the
classifier says where it sees nothing else.

Without --weights a network of four convolutions is fitted in seconds to cut-outs of drawn harbours: boat, buoy or gull?
"""

import argparse
from pathlib import Path

from _common import three_things
from classification import load_classifier

from detcam import DeepFeatureFactorization, show_factorization_on_image
from detcam.data.images import load_image, to_uint8
from detcam.synthetic.harbour import draw_scene
from detcam.visualize.overlay import grid, save_image


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", nargs="+", help="images; by default two drawn ones")
    parser.add_argument("--model", default="resnet50", help="a name of torchvision's, or timm:NAME; with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--layer", help="where to look; by default the last one with a map")
    parser.add_argument("--concepts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    second = draw_scene(1002, demo=False).image[96:192, :96].repeat(4, axis=0).repeat(4, axis=1)
    images = [to_uint8(load_image(image)) for image in args.image or [three_things(), second]]
    dff = DeepFeatureFactorization(load_classifier(args), args.layer, max_iter=1000)
    dff(images, args.concepts)
    labels = dff.label_concepts(top_k=2)

    print(f"{len(labels)} concepts at {dff.adapter.layer_names[0]}; {dff.factorization.error:.0%} is left over")
    for number, label in enumerate(labels, 1):
        print(f"{number:2}  {', '.join(label.splitlines())}")
    panels = [
        # On one scale for all images: a concept that is not in an image stays dark there.
        show_factorization_on_image(pixels, dff.factorization.maps(i, shared=True), None, 0.3, labels)
        for i, pixels in enumerate(images)
    ]
    figure = save_image(args.out / "deep_feature_factorization.png", grid(panels))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
