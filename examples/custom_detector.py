"""A detector of your own: one function that reads its raw output makes it explainable.

    python examples/custom_detector.py  # offline, see below
    python examples/custom_detector.py --image street.jpg --onnx fastestdet.onnx --names coco.names --method odam

--onnx takes FastestDet (github.com/dog-qiuqiu/FastestDet), of which decode_fastestdet is all that detcam is told.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from detcam import explain
from detcam.adapters import detector
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbour import draw_scene
from detcam.visualize.overlay import save_image


class SmallDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = load_demo_detector().backbone, load_demo_detector().rpn.head

    def forward(self, pixels):
        return self.head([self.backbone((pixels - 0.5) / 0.25)["1"]])


def decode_small(raw):
    """From logits (B, 2, 12, 16) and offsets (B, 8, 12, 16) to boxes in input pixels and class scores (B, N, 1)."""
    (logits,), (offsets,) = raw
    tx, ty, tw, th = offsets.unflatten(1, (2, 4)).unbind(2)
    rows, columns = torch.meshgrid(torch.arange(12) * 16, torch.arange(16) * 16, indexing="ij")
    side = torch.tensor([30, 44])[:, None, None]
    cx, cy, w, h = columns + tx * side, rows + ty * side, tw.exp() * side, th.exp() * side
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)
    return boxes.flatten(1, 3), logits.sigmoid().flatten(1)[..., None]


def decode_fastestdet(raw):
    """From (B, 85, 22, 22), objectness, tx, ty, tw, th and 80 class probabilities; objectness comes third."""
    objectness, tx, ty, tw, th = raw[:, :5].unbind(1)
    rows, columns = torch.meshgrid(torch.arange(22), torch.arange(22), indexing="ij")
    cx, cy, w, h = (columns + tx.tanh()) / 22, (rows + ty.tanh()) / 22, tw.sigmoid(), th.sigmoid()
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1) * 352
    scores = objectness[:, None] ** 0.6 * raw[:, 5:] ** 0.4
    return boxes.flatten(1, 2), scores.flatten(2).transpose(1, 2), objectness.flatten(1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn harbour")
    parser.add_argument("--onnx", help="FastestDet's file")
    parser.add_argument("--names", help="its class names, one a line")
    parser.add_argument("--method", default="reachcam", help="see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.onnx:
        import onnx2torch

        model, names = onnx2torch.convert(args.onnx).eval(), Path(args.names).read_text().splitlines()
        adapter = detector(model, decode_fastestdet, image_size=352, preprocess=lambda rgb: rgb.flip(0), names=names)
    else:
        print("Using a detector put together from what comes with detcam; --onnx takes FastestDet.")
        adapter = detector(SmallDetector().eval(), decode_small, image_size=(192, 256), names=["boat"])
    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    explanation = explain(adapter, image, args.method, score_threshold=0.4)[0]
    print("\n".join(explanation.captions))
    explanation.save(args.out)
    figure = save_image(args.out / "custom_detector.png", explanation.grid())
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
