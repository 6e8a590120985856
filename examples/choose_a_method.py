"""Which method for this model and these images? A comparison with controls, ending in a recommendation.

    python examples/choose_a_method.py                                                 # offline: drawn harbours
    python examples/choose_a_method.py --images street/ --weights published --limit 20
    python examples/choose_a_method.py --images cells/ --weights my_cells.pth --names RBC,WBC

The same from the command line, for any model: detcam benchmark --model NAME --images FOLDER. An interrupted run goes on
where it stopped.
"""

import argparse
from pathlib import Path

from faster_rcnn import load_detector

from detcam import benchmark
from detcam.benchmarking.specs import split_list
from detcam.synthetic.harbour import draw_scene
from detcam.visualize.overlay import save_image

METHODS = "odam,gradcam,layercam,reachcam,eigencam"


def draw_harbours(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        save_image(folder / f"harbour-{seed:02}.png", draw_scene(seed).image)
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of images; by default drawn harbours")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--names", help="class names of the file's weights, with commas between them")
    parser.add_argument("--methods", default=METHODS, help="with settings; see 'detcam methods'")
    parser.add_argument("--metric", default="insertion:steps=12", help="what decides")
    parser.add_argument("--limit", type=int, default=12, help="so many images")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    images = args.images or draw_harbours(args.out / "images", args.limit)
    found = benchmark(
        load_detector(args.weights, args.names and args.names.split(",")),
        images,
        split_list(args.methods),
        [args.metric],
        out=args.out / "choose_a_method",
        top_k=1,
        limit=args.limit,
    )
    print(found.to_text())
    print("\n".join(f"* {note}" for note in found.notes))
    row, reason = found.recommend()
    print(f"\nTake {row.name}.\n{reason}")
    figure = args.out / "choose_a_method" / "maps.png"
    print(f"See {figure}, and scatter.png and benchmark.md beside it")
    return figure


if __name__ == "__main__":
    main()
