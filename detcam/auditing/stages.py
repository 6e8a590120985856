"""The long stages of an audit, detection and explanation, whose shards any engine can compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter
from detcam.adapters.detection import DetectorAdapter
from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.report import ReportWriter
from detcam.auditing.run_state import StoredDetections, detection_table, explanation_table, read_explanations
from detcam.data.annotations import Annotations
from detcam.data.issues import DataIssue, DataIssues
from detcam.detections import Detections
from detcam.runs import CrashLog, Engine, Run, Stage, Work, plan_shards
from detcam.utils.batching import batches, group_by, run_each
from detcam.utils.console import ProgressBar, plural
from detcam.utils.packed import Packed
from detcam.visualize.convert import ImageArray

UNREADABLE = "unreadable image"
"""Kind of data issue of an image that cannot be read."""
FAILED = "image the model does not take"
"""Kind of data issue of an image on which the model fails."""
UNEXPLAINED = "image not explained"
"""Kind of data issue of an image whose errors could not be explained."""
MIN_DETECTION_SCORE = 0.01
"""Minimum score of detections if the adapter, not the model, sets it. Average precision needs low scores: for a YOLO11n
it is 0.747 with scores from 0.25 on, 0.790 from 0.05 on, and 0.797 from 0.01 and from 0.001 on."""
MAX_PIXELS = 40_000_000
"""Maximum number of cases that are explained together, times their pixels: each takes about 15 bytes a pixel."""

MAX_GROUP_PIXELS = 10_000_000
"""Maximum number of cases that are explained together, times their pixels, if they are of more than one batch."""


@dataclass(frozen=True)
class DetectionWork:
    """Runs the detector on the images of a shard, batch by batch.

    Attributes:
        adapter: the detector.
        keep_masks: whether detections keep their masks.
        batch_size: images per forward pass.
    """

    adapter: Adapter
    keep_masks: bool
    batch_size: int

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.adapter.model

    def __call__(self, payload: Sequence[tuple[int, Path]], log: CrashLog) -> pa.Table:
        """Return the table of an image's detections a row; the payload is the index and path of each image."""
        results: dict[int, Detections | str | Exception] = {}
        read = partial(self.adapter.reader.read, keep_bytes=self.adapter.takes_bytes)
        for batch in batches(payload, self.batch_size):
            readable: list[tuple[int, Tensor]] = []
            for index, path in batch:
                try:
                    readable.append((index, log.call(f"reading {index}", read, path)))
                except (TypeError, ValueError) as error:
                    results[index] = str(error)
            for (index, _), result in zip(readable, run_each(readable, partial(self._predict, log)), strict=True):
                results[index] = result if isinstance(result, Exception) else self._checked(result)
        return detection_table(results[index] for index, _ in payload)

    def _predict(self, log: CrashLog, images: Sequence[tuple[int, Tensor]]) -> list[Detections]:
        detector = self.adapter
        if isinstance(detector, DetectorAdapter):
            detector = detector.with_score_threshold(MIN_DETECTION_SCORE)
        predict = partial(detector.predict, batch_size=self.batch_size)
        name = f"detecting {' '.join(str(index) for index, _ in images)}"
        return log.call(name, predict, [pixels for _, pixels in images])

    def _checked(self, detections: Detections) -> Detections:
        if self.keep_masks and detections.masks is None:
            raise ValueError('these detections have no masks; compare boxes: iou_type="bbox" (--iou-type bbox)')
        return detections if self.keep_masks else replace(detections, masks=None)


@dataclass(frozen=True)
class VerificationWork:
    """Explains and verifies errors, and writes their images into the report.

    Attributes:
        explainer: explains the errors of images.
        writer: writer of the report; None writes nothing.
    """

    explainer: ErrorExplainer
    writer: ReportWriter | None

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.explainer.adapter.model

    def __call__(self, payload: Sequence[ErrorImage], log: CrashLog) -> pa.Table:
        """Return the table of the explained errors; the payload is images whose pixels are not read yet."""
        adapter = self.explainer.adapter
        read = partial(adapter.reader.read, keep_bytes=adapter.takes_bytes)

        def explain(batch: Sequence[ErrorImage]) -> list[tuple[ErrorImage, list[ExplainedError]]]:
            images = [replace(each, image=read(each.ground_truth.path)) for each in batch]
            name = f"explaining {' '.join(each.cases[0].id for each in batch)}"
            return list(zip(images, log.call(name, self.explainer.explain, images), strict=True))

        explained: list[list[ExplainedError] | Exception] = []
        for result in run_each(payload, explain):
            if not isinstance(result, Exception):
                self._write(*result)
            explained.append(result if isinstance(result, Exception) else result[1])
        return explanation_table(explained)

    def _write(self, image: ErrorImage, results: Sequence[ExplainedError]) -> None:
        if self.writer is None:
            return
        pixels: ImageArray = self.explainer.adapter.display(image.image)
        ground_truth = image.ground_truth
        self.writer.image(ground_truth.image_id, ground_truth.file_name, pixels, ground_truth)
        for result in results:
            self.writer.case(result.case, pixels, result.maps)


