"""How good is this heatmap? Confidence change, ROAD, insertion and deletion, for a classifier and for boxes.

    python examples/metrics.py                                           # offline: small networks on drawn harbors
    python examples/metrics.py --image-path dog.jpg --weights published  # torchvision's ResNet-50

The classifier part is pytorch-grad-cam code with changed import lines. For boxes, every metric has the same method
`measure`. To compare methods, see examples/choose_a_method.py.
"""

import argparse
from pathlib import Path

from _common import draw_three_objects
from classification import load_classifier

from detcam import METHODS, GradCAM, adapt, deprocess_image, get_method
from detcam.data.images import load_image
from detcam.demo.model import load_demo_detector
from detcam.metrics import METRICS
from detcam.metrics.cam_mult_image import CamMultImageConfidenceChange
from detcam.metrics.road import ROADCombined, ROADMostRelevantFirst
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from detcam.visualize.overlay import grid, save_image


def measure_class(args):
    """Measure a classifier's heatmap as in pytorch-grad-cam."""
    adapter = load_classifier(args)
    input_tensor = adapter.prepare([load_image(args.image_path or draw_three_objects())]).inputs
    category = int(adapter.model(input_tensor).argmax())
    cams = GradCAM(adapter)(input_tensor, targets=[ClassifierOutputTarget(category)])
    targets = [ClassifierOutputSoftmaxTarget(category)]  # the metrics measure changes of the confidence
    scores, masked = CamMultImageConfidenceChange()(input_tensor, cams, targets, adapter, return_visualization=True)
    print(f"Confidence in {adapter.names.get(category, category)}:")
    print(f"  image times heatmap: {scores[0]:+.3f}")
    road = ROADMostRelevantFirst(percentile=75)
    scores, removed = road(input_tensor, cams, targets, adapter, return_visualization=True)
    print(f"  hottest quarter of the pixels removed (ROAD): {scores[0]:+.3f}")
    scores = ROADCombined(percentiles=[20, 40, 60, 80])(input_tensor, cams, targets, adapter)
    print(f"  ROADCombined: {scores[0]:+.3f} (a random heatmap is near 0)")
    panels = [deprocess_image(image) for image in (input_tensor[0], masked[0], removed[0])]
    return [image.repeat(3, axis=0).repeat(3, axis=1) if len(image) < 200 else image for image in panels]


def measure_boxes(method):
    """Measure the heatmaps of all boxes in an image with registered metrics."""
    adapter, image = adapt(load_demo_detector(), names=DEMO_NAMES), draw_scene(28).image
    detections = adapter.predict(image, score_threshold=0.5)
    results = get_method(method)(adapter).explain(image, detections)
    for name in ("insertion", "deletion", "road", "sparseness"):
        metric = METRICS[name]()
        values = metric.measure(adapter, image, detections, results)
        better = "higher" if metric.higher_is_better else "lower"
        cells = [f"{detections[0].name(i)} {value:.2f}" for i, value in enumerate(values.tolist())]
        print(f"{name:10} ({better:6} is better)", *cells, sep="  ")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-path", help="image file; default: a drawn image")
    parser.add_argument("--model", default="resnet50", help="torchvision name or timm:NAME, with --weights")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--method", default="reachcam", choices=list(METHODS), help="method for the boxes")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    panels = measure_class(args)
    measure_boxes(args.method)
    titles = ["model input", "input times heatmap", "hottest quarter removed"]
    figure = save_image(args.out / "metrics.png", grid(panels, titles=titles, columns=3))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
