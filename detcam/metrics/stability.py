"""Stability: an image that changes a little, and in which the finding stays, should keep its map."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Target
from detcam.adapters.classification import ClassificationAdapter
from detcam.cam import BaseCAM
from detcam.data.images import ImageLike, load_image, to_uint8
from detcam.detections import Detections
from detcam.metrics.base import Explainer, Metric
from detcam.metrics.sanity import ask_again, per_target
from detcam.metrics.similarity import rank_correlation, ssim
from detcam.outputs import DetectionTarget
from detcam.targets import ClassifierOutputTarget, MaskTarget
from detcam.trace import guarded
from detcam.utils.opencv import cv2

IN_PLACE = 0.5
"""Least overlap (IoU) at which a box or a region counts as still there."""


@dataclass(frozen=True)
class Perturbation:
    """A small change of an image.

    Attributes:
        name: what to call it.
        make: makes an albumentations transform with probability 1, which is then seeded; None for a shift alone.
        shift: share of the image's width and height by which it moves right and down, in (-1, 1); what comes in at
            the border is mirrored.
    """

    name: str
    make: Callable[[], Any] | None = None
    shift: tuple[float, float] = (0.0, 0.0)

    def apply(self, image: Tensor, seed: int) -> tuple[Tensor, tuple[int, int]]:
        """The changed image (3, H, W) in [0, 1], and by how many pixels it moved right and down."""
        pixels = to_uint8(image)
        height, width = pixels.shape[:2]
        right, down = round(self.shift[0] * width), round(self.shift[1] * height)
        if self.make is not None:
            from albumentations import Compose

            pixels = Compose([self.make()], seed=seed)(image=pixels)["image"]
        if right or down:
            matrix = np.array([[1, 0, right], [0, 1, down]], np.float32)
            pixels = cv2.warpAffine(
                pixels, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
            )
        if pixels.shape[:2] != (height, width):
            raise ValueError(f"perturbation {self.name!r} changed the image's size; only shifts may move pixels")
        return load_image(np.ascontiguousarray(pixels)), (right, down)


def _noise() -> Any:
    from albumentations import GaussNoise

    return GaussNoise(std_range=(0.03, 0.03), p=1)


def _brightness() -> Any:
    from albumentations import RandomBrightnessContrast

    return RandomBrightnessContrast((0.1, 0.1), (0, 0), p=1)


def _jpeg() -> Any:
    from albumentations import ImageCompression

    return ImageCompression(quality_range=(60, 60), p=1)


PERTURBATIONS = (
    Perturbation("noise", _noise),
    Perturbation("brightness", _brightness),
    Perturbation("jpeg", _jpeg),
    Perturbation("shift", shift=(0.03, 0.03)),
)
"""Noise of 3 % of the range, 10 % more brightness, JPEG of quality 60, and 3 % of the image's side down and right."""


@dataclass(frozen=True)
class Stability:
    """How alike the maps of changed images are to those of the image itself.

    Attributes:
        perturbations: P names.
        ssim: (P, N) float64, structural similarity, 1 where the maps are equal; NaN where the finding is gone.
        rank_correlation: (P, N) float64 in [-1, 1], Spearman's; NaN where the finding is gone.
    """

    perturbations: tuple[str, ...]
    ssim: Tensor
    rank_correlation: Tensor

    @property
    def in_place(self) -> Tensor:
        """(P, N) bool: where the finding was still there, so that maps were compared."""
        return ~self.ssim.isnan()


def stability(
    cam: BaseCAM,
    image: ImageLike,
    targets: Sequence[Target] | None = None,
    *,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    seed: int = 0,
) -> Stability:
    """Compare an image's maps with those of slightly changed versions in which the finding stays in place.

    A box stays if the changed image has a detection of its class with IoU of at least 0.5; that one is explained. A
    class stays if it is still the first, a region if the class's new region overlaps it so. Anything else that can be
    asked is asked as it is. Before maps are compared, a shift is undone, and what it moved out of the image left out.

    Args:
        cam: the method, over its model.
        image: one image.
        targets: what to explain; None takes what the model finds.
        perturbations: how to change the image.
        seed: of the changes that are drawn.

    Raises:
        ValueError: nothing to explain in the image, or no perturbations.
    """
    if not perturbations:
        raise ValueError("expected at least one perturbation; got none")
    pixels = load_image(image)
    plain = cam.explain([pixels], None if targets is None else [list(targets)])[0]
    if not plain.targets:
        raise ValueError("there is nothing to explain in the image; give targets, or an image with findings")

    def explain(adapter: Adapter, images: Any, asked: list[list[Target]]) -> list[Tensor]:
        return [torch.from_numpy(result.heatmaps) for result in cam.explain(images, asked)]

    return _compare(
        cam.adapter, explain, pixels, list(plain.targets), torch.from_numpy(plain.heatmaps), perturbations, seed
    )


