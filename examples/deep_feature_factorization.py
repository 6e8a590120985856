"""Which concepts does a layer represent? Deep Feature Factorization: a map and a class label for each concept.

    python examples/deep_feature_factorization.py                                      # offline, see below
    python examples/deep_feature_factorization.py --image dog.jpg cat.jpg --weights published --concepts 6
    python examples/deep_feature_factorization.py --image dog.jpg --weights published --layer layer3

All images share the concepts, so that a number means the same concept in each image. The label of a concept is the
output of the classifier head for its feature vector.

Without --weights, a network of four convolutions is trained for seconds on crops of drawn boats, buoys and gulls.
"""

import argparse
from pathlib import Path

from _common import draw_three_objects
from classification import load_classifier

from detcam import DeepFeatureFactorization, show_factorization_on_image
from detcam.data.images import load_image, to_uint8
from detcam.synthetic.harbor import draw_scene
from detcam.visualize.overlay import grid, save_image


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", nargs="+", help="image files; default: two drawn images")
    parser.add_argument("--model", default="resnet50", help="torchvision name or timm:NAME, with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--layer", help="target layer; default: the last one with a spatial output")
    parser.add_argument("--concepts", type=int, default=5, help="number of concepts")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    second = draw_scene(1002, demo=False).image[96:192, :96].repeat(4, axis=0).repeat(4, axis=1)
    images = [to_uint8(load_image(image)) for image in args.image or [draw_three_objects(), second]]
    dff = DeepFeatureFactorization(load_classifier(args), args.layer, max_iter=1000)
    dff(images, args.concepts)
    labels = dff.label_concepts(top_k=2)

    print(f"{len(labels)} concepts at {dff.adapter.layer_names[0]}; reconstruction error {dff.factorization.error:.0%}")
    for number, label in enumerate(labels, 1):
        print(f"{number:2}  {', '.join(label.splitlines())}")
    panels = [
        # One scale for all images: a concept that is absent from an image stays dark.
        show_factorization_on_image(pixels, dff.factorization.maps(i, shared=True), None, 0.3, labels)
        for i, pixels in enumerate(images)
    ]
    figure = save_image(args.out / "deep_feature_factorization.png", grid(panels))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
