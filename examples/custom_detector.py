"""How do I explain my own detector? One decode function from its raw output to boxes and scores.

    python examples/custom_detector.py  # offline, see below
    python examples/custom_detector.py --image street.jpg --onnx fastestdet.onnx --names coco.names --method odam

A registered decode function serves all models of a class, detector(model, decode) a single model such as FastestDet.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.ops import box_convert

from detcam import explain
from detcam.adapters import detector, register_adapter
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import draw_scene
from detcam.visualize.overlay import save_image


class SmallDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = load_demo_detector().backbone, load_demo_detector().rpn.head

    def forward(self, pixels):
        return self.head([self.backbone((pixels - 0.5) / 0.25)["1"]])


@register_adapter(SmallDetector, names=["boat"], image_size=(192, 256))
def small_detector(raw):
    """Decode logits (B, 2, 12, 16) and offsets (B, 8, 12, 16) to boxes in input pixels and class scores (B, N, 1)."""
    (logits,), (offsets,) = raw
    tx, ty, tw, th = offsets.unflatten(1, (2, 4)).unbind(2)
    rows, columns = torch.meshgrid(torch.arange(12) * 16, torch.arange(16) * 16, indexing="ij")
    side = torch.tensor([30, 44])[:, None, None]
    boxes = torch.stack([columns + tx * side, rows + ty * side, tw.exp() * side, th.exp() * side], dim=-1)
    return box_convert(boxes.flatten(1, 3), "cxcywh", "xyxy"), logits.sigmoid().flatten(1)[..., None]


def decode_fastestdet(raw):
    """Decode objectness, tx, ty, tw, th and 80 class probabilities, together (B, 85, 22, 22)."""
    objectness, tx, ty, tw, th = raw[:, :5].unbind(1)
    rows, columns = torch.meshgrid(torch.arange(22), torch.arange(22), indexing="ij")
    boxes = torch.stack([(columns + tx.tanh()) / 22, (rows + ty.tanh()) / 22, tw.sigmoid(), th.sigmoid()], dim=-1)
    scores = (objectness[:, None] ** 0.6 * raw[:, 5:] ** 0.4).flatten(2).transpose(1, 2)
    return box_convert(boxes.flatten(1, 2) * 352, "cxcywh", "xyxy"), scores, objectness.flatten(1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--onnx", help="ONNX file of FastestDet (github.com/dog-qiuqiu/FastestDet)")
    parser.add_argument("--names", help="file of its class names, one per line; --onnx needs it")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    if args.onnx:
        import onnx2torch

        network, names = onnx2torch.convert(args.onnx).eval(), Path(args.names).read_text().splitlines()
        model = detector(network, decode_fastestdet, image_size=352, preprocess=lambda rgb: rgb.flip(0), names=names)
    else:
        print("Using a detector made of parts of the demo detector; --onnx runs FastestDet.")
        model = SmallDetector().eval()
    image = args.image or draw_scene(28).image.repeat(3, axis=0).repeat(3, axis=1)
    explanation = explain(model, image, args.method, score_threshold=0.4)[0]
    print("\n".join(explanation.captions))
    explanation.save(args.out)
    figure = save_image(args.out / "custom_detector.png", explanation.grid())
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
