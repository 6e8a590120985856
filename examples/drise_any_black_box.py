"""How do I explain a black-box detector? D-RISE needs only a function from images to boxes.

    python examples/drise_any_black_box.py  # offline: the demo detector as a function
    python examples/drise_any_black_box.py --image street.jpg --onnx fastestdet.onnx --names coco.names

The function may call a server. With --onnx, OpenCV runs FastestDet (github.com/dog-qiuqiu/FastestDet).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from detcam import drise
from detcam.data.images import load_image, to_uint8
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget
from detcam.utils.opencv import cv2
from detcam.visualize.overlay import grid, render, save_image


def detect_in_harbors(network, images):
    with torch.inference_mode():
        return network([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])


def detect_with_opencv(network, images):
    detections = []
    for image in images:
        height, width = image.shape[:2]
        network.setInput(cv2.dnn.blobFromImage(image[..., ::-1], 1 / 255, (352, 352)))
        objectness, tx, ty, tw, th, *classes = network.forward()[0].reshape(85, -1)
        rows, columns = np.divmod(np.arange(22 * 22), 22)
        centers = np.stack([(columns + np.tanh(tx)) / 22 * width, (rows + np.tanh(ty)) / 22 * height], axis=1)
        sides = np.stack([width / (1 + np.exp(-tw)), height / (1 + np.exp(-th))], axis=1)
        scores, labels = objectness**0.6 * np.max(classes, axis=0) ** 0.4, np.argmax(classes, axis=0)
        # A low threshold: the score of a box that a mask weakens is more informative than its absence.
        kept = np.array(cv2.dnn.NMSBoxes(np.hstack([centers - sides / 2, sides]), scores, 0.1, 0.45), int)
        boxes = np.hstack([centers - sides / 2, centers + sides / 2])
        detections.append({"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]})
    return detections


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--onnx", help="ONNX file of FastestDet")
    parser.add_argument("--names", help="file of its class names, one per line; --onnx needs it")
    parser.add_argument("--passes", type=int, default=600, help="number of masked images; more give smoother heatmaps")
    parser.add_argument("--grid", type=int, default=16, help="cells of a mask per side; fewer for small objects")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.onnx:
        names = Path(args.names).read_text().splitlines()
        detect = partial(detect_with_opencv, cv2.dnn.readNetFromONNX(args.onnx))
    else:
        print("Using the demo detector of boats and buoys; --onnx runs FastestDet.")
        detect, names = partial(detect_in_harbors, load_demo_detector()), DEMO_NAMES
    image = to_uint8(load_image(args.image or draw_scene(28).image))
    (output,) = detect([image])
    rows = zip(*(output[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
    detections = [(box, label, score) for box, label, score in rows if score > 0.5][:6]
    result = drise(detect, image, [BoxTarget(*row[:2]) for row in detections], passes=args.passes, grid=args.grid)
    panels = []
    for (box, label, score), heatmap in zip(detections, result.heatmaps, strict=True):
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        print(f"{names[label]} {score:.2f} in {[round(value) for value in box]}: heatmap maximum at {x}, {y}")
        panels.append(render(image, heatmap, box_xyxy=box, caption=f"{names[label]} {score:.2f}"))
    figure = save_image(args.out / "drise_any_black_box.png", grid(panels or [image]))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
