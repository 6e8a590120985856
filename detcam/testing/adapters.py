"""The contract of an adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.adapters.base import Adapter
from detcam.data.images import as_float
from detcam.detections import Detections
from detcam.testing.models import random_images
from detcam.testing.state import ModelState, require
from detcam.trace import guarded

TOLERANCE = 1e-4


def check_adapter(adapter: Adapter, images: Sequence[Tensor] | None = None) -> None:
    """Check that an adapter keeps its contract.

    `predict` returns one `Detections` per image, in image pixels, sorted by score, the same whether an image comes
    alone or with others; each finding gives a target whose score is the score that was reported; that score depends on
    the default target layers through autograd; prepared batches keep the geometry of each image, and are the same
    of images in 8 bits if `takes_bytes` says that `prepare` takes them; the model is left as it was.

    Args:
        adapter: the adapter of a model that finds something in the images.
        images: two images (3, H, W) in [0, 1] or more, of different sizes; None takes random ones.

    Raises:
        AssertionError: the adapter breaks a rule; the message says which.

    Example:
        >>> from detcam.testing import check_adapter, tiny_detector
        >>> check_adapter(tiny_detector())
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(f"expected an adapter, such as detcam.adapt(model); got {type(adapter).__name__}")
    images = random_images() if images is None else list(images)
    check_adapter_description(adapter)
    check_prepare(adapter, images)
    if adapter.task == "embedding":  # an embedding has no predictions
        return
    check_predictions(adapter, images)
    check_targets(adapter, images)


def check_adapter_description(adapter: Adapter) -> None:
    """Check the adapter's class attributes and names."""
    kind = type(adapter).__name__
    require(isinstance(adapter.family, str) and bool(adapter.family), f"{kind}.family must be a non-empty str")
    tasks = ("detection", "segmentation", "classification", "embedding")
    require(adapter.task in tasks, f"{kind}.task must be one of {', '.join(tasks)}; got {adapter.task!r}")
    require(bool(adapter.target_layers), f"{kind} has no default target layers")
    wrong = [key for key in adapter.names if not isinstance(key, int)]
    require(not wrong, f"{kind}.names must map class indices to names; got the key {wrong[:1]}")


def check_prepare(adapter: Adapter, images: Sequence[Tensor]) -> None:
    """Check that a prepared batch has one geometry per image, of that image's size and the input's.

    An adapter that takes images in 8 bits prepares the same inputs from these.
    """
    for group in adapter.groups(images, len(images)):
        batch = adapter.prepare([images[index] for index in group])
        require(len(batch.inputs) == len(group), f"prepare made {len(batch.inputs)} inputs of {len(group)} images")
        require(len(batch.geometries) == len(group), f"prepare gave {len(batch.geometries)} geometries")
        for index, geometry in zip(group, batch.geometries, strict=True):
            size = tuple(images[index].shape[-2:])
            require(tuple(geometry.image_size_hw) == size, f"a geometry has {geometry.image_size_hw}; expected {size}")
            size = tuple(batch.inputs.shape[-2:])
            require(tuple(geometry.input_size_hw) == size, f"a geometry has {geometry.input_size_hw}; expected {size}")
            corner = torch.tensor([[0.0, 0.0, geometry.image_size_hw[1], geometry.image_size_hw[0]]])
            back = geometry.boxes_to_image(geometry.boxes_to_input(corner))
            require(bool((back - corner).abs().max() < 1e-2), "boxes do not come back from the input to the image")
        if adapter.takes_bytes:
            levels = [(images[index].clamp(0, 1) * 255).round().byte() for index in group]
            expected, found = (adapter.prepare(each).inputs for each in ([as_float(image) for image in levels], levels))
            message = "prepare makes other inputs of uint8 images; call detcam.data.images.as_float, or set takes_bytes"
            require(found.shape == expected.shape and bool((found - expected).abs().max() < 1e-2), f"{message} = False")


def check_predictions(adapter: Adapter, images: Sequence[Tensor]) -> None:
    """Check `Adapter.predict`: frame, order, filters, batches, and that the model is left as it was."""
    state = ModelState(adapter.model)
    together = adapter.predict(list(images))
    state.check()
    require(len(together) == len(images), f"predict gave {len(together)} entries for {len(images)} images")
    require(any(len(predicted) for predicted in together), "the model finds nothing in these images; pass images=")
    for image, predicted in zip(images, together, strict=True):
        size = tuple(image.shape[-2:])
        require(tuple(predicted.image_size_hw) == size, f"detections have {predicted.image_size_hw}; expected {size}")
        scores = predicted.scores
        require(bool((scores[:-1] >= scores[1:]).all()), "predict must sort by score, the highest first")
        require(bool(((scores >= 0) & (scores <= 1)).all()), "scores must lie in [0, 1]")
        boxes = predicted.boxes_xyxy
        require(bool((boxes[:, :2] <= boxes[:, 2:]).all()), "boxes must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
        if predicted.masks is not None:
            require(tuple(predicted.masks.shape) == (len(predicted), *size), "masks must have the image's size")
        _require_same(adapter.predict([image])[0], predicted, "predictions change when an image comes alone")
        best = adapter.predict([image], top_k=1)[0]
        require(len(best) == min(1, len(predicted)), f"top_k=1 gave {len(best)} of {len(predicted)} detections")
        if len(predicted):
            threshold = float(predicted.scores[0]) - TOLERANCE  # scores differ a little between batches
            kept = adapter.predict([image], score_threshold=threshold)[0]
            require(
                len(kept) == int((predicted.scores >= threshold).sum()), "score_threshold keeps the wrong detections"
            )


def check_targets(adapter: Adapter, images: Sequence[Tensor]) -> None:
    """Check that each finding's target gives the reported score and a gradient at the target layers."""
    for group in adapter.groups(images, len(images)):
        detections = [predicted.filter(top_k=2) for predicted in adapter.predict([images[index] for index in group])]
        with guarded(adapter.model, gradients=True):
            batch = adapter.prepare([images[index] for index in group])
            with adapter.trace(batch, gradients=True) as trace:
                outputs = adapter.outputs(adapter.forward(batch), batch)
            targets = [adapter.targets_of(predicted) for predicted in detections]
            require(
                [len(row) for row in targets] == [len(predicted) for predicted in detections],
                "targets_of must give one target per finding",
            )
            scores = adapter.score(outputs, targets)
            for predicted, row in zip(detections, scores, strict=True):
                for index, score in enumerate(row):
                    require(isinstance(score, Tensor) and score.numel() == 1, "a target's score must be one number")
                    if adapter.task == "detection":
                        reported, value = float(predicted.scores[index]), float(score.detach())
                        require(
                            abs(reported - value) <= TOLERANCE,
                            f"a target scores {value:.4f}; the detection was reported with {reported:.4f}",
                        )
                    layers = trace.gradients(score, retain_graph=True)
                    finite = all(bool(torch.isfinite(level).all()) for levels in layers for level in levels)
                    require(finite, "the gradient at a target layer holds NaN or infinity")


def _require_same(one: Detections, other: Detections, message: str) -> None:
    same = len(one) == len(other) and bool(torch.equal(one.labels, other.labels))
    if same and len(one):
        same = float((one.boxes_xyxy - other.boxes_xyxy).abs().max()) < 1e-1
        same = same and float((one.scores - other.scores).abs().max()) <= TOLERANCE
    require(same, message)
