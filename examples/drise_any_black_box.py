"""Any detector at all: D-RISE explains a function from images to boxes, and asks for nothing else.

    python examples/drise_any_black_box.py  # offline: the demo's detector behind a function
    python examples/drise_any_black_box.py --image street.jpg --onnx fastestdet.onnx --names coco.names

The function may ask a server. With --onnx it asks OpenCV, which runs FastestDet (github.com/dog-qiuqiu/FastestDet).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from detcam import drise
from detcam.data.images import load_image, to_uint8
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene
from detcam.targets import BoxTarget
from detcam.utils.opencv import cv2
from detcam.visualize.overlay import grid, render, save_image


def detect_in_harbours(network, images):
    with torch.inference_mode():
        return network([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])


def detect_with_opencv(network, images):
    found = []
    for image in images:
        height, width = image.shape[:2]
        network.setInput(cv2.dnn.blobFromImage(image[..., ::-1], 1 / 255, (352, 352)))
        objectness, tx, ty, tw, th, *classes = network.forward()[0].reshape(85, -1)
        rows, columns = np.divmod(np.arange(22 * 22), 22)
        centres = np.stack([(columns + np.tanh(tx)) / 22 * width, (rows + np.tanh(ty)) / 22 * height], axis=1)
        sides = np.stack([width / (1 + np.exp(-tw)), height / (1 + np.exp(-th))], axis=1)
        scores, labels = objectness**0.6 * np.max(classes, axis=0) ** 0.4, np.argmax(classes, axis=0)
        # A low threshold: a box that fades behind a mask says more than one that is gone.
        kept = np.array(cv2.dnn.NMSBoxes(np.hstack([centres - sides / 2, sides]), scores, 0.1, 0.45), int)
        boxes = np.hstack([centres - sides / 2, centres + sides / 2])
        found.append({"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]})
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn harbour")
    parser.add_argument("--onnx", help="FastestDet's file")
    parser.add_argument("--names", help="its class names, one a line")
    parser.add_argument("--passes", type=int, default=600, help="masked images; more make smoother maps")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.onnx:
        names = Path(args.names).read_text().splitlines()
        detect = partial(detect_with_opencv, cv2.dnn.readNetFromONNX(args.onnx))
    else:
        print("Using the small detector of boats and buoys that comes with detcam; --onnx takes FastestDet.")
        detect, names = partial(detect_in_harbours, load_demo_detector()), DEMO_NAMES
    image = to_uint8(load_image(args.image or draw_scene(28).image))
    plain = [detect([image])[0][name].tolist() for name in ("boxes", "labels", "scores")]
    found = [(box, label, score) for box, label, score in zip(*plain, strict=True) if score > 0.5][:6]
    result = drise(detect, image, [BoxTarget(box, label) for box, label, _ in found], passes=args.passes)

    panels, zoom = [], max(1, 600 // max(image.shape))
    for (box, label, score), heat in zip(found, result.heatmaps, strict=True):
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        print(f"{names[label]} {score:.2f} in {[round(side) for side in box]} is hottest at {x}, {y}")
        large = [array.repeat(zoom, axis=0).repeat(zoom, axis=1) for array in (image, heat)]
        panels.append(render(*large, box_xyxy=np.array(box) * zoom, caption=f"{names[label]} {score:.2f}"))
    figure = save_image(args.out / "drise_any_black_box.png", grid(panels or [image]))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
