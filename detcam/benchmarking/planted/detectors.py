"""Detectors for the shortcut scenes, of several families, small enough to train on a CPU."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import resnet50
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from detcam.adapters import Adapter, adapt
from detcam.benchmarking.planted.semantic import build_fcn, semantic_loss, training_mask
from detcam.benchmarking.planted.transformers_training import build_rt_detr, rt_detr_loss
from detcam.benchmarking.planted.ultralytics_training import build_network, network_loss
from detcam.synthetic.shortcut_scenarios import NAMES, SCENE_SIZE_HW, ScenarioName, Split
from detcam.synthetic.shortcuts import ShortcutScene, draw_shortcut_scene
from detcam.synthetic.training import training_pair

BATCH_SIZE = 8
PYRAMID_CHANNELS = 64
LEARNING_RATE = 2e-3

Loss = Callable[[nn.Module, Sequence[Tensor], Sequence[dict[str, Tensor]]], Tensor]
"""From a detector, images (3, H, W) in [0, 1] and their ``boxes``
(xyxy pixels), ``labels`` and ``masks`` (N, H, W) to the training loss."""


@dataclass(frozen=True)
class DetectorFamily:
    """A detector architecture and its training.

    Attributes:
        name: name on the command line.
        build: function that builds the detector with random weights.
        loss: training loss.
        first_label: the detector's label of the first class: 1 if 0 is the background.
        base_steps: optimizer steps on scenes in which the window determines the class; all detectors of the family
            start from this one.
        steps: optimizer steps on the scenes of one of `FIRST_SCENARIOS`.
        short_steps: optimizer steps on the scenes of another scenario.
        learning_rate: maximum learning rate.
        is_default: whether the family is measured by default; large ones take hours on a CPU.
        base: name of the family from whose plain detector those of this family start; None takes its own.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Loss
    first_label: int
    base_steps: int = 800
    steps: int = 500
    short_steps: int = 300
    learning_rate: float = LEARNING_RATE
    is_default: bool = True
    base: str | None = None

    def adapter(self, model: nn.Module) -> Adapter:
        """Make the adapter of a detector of this family; its classes are `NAMES`."""
        if self.first_label == 0:  # the network knows its names and its input size
            return adapt(model)
        return adapt(model, names=("background", *NAMES))


class _ResidualBlock(nn.Module):
    """Two convolutions with a residual connection. The attributes' names are those in the files of weights."""

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
        """Return relu(second(first(x)) + around(x))."""
        return self.relu(self.second(self.first(x)) + self.around(x))


class PlantedBackbone(nn.Module):
    """Residual stages at strides 2 to 32 and a feature pyramid at strides 8 and 16.

    The receptive field of a cell at stride 16 covers the whole scene, so that a lamp in the corner can affect any box.

    Attributes:
        out_channels: channels of every pyramid level, which torchvision's detectors read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stride4 = nn.Sequential(_ResidualBlock(16, 24, 2), _ResidualBlock(24, 24, 1))
        self.stride8 = nn.Sequential(_ResidualBlock(24, 48, 2), _ResidualBlock(48, 48, 1))
        self.stride16 = nn.Sequential(_ResidualBlock(48, 80, 2), _ResidualBlock(80, 80, 1))
        self.stride32 = nn.Sequential(_ResidualBlock(80, 96, 2), _ResidualBlock(96, 96, 1))
        self.pyramid = FeaturePyramidNetwork([48, 80, 96], PYRAMID_CHANNELS)
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the pyramid, finest level first: "0" at stride 8, "1" at stride 16."""
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


def build_faster_rcnn(backbone: nn.Module | None = None) -> FasterRCNN:
    """Build a Faster R-CNN with random weights; labels start from 1."""
    return FasterRCNN(backbone or PlantedBackbone(), **_two_stage_options())


def build_mask_rcnn() -> MaskRCNN:
    """Build a Mask R-CNN with random weights: the Faster R-CNN with a mask head."""
    return MaskRCNN(
        PlantedBackbone(),
        mask_roi_pool=_roi_pool(14),
        mask_head=MaskRCNNHeads(PYRAMID_CHANNELS, (PYRAMID_CHANNELS, PYRAMID_CHANNELS), 1),
        mask_predictor=MaskRCNNPredictor(PYRAMID_CHANNELS, PYRAMID_CHANNELS, len(NAMES) + 1),
        **_two_stage_options(),
    )


