"""The detections and objects that average precision counts, by image, so that it can be bootstrapped over images."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detcam.auditing.average_precision import COCO_RECALLS, image_ranks
from detcam.utils.files import replace_file

if TYPE_CHECKING:
    from detcam.auditing.analysis import ErrorAnalysis

EVALUATION = "evaluation.npz"
"""Name of the file in the folder of a report."""
MAX_VALUES = 4_000_000
"""Maximum number of values of an array over bootstrap samples and detections; each takes 8 bytes."""


@dataclass(frozen=True)
class Evaluation:
    """The n counted detections, class by class and by decreasing score, and the m objects of a data set.

    Attributes:
        image_ids: id of each image.
        names: name of each class.
        classes: (n,) int64, index in `names` of each detection.
        images: (n,) int64, index in `image_ids` of each detection.
        indices: (n,) int64, index of each detection among those of its image.
        scores: (n,) float64 in [0, 1].
        hits: (n,) bool, whether each detection is a true positive.
        corrected_classes: (n,) int64, index in `names` of the class of the false positives that become true positives
            when they are corrected, as `ErrorAnalysis.corrected_labels`; -1 for others.
        object_classes: (m,) int64, index in `names` of each object.
        object_images: (m,) int64, index in `image_ids` of each object.
    """

    image_ids: tuple[int | str, ...]
    names: tuple[str, ...]
    classes: np.ndarray
    images: np.ndarray
    indices: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    corrected_classes: np.ndarray
    object_classes: np.ndarray
    object_images: np.ndarray

    @classmethod
    def from_analysis(cls, analysis: ErrorAnalysis) -> Evaluation:
        """Take the counted detections and the objects of an error analysis."""
        rankings = list(analysis.rankings.values())
        empty = np.zeros(0, dtype=np.int64)
        keys = np.concatenate([ranking.keys for ranking in rankings] or [empty.reshape(0, 2)])
        sizes = [len(ranking.hits) for ranking in rankings]
        counts = [ranking.object_count for ranking in rankings]
        return cls(
            image_ids=analysis.image_ids,
            names=tuple(analysis.classes[label].name for label in analysis.rankings),
            classes=np.repeat(np.arange(len(rankings)), sizes),
            images=keys[:, 0],
            indices=keys[:, 1],
            scores=np.concatenate([ranking.scores for ranking in rankings] or [empty.astype(float)]),
            hits=np.concatenate([ranking.hits for ranking in rankings] or [empty.astype(bool)]),
            corrected_classes=_corrected_classes(analysis, sizes),
            object_classes=np.repeat(np.arange(len(rankings)), counts),
            object_images=np.concatenate([ranking.object_images for ranking in rankings] or [empty]),
        )

    def save(self, folder: Path) -> Path:
        """Write the file of a report."""
        buffer = io.BytesIO()
        texts = {"image_ids": json.dumps(self.image_ids), "names": json.dumps(self.names)}
        arrays = {
            "classes": self.classes.astype(np.int32),
            "images": self.images.astype(np.int32),
            "indices": self.indices.astype(np.int32),
            "scores": self.scores.astype(np.float32),
            "hits": self.hits,
            "corrected_classes": self.corrected_classes.astype(np.int32),
            "object_classes": self.object_classes.astype(np.int32),
            "object_images": self.object_images.astype(np.int32),
        }
        encoded = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
        np.savez_compressed(buffer, **encoded, **arrays)  # type: ignore[arg-type]
        return replace_file(folder / EVALUATION, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read the file of a report.

        Raises:
            ValueError: the folder has no such file, or a damaged one.
        """
        path = folder / EVALUATION
        if not path.is_file():
            raise ValueError(
                f"{folder} has no file {EVALUATION}, which an audit of this version writes; run the audit again "
                "(resume=True, --resume)"
            )
        try:
            with np.load(path, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
            image_ids, names = (tuple(json.loads(values.pop(name).tobytes())) for name in ("image_ids", "names"))
            types = {"hits": np.bool_, "scores": np.float64}
            arrays = {name: array.astype(types.get(name, np.int64)) for name, array in values.items()}
            return cls(image_ids=image_ids, names=names, **arrays)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{path} is damaged or of another version ({error}); run the audit again (resume=True, --resume)"
            ) from error

    def object_counts(self) -> dict[tuple[int | str, str], int]:
        """Number of objects by image id and class name."""
        pairs, counts = np.unique(np.stack([self.object_images, self.object_classes]), axis=1, return_counts=True)
        return {
            (self.image_ids[image], self.names[label]): count
            for (image, label), count in zip(pairs.T.tolist(), counts.tolist(), strict=True)
        }

    def corrected(self, detections: np.ndarray, objects: np.ndarray) -> Evaluation:
        """Correct false positives (n,) bool, and leave out objects (m,) bool, as `ErrorAnalysis` does."""
        found = detections & (self.corrected_classes >= 0)
        classes = np.where(found, self.corrected_classes, self.classes)
        order = np.lexsort((self.indices, image_ranks(self.image_ids)[self.images], -self.scores, classes))
        order = order[(found | ~detections)[order]]
        return replace(
            self,
            classes=classes[order],
            hits=(self.hits | found)[order],
            **{name: getattr(self, name)[order] for name in ("images", "indices", "scores", "corrected_classes")},
            object_classes=self.object_classes[~objects],
            object_images=self.object_images[~objects],
        )

    @cached_property
    def rows(self) -> dict[tuple[int | str, int], int]:
        """Position of each detection by image id and index in its image."""
        pairs = zip(self.images.tolist(), self.indices.tolist(), strict=True)
        return {(self.image_ids[image], index): row for row, (image, index) in enumerate(pairs)}

    def class_precision(self, weights: np.ndarray, only: Collection[int] | None = None) -> np.ndarray:
        """Compute COCO's average precision of each class with weighted images.

        Args:
            weights: (B, images) non-negative: how often each image counts in each sample.
            only: indices of the classes to compute; the others are NaN. None computes all.

        Returns:
            (classes, B) in [0, 1]; NaN where no objects have weight.
        """
        rows = [
            self._of_class(label, weights) if only is None or label in only else np.full(len(weights), np.nan)
            for label in range(len(self.names))
        ]
        return np.stack(rows) if rows else np.full((1, len(weights)), np.nan)

    def _of_class(self, label: int, weights: np.ndarray) -> np.ndarray:
        """(B,) average precision of a class; NaN where no objects have weight."""
        of_class = self.classes == label
        images, hits = self.images[of_class], np.flatnonzero(self.hits[of_class])
        images = images[: hits[-1] + 1] if len(hits) else images[:0]  # the last true positive ends the curve
        object_images = self.object_images[self.object_classes == label]
        return np.concatenate(
            [
                _weighted_precision(part[:, images], hits, part[:, object_images].sum(1))
                for part in _chunks(weights, max(len(images), len(object_images)))
            ]
        )


