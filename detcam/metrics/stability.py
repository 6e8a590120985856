"""Stability: similarity of the heatmaps of an image and of slightly perturbed versions of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Target
from detcam.adapters.classification import ClassificationAdapter
from detcam.cam import BaseCAM
from detcam.data.images import ImageLike, load_image
from detcam.detections import Detections
from detcam.metrics.base import Metric
from detcam.metrics.metric_input import MetricImage
from detcam.metrics.sanity import ExplainImage, check_is_image, explain_intact, explainer_of
from detcam.metrics.similarity import rank_correlation, ssim
from detcam.outputs import DetectionTarget
from detcam.targets import ClassifierOutputTarget, MaskTarget
from detcam.trace import guarded
from detcam.utils.opencv import cv2

MIN_IOU = 0.5
"""Smallest IoU at which a box or region counts as detected at the same location."""


@dataclass(frozen=True)
class Perturbation:
    """A small perturbation of an image.

    Attributes:
        name: name in results.
        make: returns an albumentations transform with probability 1, which is then seeded; None for a shift alone.
        shift: shift to the right and down as fractions of the image's width and height, in (-1, 1); the border is
            mirrored.
    """

    name: str
    make: Callable[[], Any] | None = None
    shift: tuple[float, float] = (0.0, 0.0)

    def apply(self, image: Tensor, seed: int) -> tuple[Tensor, tuple[int, int]]:
        """Perturb an image (C, H, W) in [0, 1].

        Returns:
            The perturbed image, and its shift to the right and down in pixels.

        Raises:
            ValueError: the transform changes the size of the image.
        """
        pixels = np.ascontiguousarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
        height, width = pixels.shape[:2]
        right, down = round(self.shift[0] * width), round(self.shift[1] * height)
        if self.make is not None:
            from albumentations import Compose

            pixels = Compose([self.make()], seed=seed)(image=pixels)["image"]
        if right or down:
            matrix = np.array([[1, 0, right], [0, 1, down]], np.float32)
            moved = [
                cv2.warpAffine(
                    channel, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
                )
                for channel in np.moveaxis(pixels, 2, 0)
            ]
            pixels = np.stack(moved, axis=2)
        if pixels.shape[:2] != (height, width):
            raise ValueError(f"perturbation {self.name!r} changed the image's size; only shifts may move pixels")
        return load_image(np.ascontiguousarray(pixels), channels=len(image)), (right, down)


def _transform(name: str, **settings: Any) -> Any:
    import albumentations

    return getattr(albumentations, name)(p=1, **settings)


PERTURBATIONS = (
    Perturbation("noise", partial(_transform, "GaussNoise", std_range=(0.03, 0.03))),
    Perturbation(
        "brightness",
        partial(_transform, "RandomBrightnessContrast", brightness_limit=(0.1, 0.1), contrast_limit=(0, 0)),
    ),
    Perturbation("jpeg", partial(_transform, "ImageCompression", quality_range=(60, 60))),
    Perturbation("shift", shift=(0.03, 0.03)),
)
"""Noise with a standard deviation of 3 % of the range, 10 % more brightness, JPEG of quality 60, and a shift by 3 % of
the image's sides."""


@dataclass(frozen=True)
class Stability:
    """Similarity of the heatmaps of perturbed images with those of the unchanged image.

    Attributes:
        perturbations: P names.
        ssim: (P, N) float64, structural similarity, 1 for equal maps; NaN where the prediction is lost.
        rank_correlation: (P, N) float64 in [-1, 1], Spearman's rank correlation; NaN where the prediction is lost.
    """

    perturbations: tuple[str, ...]
    ssim: Tensor
    rank_correlation: Tensor

    @property
    def persistent(self) -> Tensor:
        """(P, N) bool, whether the prediction persists, so that its heatmaps are compared."""
        return ~self.ssim.isnan()


def stability(
    cam: BaseCAM,
    image: ImageLike,
    targets: Sequence[Target] | None = None,
    *,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    seed: int = 0,
) -> Stability:
    """Compare the heatmaps of an image with those of perturbed versions in which the prediction persists.

    A box persists if the perturbed image has a detection of its class with IoU of at least 0.5, which is then
    explained. A class persists if it is still the top class, a region if its IoU with the new region of the class is
    at least 0.5. Other targets are explained as they are. A shift is reversed before heatmaps are compared, without
    the pixels that it moves out of the image.

    Args:
        cam: the method and its model.
        image: one image.
        targets: targets to explain; None takes the model's predictions.
        perturbations: perturbations of the image.
        seed: seed of random perturbations.

    Returns:
        The similarity per perturbation and target.

    Raises:
        ValueError: the image has no predictions to explain, or there are no perturbations.

    Example:
        >>> import torch
        >>> from detcam import GradCAM, adapt
        >>> from detcam.metrics.stability import Perturbation, stability
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> cam = GradCAM(adapt(network.eval(), target_layers=["0"], image_size=32))
        >>> shift = Perturbation("shift", shift=(0.1, 0.1))
        >>> stability(cam, torch.rand(3, 32, 32), perturbations=[shift]).ssim.shape
        torch.Size([1, 1])
    """
    if not perturbations:
        raise ValueError("expected at least one perturbation; got none")
    pixels, targets, heatmaps = explain_intact(cam, image, targets)
    return _compare(cam.adapter, explainer_of(cam), pixels, targets, heatmaps, perturbations, seed)


