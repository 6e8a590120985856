"""Base class of the adapters of detectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from detcam.adapters.base import Adapter, Batch, Task
from detcam.detections import Detections
from detcam.outputs import BaseTarget, DetectionTarget, DetectorOutput, ModelOutput, Target
from detcam.targets import BoxTarget


class DetectorAdapter(Adapter, abstract=True):
    """Base class of detector adapters. `outputs` returns `DetectorOutput` objects; the rest follows from these.

    A subclass sets `family` and implements `supports`, `default_target_layers`, `prepare` and `outputs`.
    """

    task: ClassVar[Task] = "detection"

    @abstractmethod
    def outputs(self, raw: ModelOutput, batch: Batch) -> list[DetectorOutput]:
        """Split the raw output by image: B entries, each the argument of a target."""

    def detections(self, outputs: Sequence[DetectorOutput], batch: Batch) -> list[Detections]:
        return [output.detections() for output in outputs]

    def targets_of(self, detections: Detections) -> list[Target]:
        return [
            BoxTarget(tuple(box), int(label), source if source.anchor >= 0 else None)
            for box, label, source in zip(
                detections.boxes_xyxy.tolist(), detections.labels.tolist(), detections.source, strict=True
            )
        ]

    def score(self, outputs: Sequence[DetectorOutput], targets: Sequence[Sequence[Target]]) -> list[list[Tensor]]:
        return [self._scores_of(output, row) for output, row in zip(outputs, targets, strict=True)]

    def _scores_of(self, output: DetectorOutput, targets: Sequence[Target]) -> list[Tensor]:
        """The scalars of one image's targets; box and mask targets share the head's work."""
        for target in targets:
            if isinstance(target, BaseTarget):
                target.check(output.geometry.image_size_hw, self.names, output.classes)
        boxes = {index: target for index, target in enumerate(targets) if isinstance(target, DetectionTarget)}
        values = dict(zip(boxes, output.score(list(boxes.values())), strict=True)) if boxes else {}
        return [values[i] if i in values else target(output) for i, target in enumerate(targets)]
