"""How good is this heatmap? Confidence change, ROAD, insertion and deletion, for a classifier and for boxes.

    python examples/metrics.py                                           # offline: networks on drawn harbours
    python examples/metrics.py --image-path dog.jpg --weights published  # torchvision's ResNet-50

The classifier's part is the code that users of pytorch-grad-cam know, with other import lines. For boxes every
metric is asked by one call, `measure`. To compare methods: examples/choose_a_method.py.
"""

import argparse
from pathlib import Path

from _common import three_things
from classification import load_classifier

from detcam import METHODS, GradCAM, adapt, deprocess_image
from detcam.data.images import load_image
from detcam.demo.model import load_demo_detector
from detcam.metrics import METRICS
from detcam.metrics.cam_mult_image import CamMultImageConfidenceChange
from detcam.metrics.road import ROADCombined, ROADMostRelevantFirst
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene
from detcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from detcam.visualize.overlay import grid, save_image


def measure_class(args):
    """As in pytorch-grad-cam."""
    adapter = load_classifier(args)
    input_tensor = adapter.prepare([load_image(args.image_path or three_things())]).inputs
    category = int(adapter.model(input_tensor).argmax())
    cams = GradCAM(adapter)(input_tensor, targets=[ClassifierOutputTarget(category)])
    targets = [ClassifierOutputSoftmaxTarget(category)]  # what is measured: the confidence
    scores, kept = CamMultImageConfidenceChange()(input_tensor, cams, targets, adapter, return_visualization=True)
    print(
        f"{adapter.names.get(category, category)}: confidence changes by {scores[0]:+.3f} under the heatmap as a mask,"
    )
    road = ROADMostRelevantFirst(percentile=75)
    scores, removed = road(input_tensor, cams, targets, adapter, return_visualization=True)
    print(f"  by {scores[0]:+.3f} where its hottest quarter is removed (ROAD)")
    scores = ROADCombined(percentiles=[20, 40, 60, 80])(input_tensor, cams, targets, adapter)
    print(f"  least relevant first minus most relevant first, halved: {scores[0]:+.3f}; a random map is near 0")
    shown = [deprocess_image(image) for image in (input_tensor[0], kept[0], removed[0])]
    return [image.repeat(3, axis=0).repeat(3, axis=1) if len(image) < 200 else image for image in shown]


def measure_boxes(method):
    """Any metric of the registry for every box of an image."""
    adapter, image = adapt(load_demo_detector(), names=DEMO_NAMES), draw_scene(28).image
    found = adapter.predict(image, score_threshold=0.5)
    maps = METHODS[method](adapter).explain(image, found)
    for name in ("insertion", "deletion", "road", "sparseness"):
        metric = METRICS[name]()
        values = metric.measure(adapter, image, found, maps)
        better = "higher" if metric.higher_is_better else "lower"
        cells = [f"{found[0].name(i)} {value:.2f}" for i, value in enumerate(values.tolist())]
        print(f"{name:10} ({better:6} is better)", *cells, sep="  ")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-path", help="an image; by default a drawn one")
    parser.add_argument("--model", default="resnet50", help="a name of torchvision's, or timm:NAME; with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--method", default="reachcam", choices=list(METHODS), help="whose maps of boxes are measured")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    panels = measure_class(args)
    measure_boxes(args.method)
    titles = ["the network's input", "times the heatmap", "its hottest quarter removed"]
    figure = save_image(args.out / "metrics.png", grid(panels, titles=titles, columns=3))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