def _roi_pool(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0", "1"], size, 2, canonical_scale=40, canonical_level=4)


def _two_stage_options() -> dict[str, Any]:
    return {
        "min_size": SCENE_SIZE_HW[0],
        "max_size": SCENE_SIZE_HW[1],
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "rpn_anchor_generator": AnchorGenerator(((20,), (32,)), ((0.5, 1.0), (0.5, 1.0))),
        "rpn_pre_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 120,
        "rpn_post_nms_top_n_test": 80,
        "rpn_batch_size_per_image": 96,
        "box_roi_pool": _roi_pool(7),
        "box_head": TwoMLPHead(PYRAMID_CHANNELS * 49, 128),
        "box_predictor": FastRCNNPredictor(128, len(NAMES) + 1),
        "box_nms_thresh": 0.4,
        "box_batch_size_per_image": 64,
        "box_detections_per_img": 20,
    }


def build_fcos() -> FCOS:
    """Build an FCOS with random weights; labels start from 1."""
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


def build_semantic() -> nn.Module:
    """Build a semantic segmentation network with random weights."""
    backbone = PlantedBackbone()
    stages = (backbone.stem, backbone.stride4, backbone.stride8, backbone.stride16, backbone.stride32)
    return build_fcn(stages, (24, 48, 80, 96))


def torchvision_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Compute the sum of the losses of a torchvision detector."""
    return torch.stack(list(model(list(images), list(targets)).values())).sum()


def detector_families() -> dict[str, DetectorFamily]:
    """The available families by name; the YOLO ones need ultralytics, and RT-DETR transformers."""
    families = [
        DetectorFamily("two-stage", build_faster_rcnn, torchvision_loss, 1),
        DetectorFamily("fcos", build_fcos, torchvision_loss, 1),
        DetectorFamily(
            "semantic", build_semantic, semantic_loss, 1, base_steps=400, steps=250, short_steps=250, is_default=False
        ),
        DetectorFamily(
            "mask-rcnn",
            build_mask_rcnn,
            torchvision_loss,
            1,
            base_steps=300,
            steps=300,
            is_default=False,
            base="two-stage",
        ),
        DetectorFamily(
            "two-stage-resnet50",
            lambda: build_faster_rcnn(_Resnet50()),
            torchvision_loss,
            1,
            base_steps=700,
            steps=400,
            learning_rate=1e-3,
            is_default=False,
        ),
    ]
    if importlib.util.find_spec("ultralytics") is not None:
        families += [
            DetectorFamily(
                "yolo", lambda: build_network("yolo11n.yaml", NAMES, SCENE_SIZE_HW), network_loss, 0, base_steps=1100
            ),
            DetectorFamily(
                "yolo11s",
                lambda: build_network("yolo11s.yaml", NAMES, SCENE_SIZE_HW),
                network_loss,
                0,
                base_steps=1100,
                steps=400,
                learning_rate=1e-3,
                is_default=False,
            ),
        ]
    if importlib.util.find_spec("transformers") is not None:
        families.append(
            DetectorFamily(
                "rt-detr",
                lambda: build_rt_detr(NAMES, SCENE_SIZE_HW),
                rt_detr_loss,
                0,
                base_steps=900,
                steps=250,
                short_steps=250,
                learning_rate=1e-3,
                is_default=False,
            )
        )
    return {family.name: family for family in families}


def _training_pair(scene: ShortcutScene, flip: bool, first_label: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An input and its annotations, with the masks (N, H, W) bool of the boats and barges."""
    image, target = training_pair(scene, flip, first_label)
    size = image.shape[-2:]
    bodies = [training_mask(scene, name) for name in scene.bodies]
    masks = torch.stack(bodies) if bodies else torch.zeros(0, *size)
    return image, {**target, "masks": (masks.flip(-1) if flip else masks).bool()}


def train_detector(
    family: DetectorFamily,
    scenario: ScenarioName,
    split: Split,
    steps: int,
    *,
    seed: int = 0,
    start: nn.Module | None = None,
    on_step: Callable[[float], None] | None = None,
) -> nn.Module:
    """Train a detector on the scenes of a scenario.

    Args:
        family: family of the detector.
        scenario: scenario of the scenes.
        split: split of the scenes.
        steps: number of optimizer steps, with `BATCH_SIZE` new scenes each.
        seed: seed of weights and flips. PyTorch's global generator is restored afterwards.
        start: detector whose weights to start from; parts that it does not have start from random ones, as all do for
            None.
        on_step: callback that receives the loss of each step.

    Returns:
        The detector in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build()
        if start is not None:
            model.load_state_dict(start.state_dict(), strict=type(model) is type(start))
        flips = random.Random(seed)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=family.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=family.learning_rate, total_steps=steps, pct_start=0.15
        )
        for step in range(steps):
            scenes = [draw_shortcut_scene(scenario, step * BATCH_SIZE + row, split) for row in range(BATCH_SIZE)]
            pairs = [_training_pair(scene, flips.random() < 0.5, family.first_label) for scene in scenes]
            loss = family.loss(model, [image for image, _ in pairs], [target for _, target in pairs])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(float(loss.detach()))
    return model.eval()
