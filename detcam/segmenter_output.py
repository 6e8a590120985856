"""The output of a semantic segmentation network for one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detcam.detections import Detections, Source
from detcam.geometry import Geometry, mask_to_box
from detcam.utils.precision import work_dtype


class SegmenterOutput:
    """One image's output of a semantic segmentation network.

    Indexing gives the raw class maps, so that a plain function of (C, h, w) maps works as a target too.

    Args:
        logits: (C, h, w), before the sigmoid or softmax, over the whole input canvas.
        geometry: position of the image on the network's input.
        binary: whether one channel holds the logit of the foreground; class 1 is that logit and class 0 its negative.
        multilabel: whether classes are independent (sigmoid) rather than exclusive (softmax).
        raw: (C, h, w) values that the network itself returned, where these are probabilities; None takes the logits.
    """

    def __init__(
        self,
        logits: Tensor,
        geometry: Geometry,
        *,
        binary: bool = False,
        multilabel: bool = False,
        raw: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.raw = logits if raw is None else raw
        self.geometry = geometry
        self.binary = binary
        self.multilabel = multilabel

    @property
    def classes(self) -> int:
        """Number of class indices."""
        return 2 if self.binary else len(self.logits)

    @property
    def shape(self) -> torch.Size:
        """(C, h, w) of the raw class maps."""
        return self.raw.shape

    def __getitem__(self, index: Any) -> Tensor:
        return self.raw[index]

    def class_map(self, label: int) -> Tensor:
        """Return the (h, w) logits of a class."""
        if self.binary:
            return self.logits[0] if label == 1 else -self.logits[0]
        return self.logits[label]

    def cells(self, region: Tensor | None) -> Tensor:
        """Return the fraction of each output cell's area that a region covers, (h, w) in [0, 1]; None is the image."""
        height, width = self.logits.shape[-2:]
        if region is None:
            region = torch.ones(self.geometry.image_size_hw, dtype=torch.bool)
        region = region[None].to(self.logits.device, work_dtype(self.logits))
        return self.geometry.from_image(region, (height, width))[0] * self._fraction_on_image().to(region)

    def _fraction_on_image(self) -> Tensor:
        """Return the fraction of each output cell on the image rather than on padding, (h, w) float64."""
        fractions = []
        for axis, cells in enumerate(self.logits.shape[-2:]):
            geometry, xy = self.geometry, 1 - axis
            cells_per_input = cells / geometry.input_size_hw[axis]
            start = geometry.offset_xy[xy] * cells_per_input
            stop = start + geometry.image_size_hw[axis] * geometry.scale_xy[xy] * cells_per_input
            first = torch.arange(cells, dtype=torch.float64)
            fractions.append(((first + 1).clamp(max=stop) - first.clamp(min=start)).clamp(0, 1))
        return fractions[0][:, None] * fractions[1][None]

    def detections(self, names: Mapping[int, str], *, background: int | None = None) -> Detections:
        """Return the classes that are present in the image, detached, best first.

        Logits are resized to the image (bilinear). A pixel belongs to the class of its maximum logit or, for one
        channel and for independent classes, to each class with a positive logit (sigmoid above 0.5).

        Args:
            names: class index to name.
            background: the class that is not reported.

        Returns:
            One entry per class: its pixels as mask, the mask's bounding box, and as score the mean probability
            (softmax or sigmoid) over the mask.
        """
        logits = self.logits.detach().to(work_dtype(self.logits))
        classes = self._independent(logits) if self.binary or self.multilabel else self._exclusive(logits)
        present = sorted((item for item in classes if item[0] != background), key=lambda item: -item[1])
        size = self.geometry.image_size_hw
        masks = torch.stack([mask for _, _, mask in present]) if present else torch.zeros((0, *size), dtype=torch.bool)
        if self.binary and 1 not in names and 0 in names:  # the single name of a head with one channel
            names = {1: names[0]}
        return Detections(
            torch.tensor([mask_to_box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for label, _, _ in present], dtype=torch.int64),
            torch.tensor([score for _, score, _ in present], dtype=torch.float32),
            size,
            (Source("region"),) * len(present),
            masks=masks,
            names=names,
        )

    def _independent(self, logits: Tensor) -> list[tuple[int, float, Tensor]]:
        """Return label, score and mask (H, W) of each class with a positive logit, one map at a time."""
        classes = []
        for channel, cells in enumerate(logits):
            on_image = self.geometry.to_image(cells[None])[0]
            mask = on_image > 0
            if mask.any():
                score = float(on_image[mask].sigmoid().mean())
                classes.append((channel + int(self.binary), score, mask.cpu()))
        return classes

    def _exclusive(self, logits: Tensor) -> list[tuple[int, float, Tensor]]:
        """Return label, score and mask (H, W) of each class with the maximum logit in at least one pixel.

        Classes are processed one by one, so that memory holds a few maps for any number of classes.
        """
        best = self.geometry.to_image(logits[:1])[0]
        total, labels = best.clone(), torch.zeros_like(best, dtype=torch.int64)
        for channel in range(1, len(logits)):
            on_image = self.geometry.to_image(logits[channel : channel + 1])[0]
            labels[on_image > best] = channel
            best = torch.maximum(best, on_image)
            total = torch.logaddexp(total, on_image)
        probability = (best - total).exp()
        return [
            (label, float(probability[labels == label].mean()), (labels == label).cpu())
            for label in labels.unique().tolist()
        ]
