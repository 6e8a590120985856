"""Detectors that are trained on planted scenes: small enough for a CPU, of several families."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import resnet50
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from detcam.adapters import Adapter, adapt
from detcam.benchmarking.planted.ultralytics_training import network_loss, trainable
from detcam.synthetic.shortcuts import NAMES, SCENE_SIZE_HW, ScenarioName, ShortcutScene, Split, draw_shortcut_scene

BATCH_SIZE = 8
PYRAMID_CHANNELS = 64
LEARNING_RATE = 2e-3

Loss = Callable[[nn.Module, Sequence[Tensor], Sequence[dict[str, Tensor]]], Tensor]
"""From a detector, images (3, H, W) in [0, 1], and their ``boxes`` (xyxy pixels) and ``labels``, to a scalar."""


@dataclass(frozen=True)
class Family:
    """A kind of detector.

    Attributes:
        name: as on the command line.
        build: makes one with random weights.
        loss: what training makes small.
        first_label: the model's label of the first class: 1 where 0 is the background.
        base_steps: optimiser steps on scenes in which windows tell, from which all detectors of the family start.
        steps: optimiser steps on a scenario's own scenes.
        learning_rate: the greatest.
        usual: whether it is measured unless the user says otherwise; large ones take hours on a CPU.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Loss
    first_label: int
    base_steps: int = 800
    steps: int = 500
    learning_rate: float = LEARNING_RATE
    usual: bool = True

    def adapter(self, model: nn.Module) -> Adapter:
        """The adapter of a detector of this family, whose classes are NAMES."""
        names = {self.first_label + index: name for index, name in enumerate(NAMES)}
        if self.first_label == 0:
            return adapt(model, names=names, image_size=SCENE_SIZE_HW)
        return adapt(model, names={0: "background", **names})


class _Block(nn.Module):
    """Two convolutions and a shortcut around them, at most one of which halves the map."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = stride == 1 and inputs == outputs
        self.around = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns relu(second(first(x)) + around(x))."""
        found: Tensor = self.relu(self.second(self.first(x)) + self.around(x))
        return found


class PlantedBackbone(nn.Module):
    """Residual stages at strides 2 to 32 and a feature pyramid at strides 8 and 16.

    A cell at stride 16 sees the whole scene, so that a lamp in the corner can speak for any box.

    Attributes:
        out_channels: channels of every pyramid level, as torchvision's detectors ask for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stride4 = nn.Sequential(_Block(16, 24, 2), _Block(24, 24, 1))
        self.stride8 = nn.Sequential(_Block(24, 48, 2), _Block(48, 48, 1))
        self.stride16 = nn.Sequential(_Block(48, 80, 2), _Block(80, 80, 1))
        self.stride32 = nn.Sequential(_Block(80, 96, 2), _Block(96, 96, 1))
        self.pyramid = FeaturePyramidNetwork([48, 80, 96], PYRAMID_CHANNELS)
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the pyramid, finest level first: "0" at stride 8, "1" at stride 16."""
        fine = self.stride8(self.stride4(self.stem(images)))
        middle = self.stride16(fine)
        levels: dict[str, Tensor] = self.pyramid({"0": fine, "1": middle, "2": self.stride32(middle)})
        return {"0": levels["0"], "1": levels["1"]}


