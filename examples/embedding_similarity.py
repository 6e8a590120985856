"""Which pixels resemble a concept? Heatmaps of the similarity between an image and example images.

    python examples/embedding_similarity.py                                # offline, see below
    python examples/embedding_similarity.py --image street.jpg --concept car1.jpg car2.jpg --weights published

A network without its head maps an image to an embedding. A concept is the mean embedding of one or more images. The
heatmap shows the pixels that contribute to the cosine similarity of the two. No class labels are needed.

Without --weights, a small network is trained for seconds on crops of drawn harbors. An image with a boat, a buoy and
a gull is then compared with crops of each.
"""

import argparse
from pathlib import Path

from _common import MEAN, NAMES, STD, draw_three_objects, harbor_crops, train
from classification import small_network

from detcam import explain
from detcam.adapters import embed, embedder
from detcam.models.load import load_model
from detcam.targets import SimilarityToConceptTarget
from detcam.visualize.overlay import grid, save_image


def train_embedder():
    print("Training a small network on boats, buoys and gulls; select another with --weights.")
    images, classes = harbor_crops()
    network = embedder(train(small_network(), images, classes, steps=200), image_size=96, mean=MEAN, std=STD)
    return network, {name: images[classes == NAMES.index(name)][:16] for name in NAMES[:3]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn image")
    parser.add_argument("--concept", nargs="+", help="image files of the concept, with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--model", default="resnet50", help="torchvision name or timm:NAME, with --weights")
    parser.add_argument("--method", default="gradcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.weights is None:
        network, concepts = train_embedder()
    else:
        weights = None if args.weights == "published" else args.weights
        network = embedder(load_model(args.model, weights=weights).model)
        concepts = {"concept": args.concept}
    targets = [SimilarityToConceptTarget(embed(network, images)) for images in concepts.values()]
    explanation = explain(network, args.image or draw_three_objects(), args.method, targets=[targets])[0]

    for name, similarity in zip(concepts, explanation.scores.tolist(), strict=True):
        print(f"similarity to {name}: {similarity:.2f}")
    explanation.save(args.out)
    panels = [explanation.overlay(i, caption=False) for i in range(len(concepts))]
    figure = grid(panels, titles=[f"similar to {name}" for name in concepts], original=explanation.image, columns=4)
    figure = save_image(args.out / "embedding_similarity.png", figure)
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
