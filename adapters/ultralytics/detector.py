"""Ultralytics models: YOLO v5u to 26 (detect, segment, obb, pose, classify) and RT-DETR.

The package is imported only in these modules, and only for its models: `supports` compares module names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions, Batch
from detcam.adapters.contract import check_fractions
from detcam.adapters.detection import DetectorAdapter
from detcam.adapters.ultralytics.architecture import check_architecture
from detcam.adapters.ultralytics.letterbox import Letterbox, image_array
from detcam.adapters.ultralytics.network import (
    PROMPTED,
    base_names,
    head_names,
    inner_module,
    is_ultralytics,
    network_input_size,
)
from detcam.adapters.ultralytics.outputs import HeadLevel, YoloOutput, YoloPyramid
from detcam.adapters.windows import reach
from detcam.detections import as_names
from detcam.outputs import DetectorOutput
from detcam.utils.console import did_you_mean
from detcam.utils.optional import needs_extra


class UltralyticsDetector(DetectorAdapter, abstract=True):
    """Base class of the detectors: letterbox, layers before the head, and thresholds.

    Images are prepared as `YOLO.predict` prepares a single image: scaled to fit `image_size`, then padded with
    gray 114 to the next multiple of the stride (a rectangle, not a square). RT-DETR stretches them to a square.

    Args:
        model: a `YOLO` or `RTDETR` object, or the module inside one.
        image_size: side of the network's input, or height and width; None takes the model's `imgsz`, else 640.
        conf: minimum score of a detection, in [0, 1].
        iou: overlap above which the weaker of two boxes of a class is suppressed, in [0, 1].
        max_det: maximum number of detections per image.
        **options: further arguments of `Adapter`, such as `names` and `target_layers`. By default, the target
            layers are those that the head reads.

    Attributes:
        stretches: whether images are stretched to the input size instead of letterboxed.
    """

    stretches = False
    takes_bytes = True
    score_threshold_name = "conf"

    def __init__(
        self,
        model: object,
        *,
        image_size: int | tuple[int, int] | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        **options: Unpack[AdapterOptions],
    ) -> None:
        module = inner_module(model)
        check_fractions(conf=conf, iou=iou)
        if max_det < 1:
            raise ValueError(f"expected max_det of at least 1; got {max_det}")
        self.conf, self.iou, self.max_det = conf, iou, max_det
        self.stride = max(int(module.stride.max()), 32)
        self.image_size_hw = network_input_size(model, image_size, 640, self.stride)
        super().__init__(module, **options)

    @property
    def layers(self) -> Any:
        """The network's modules in order of execution, the head last."""
        return self.model.model

    @property
    def head(self) -> Any:
        """The detection head."""
        return self.layers[-1]

    def default_names(self) -> Mapping[int, str]:
        return as_names(self.model.names)  # type: ignore[arg-type]

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the layers that the head reads, one per pyramid level.

        Measured on a YOLO11n trained on blood cells (36 detections; peak in the box, fraction of energy in it): ODAM
        1.00 and 0.89 at these layers, 0.97 and 0.75 at the backbone's stride 8, 0.53 and 0.42 at stride 16, 0.44 and
        0.39 at stride 32; GradCAM, which pools its gradient, 0.47 and 0.21 at these layers and less elsewhere. The
        gradient at these layers reaches 7% of the image; at the backbone's stride 8 it reaches all of it.
        """
        last = len(self.layers) - 1
        return [self.layers[index if index >= 0 else last + index] for index in self.head.f]

    @property
    def letterbox(self) -> Letterbox:
        """How images are placed on the network's input."""
        return Letterbox(self.image_size_hw, self.stride, self.stretches)

    def prepare(self, images: Sequence[Tensor]) -> Batch:
        return letterboxed(images, self.letterbox, self.device, self.dtype)

    def prepare_tensor(self, batch: Tensor) -> Batch:
        """Take a (B, C, H, W) tensor, RGB in [0, 1], whose sides are multiples of the stride."""
        self.letterbox.check(batch, self.channels)
        return super().prepare_tensor(batch)

    def layer_runner(self, count: int) -> Callable[[nn.Module, Any], Any]:
        """Return the function that runs a layer on its input, for a batch of `count` images."""
        return lambda layer, value: layer(value)

    def features(self, inputs: Tensor) -> list[Tensor]:
        """Return the head's input: one (B, C, h, w) per pyramid level."""
        *layers, head = self.layers
        saved: set[int] = {*self.model.save, *head.f}  # type: ignore[misc]
        kept: list[Any] = []
        value: Any = inputs
        run = self.layer_runner(len(inputs))
        for layer in layers:
            if layer.f != -1:
                value = kept[layer.f] if isinstance(layer.f, int) else [value if i == -1 else kept[i] for i in layer.f]
            value = run(layer, value)
            kept.append(value if layer.i in saved else None)
        return [value if index == -1 else kept[index] for index in head.f]

    @abstractmethod
    def forward(self, batch: Batch) -> Any: ...


