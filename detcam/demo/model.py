"""The demo detector: a small Faster R-CNN that ships with the package and trains in minutes on a CPU."""

from __future__ import annotations

import io
from importlib import resources

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from detcam.synthetic.harbor import DEMO_NAMES, SCENE_SIZE_HW

WEIGHTS_FILE = "demo_detector.pt"
PYRAMID_CHANNELS = 48


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # The ReLU is not in place, because that would overwrite the activations of a target layer.
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DemoBackbone(nn.Module):
    """Five convolution stages and a feature pyramid at strides 8 and 16.

    The receptive field at stride 8 is about 100 pixels wide: a box and the wake beside it.

    Attributes:
        out_channels: channels of every pyramid level, required by FasterRCNN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stride2 = _convolution(3, 16, stride=2)
        self.stride4 = nn.Sequential(_convolution(16, 24, stride=2), _convolution(24, 24))
        self.stride8 = nn.Sequential(_convolution(24, 48, stride=2), _convolution(48, 48))
        self.stride16 = nn.Sequential(_convolution(48, 64, stride=2), _convolution(64, 64))
        self.pyramid = FeaturePyramidNetwork([48, 64], PYRAMID_CHANNELS)
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the pyramid levels, finest first: "0" at stride 8, "1" at stride 16."""
        fine = self.stride8(self.stride4(self.stride2(images)))
        return self.pyramid({"0": fine, "1": self.stride16(fine)})


def build_demo_detector() -> FasterRCNN:
    """Build the demo detector with random weights; labels index DEMO_NAMES."""
    height, width = SCENE_SIZE_HW
    backbone = DemoBackbone()
    pooling = MultiScaleRoIAlign(["0", "1"], output_size=7, sampling_ratio=2, canonical_scale=40, canonical_level=4)
    return FasterRCNN(
        backbone,
        min_size=height,
        max_size=width,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
        rpn_anchor_generator=AnchorGenerator(((12, 20), (30, 44)), ((1.0,), (1.0,))),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=150,
        rpn_post_nms_top_n_test=80,
        rpn_batch_size_per_image=96,
        box_roi_pool=pooling,
        box_head=TwoMLPHead(PYRAMID_CHANNELS * 7 * 7, 96),
        box_predictor=FastRCNNPredictor(96, len(DEMO_NAMES)),
        box_nms_thresh=0.3,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def load_demo_detector() -> FasterRCNN:
    """Load the trained demo detector: float32, on the CPU, in evaluation mode."""
    stored = resources.files("detcam.demo").joinpath(WEIGHTS_FILE).read_bytes()
    state = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    detector = build_demo_detector()
    detector.load_state_dict(state)
    return detector.eval()
