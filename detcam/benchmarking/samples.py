"""The images of a benchmark, what is truly in them, and what the model finds in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Target
from detcam.benchmarking.result_store import image_key
from detcam.data.annotations import Annotations, GroundTruth
from detcam.data.images import is_single, load_image, to_uint8
from detcam.detections import Detections
from detcam.explanation.batch import find_images
from detcam.explanation.explain import choose
from detcam.metrics.target_regions import TargetRegions, ground_truth_regions
from detcam.outputs import DetectionTarget
from detcam.trace import guarded

SAME_OBJECT = 0.5
"""Least overlap (IoU) at which a detection is an annotated object."""


@dataclass(frozen=True)
class Sample:
    """An image to be explained.

    Attributes:
        name: as shown.
        source: its file, or the image itself.
        objects: what is truly in it, in the model's class indices; None where nobody said.
    """

    name: str
    source: Any
    objects: GroundTruth | None = None

    def read(self) -> tuple[str, Tensor]:
        """Its key in the store, and its pixels (3, H, W) in [0, 1].

        Raises:
            TypeError, ValueError: it cannot be read.
        """
        image = load_image(self.source)
        if isinstance(self.source, Path):
            content = self.source.read_bytes()
        else:
            content = to_uint8(image).tobytes() + repr(tuple(image.shape)).encode()
        return image_key(self.name, content), image


def find_samples(images: Any, annotations: Annotations | None) -> tuple[list[Sample], list[str]]:
    """The images to be explained, and what is to be said about the choice.

    Args:
        images: a folder, file or pattern, images, or a list of them; None takes the annotated ones.
        annotations: in the model's class indices; then images that are not in them are left out.

    Raises:
        ValueError: no images, or none that is annotated.
    """
    if images is None:
        if annotations is None:
            raise ValueError("expected images, or annotations that name them; got neither")
        return [Sample(objects.path.name, objects.path, objects) for objects in annotations], []
    samples = list(_named(images))
    if annotations is None:
        return samples, []
    known = {objects.path.resolve(): objects for objects in annotations}
    chosen = [
        Sample(sample.name, sample.source, known[sample.source.resolve()])
        for sample in samples
        if isinstance(sample.source, Path) and sample.source.resolve() in known
    ]
    if not chosen:
        raise ValueError(f"none of the {len(samples)} images is annotated in {annotations.path}; check both paths")
    left = len(samples) - len(chosen)
    words = "image that is" if left == 1 else "images that are"
    return chosen, [f"{left} {words} not in {annotations.path.name} left out."] if left else []


def _named(images: Any) -> Iterator[Sample]:
    items = [images] if is_single(images) else list(images)
    if not items:
        raise ValueError("expected at least one image; got an empty list")
    for number, item in enumerate(items, 1):
        if isinstance(item, (str, Path)):
            if Path(item).is_file() or not (Path(item).is_dir() or "*" in str(item)):
                yield Sample(Path(item).name, Path(item))  # one that is missing is told where it is read
            else:
                yield from (Sample(path.name, path) for path in find_images([str(item)]))
        else:
            yield Sample(f"image-{number}", item)


def find_targets(adapter: Adapter, image: Tensor, **choosing: Any) -> tuple[Detections, list[Target]]:
    """What the model finds in an image (3, H, W), best first, and a target for each; arguments as in `explain`."""
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([image])
        outputs = adapter.outputs(adapter.forward(batch), batch)
        found, _ = adapter.default_targets(outputs, batch)
        return choose(adapter, found[0], outputs[0], **choosing)


def truth_of(objects: GroundTruth | None, found: Detections, targets: Sequence[Target]) -> TargetRegions:
    """Where each target's heatmap should be hot, and where not; nowhere for a target without an annotation.

    A box is compared with the annotated object of its class that it overlaps most, by an IoU of at least 0.5; a false
    positive has none. A class, in an image or over a region, is compared with all objects of it together. Crowd
    regions are nobody's object. An object's region is its mask, or its box where it has none.
    """
    if objects is None or not len(objects):
        empty = torch.zeros(len(targets), *found.image_size_hw, dtype=torch.bool)
        return TargetRegions(empty, empty, empty)
    if all(isinstance(target, DetectionTarget) for target in targets):
        return ground_truth_regions(objects, [_object_of(objects, target) for target in targets], same_class=True)
    masks = objects.masks()
    regions: list[list[Tensor]] = [[], [], []]
    for label in found.labels.tolist():
        same = objects.labels == label
        for rows, chosen in zip(
            regions, (same & ~objects.crowd, ~same & ~objects.crowd, same & objects.crowd), strict=True
        ):
            rows.append(masks[chosen].any(0))
    return TargetRegions(*(torch.stack(rows) for rows in regions))


def _object_of(objects: GroundTruth, target: Any) -> int | None:
    """The annotated object that a box is, or None."""
    overlap = box_iou(torch.tensor([target.box_xyxy]), objects.boxes_xyxy)[0]
    overlap[(objects.labels != target.label) | objects.crowd] = 0
    best = int(overlap.argmax())
    return best if float(overlap[best]) >= SAME_OBJECT else None
