"""Validation of the images and targets of a call, and the views of an image for `aug_smooth`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from detcam.data.images import as_float, check_finite, expand_paths, is_single
from detcam.detections import Detections
from detcam.geometry import Geometry, normalize
from detcam.outputs import BaseTarget, Target, as_target
from detcam.targets import as_box_targets
from detcam.utils.batching import batches
from detcam.utils.console import plural

if TYPE_CHECKING:
    from detcam.adapters.base import Adapter, Batch
    from detcam.data.images import ImageLike

Images: TypeAlias = "ImageLike | Sequence[ImageLike] | tuple[Any, ...]"
"""One image, a list of images, a normalized (B, C, H, W) tensor, or a tuple of such a tensor and further inputs."""

Targets: TypeAlias = "Target | Detections | Sequence[Target | Detections | Sequence[Target]] | Any | None"
"""Targets of a call: one per image, a list per image, `Detections`, or None for the model's own predictions.

In place of `Detections`, per image: a `Results` of ultralytics, a `Detections` of supervision, the dictionary that
torchvision's detectors return, or an array (N, 4) of boxes.
"""

Select: TypeAlias = Callable[[Detections, Any], tuple[Detections, list[Target]]]
"""A function that selects predictions: from those of one image, and the model's output, to a subset and its targets."""


@dataclass(frozen=True)
class View:
    """A view of an image: mirrored or not, times a factor."""

    mirrored: bool = False
    factor: float = 1.0

    def image(self, image: Tensor) -> Tensor:
        """Return the image (..., H, W) in this view."""
        image = image.flip(-1) if self.mirrored else image
        return image if self.factor == 1.0 else as_float(image) * self.factor

    def target(self, target: Target, geometry: Geometry) -> Target:
        """Return the target in this view; box, mask and source are mirrored with the image."""
        return as_target(target).hflip(geometry.image_size_hw[1]) if self.mirrored else target

    def undo(self, maps: Tensor) -> Tensor:
        """Map maps (N, h, w) of this view back to the plain image."""
        return maps.flip(-1) if self.mirrored else maps


PLAIN_VIEW = View()


def views(smooth: bool) -> list[View]:
    """Return the plain view, or all six: plain and mirrored, times 1, 0.9 and 1.1, the plain view first."""
    if not smooth:
        return [PLAIN_VIEW]
    return [View(mirrored, factor) for mirrored in (False, True) for factor in (1.0, 0.9, 1.1)]


@dataclass(frozen=True)
class Request:
    """A checked call: images and, per image, its targets.

    Attributes:
        images: (C, H, W) tensors in [0, 1], large ones possibly in 8 bits; empty if `tensor` is given.
        tensor: the user's normalized (B, C, H, W) batch, or None.
        targets: per image a list of targets; None stands for the model's own predictions.
        detections: the detections that the targets belong to, or None.
        choose: selects the predictions to explain and makes their targets; None explains all.
        stacked: whether the result is one (B, H, W) array rather than a list.
        extra_inputs: further positional inputs of the model.
        model_kwargs: keyword arguments of the model.
    """

    images: tuple[Tensor, ...] = ()
    tensor: Tensor | None = None
    targets: list[list[Target]] | None = None
    detections: list[Detections] | None = None
    choose: Select | None = None
    stacked: bool = False
    extra_inputs: tuple[Any, ...] = ()
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images) if self.tensor is None else len(self.tensor)

    def groups(self, adapter: Adapter, batch_size: int) -> list[list[int]]:
        """Return image indices, one list per forward pass."""
        if self.tensor is None and not self.extra_inputs:
            return adapter.groups(self.images, batch_size)
        if not self.is_divisible(adapter):
            return [list(range(len(self)))]
        return batches(range(len(self)), min(batch_size, adapter.max_batch_size or batch_size))

    def is_divisible(self, adapter: Adapter) -> bool:
        """Return whether images may be explained in several batches: further inputs have no known batch dimension."""
        return not (self.extra_inputs or self.model_kwargs or adapter.takes_bags)

    def targets_for(self, group: Sequence[int]) -> list[list[Target]] | None:
        """Return the targets of a group of images; None stands for the model's own predictions."""
        return None if self.targets is None else [self.targets[index] for index in group]

    def predictions(
        self, adapter: Adapter, outputs: Sequence[Any], batch: Batch
    ) -> tuple[list[Detections], list[list[Target]]]:
        """Return, per image, the model's selected predictions and a target for each."""
        if self.choose is None:
            return adapter.default_targets(outputs, batch)
        detections = adapter.detections(outputs, batch)
        selected = [self.choose(*pair) for pair in zip(detections, outputs, strict=True)]
        return [chosen for chosen, _ in selected], [row for _, row in selected]

    def batch(self, adapter: Adapter, group: Sequence[int], view: View = PLAIN_VIEW) -> Batch:
        """Return the network's input for a group of images in one view."""
        if self.tensor is None:
            batch = adapter.prepare([view.image(self.images[index]) for index in group])
        else:
            batch = adapter.prepare_tensor(view.image(self.tensor[list(group)]))
        return replace(batch, extra_inputs=self.extra_inputs, model_kwargs=self.model_kwargs)

    def source_images(self, adapter: Adapter, group: Sequence[int], view: View = PLAIN_VIEW) -> list[Tensor]:
        """Return a group of images in one view, each (C, H, W) in [0, 1]."""
        if self.tensor is None:
            return [as_float(view.image(self.images[index])) for index in group]
        return list(displayable_images(adapter, view.image(self.tensor[list(group)])))


