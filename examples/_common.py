"""Helpers of examples: crops of drawn harbors, and the training of a small network and of a detector."""

import random

import numpy as np
import torch
from torch.nn import functional as F

from detcam.data.annotations import Annotations
from detcam.data.images import load_image
from detcam.synthetic.harbor import draw_scene

NAMES = ["boat", "buoy", "gull", "water"]
MEAN, STD = [0.5] * 3, [0.25] * 3
SIZE = 64


def harbor_crops(scenes=30):
    """Return normalized crops (N, 3, 64, 64) of one object or of water, and their classes (N,) as indices of NAMES."""
    crops, classes = [], []
    rng = np.random.default_rng(0)
    for scene in (draw_scene(seed, demo=False) for seed in range(scenes)):
        occupied = np.any([item.mask for item in scene.objects], axis=0)
        regions = [(item.kind, item.box_xyxy) for item in scene.objects if item.kind != "wake"]
        regions += [("water", rng.integers(0, (256, 192, 256, 192))) for _ in range(6)]
        for kind, (x1, y1, x2, y2) in regions:
            left, top = np.clip([(x1 + x2 - SIZE) // 2, (y1 + y2 - SIZE) // 2], 0, (256 - SIZE, 192 - SIZE)).astype(int)
            window = slice(top, top + SIZE), slice(left, left + SIZE)
            if kind != "water" or not occupied[window].any():
                crops.append(torch.from_numpy(scene.image[window]))
                classes.append(NAMES.index("boat" if kind == "anchored" else kind))
    return (torch.stack(crops).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, torch.tensor(classes)


def draw_three_objects(zoom=4):
    """Return an image of 96 * zoom pixels a side with a boat, a buoy and a gull."""
    return draw_scene(1023, demo=False).image[86:182, 108:204].repeat(zoom, axis=0).repeat(zoom, axis=1)


def train(network, images, classes, steps, learning_rate=3e-3):
    """Train a classifier from a fixed seed and return it in evaluation mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(classes), (32,))
        loss = F.cross_entropy(network.train()(images[batch]), classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def load_pairs(folder):
    """Images and targets of a training set in COCO's format, as torchvision's detectors take them."""
    for item in Annotations.load(folder / "annotations.json", folder / "images"):
        yield load_image(item.path), {"boxes": item.boxes_xyxy, "labels": item.category_ids}


def fine_tune(model, usual, added, steps, batch_size=8):
    """Train with half of each batch from the added images."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    order = random.Random(0)
    model.train()
    for _ in range(steps):
        batch = order.sample(usual, batch_size // 2) + order.choices(added, k=batch_size // 2)
        images, targets = zip(*batch, strict=True)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()
