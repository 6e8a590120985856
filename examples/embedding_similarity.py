"""What in this image is like that one? Heatmaps of the typicality between an image and a concept.

    python examples/embedding_similarity.py                                # offline, see below
    python examples/embedding_similarity.py --image street.jpg --concept car1.jpg car2.jpg --weights published

A network without its head turns images into vectors. A concept is the vector of an image, or of several; the map
shows which pixels make the image's vector point the same way. No class is needed, and none is learned.

Without --weights a small network is fitted in seconds to cut-outs of drawn harbours. One image with a boat, a buoy
and a gull is then compared with cut-outs of each.
"""

import argparse
from pathlib import Path

from _common import MEAN, NAMES, STD, cut_outs, fit, three_things
from classification import small_network

from detcam import explain
from detcam.adapters import embed, embedder
from detcam.models.load import load_model
from detcam.targets import SimilarityToConceptTarget
from detcam.visualize.overlay import grid, save_image


def drawn_concepts():
    print("Fitting a small network to drawn boats, buoys and gulls; --weights takes a real one.")
    images, classes = cut_outs()
    network = embedder(fit(small_network(), images, classes, steps=200), image_size=96, mean=MEAN, std=STD)
    return network, {name: images[classes == NAMES.index(name)][:16] for name in NAMES[:3]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn one")
    parser.add_argument("--concept", nargs="+", help="images of what to look for")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--model", default="resnet50", help="a name of torchvision's, or timm:NAME; with --weights")
    parser.add_argument("--method", default="gradcam", help="see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.weights is None:
        network, concepts = drawn_concepts()
    else:
        weights = None if args.weights == "published" else args.weights
        network = embedder(load_model(args.model, weights=weights).model)
        concepts = {"concept": args.concept}
    targets = [SimilarityToConceptTarget(embed(network, images)) for images in concepts.values()]
    explanation = explain(network, args.image or three_things(), args.method, targets=[targets])[0]

    for name, typicality in zip(concepts, explanation.scores.tolist(), strict=True):
        print(f"typicality to {name}: {typicality:.2f}")
    explanation.save(args.out)
    panels = [explanation.overlay(i, caption=False) for i in range(len(concepts))]
    figure = grid(panels, titles=[f"like: {name}" for name in concepts], original=explanation.image, columns=4)
    figure = save_image(args.out / "embedding_similarity.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