def displayable_images(adapter: Adapter, inputs: Tensor) -> Tensor:
    """Return a network's input as images (B, C, H, W) in [0, 1].

    The adapter's normalization is undone; if it is not known, each image is stretched to the range.
    """
    images = inputs.detach().float().cpu()
    mean, std = adapter.mean, adapter.std
    if 0 <= float(images.min()) and float(images.max()) <= 1:
        return images
    if mean is not None and std is not None and len(mean) == images.shape[1]:
        scale, shift = (torch.tensor(values).reshape(-1, *[1] * (images.ndim - 2)) for values in (std, mean))
        return images * scale + shift
    return torch.stack([normalize(image.flatten(1)[None]).reshape(image.shape) for image in images])


def read_request(adapter: Adapter, images: Images, targets: Targets, model_kwargs: Mapping[str, Any] | None) -> Request:
    """Check images and targets.

    Args:
        adapter: the model's adapter.
        images: as in the call of a method.
        targets: as in the call of a method.
        model_kwargs: keyword arguments of the model.

    Raises:
        TypeError, ValueError: an argument is not as expected.
    """
    kwargs = dict(model_kwargs or {})
    extra: tuple[Any, ...] = ()
    if adapter.input_key is not None:
        images, extra, kwargs = adapter.take_input(images, kwargs)
    elif isinstance(images, tuple) and images and isinstance(images[0], Tensor) and images[0].ndim in (4, 5):
        extra = images[1:]
        images = images[0]
    if isinstance(images, Tensor) and images.ndim in (4, 5):
        if 0 in images.shape:
            raise ValueError(f"expected a batch of at least one image with pixels; got shape {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"expected a float batch, normalized for the model; got {images.dtype}")
        check_finite(images, "input tensor")
        request = Request(tensor=images.detach(), extra_inputs=extra, model_kwargs=kwargs)
        single = False
    else:
        images = expand_paths(images)
        single = is_single(images)
        read = adapter.reader.read_all(images, keep_bytes=adapter.takes_bytes)
        request = Request(images=tuple(read), extra_inputs=extra, model_kwargs=kwargs)
    targets = _converted(targets)
    if adapter.takes_bags and isinstance(targets, (list, tuple)) and len(targets) == 1:
        targets = list(targets) * len(request)  # the target of a bag is that of each of its slices
    rows, flat, detections = _read_targets(adapter, targets, len(request), single)
    if rows is not None:
        rows = [[t.named(adapter.names) if isinstance(t, BaseTarget) else t for t in row] for row in rows]
    one_each = flat or (targets is None and adapter.task in ("classification", "embedding"))
    return replace(request, targets=rows, detections=detections, stacked=request.tensor is not None and one_each)


def _converted(targets: Any) -> Any:
    """Return targets with the results of other libraries and arrays of boxes as lists of box targets."""
    if targets is None or isinstance(targets, Detections) or callable(targets):
        return targets
    if not isinstance(targets, (list, tuple)):
        boxes = as_box_targets(targets)
        return targets if boxes is None else [boxes]
    return [
        item
        if item is None or isinstance(item, (Detections, list, tuple)) or callable(item)
        else (item if (boxes := as_box_targets(item)) is None else boxes)
        for item in targets
    ]


def labeled_targets(rows: Sequence[Sequence[Target]], outputs: Sequence[Any]) -> list[list[Target]]:
    """Return the targets of each image, where boxes without a class get the best one in the image's output."""
    return [
        [target.labeled(output) if isinstance(target, BaseTarget) else target for target in row]
        for row, output in zip(rows, outputs, strict=True)
    ]


def _read_targets(
    adapter: Adapter, targets: Targets, count: int, single: bool
) -> tuple[list[list[Target]] | None, bool, list[Detections] | None]:
    """Return targets per image, whether they were given one per image, and the detections that they belong to."""
    if targets is None:
        return None, False, None
    if isinstance(targets, Detections) or callable(targets):
        if count != 1:
            raise ValueError(f"expected targets for {count} images, one entry per image; got a single one")
        targets = [targets]
    if not isinstance(targets, (list, tuple)):
        raise TypeError(f"expected targets as a list, one entry per image, or None; got {type(targets).__name__}")
    items: list[Any] = list(targets)
    if items and all(isinstance(item, Detections) for item in items):
        _check_count(len(items), count)
        return [adapter.targets_of(item) for item in items], False, items
    if all(callable(item) for item in items):
        if single and len(items) != 1:
            return [items], False, None
        _check_count(len(items), count)
        return [[item] for item in items], True, None
    rows: list[list[Target]] = []
    for item in items:
        row = adapter.targets_of(item) if isinstance(item, Detections) else item
        row = [row] if callable(row) else row
        if not isinstance(row, (list, tuple)) or not all(callable(target) for target in row):
            raise TypeError(
                "expected each entry of targets to be a target, a list of targets, or Detections; "
                f"got {type(item).__name__} {item!r:.60}. A class index goes in as ClassifierOutputTarget(index)"
            )
        rows.append(list(row))
    _check_count(len(rows), count)
    return rows, False, None


def _check_count(entries: int, images: int) -> None:
    if entries != images:
        raise ValueError(
            f"expected targets for {plural(images, 'image')}, one entry per image; got {entries}. "
            "Several targets for one image go in as a list of lists"
        )
