"""Average precision of an audit in bootstrap samples of its images, with and without corrections of its errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detcam.auditing.case import AuditCase
from detcam.auditing.comparison.paired import bootstrap_weights
from detcam.auditing.comparison.record import AuditRecord
from detcam.auditing.report.evaluation import mean_over_classes


@dataclass(frozen=True)
class Bootstrapped:
    """An audit with B weights of each image: first 1 for every image, then bootstrap samples.

    Attributes:
        record: the audit.
        image_ids: the images in the order of `weights`.
        weights: (B, images).
    """

    record: AuditRecord
    image_ids: tuple[int | str, ...]
    weights: np.ndarray

    @classmethod
    def pair(cls, old: AuditRecord, new: AuditRecord) -> tuple[Bootstrapped, Bootstrapped]:
        """Two audits of the same images, with the same weights."""
        image_ids = old.evaluation.image_ids
        ones = np.ones((1, len(image_ids)), dtype=np.uint16)
        weights = np.concatenate([ones, bootstrap_weights(len(image_ids))])
        return cls(old, image_ids, weights), cls(new, image_ids, weights)

    @cached_property
    def average_precision(self) -> np.ndarray:
        """(B,) COCO's average precision, mean over classes; the first is that of the audit."""
        return mean_over_classes(self._by_class)

    @cached_property
    def _position(self) -> dict[int | str, int]:
        return {image: index for index, image in enumerate(self.image_ids)}

    @cached_property
    def _own_weights(self) -> np.ndarray:
        """The weights in the order of the audit's images."""
        return self.weights[:, [self._position[image] for image in self.record.evaluation.image_ids]]

    @cached_property
    def _by_class(self) -> np.ndarray:
        return self.record.evaluation.class_precision(self._own_weights)

    def count_by_image(self, cases: Sequence[AuditCase]) -> np.ndarray:
        """(images,) int64, the number of cases on each image."""
        positions = [self._position[case.image_id] for case in cases]
        return np.bincount(positions, minlength=len(self.image_ids)).astype(np.int64)

    def delta_ap(self, cases: Sequence[AuditCase]) -> np.ndarray:
        """(B,) increase of average precision when errors are corrected; NaN if their classes have no objects."""
        evaluation = self.record.evaluation
        detections = np.zeros(len(evaluation.images), dtype=bool)
        for case in cases:
            if case.type != "missed":
                row = evaluation.rows.get((case.image_id, int(case.id.rsplit("-", 1)[1])))
                if row is not None and not evaluation.hits[row]:
                    detections[row] = True
        missed = Counter((case.image_id, case.name) for case in cases if case.type == "missed")
        objects = np.zeros(len(evaluation.object_images), dtype=bool)
        pairs = zip(evaluation.object_images.tolist(), evaluation.object_classes.tolist(), strict=True)
        for index, (image, label) in enumerate(pairs if missed else ()):
            key = evaluation.image_ids[image], evaluation.names[label]
            if missed[key] > 0:
                missed[key] -= 1
                objects[index] = True
        corrected = evaluation.corrected_classes[detections & (evaluation.corrected_classes >= 0)]
        parts = (evaluation.classes[detections], corrected, evaluation.object_classes[objects])
        changed = {label for part in parts for label in part.tolist()}
        if not changed:
            return np.where(np.isnan(self.average_precision), np.nan, 0.0)
        if not np.isin(evaluation.object_classes, list(changed)).any():
            return np.full(len(self.weights), np.nan)
        by_class = self._by_class.copy()
        without = evaluation.corrected(detections, objects).class_precision(self._own_weights, changed)
        by_class[list(changed)] = without[list(changed)]
        return mean_over_classes(by_class) - self.average_precision


def paired_delta_ap(
    sides: Sequence[Bootstrapped], cases: Sequence[Sequence[AuditCase]]
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) delta AP of some errors of the old and of the new audit.

    Errors whose classes have no objects cost nothing beside others that have a cost; without others, both are NaN.
    Samples in which average precision is undefined are NaN.
    """
    costs = [side.delta_ap(of_side) for side, of_side in zip(sides, cases, strict=True)]
    is_known = [bool(of_side) and not np.isnan(cost).all() for cost, of_side in zip(costs, cases, strict=True)]
    if not any(is_known) and any(np.isnan(cost).all() for cost in costs):
        costs = [np.full_like(cost, np.nan) for cost in costs]
    elif any(is_known):
        costs = [np.zeros_like(cost) if np.isnan(cost).all() else cost for cost in costs]
    old, new = costs
    return old, new