class StabilityCheck(Metric):
    r"""Mean rank correlation of the heatmap with those of slightly perturbed images (`stability`).

    .. math:: \frac{1}{|P|} \sum_{p \in P} \rho(H(X), H(X_p))

    over the perturbations p in which the prediction persists, with Spearman's rank correlation :math:`\rho`; NaN where
    there is none. In [-1, 1], higher is better. After Alvarez-Melis and Jaakkola, *On the Robustness of
    Interpretability Methods*, 2018, https://arxiv.org/abs/1806.08049.

    Args:
        seed: seed of random perturbations.
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

    def value(self, image: MetricImage) -> Tensor:
        check_is_image(self.name, image)
        result = _compare(
            image.adapter, image.explain, image.pixels, image.targets, image.heatmaps, PERTURBATIONS, self.seed
        )
        return result.rank_correlation.nanmean(0)


def _compare(
    adapter: Adapter,
    explain: ExplainImage,
    image: Tensor,
    targets: Sequence[Target],
    heatmaps: Tensor,
    perturbations: Sequence[Perturbation],
    seed: int,
) -> Stability:
    similarity = torch.full((2, len(perturbations), len(targets)), float("nan"), dtype=torch.float64)
    for number, perturbation in enumerate(perturbations):
        perturbed, shift = perturbation.apply(image.cpu(), seed)
        matches = match_targets(adapter, perturbed, targets, shift)
        persistent = [index for index, target in enumerate(matches) if target is not None]
        if not persistent:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the unchanged image has already given these warnings
            perturbed_maps = explain(perturbed, [target for target in matches if target is not None])
        for index, perturbed_map in zip(persistent, perturbed_maps, strict=True):
            source, destination = _shifted_slices(image.shape[-2], image.shape[-1], shift)
            pair = heatmaps[index][source], perturbed_map[destination]
            similarity[:, number, index] = torch.tensor([ssim(*pair), rank_correlation(*pair)])
    return Stability(tuple(perturbation.name for perturbation in perturbations), similarity[0], similarity[1])


def match_targets(
    adapter: Adapter, image: Tensor, targets: Sequence[Target], shift: tuple[int, int] = (0, 0)
) -> list[Target | None]:
    """The targets of the same predictions in a perturbed image; None where the prediction is lost.

    Args:
        adapter: the adapter of the model.
        image: the perturbed image (3, H, W) in [0, 1].
        targets: targets in the unchanged image.
        shift: shift of the image to the right and down, pixels.
    """
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare([image])
        outputs = adapter.outputs(adapter.forward(batch), batch)
        detections, _ = adapter.default_targets(outputs, batch)
    return [_match(adapter, target, detections[0], shift) for target in targets]


def _match(adapter: Adapter, target: Target, detections: Detections, shift: tuple[int, int]) -> Target | None:
    if isinstance(target, DetectionTarget):
        box = torch.tensor(target.box_xyxy) + torch.tensor([*shift, *shift])
        overlaps = box_iou(box[None], detections.boxes_xyxy.float())[0] * (detections.labels == target.label)
        if not len(detections) or float(overlaps.max()) < MIN_IOU:
            return None
        best = int(overlaps.argmax())
        x1, y1, x2, y2 = detections.boxes_xyxy[best].tolist()
        return replace(target, box_xyxy=(x1, y1, x2, y2), source=detections.source[best])
    if isinstance(target, MaskTarget):
        return _match_region(target, detections, shift)
    if isinstance(target, ClassifierOutputTarget) and isinstance(adapter, ClassificationAdapter):
        return target if len(detections) and int(detections.labels[0]) == target.category else None
    return target


def _match_region(target: MaskTarget, detections: Detections, shift: tuple[int, int]) -> Target | None:
    same_label = torch.nonzero(detections.labels == target.label)[:, 0].tolist()
    if not same_label or detections.masks is None or target.mask is None:
        return target if same_label else None
    mask = detections.masks[same_label[0]]
    shifted = torch.zeros_like(mask)
    source, destination = _shifted_slices(mask.shape[0], mask.shape[1], shift)
    shifted[destination] = target.mask[source]
    iou = float((shifted & mask).sum()) / max(float((shifted | mask).sum()), 1.0)
    return replace(target, mask=mask) if iou >= MIN_IOU else None


def _shifted_slices(height: int, width: int, shift: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the pixels that a shift keeps inside the image, before and after it."""
    right, down = shift
    before = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
    after = slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right))
    return before, after
