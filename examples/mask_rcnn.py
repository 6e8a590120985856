"""Why this box, and why this mask? Two questions to Mask R-CNN, with different answers.

    python examples/mask_rcnn.py                                         # offline, see below
    python examples/mask_rcnn.py --image street.jpg --weights published  # torchvision's, 80 classes of COCO

Without --weights the small detector that comes with detcam gets a mask head, fitted in seconds to drawn harbours.
It finds boats by their wakes; the masks show whether their outlines come from there too.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detcam import adapt, explain
from detcam.demo.model import PYRAMID_CHANNELS, load_demo_detector
from detcam.models.load import load_model
from detcam.synthetic.harbour import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import grid, save_image


def fit_masks(steps=80, scenes=40):
    print("Fitting a mask head to the small detector that comes with detcam; --weights takes another.")
    torch.manual_seed(0)
    model = load_demo_detector()
    heads = model.roi_heads
    heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1"], 14, 2, canonical_scale=40, canonical_level=4)
    heads.mask_head = MaskRCNNHeads(PYRAMID_CHANNELS, [32, 32], 1)
    heads.mask_predictor = MaskRCNNPredictor(32, 32, len(DEMO_NAMES))
    regions, masks, labels = [], [], []
    for scene in (draw_scene(seed, demo=False) for seed in range(scenes)):
        things = [thing for thing in scene.objects if thing.kind in DEMO_NAMES]
        boxes = torch.stack([torch.from_numpy(thing.box_xyxy) for thing in things])
        drawn = torch.stack([torch.from_numpy(thing.mask) for thing in things])[:, None].float()
        with torch.no_grad():
            images, _ = model.transform([torch.from_numpy(scene.image).permute(2, 0, 1) / 255])
            pooled = heads.mask_roi_pool(model.backbone(images.tensors), [boxes], images.image_sizes)
        regions, masks = [*regions, pooled], [*masks, roi_align(drawn, list(boxes[:, None]), 28)[:, 0]]
        labels += [DEMO_NAMES.index(thing.kind) for thing in things]
    regions, masks, labels = torch.cat(regions), torch.cat(masks), torch.tensor(labels)
    optimiser = torch.optim.Adam([*heads.mask_head.parameters(), *heads.mask_predictor.parameters()], lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (16,))
        logits = heads.mask_predictor(heads.mask_head(regions[chosen]))[torch.arange(16), labels[chosen]]
        loss = F.binary_cross_entropy_with_logits(logits, masks[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return adapt(model.eval(), names=DEMO_NAMES)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an image; by default a drawn harbour")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published', which may download them")
    parser.add_argument("--method", default="reachcam", help="see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    weights = None if args.weights == "published" else args.weights
    adapter = load_model("maskrcnn_resnet50_fpn_v2", weights=weights) if args.weights else fit_masks()
    image = args.image or draw_scene(45).image.repeat(3, axis=0).repeat(3, axis=1)
    panels = []
    for quantity in ("score", "mask"):
        explanation = explain(adapter, image, args.method, score_threshold=0.5, top_k=3, quantity=quantity)[0]
        explanation.save(args.out / quantity)
        panels += [explanation.overlay(i) for i in range(len(explanation))]
    columns = max(1, len(explanation))
    figure = save_image(args.out / "mask_rcnn.png", grid(panels or [explanation.image], columns=columns))
    print(f"See {figure}")
    return figure


if __name__ == "__main__":
    main()