class UltralyticsAdapter(UltralyticsDetector):
    """YOLO with anchor-free heads: v5u to 26; detection, instance masks, rotated boxes, keypoints.

    The source of a detection is its grid cell, on the branch of the head that reports it.

    Args:
        model: as in `UltralyticsDetector`.
        nms: for heads with two branches (v10, 26): False takes the one-to-one branch, which needs no suppression, True
            the one-to-many branch, None the branch of the model's setting `end2end`.
        **options: as in `UltralyticsDetector`.
    """

    family = "ultralytics"

    def __init__(self, model: object, *, nms: bool | None = None, **options: Any) -> None:
        self.nms = nms
        head = inner_module(model).model[-1]
        missing_branch = getattr(head, "one2one_cv2", None) if nms is False else head.cv2
        if nms is not None and missing_branch is None:
            raise ValueError(f"nms={nms}: this model has no such branch; use nms={not nms} or nms=None")
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: object) -> bool:
        other = {"RTDETRDecoder", "Classify", "SemanticSegment", "Depth", *PROMPTED}
        return is_ultralytics(model) and head_names(model).isdisjoint(other)

    @property
    def branch(self) -> Mapping[str, Any]:
        """The parts of the head that compute its result."""
        return self.head.one2one if self.end_to_end else self.head.one2many

    @property
    def end_to_end(self) -> bool:
        """Whether the result is that of the one-to-one branch, without suppression."""
        return bool(self.head.end2end) if self.nms is None else not self.nms

    @property
    def hooks_head(self) -> bool:
        """Whether a target layer lies inside the head."""
        if not self.target_layers:
            return False
        inside = {id(module) for module in self.head.modules()}
        return any(id(layer) in inside for layer in self.target_layers)

    def forward(self, batch: Batch) -> YoloPyramid:
        inputs = batch.inputs
        if inputs.device.type == "cpu":  # passes are 1.45 times as fast there
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        pyramid = YoloPyramid(self, self.features(inputs))
        if self.hooks_head:  # hooks are only active during this call
            _ = pyramid.levels, pyramid.prototypes
        return pyramid

    def run_head(self, level: int, feature: Tensor) -> HeadLevel:
        """Run the head on a map, or a window of a map, of one level."""
        branch = self.branch
        extra = None
        if "mask_head" in branch:
            extra = branch["mask_head"][level](feature)
        elif "angle_head" in branch:
            extra = branch["angle_head"][level](feature)
            if "OBB26" not in base_names(self.head):  # OBB26 predicts the angle in radians
                extra = (extra.sigmoid() - 0.25) * torch.pi
        elif "pose_head" in branch:
            extra = branch["pose_head"][level](feature)
            extra = branch["kpts_head"][level](extra) if "kpts_head" in branch else extra
        return HeadLevel(self.classify(level, feature), branch["box_head"][level](feature), extra)

    def classify(self, level: int, feature: Tensor) -> Tensor:
        """Return the class logits (B, C, h, w) of a map, or a window of a map, of one level."""
        logits: Tensor = self.branch["cls_head"][level](feature)
        return logits

    def run_prototypes(self, features: list[Tensor]) -> Tensor | None:
        """Return the mask prototypes (B, M, h, w), or None where the task has none."""
        if "mask_head" not in self.branch:
            return None
        proto = self.head.proto
        return proto(features if "Proto26" in base_names(proto) else features[0])

    def head_reach(self, level: int) -> int | None:
        """Return the radius of the head's receptive field at a level, in cells; None for the whole map."""
        parts = [self.branch[name][level] for name in ("cls_head", "box_head", "angle_head") if name in self.branch]
        reaches = [_reach(part) for part in parts]
        known = [value for value in reaches if value is not None]
        return max(known) if len(known) == len(parts) else None

    def outputs(self, raw: YoloPyramid, batch: Batch) -> list[DetectorOutput]:
        return [YoloOutput(self, raw, index, geometry) for index, geometry in enumerate(batch.geometries)]

    def select_anchors(self, boxes: Tensor, scores: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the anchors that become detections.

        Args:
            boxes: (A, 4) center, width, height, input pixels.
            scores: (A, C).
            angles: (A, 1) of rotated boxes, radians.

        Returns:
            Indices of anchors (N,) and labels (N,), best first.
        """
        if self.end_to_end:
            best, labels, indices = self.head.get_topk_index(scores[None], max(self.max_det, 300))
            keep = (best[0, :, 0] > self.conf).nonzero()[: self.max_det, 0]
            return indices[0].reshape(-1)[keep], labels[0, keep, 0].long()
        from ultralytics.utils.nms import non_max_suppression

        columns = [boxes, scores] if angles is None else [boxes, scores, angles]
        rows, kept = non_max_suppression(
            torch.cat(columns, 1).T[None],
            self.conf,
            self.iou,
            max_det=self.max_det,
            nc=scores.shape[1],
            rotated=angles is not None,
            return_idxs=True,
        )
        return kept[0].reshape(-1).long(), rows[0][:, 5].long()

    def masks(self, prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Return instance masks (N, H, W) bool in image pixels, as `YOLO.predict(retina_masks=True)` does."""
        from ultralytics.utils.ops import process_mask_native

        return process_mask_native(prototypes, coefficients.float(), boxes_xyxy, size_hw).bool()


def _reach(branch: nn.Module) -> int | None:
    """Return `reach`, where ultralytics' `Conv` counts as its convolution, normalization and activation in sequence."""
    total = 0
    for module in branch.modules():
        if next(module.children(), None) is not None and "Conv" in base_names(module):
            continue
        radius = 0 if isinstance(module, nn.Sequential) else reach(module)
        if radius is None:
            return None
        total += radius
    return total


def letterboxed(images: Sequence[Tensor], letterbox: Letterbox, device: torch.device, dtype: torch.dtype) -> Batch:
    """Return images (C, H, W) in [0, 1] of one canvas as the network's input, as `YOLO.predict` prepares them."""
    from ultralytics.data.augment import LetterBox

    stretches = letterbox.stretches
    resize = LetterBox(letterbox.size_hw, auto=not stretches, scale_fill=stretches, stride=letterbox.stride)
    arrays = [resize(image=image_array(image)) for image in images]
    placed = [
        torch.from_numpy(np.ascontiguousarray(array.reshape(*array.shape[:2], -1))).permute(2, 0, 1) for array in arrays
    ]
    inputs = torch.stack(placed).to(device).to(dtype) / 255
    canvas = (inputs.shape[-2], inputs.shape[-1])
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    return Batch(inputs, tuple(letterbox.geometry(size, canvas) for size in sizes))


def create_ultralytics_model(name: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build a network by name or file: ``yolo11n.pt``, ``rtdetr-l.yaml``.

    Args:
        name: a ``.yaml`` architecture, or a ``.pt`` file. A published file that is missing is downloaded. Reading a
            ``.pt`` file runs code from it.
        num_classes: number of classes of a ``.yaml`` architecture; None takes the number in the file.
        pretrained: whether `name` is a ``.pt`` file.

    Raises:
        ImportError: ultralytics is not installed.
        OSError: the file does not exist and cannot be downloaded.
        ValueError: the architecture would run code.
    """
    with needs_extra("ultralytics"):
        from ultralytics import RTDETR, YOLO
        from ultralytics.nn import tasks
    if not pretrained:
        try:
            architecture = tasks.yaml_model_load(name)
        except FileNotFoundError as error:
            raise ValueError(
                f"ultralytics knows no architecture {name}{near_published(f'{Path(name).stem}.pt')}"
            ) from error
        check_architecture(name, architecture, tasks)
    wrapper = (RTDETR if Path(name).name.lower().startswith("rtdetr") else YOLO)(name)
    if pretrained or num_classes is None:
        return inner_module(wrapper)
    architecture = {**wrapper.model.yaml, "nc": num_classes}
    return type(wrapper.model)(architecture, verbose=False)


def is_published(name: str) -> bool:
    """Return whether ultralytics publishes a file of weights of this name."""
    return name in _published()


def near_published(name: str) -> str:
    """Return a hint to the nearest published files; empty if the name is published, or resembles none."""
    return "" if is_published(name) else did_you_mean(name, _published())


def _published() -> Collection[str]:
    with needs_extra("ultralytics"):
        from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
    return sorted(GITHUB_ASSETS_NAMES)