class _Resnet50(nn.Module):
    """ResNet-50 and a feature pyramid at strides 8 and 16, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = resnet50(weights=None)
        self.body.fc = nn.Identity()
        self.pyramid = FeaturePyramidNetwork([512, 1024, 2048], PYRAMID_CHANNELS)
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        body = self.body
        fine = body.layer2(body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images))))))
        middle = body.layer3(fine)
        levels: dict[str, Tensor] = self.pyramid({"0": fine, "1": middle, "2": body.layer4(middle)})
        return {"0": levels["0"], "1": levels["1"]}


def two_stage(backbone: nn.Module | None = None) -> FasterRCNN:
    """Builds a Faster R-CNN with random weights; labels start from 1."""
    backbone = backbone or PlantedBackbone()
    return FasterRCNN(
        backbone,
        min_size=SCENE_SIZE_HW[0],
        max_size=SCENE_SIZE_HW[1],
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(((20,), (32,)), ((0.5, 1.0), (0.5, 1.0))),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=120,
        rpn_post_nms_top_n_test=80,
        rpn_batch_size_per_image=96,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2, canonical_scale=40, canonical_level=4),
        box_head=TwoMLPHead(PYRAMID_CHANNELS * 49, 128),
        box_predictor=FastRCNNPredictor(128, len(NAMES) + 1),
        box_nms_thresh=0.4,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def one_stage() -> FCOS:
    """Builds an FCOS with random weights; labels start from 0 inside and from 1 as torchvision's are written."""
    return FCOS(
        PlantedBackbone(),
        num_classes=len(NAMES) + 1,
        min_size=SCENE_SIZE_HW[0],
        max_size=SCENE_SIZE_HW[1],
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,))),
        nms_thresh=0.4,
        detections_per_img=20,
        topk_candidates=200,
    )


def torchvision_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """The sum of what a torchvision detector calls its losses."""
    return torch.stack(list(model(list(images), list(targets)).values())).sum()


def families() -> dict[str, Family]:
    """The families that can be trained here, by name; YOLO where ultralytics is installed."""
    found = [
        Family("two-stage", two_stage, torchvision_loss, 1),
        Family("fcos", one_stage, torchvision_loss, 1),
        Family("two-stage-resnet50", lambda: two_stage(_Resnet50()), torchvision_loss, 1, 700, 400, 1e-3, usual=False),
    ]
    if importlib.util.find_spec("ultralytics") is not None:
        found.append(Family("yolo", lambda: trainable("yolo11n.yaml", NAMES), network_loss, 0, 1100))
        found.append(
            Family("yolo11s", lambda: trainable("yolo11s.yaml", NAMES), network_loss, 0, 1100, 400, 1e-3, usual=False)
        )
    return {family.name: family for family in found}


def scene_tensor(scene: ShortcutScene) -> Tensor:
    """The scene as detectors take it: (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255


def train(
    family: Family,
    scenario: ScenarioName,
    split: Split,
    steps: int,
    *,
    seed: int = 0,
    start: nn.Module | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Trains a detector on a scenario's scenes.

    Args:
        family: what to train.
        scenario: whose scenes.
        split: of which kind.
        steps: optimiser steps, of BATCH_SIZE scenes each.
        seed: of the weights, the order of scenes and PyTorch's global generator, which is put back afterwards.
        start: whose weights to start from; None starts from random ones.
        on_progress: is told of each step and its loss.

    Returns:
        The detector, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build()
        if start is not None:
            model.load_state_dict(start.state_dict())
        order = random.Random(seed)
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=family.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=family.learning_rate, total_steps=steps, pct_start=0.15
        )
        for step in range(steps):
            # Every scene is new: nothing is learnt by heart, and what was drawn need not be kept.
            scenes = [draw_shortcut_scene(scenario, step * BATCH_SIZE + row, split) for row in range(BATCH_SIZE)]
            pairs = [_pair(scene, order.random() < 0.5, family.first_label) for scene in scenes]
            loss = family.loss(model, [image for image, _ in pairs], [target for _, target in pairs])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            if on_progress is not None:
                on_progress(step, float(loss.detach()))
    return model.eval()


def _pair(scene: ShortcutScene, mirror: bool, first_label: int) -> tuple[Tensor, dict[str, Tensor]]:
    image, boxes = scene_tensor(scene), torch.from_numpy(scene.boxes_xyxy).clone()
    if mirror:
        image = image.flip(-1)
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image, {"boxes": boxes, "labels": torch.from_numpy(scene.labels) + first_label}
