"""Shared by three examples: cut-outs of drawn harbours, and fitting a network to them in seconds."""

import numpy as np
import torch
from torch.nn import functional as F

from detcam.synthetic.harbour import draw_scene

NAMES = ["boat", "buoy", "gull", "water"]
MEAN, STD = [0.5] * 3, [0.25] * 3
SIZE = 64


def cut_outs(scenes=30):
    """Images (N, 3, 64, 64), normalised, of one thing or of water, and classes (N,) as indices into NAMES."""
    images, classes = [], []
    random = np.random.default_rng(0)
    for scene in (draw_scene(seed, demo=False) for seed in range(scenes)):
        anything = np.any([thing.mask for thing in scene.objects], axis=0)
        places = [(thing.kind, thing.box_xyxy) for thing in scene.objects if thing.kind != "wake"]
        places += [("water", random.integers(0, (256, 192, 256, 192))) for _ in range(6)]
        for kind, (x1, y1, x2, y2) in places:
            left, top = np.clip([(x1 + x2 - SIZE) // 2, (y1 + y2 - SIZE) // 2], 0, (256 - SIZE, 192 - SIZE)).astype(int)
            window = slice(top, top + SIZE), slice(left, left + SIZE)
            if kind != "water" or not anything[window].any():
                images.append(torch.from_numpy(scene.image[window]))
                classes.append(NAMES.index("boat" if kind == "anchored" else kind))
    return (torch.stack(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, torch.tensor(classes)


def three_things(zoom=4):
    """A drawn image (96 * zoom pixels a side) with a boat, a buoy and a gull."""
    return draw_scene(1023, demo=False).image[86:182, 108:204].repeat(zoom, axis=0).repeat(zoom, axis=1)


def fit(net, images, classes, steps, learning_rate=3e-3):
    """Fit a classifier; seeds PyTorch's generator. Returns it in evaluation mode."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=learning_rate, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(classes), (32,))
        loss = F.cross_entropy(net.train()(images[chosen]), classes[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()
