"""Which method suits this model and these images? A benchmark with controls and a recommendation.

    python examples/choose_a_method.py                                                 # offline: drawn harbors
    python examples/choose_a_method.py --images street/ --weights published --limit 20
    python examples/choose_a_method.py --images cells/ --weights my_cells.pth --names RBC,WBC

The command line does the same for any model: detcam benchmark --model NAME --images FOLDER. An interrupted run
continues where it stopped.
"""

import argparse
from pathlib import Path

from faster_rcnn import load_detector

import detcam
from detcam.benchmarking.specs import split_list
from detcam.synthetic.harbor import draw_scene
from detcam.visualize.overlay import save_image

METHODS = "odam,gradcam,layercam,reachcam,eigencam"


def draw_harbors(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        save_image(folder / f"harbor-{seed:02}.png", draw_scene(seed).image)
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of images; default: drawn harbors")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--names", help="class names of the weights, comma-separated")
    parser.add_argument("--methods", default=METHODS, help="method specs, comma-separated; see 'detcam methods'")
    parser.add_argument("--metric", default="insertion:steps=12", help="metric spec of the comparison")
    parser.add_argument("--limit", type=int, default=12, help="maximum number of images")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    images = args.images or draw_harbors(args.out / "images", args.limit)
    result = detcam.benchmark(
        load_detector(args.weights, args.names and args.names.split(",")),
        images,
        split_list(args.methods),
        [args.metric],
        out=args.out / "choose_a_method",
        top_k=1,
        limit=args.limit,
    )
    print(result.to_text())
    print("\n".join(f"* {note}" for note in result.notes))
    row, reason = result.recommend()
    print(f"\nRecommended method: {row.name}\n{reason}")
    figure = args.out / "choose_a_method" / "maps.png"
    print(f"See {figure}, and scatter.png and benchmark.md in the same folder")
    return figure


if __name__ == "__main__":
    main()
