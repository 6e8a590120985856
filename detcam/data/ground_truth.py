"""The annotated objects of an image: boxes, classes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_masks
from torch import Tensor

from detcam.data.exif import ImageSize, masks_upright
from detcam.detections import class_name


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one image.

    Attributes:
        image_id: the image's id in the file.
        file_name: its name in the file.
        path: path of the image file.
        image_size_hw: height and width, EXIF rotation applied, as `detcam.data.images.load_image` reads it.
        boxes_xyxy: (N, 4) float32, pixels of that image, half-open, not clipped.
        boxes_xywh: (N, 4) float64, the same as left, top, width, height, in the file's precision.
        labels: (N,) int64, the model's class indices; the file's category ids until `Annotations.for_classes`.
        category_ids: (N,) int64, the file's category ids.
        crowd: (N,) bool, regions of many objects that are not annotated individually.
        area: (N,) float64, pixels, as in the file (of the segmentation), else of the box.
        ids: (N,) int64, ids of the annotations; negative where the file has none.
        segmentations: N polygons, run-length encodings or None, as in the file.
        size: stored size and orientation of the image, where masks are annotated in the stored frame; else None.
        names: class index to name.
    """

    image_id: int | str
    file_name: str
    path: Path
    image_size_hw: tuple[int, int]
    boxes_xyxy: Tensor
    boxes_xywh: np.ndarray
    labels: Tensor
    category_ids: Tensor
    crowd: Tensor
    area: Tensor
    ids: Tensor
    segmentations: tuple[Any, ...]
    size: ImageSize | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def without_objects(
        cls,
        image_id: int | str,
        file_name: str,
        path: Path,
        image_size_hw: tuple[int, int],
        names: Mapping[int, str],
    ) -> GroundTruth:
        """Return the annotations of an image without objects; the arguments are those of the class."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(
            image_id=image_id,
            file_name=file_name,
            path=path,
            image_size_hw=image_size_hw,
            boxes_xyxy=torch.zeros(0, 4),
            boxes_xywh=np.zeros((0, 4)),
            labels=none,
            category_ids=none,
            crowd=none.bool(),
            area=none.double(),
            ids=none,
            segmentations=(),
            names=names,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> GroundTruth:
        """Select objects by an index, a slice, a list of indices or a bool mask (N,)."""
        chosen = torch.arange(len(self))[index if not isinstance(index, list) else torch.tensor(index).long()]
        chosen = chosen.reshape(-1)
        names = ("boxes_xyxy", "labels", "category_ids", "crowd", "area", "ids")
        return replace(
            self,
            boxes_xywh=self.boxes_xywh[chosen.numpy()],
            segmentations=tuple(self.segmentations[i] for i in chosen.tolist()),
            **{name: getattr(self, name)[chosen] for name in names},
        )

    def name(self, index: int) -> str:
        """Return the class name of one object."""
        return class_name(self.names, int(self.labels[index]))

    def rles(self) -> list[dict[str, Any]]:
        """Return the masks of the objects, or their boxes, as COCO's compressed run lengths in the upright image."""
        return [self._rle(index) for index in range(len(self))]

    def masks(self) -> Tensor:
        """Return masks (N, H, W) bool from polygons or run lengths, or from the box where there is no segmentation."""
        masks = torch.zeros(len(self), *self.image_size_hw, dtype=torch.bool)
        for index, mask in enumerate(masks):  # decoded together, too many end the process
            mask.copy_(self.mask(index))
        return masks

    def mask(self, index: int) -> Tensor:
        """Return the mask (H, W) bool of one object, or its box."""
        if self.segmentations[index] is None:
            return torch.from_numpy(box_mask(self.boxes_xyxy[index].tolist(), self.image_size_hw))
        return torch.from_numpy(coco_masks.decode(self._rle(index))).bool()

    def _rle(self, index: int) -> dict[str, Any]:
        segmentation = self.segmentations[index]
        if segmentation is None:
            return _encode(box_mask(self.boxes_xyxy[index].tolist(), self.image_size_hw)[None])
        height, width = self.size.stored_hw if self.size else self.image_size_hw
        rle = as_rle(segmentation, height, width)
        if self.size is None:
            return rle
        return _encode(masks_upright(coco_masks.decode(rle)[None], self.size))


def as_rle(segmentation: list[list[float]] | dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Convert polygons or run lengths of either kind to COCO's compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_masks.frPyObjects(segmentation, height, width)
    return segmentation


def _encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the run lengths of one mask (1, H, W)."""
    return coco_masks.encode(np.asfortranarray(mask[0].astype(np.uint8)))


def box_mask(box_xyxy: Sequence[float], size_hw: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) bool of the pixels whose centers lie in a box."""
    rows, columns = (np.arange(length) + 0.5 for length in size_hw)
    left, top, right, bottom = box_xyxy
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
