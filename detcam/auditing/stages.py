"""The parts of an audit that take time, each of which goes on where an interrupted run stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from detcam.adapters import Adapter
from detcam.adapters.base import DetectorAdapter
from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase
from detcam.auditing.explainer import ErrorExplainer, ErrorImage, ExplainedError
from detcam.auditing.report import ReportWriter
from detcam.auditing.run_state import AuditState
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.data.images import load_image, to_uint8
from detcam.data.issues import DataIssue, DataIssues
from detcam.data.rle import PackedDetections
from detcam.detections import Detections
from detcam.visualize.convert import ImageArray

UNREADABLE = "unreadable image"
LEAST_SCORE = 0.01
"""Detections are asked for from this score on, where the adapter and not the model sets it: average precision needs
those that nobody would act on. A YOLO11n's is 0.747 from 0.25 on, 0.790 from 0.05, and 0.797 from 0.01 and 0.001."""
MOST_PIXELS = 40_000_000
"""Cases of an image that are examined together, times its pixels: each holds some fifteen bytes a pixel."""


@dataclass
class AuditStages:
    """The parts that take time, each of which goes on where it was interrupted."""

    adapter: Adapter
    keep_masks: bool
    progress: bool
    batch_size: int
    store: AuditState | None = None
    writer: ReportWriter | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that something takes to `timings`, and leave them out of what it is a part of."""
        start, before = time.perf_counter(), sum(self.timings.values())
        yield
        own = time.perf_counter() - start - (sum(self.timings.values()) - before)
        self.timings[what] = self.timings.get(what, 0.0) + own

    def detect(self, truth: Annotations) -> tuple[Annotations, list[PackedDetections]]:
        """What the detector finds in each image; images that cannot be read are left out and counted."""
        detector = self.adapter.from_score(LEAST_SCORE) if isinstance(self.adapter, DetectorAdapter) else self.adapter
        known: dict[str, PackedDetections | str] = (
            {} if self.store is None else self.store.detections(self.adapter.names)
        )
        for some in self._bar(_batches(list(truth), self.batch_size), "detecting", len(truth), len):
            if all(repr(image.image_id) in known for image in some):
                continue
            readable: list[tuple[GroundTruth, Tensor]] = []
            for image in some:  # also those that are known: a network's last digits depend on what shares its batch
                try:
                    readable.append((image, load_image(image.path)))
                except ValueError as error:
                    self._keep(known, image, str(error))
            if not readable:
                continue
            found = detector.predict([pixels for _, pixels in readable], batch_size=self.batch_size)
            for (image, _), one in zip(readable, found, strict=True):
                if self.keep_masks and one.masks is None:
                    raise ValueError('these detections have no masks; compare boxes: iou_type="bbox" (--iou-type bbox)')
                self._keep(known, image, PackedDetections.of(one if self.keep_masks else replace(one, masks=None)))
        issues = [
            DataIssue(UNREADABLE, f"{image.file_name}: {known[repr(image.image_id)]}; left out", image.image_id)
            for image in truth
            if isinstance(known[repr(image.image_id)], str)
        ]
        kept = [image for image in truth if not isinstance(known[repr(image.image_id)], str)]
        truth = replace(truth, images=tuple(kept), issues=truth.issues + DataIssues(issues))
        found_all = [known[repr(image.image_id)] for image in kept]
        return truth, [one for one in found_all if isinstance(one, PackedDetections)]

    def _keep(
        self, known: dict[str, PackedDetections | str], image: GroundTruth, found: PackedDetections | str
    ) -> None:
        if repr(image.image_id) in known:
            return
        known[repr(image.image_id)] = found
        if self.store is not None:
            self.store.add_detections(repr(image.image_id), found)

    def explain(
        self,
        examiner: ErrorExplainer,
        analysis: ErrorAnalysis,
        found: Sequence[Detections],
        truth: Annotations,
        plain: Sequence[AuditCase],
        chosen: Sequence[int],
    ) -> dict[str, ExplainedError]:
        """Explain and verify the chosen errors, image by image."""
        done = {} if self.store is None else self.store.cases()
        by_image: dict[int, list[int]] = {}
        for position in chosen:
            by_image.setdefault(analysis[position].image, []).append(position)
        parts: list[tuple[int, list[int]]] = []  # an image, and as many of its cases as there is memory for
        for image, positions in by_image.items():
            height, width = truth[image].image_size_hw
            parts += [(image, own) for own in _batches(positions, max(MOST_PIXELS // (height * width), 1))]
        # Images with as many cases as each other go together: a batch takes as long as the one that has the most.
        parts.sort(key=lambda part: (-len(part[1]), part))
        batches = _batches(parts, self.batch_size)
        for some in self._bar(batches, "explaining", len(chosen), lambda some: sum(len(own) for _, own in some)):
            if all(plain[position].id in done for _, own in some for position in own):
                continue  # a batch that an interruption left half done is examined whole, to the same last digit
            images = []
            for image, own in some:
                images.append(
                    ErrorImage(
                        load_image(truth[image].path),
                        found[image],
                        truth[image],
                        [analysis[position] for position in own],
                        [plain[position] for position in own],
                    )
                )
            for pixels, results in zip(images, examiner.examine(images), strict=True):
                new = [result for result in results if result.case.id not in done]
                self._write(pixels, new)
                done |= {
                    one.case.id: replace(one, case=AuditCase.from_json(one.case.to_json()), maps=None) for one in new
                }
        return done

    def _write(self, image: ErrorImage, results: Sequence[ExplainedError]) -> None:
        """Put an image's cases into the report and, once they are there, on record."""
        if self.writer is None or self.store is None or not results:
            return
        pixels: ImageArray = to_uint8(image.image)
        with self.timed("writing"):
            self.writer.image(image.truth.image_id, image.truth.file_name, pixels, image.truth)
            for result in results:
                self.writer.case(result.case, pixels, result.maps)
                self.store.add_case(result)

    def _bar(self, batches: Iterable[list[Any]], words: str, total: int, size: Any) -> Iterator[list[Any]]:
        with tqdm(total=total, desc=words, disable=None if self.progress else True, leave=False) as bar:
            for batch in batches:
                yield batch
                bar.update(size(batch))


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