@dataclass
class AuditStages:
    """Detection and explanation, as stages of a run.

    Attributes:
        adapter: the detector.
        run: folder of the results.
        engine: runs the work.
        keep_masks: whether detections keep their masks.
        progress: whether to show progress bars on stderr.
        batch_size: images per forward pass.
        writer: writer of the report; None writes nothing.
        images_together: maximum number of images that are explained together.
        timings: seconds by activity.
        failures: images whose errors could not be explained.
    """

    adapter: Adapter
    run: Run
    engine: Engine
    keep_masks: bool
    progress: bool
    batch_size: int
    writer: ReportWriter | None = None
    images_together: int = 1
    timings: dict[str, float] = field(default_factory=dict)
    failures: list[DataIssue] = field(default_factory=list)

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the duration of an activity to `timings`."""
        start = time.perf_counter()
        yield
        self.timings[activity] = self.timings.get(activity, 0.0) + time.perf_counter() - start

    def detect(self, annotations: Annotations) -> tuple[Annotations, StoredDetections]:
        """Run the detector on each image.

        Returns:
            The annotations without images that fail, which become issues; and the detections of the others.

        Raises:
            RuntimeError: the model fails on every image.
        """
        stage = self.run.stage("detections", lambda: plan_shards(len(annotations), self.batch_size))
        if not self.run.has_stage("explanations"):  # which refers to the images that did not fail
            stage.forget_out_of_memory("failure", "unreadable")
        work = DetectionWork(self.adapter, self.keep_masks, self.batch_size)
        self._process(stage, work, "detecting", len, lambda part: [(index, annotations[index].path) for index in part])
        rows: list[tuple[int, int, int]] = []
        issues, failure = [], None
        for shard, table in enumerate(stage.tables(["unreadable", "failure"])):
            for row, found in enumerate(table.to_pylist()):
                index = stage.shards[shard][row]
                image, message = annotations[index], found["unreadable"]
                if found["failure"] is not None:
                    failure = failure or found["failure"]
                    text = f"{image.file_name}: the model failed ({found['failure']}); left out"
                    issues.append(DataIssue(FAILED, text, image.image_id))
                elif message is not None:
                    issues.append(DataIssue(UNREADABLE, f"{image.file_name}: {message}; left out", image.image_id))
                else:
                    rows.append((shard, row, index))
        if failure is not None and not rows:
            stage.clear()  # perhaps it is the fault of this machine
            raise RuntimeError(failure)
        kept = np.array(rows, dtype=np.int64).reshape(-1, 3)
        if len(kept) < len(annotations):
            annotations = replace(annotations, images=Packed(annotations[index] for index in kept[:, 2].tolist()))
        annotations = replace(annotations, issues=annotations.issues + DataIssues(issues))
        return annotations, StoredDetections(stage, kept[:, :2], self.adapter.names)

    def explain(
        self,
        explainer: ErrorExplainer,
        analysis: ErrorAnalysis,
        detections: Sequence[Detections],
        annotations: Annotations,
        case_of: Callable[[int], AuditCase],
        chosen: Sequence[int],
    ) -> dict[str, ExplainedError]:
        """Explain and verify the chosen errors, image by image.

        Args:
            explainer: explains the errors of an image.
            analysis: the errors.
            detections: detections of each image.
            annotations: ground truth of each image.
            case_of: function from the index of an error to its case without an explanation.
            chosen: indices of the errors to explain.

        Returns:
            Explained errors by case id; images that fail are in `failures`.

        Raises:
            RuntimeError: no image could be explained.
        """

        def payload(shard: list[Any]) -> list[ErrorImage]:
            return [
                ErrorImage(
                    torch.zeros(0),  # the worker reads the pixels
                    detections[image],
                    annotations[image],
                    [analysis[index] for index in part],
                    [case_of(index) for index in part],
                )
                for image, part in shard
            ]

        def groups() -> list[list[tuple[int, list[int]]]]:
            parts = _split_by_image(analysis, annotations, chosen)
            return _grouped(parts, annotations, self.batch_size, self.images_together)

        stage = self.run.stage("explanations", groups)
        stage.forget_out_of_memory("failure")
        work = VerificationWork(explainer, self.writer)
        self._process(stage, work, "explaining", lambda shard: sum(len(part) for _, part in shard), payload)
        explained, failures = read_explanations(stage)
        if failures and not explained:
            stage.clear()
            raise RuntimeError(next(iter(failures.values())))
        for (shard, position), failure in failures.items():
            index, part = stage.shards[shard][position]
            message = f"{annotations[index].file_name}: {plural(len(part), 'error')}: {failure}"
            self.failures.append(DataIssue(UNEXPLAINED, message, annotations[index].image_id))
        return explained

    def _process(
        self,
        stage: Stage,
        work: Work,
        description: str,
        size: Callable[[list[Any]], int],
        payload: Callable[[list[Any]], object],
    ) -> None:
        total = sum(size(shard) for shard in stage.shards)
        with ProgressBar(description, total, enabled=self.progress) as bar:
            for number in stage.process(self.engine, work, payload):
                bar.advance(size(stage.shards[number]))


def _split_by_image(
    analysis: ErrorAnalysis, annotations: Annotations, chosen: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Image indices with as many of their errors as fit in memory, the longest first.

    A batch takes as long as its image with the most errors, so images with equally many go together.
    """
    parts: list[tuple[int, list[int]]] = []
    for image, indices in group_by(chosen, lambda index: analysis[index].image_index).items():
        height, width = annotations[image].image_size_hw
        parts += [(image, part) for part in batches(indices, max(MAX_PIXELS // (height * width), 1))]
    return sorted(parts, key=lambda part: (-len(part[1]), part))


def _grouped(
    parts: Sequence[tuple[int, list[int]]], annotations: Annotations, smallest: int, largest: int
) -> list[list[tuple[int, list[int]]]]:
    """Split image indices with their errors into groups of `smallest` to `largest`; fewer where memory asks for it."""
    groups: list[list[tuple[int, list[int]]]] = []
    pixels = 0
    for image, indices in parts:
        height, width = annotations[image].image_size_hw
        added = len(indices) * height * width
        size = len(groups[-1]) if groups else largest
        if size >= largest or pixels + added > (MAX_GROUP_PIXELS if size >= smallest else MAX_PIXELS):
            groups.append([])
            pixels = 0
        groups[-1].append((image, indices))
        pixels += added
    return groups
