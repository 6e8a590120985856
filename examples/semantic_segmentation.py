"""Why are these pixels a boat? One heatmap for every class that a segmentation network predicts.

    python examples/semantic_segmentation.py                                         # offline, see below
    python examples/semantic_segmentation.py --image street.jpg --weights published  # LR-ASPP, 21 classes of VOC

Any network that returns logits (B, C, h, w) works; wrap it with detcam.adapters.segmenter as below.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from detcam import explain
from detcam.adapters import segmenter
from detcam.demo.model import load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbor import draw_scene
from detcam.visualize.overlay import save_image

NAMES = ["background", "boat", "buoy"]


class SmallSegmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = load_demo_detector().backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Conv2d(72, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 3, 1))

    def forward(self, images):
        fine = self.backbone.stride4(self.backbone.stride2(images))
        coarse = F.interpolate(self.backbone.stride8(fine), scale_factor=2, mode="bilinear")
        return self.head(torch.cat([fine, coarse], dim=1))


def train_segmenter(steps=80, scenes=30):
    print("Training a small network on drawn harbors; select another with --weights.")
    torch.manual_seed(0)
    drawings = [draw_scene(seed, demo=False) for seed in range(scenes)]
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in drawings])
    truth = torch.zeros(scenes, 192, 256, dtype=torch.int64)
    for labels, scene in zip(truth, drawings, strict=True):
        for item in (*scene.of_kind("boat"), *scene.of_kind("buoy")):
            labels[torch.from_numpy(item.mask)] = NAMES.index(item.kind)
    network = SmallSegmenter().eval()
    optimizer = torch.optim.Adam(network.head.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(scenes, (6,))
        logits, classes = network((images[batch] - 0.5) / 0.25), truth[batch, 2::4, 2::4]
        loss = F.cross_entropy(logits, classes, weight=torch.tensor([0.2, 1, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return segmenter(network, names=NAMES, image_size=(192, 256), mean=[0.5] * 3, std=[0.25] * 3)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--model", default="lraspp_mobilenet_v3_large", help="or smp:Unet?encoder=resnet34")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    weights = None if args.weights == "published" else args.weights
    adapter = load_model(args.model, weights=weights) if args.weights else train_segmenter()
    image = args.image or draw_scene(42).image.repeat(3, axis=0).repeat(3, axis=1)
    explanation = explain(adapter, image, args.method)[0]
    explanation.save(args.out)
    figure = save_image(args.out / "semantic_segmentation.png", explanation.grid(columns=3))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
