"""The images of a benchmark, their annotations and the model's predictions in them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import make_image_key
from detcam.data.annotations import Annotations, GroundTruth
from detcam.data.images import ImageLike, is_single
from detcam.detections import Detections
from detcam.explanation.explain import select_targets
from detcam.explanation.image_files import find_images
from detcam.metrics.target_regions import TargetRegions, ground_truth_regions
from detcam.outputs import DetectionTarget
from detcam.trace import guarded
from detcam.utils.console import plural
from detcam.utils.files import is_file, is_folder, with_home

MIN_IOU = 0.5
"""Smallest IoU at which a detection matches an annotated object."""


@dataclass(frozen=True)
class Sample:
    """An image of the benchmark.

    Attributes:
        name: name in results and messages.
        source: path of the image, or the image itself.
        ground_truth: annotated objects in the model's class indices; None if the image has no annotations.
    """

    name: str
    source: ImageLike
    ground_truth: GroundTruth | None = None

    def read(self, adapter: Adapter) -> tuple[str, Tensor]:
        """Read the image with the channels of a model.

        Returns:
            The image's key in the result store, and its pixels (C, H, W) in [0, 1].

        Raises:
            TypeError, ValueError: the image cannot be read.
        """
        image = adapter.reader.read(self.source)
        if isinstance(self.source, Path):
            content = self.source.read_bytes()
        else:
            content = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().tobytes()
            content += repr(tuple(image.shape)).encode()
        return make_image_key(self.name, content), image


def collect_samples(
    images: ImageLike | Sequence[ImageLike] | None, annotations: Annotations | None
) -> tuple[list[Sample], list[str]]:
    """Collect the images of a benchmark.

    Args:
        images: a folder, a file, a pattern, an image, or a list of them; None takes the annotated images.
        annotations: annotations in the model's class indices; images without an entry in them are excluded.

    Returns:
        The samples, and notes about excluded images.

    Raises:
        ValueError: there are no images, or none is annotated.
    """
    if images is None:
        if annotations is None:
            raise ValueError("expected images, or annotations that name them; got neither")
        return [Sample(truth.path.name, truth.path, truth) for truth in annotations], []
    samples = list(_list_samples(images))
    if annotations is None:
        return samples, []
    truth_by_path = {truth.path.resolve(): truth for truth in annotations}
    annotated = [
        Sample(sample.name, sample.source, truth_by_path[sample.source.resolve()])
        for sample in samples
        if isinstance(sample.source, Path) and sample.source.resolve() in truth_by_path
    ]
    if not annotated:
        raise ValueError(f"no image of {len(samples)} is annotated in {annotations.path}; check both paths")
    excluded = len(samples) - len(annotated)
    return annotated, [f"{plural(excluded, 'image')} not in {annotations.path.name} excluded."] if excluded else []


def _list_samples(images: ImageLike | Sequence[ImageLike]) -> Iterator[Sample]:
    items: Sequence[Any] = [images] if is_single(images) else list(images)  # type: ignore[arg-type]
    if not items:
        raise ValueError("expected at least one image; got an empty list")
    for index, item in enumerate(items, 1):
        if isinstance(item, (str, Path)):
            path = with_home(item)
            if is_file(path) or not (is_folder(path) or glob.has_magic(str(item))):
                yield Sample(path.name, path)  # a missing file is reported when it is read
            else:
                yield from (Sample(path.name, path) for path in find_images([str(item)]))
        else:
            yield Sample(f"image-{index}", item)


def predict_targets(adapter: Adapter, image: Tensor, **selection: Any) -> tuple[Detections, list[Target]]:
    """Predict in an image (C, H, W) and select the targets to explain.

    Args:
        adapter: the model's adapter.
        image: pixels in [0, 1].
        **selection: arguments that select predictions, as in `detcam.explain`.

    Returns:
        The selected predictions, best first, and one target each.
    """
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([image])
        outputs = adapter.outputs(adapter.forward(batch), batch)
        predictions, _ = adapter.default_targets(outputs, batch)
        return select_targets(adapter, predictions[0], outputs[0], **selection)


def annotated_regions(
    ground_truth: GroundTruth | None, predictions: Detections, targets: Sequence[Target]
) -> TargetRegions:
    """Find the annotated region of each target; it is empty for a target without an annotated object.

    A box matches the annotated object of its class with the greatest IoU, if that is at least `MIN_IOU`; a false
    positive matches none. A class, of an image or of a region, matches all objects of the class together. Crowd
    regions match no target. The region of an object is its mask, or its box if it has no mask.
    """
    if ground_truth is None or not len(ground_truth):
        empty = torch.zeros(len(targets), *predictions.image_size_hw, dtype=torch.bool)
        return TargetRegions(empty, empty, empty)
    if all(isinstance(target, DetectionTarget) for target in targets):
        matches = [_matching_object(ground_truth, target) for target in targets]
        return ground_truth_regions(ground_truth, matches, same_class=True)
    size = (len(predictions.labels), *ground_truth.image_size_hw)
    objects, others, ignored = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    for index in range(len(ground_truth)):  # one by one, since there may be thousands
        mask, same = ground_truth.mask(index), predictions.labels == ground_truth.labels[index]
        if bool(ground_truth.crowd[index]):
            ignored[same] |= mask
        else:
            objects[same] |= mask
            others[~same] |= mask
    return TargetRegions(objects, others, ignored)


def _matching_object(ground_truth: GroundTruth, target: Any) -> int | None:
    """Index of the annotated object that a box matches, or None."""
    overlap = box_iou(torch.tensor([target.box_xyxy]), ground_truth.boxes_xyxy)[0]
    overlap[(ground_truth.labels != target.label) | ground_truth.crowd] = 0
    best = int(overlap.argmax())
    return best if float(overlap[best]) >= MIN_IOU else None
