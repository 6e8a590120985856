"""Why this box, and why this mask? Heatmaps of the score and of the mask of each Mask R-CNN detection.

    python examples/mask_rcnn.py                                         # offline, see below
    python examples/mask_rcnn.py --image street.jpg --weights published  # torchvision's, 80 classes of COCO

Without --weights, a mask head is added to the demo detector and trained for seconds on drawn harbors. The detector
recognizes boats by their wakes; the mask heatmaps show whether the outlines depend on the wakes too.
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
from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
from detcam.visualize.overlay import grid, save_image


def train_mask_head(steps=80, scenes=40):
    print("Training a mask head on the demo detector; select another model with --weights.")
    torch.manual_seed(0)
    model = load_demo_detector()
    heads = model.roi_heads
    heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1"], 14, 2, canonical_scale=40, canonical_level=4)
    heads.mask_head = MaskRCNNHeads(PYRAMID_CHANNELS, [32, 32], 1)
    heads.mask_predictor = MaskRCNNPredictor(32, 32, len(DEMO_NAMES))
    features, masks, labels = [], [], []
    for scene in (draw_scene(seed, demo=False) for seed in range(scenes)):
        objects = [item for item in scene.objects if item.kind in DEMO_NAMES]
        boxes = torch.stack([torch.from_numpy(item.box_xyxy) for item in objects])
        truth = torch.stack([torch.from_numpy(item.mask) for item in objects])[:, None].float()
        with torch.no_grad():
            images, _ = model.transform([torch.from_numpy(scene.image).permute(2, 0, 1) / 255])
            pooled = heads.mask_roi_pool(model.backbone(images.tensors), [boxes], images.image_sizes)
        features, masks = [*features, pooled], [*masks, roi_align(truth, list(boxes[:, None]), 28)[:, 0]]
        labels += [DEMO_NAMES.index(item.kind) for item in objects]
    features, masks, labels = torch.cat(features), torch.cat(masks), torch.tensor(labels)
    optimizer = torch.optim.Adam([*heads.mask_head.parameters(), *heads.mask_predictor.parameters()], lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(len(labels), (16,))
        logits = heads.mask_predictor(heads.mask_head(features[batch]))[torch.arange(16), labels[batch]]
        loss = F.binary_cross_entropy_with_logits(logits, masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adapt(model.eval(), names=DEMO_NAMES)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="image file; default: a drawn harbor")
    parser.add_argument("--weights", help="a .pth or .safetensors file, or 'published' (may download)")
    parser.add_argument("--method", default="reachcam", help="method name; see 'detcam methods'")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    args = parser.parse_args(argv)

    weights = None if args.weights == "published" else args.weights
    adapter = load_model("maskrcnn_resnet50_fpn_v2", weights=weights) if args.weights else train_mask_head()
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
