"""Why did YOLO fire there? One heatmap for every box of an ultralytics model.

    python examples/yolo.py                                   # offline, see below
    python examples/yolo.py --image street.jpg --model yolo11n.pt
    python examples/yolo.py --image street.jpg --model best.pt --method gradcam --layer model.15

Needs pip install 'detcam[ultralytics]' (AGPL-3.0). Without --model, a YOLO11n is overfitted for seconds to one drawn
harbor, which is enough to see the evidence for its boxes.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch

from detcam import explain
from detcam.models.load import load_model
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import save_image


def train_yolo(scene, steps=50):
    torch.manual_seed(0)
    height, width = scene.image.shape[:2]
    adapter = load_model("yolo11n.yaml", weights="none", num_classes=2, names=DEMO_NAMES[1:], image_size=width)
    model = adapter.model.requires_grad_(True)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)  # the weights of the loss terms in ultralytics
    x1, y1, x2, y2 = (torch.from_numpy(scene.boxes_xyxy) / torch.tensor([width, height] * 2)).unbind(1)
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255
    batch = {
        "img": torch.cat([image, image.flip(-1)]),
        "bboxes": torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1).repeat(2, 1),
        "cls": torch.from_numpy(scene.labels - 1).float()[:, None].repeat(2, 1),
        "batch_idx": torch.tensor([0.0, 1.0]).repeat_interleave(len(scene.labels)),
    }
    batch["bboxes"][len(scene.labels) :, 0] = 1 - batch["bboxes"][len(scene.labels) :, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        loss, _ = model.train()(batch)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    for module in model.modules():  # batch statistics of the final weights
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model(batch)
    model.eval()
    return adapter


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--model", help="ultralytics file or name (may download)")
    parser.add_argument("--method", default="auto", help="method name; see 'detcam methods'")
    parser.add_argument("--layer", help="target layer; default: the best measured layer for YOLO")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    scene = draw_scene(28)
    if args.model is None:
        print("Training a YOLO11n on one drawn harbor; select another model with --model.")
        adapter = train_yolo(scene)
    else:
        # An ultralytics file is a pickle, which can run code when it is loaded: load trusted files only.
        adapter = load_model(args.model, trust_checkpoint=True)
    image = args.image or scene.image.repeat(3, axis=0).repeat(3, axis=1)
    explanation = explain(adapter, image, args.method, target_layers=args.layer)[0]
    print("\n".join(explanation.captions))
    explanation.save(args.out)
    figure = save_image(args.out / "yolo.png", explanation.grid(columns=3))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