def _corrected_classes(analysis: ErrorAnalysis, sizes: Sequence[int]) -> np.ndarray:
    """Class index of each ranked detection once it is corrected, class by class; -1 for others."""
    labels = np.array(list(analysis.rankings), dtype=np.int64)
    rows, order = np.flatnonzero(analysis.corrected_labels >= 0), np.argsort(labels)
    own, true = (
        order[np.searchsorted(labels[order], values[rows])]
        for values in (analysis.errors.columns["label"], analysis.corrected_labels)
    )
    classes = np.full(sum(sizes), -1, dtype=np.int64)
    classes[np.cumsum([0, *sizes])[own] + analysis.ranks[rows]] = true
    return classes


def _weighted_precision(weights: np.ndarray, hits: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Average precision (B,) from the weights (B, k) of ranked detections, true positives at the ranks `hits`."""
    correct = np.cumsum(weights[:, hits], axis=1)
    total = np.cumsum(weights, axis=1)[:, hits]
    precision = np.divide(correct, total, out=np.zeros_like(correct), where=total > 0)
    interpolated = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.full(len(weights), np.nan)
    for row in np.flatnonzero(objects > 0):
        positions = np.searchsorted(correct[row] / objects[row], COCO_RECALLS, side="left")
        result[row] = interpolated[row, positions[positions < len(hits)]].sum() / len(COCO_RECALLS)
    return result


def mean_over_classes(by_class: np.ndarray) -> np.ndarray:
    """The mean (B,) of the average precisions (classes, B) that are defined; NaN where none is."""
    defined = ~np.isnan(by_class)
    total = np.where(defined, by_class, 0).sum(0)
    return np.where(defined.any(0), total / np.maximum(defined.sum(0), 1), np.nan)


def _chunks(weights: np.ndarray, width: int) -> Iterator[np.ndarray]:
    size = max(1, MAX_VALUES // max(width, 1))
    for start in range(0, len(weights), size):
        yield weights[start : start + size].astype(np.float64)
