"""The long stages of an audit, detection and explanation, which resume after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

from torch import Tensor

from detcam.adapters import Adapter
from detcam.adapters.base import DetectorAdapter
from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase
from detcam.auditing.conclusion import ExplainedError
from detcam.auditing.explainer import ErrorExplainer, ErrorImage
from detcam.auditing.report import ReportWriter
from detcam.auditing.run_state import AuditState
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.data.issues import DataIssue, DataIssues
from detcam.data.rle import PackedDetections
from detcam.detections import Detections
from detcam.utils.batching import batches, group_by, run_each
from detcam.utils.console import ProgressBar, describe_error, plural
from detcam.visualize.convert import ImageArray

T = TypeVar("T")
_Detected: TypeAlias = "PackedDetections | str | Exception"
"""Detections of an image, or why it cannot be read, or the model's error."""

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
"""Maximum number of cases of an image that are explained together, times its pixels: each takes about 15 bytes a
pixel."""


@dataclass
class AuditStages:
    """Detection and explanation, which resume after an interruption.

    Attributes:
        adapter: the detector.
        keep_masks: whether detections keep their masks.
        progress: whether to show progress bars on stderr.
        batch_size: images per forward pass.
        state: stored results; None stores nothing.
        writer: writer of the report; None writes nothing.
        timings: seconds by activity.
        failures: images whose errors could not be explained.
    """

    adapter: Adapter
    keep_masks: bool
    progress: bool
    batch_size: int
    state: AuditState | None = None
    writer: ReportWriter | None = None
    timings: dict[str, float] = field(default_factory=dict)
    failures: list[DataIssue] = field(default_factory=list)

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the duration of an activity to `timings`, without the activities nested in it."""
        start, nested = time.perf_counter(), -sum(self.timings.values())
        yield
        nested += sum(self.timings.values())
        self.timings[activity] = self.timings.get(activity, 0.0) + time.perf_counter() - start - nested

    def detect(self, annotations: Annotations) -> tuple[Annotations, list[PackedDetections]]:
        """Run the detector on each image.

        Returns:
            The annotations without images that cannot be read, which become issues; and the detections of the others.
        """
        results: dict[str, _Detected] = {}
        if self.state is not None:
            results.update(self.state.detections(self.adapter.names))
        for batch in self._track(batches(list(annotations), self.batch_size), "detecting", len(annotations), len):
            # A batch is repeated as a whole: the last digits of an image's result depend on the rest of the batch.
            if not all(repr(image.image_id) in results for image in batch):
                for image, result in self._detect_batch(batch):
                    key = repr(image.image_id)
                    if key not in results:
                        results[key] = result
                        if self.state is not None and not isinstance(result, Exception):  # which a resumed audit tries
                            self.state.add_detections(key, result)
        errors = [result for result in results.values() if isinstance(result, Exception)]
        if errors and not any(isinstance(result, PackedDetections) for result in results.values()):
            raise errors[0]
        kept, detections, issues = [], [], []
        for image in annotations:
            result = results[repr(image.image_id)]
            if isinstance(result, str):
                issues.append(DataIssue(UNREADABLE, f"{image.file_name}: {result}; left out", image.image_id))
            elif isinstance(result, Exception):
                message = f"{image.file_name}: the model failed ({describe_error(result)}); left out"
                issues.append(DataIssue(FAILED, message, image.image_id))
            else:
                kept.append(image)
                detections.append(result)
        issues_of_all = annotations.issues + DataIssues(issues)
        return replace(annotations, images=tuple(kept), issues=issues_of_all), detections

    def _detect_batch(self, images: Sequence[GroundTruth]) -> Iterator[tuple[GroundTruth, _Detected]]:
        """The detections of each image, the message if it cannot be read, or the model's error."""
        detector = self.adapter
        if isinstance(detector, DetectorAdapter):
            detector = detector.with_score_threshold(MIN_DETECTION_SCORE)
        readable: list[tuple[GroundTruth, Tensor]] = []
        for image in images:
            try:
                readable.append((image, self.adapter.reader.read(image.path)))
            except (TypeError, ValueError) as error:
                yield image, str(error)
        if not readable:
            return
        predicted = run_each([pixels for _, pixels in readable], partial(detector.predict, batch_size=self.batch_size))
        for (image, _), detections in zip(readable, predicted, strict=True):
            if isinstance(detections, Exception):
                yield image, detections
                continue
            if self.keep_masks and detections.masks is None:
                raise ValueError('these detections have no masks; compare boxes: iou_type="bbox" (--iou-type bbox)')
            yield image, PackedDetections.of(detections if self.keep_masks else replace(detections, masks=None))

    def explain(
        self,
        explainer: ErrorExplainer,
        analysis: ErrorAnalysis,
        detections: Sequence[Detections],
        annotations: Annotations,
        cases: Sequence[AuditCase],
        chosen: Sequence[int],
    ) -> dict[str, ExplainedError]:
        """Explain and verify the chosen errors, image by image.

        Args:
            explainer: explains the errors of an image.
            analysis: the errors.
            detections: detections of each image.
            annotations: ground truth of each image.
            cases: the errors as cases without an explanation.
            chosen: indices of the errors to explain.

        Returns:
            Explained errors by case id; images that fail are in `failures`.

        Raises:
            Exception: no image could be explained; the error of the first.
        """
        first: Exception | None = None
        explained = {} if self.state is None else self.state.cases()
        image_batches = batches(_split_by_image(analysis, annotations, chosen), self.batch_size)
        for batch in self._track(image_batches, "explaining", len(chosen), lambda b: sum(len(part) for _, part in b)):
            if all(cases[index].id in explained for _, part in batch for index in part):
                continue  # a batch that was interrupted is repeated as a whole, with the same last digits

            def error_image(image: int, part: Sequence[int]) -> ErrorImage:
                truth, pixels = annotations[image], self.adapter.reader.read(annotations[image].path)
                errors, of_image = [analysis[index] for index in part], [cases[index] for index in part]
                return ErrorImage(pixels, detections[image], truth, errors, of_image)

            def explain(parts: Sequence[tuple[int, list[int]]]) -> list[tuple[ErrorImage, list[ExplainedError]]]:
                images = [error_image(*part) for part in parts]
                return list(zip(images, explainer.explain(images), strict=True))

            for (index, part), result in zip(batch, run_each(batch, explain), strict=True):
                if isinstance(result, Exception):
                    first = first or result
                    truth = annotations[index]
                    message = f"{truth.file_name}: {plural(len(part), 'error')}: {describe_error(result)}"
                    self.failures.append(DataIssue(UNEXPLAINED, message, truth.image_id))
                    continue
                image, results = result
                new = [item for item in results if item.case.id not in explained]
                self._write(image, new)
                for item in new:  # as a resumed audit reads it
                    case = AuditCase.from_json(item.case.to_json())
                    explained[case.id] = replace(item, case=case, maps=None)
        if first is not None and not explained:
            raise first
        return explained

    def _write(self, image: ErrorImage, results: Sequence[ExplainedError]) -> None:
        """Write the cases of an image to the report, and then store them."""
        if self.writer is None or self.state is None or not results:
            return
        pixels: ImageArray = self.adapter.display(image.image)
        ground_truth = image.ground_truth
        with self.timed("writing"):
            self.writer.image(ground_truth.image_id, ground_truth.file_name, pixels, ground_truth)
            for result in results:
                self.writer.case(result.case, pixels, result.maps)
                self.state.add_case(result)

    def _track(
        self, batches: Sequence[list[T]], description: str, total: int, size: Callable[[list[T]], int]
    ) -> Iterator[list[T]]:
        with ProgressBar(description, total, enabled=self.progress) as bar:
            for batch in batches:
                yield batch
                bar.advance(size(batch))


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