class StabilityCheck(Metric):
    r"""How alike the map stays when the image changes a little and the finding stays in place (`stability`).

    .. math:: \frac{1}{|P|} \sum_{p \in P} \rho(H(X), H(X_p))

    over the perturbations p that leave the finding in place, with Spearman's rank correlation :math:`\rho`; NaN where
    none does. In [-1, 1], higher is better. After Alvarez-Melis and Jaakkola, *On the Robustness of Interpretability
    Methods*, 2018, https://arxiv.org/abs/1806.08049.

    Args:
        seed: of the changes that are drawn.
    """

    name = "stability"
    paper = (
        "after Alvarez-Melis and Jaakkola, On the Robustness of Interpretability Methods, 2018, "
        "https://arxiv.org/abs/1806.08049"
    )
    higher_is_better = True
    range = (-1.0, 1.0)
    needs = frozenset({"model", "method"})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def measure(
        self,
        adapter: Any,
        images: Any,
        targets: Any,
        heatmaps: Any,
        *,
        truth: Sequence[Tensor] | None = None,
        method: Explainer | None = None,
    ) -> Tensor:
        question, explain = ask_again(self.name, adapter, images, targets, heatmaps, method)

        def correlations(image: Tensor, asked: list[Target], maps: Tensor) -> Tensor:
            found = _compare(question.adapter, explain, image, asked, maps, PERTURBATIONS, self.seed)
            return found.rank_correlation.nanmean(0)

        return per_target(self.name, question, correlations)


def _compare(
    adapter: Adapter,
    explain: Explainer,
    image: Tensor,
    targets: list[Target],
    plain: Tensor,
    perturbations: Sequence[Perturbation],
    seed: int,
) -> Stability:
    likeness = torch.full((2, len(perturbations), len(targets)), float("nan"), dtype=torch.float64)
    for number, perturbation in enumerate(perturbations):
        changed, moved = perturbation.apply(image.cpu(), seed)
        now = found_again(adapter, changed, targets, moved)
        there = [index for index, target in enumerate(now) if target is not None]
        if not there:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say about the plain image has been said
            maps = explain(adapter, [changed], [[target for target in now if target is not None]])[0]
        for index, after in zip(there, maps, strict=True):
            pair = _overlapping(plain[index], after, moved)
            likeness[:, number, index] = torch.tensor([ssim(*pair), rank_correlation(*pair)])
    return Stability(tuple(perturbation.name for perturbation in perturbations), likeness[0], likeness[1])


def found_again(
    adapter: Adapter, changed: Tensor, targets: Sequence[Target], moved: tuple[int, int] = (0, 0)
) -> list[Target | None]:
    """What a changed image is asked in place of each target; None where the finding is gone.

    Args:
        adapter: the model.
        changed: (3, H, W) in [0, 1].
        targets: of the image before.
        moved: pixels by which it moved right and down.
    """
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([changed])
        outputs = adapter.outputs(adapter.forward(batch), batch)
        found, fresh = adapter.default_targets(outputs, batch)
    return [_again(adapter, target, found[0], fresh[0], moved) for target in targets]


def _again(
    adapter: Adapter, target: Target, found: Detections, fresh: Sequence[Target], moved: tuple[int, int]
) -> Target | None:
    if isinstance(target, DetectionTarget):
        box = torch.tensor(target.box_xyxy) + torch.tensor([*moved, *moved])
        overlap = box_iou(box[None], found.boxes_xyxy.float())[0] * (found.labels == target.label)
        if not len(found) or float(overlap.max()) < IN_PLACE:
            return None
        best = int(overlap.argmax())
        x1, y1, x2, y2 = found.boxes_xyxy[best].tolist()
        return replace(target, box_xyxy=(x1, y1, x2, y2), source=found.source[best])
    if isinstance(target, MaskTarget):
        return _region_again(target, found, moved)
    if isinstance(target, ClassifierOutputTarget) and isinstance(adapter, ClassificationAdapter):
        return target if len(found) and int(found.labels[0]) == target.category else None
    return target


def _region_again(target: MaskTarget, found: Detections, moved: tuple[int, int]) -> Target | None:
    same = torch.nonzero(found.labels == target.label)[:, 0].tolist()
    if not same or found.masks is None or target.mask is None:
        return target if same else None
    now = found.masks[same[0]]
    before = torch.zeros_like(now)
    source, goal = _shifted(now.shape[0], now.shape[1], moved)
    before[goal] = target.mask[source]
    overlap = float((before & now).sum()) / max(float((before | now).sum()), 1.0)
    return replace(target, mask=now) if overlap >= IN_PLACE else None


def _overlapping(before: Tensor, after: Tensor, moved: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The parts of two maps (H, W) that show the same place, the second one having moved."""
    source, goal = _shifted(before.shape[0], before.shape[1], moved)
    return before[source], after[goal]


def _shifted(height: int, width: int, moved: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where what stays in the image was before it moved, and where it is now."""
    right, down = moved
    before = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
    after = slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right))
    return before, after
