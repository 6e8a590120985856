"""Error analysis of a detector on annotated images: types, counts and costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from detcam.auditing.average_precision import Ranking, mean_average_precision, rank_detections
from detcam.auditing.error_table import MISSING, ErrorTable
from detcam.auditing.errors import ERROR_TYPES, DetectionError, ErrorType, ImageErrors, find_errors
from detcam.auditing.matching import IouType, Match, ScoredLabels, is_evaluated, match, paired_images
from detcam.auditing.oracle import DeltaAP, compute_delta_ap
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, class_name
from detcam.utils.packed import Packed

NO_IOU = np.zeros((0, 0))


@dataclass(frozen=True)
class ClassSummary:
    """Counts and average precision of one class over all images.

    Attributes:
        label: class index.
        name: class name.
        average_precision: COCO's, in [0, 1]; NaN if there are no objects of the class.
        objects: number of objects, without crowd regions.
        true_positives: number of true positives.
        false_positives: number of false positives; ignored and dropped detections are neither.
        missed: number of objects without a match.
        errors: number of errors by type; classification errors count for the class of the detection.
    """

    label: int
    name: str
    average_precision: float
    objects: int
    true_positives: int
    false_positives: int
    missed: int
    errors: Mapping[ErrorType, int]


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a detector and their costs.

    Attributes:
        errors: every error, image by image: detections by decreasing score, then missed objects.
        average_precision: COCO's mean over classes at the IoU threshold, in [0, 1], equal to pycocotools'; NaN if there
            are no objects.
        classes: summaries by class index.
        delta_ap: cost of each error type by TIDE's rules.
        rankings: ranked detections by class index.
        matches: matching of each image, without IoUs, which grow with its detections times its objects.
        corrected_labels: (n,) int64, class of the false positives that become true positives when they are corrected:
            classification and localization errors on an object that is not found, with the highest score of those on
            it; -1 for other errors, which correction removes.
        dropped: number of detections left out because they exceed the maximum number per image and class.
        outside: number of detections left out because their class is not evaluated.
        names: class names by index.
        image_ids: id of each image, by image index.
        iou_type: whether boxes, ``"bbox"``, or masks, ``"segm"``, are compared.
    """

    errors: ErrorTable
    average_precision: float
    classes: Mapping[int, ClassSummary]
    delta_ap: DeltaAP
    rankings: Mapping[int, Ranking] = field(repr=False)
    matches: Sequence[Match] = field(repr=False)
    corrected_labels: np.ndarray = field(repr=False)
    dropped: int
    outside: int
    names: Mapping[int, str] = field(repr=False)
    image_ids: tuple[int | str, ...] = field(repr=False)
    iou_type: IouType = "bbox"

    def __len__(self) -> int:
        return len(self.errors)

    def __iter__(self) -> Iterator[DetectionError]:
        return iter(self.errors)

    def __getitem__(self, index: int) -> DetectionError:
        return self.errors[index]

    def indices(
        self,
        *types: ErrorType,
        label: int | None = None,
        image_index: int | None = None,
        false_positives_only: bool = False,
    ) -> list[int]:
        """Indices in `errors` of the given types (default: all), class and image."""
        columns = self.errors.columns
        chosen = np.ones(len(columns), dtype=bool)
        if types:
            chosen &= np.isin(columns["type"], [ERROR_TYPES.index(kind) for kind in types])
        for name, value in (("label", label), ("image_index", image_index)):
            chosen &= value is None or columns[name] == value
        if false_positives_only:
            chosen &= columns["is_false_positive"]
        return [int(index) for index in np.flatnonzero(chosen)]

    def counts(self) -> dict[ErrorType, int]:
        """Number of errors by type; like TIDE, includes detections in crowd regions."""
        return {kind: int((self.errors.columns["type"] == index).sum()) for index, kind in enumerate(ERROR_TYPES)}

    def average_precision_corrected(self, indices: Iterable[int]) -> float:
        """Compute COCO's average precision when some of the errors are corrected, as TIDE corrects them.

        A classification or localization error on an object that is not found gets the object's class or box, and
        becomes a true positive; of several on one object, only the one with the highest score does, whichever are
        chosen. Other false positives are removed from the detections, and missed objects from the annotations. No other
        match changes, because nothing else is matched with such an object.

        Args:
            indices: indices in `errors`.

        Returns:
            In [0, 1].

        Raises:
            ValueError: an index is out of range.
        """
        removed, found, added = (defaultdict[int, list[int]](list) for _ in range(3))
        removed_objects: Counter[int] = Counter()
        for index in set(indices):
            if not 0 <= index < len(self.errors):
                raise ValueError(f"expected indices of the {len(self.errors)} errors, from 0; got {index}")
            error, label = self.errors[index], int(self.corrected_labels[index])
            if error.detection_index is None:
                removed_objects[error.label] += 1
            elif error.is_false_positive:
                (found if label == error.label else removed)[error.label].append(int(self.ranks[index]))
                if label not in (MISSING, error.label):
                    added[label].append(index)
        values = {label: summary.average_precision for label, summary in self.classes.items()}
        for label in removed.keys() | found.keys() | added.keys() | removed_objects.keys():
            ranking = self.rankings[label]
            is_removed, is_found = np.zeros((2, len(ranking.hits)), dtype=bool)
            is_removed[removed[label]] = is_found[found[label]] = True
            positions = self._positions(label, np.array(added[label], dtype=np.int64))
            values[label] = ranking.corrected(is_removed, is_found, positions, removed_objects[label])
        return mean_average_precision(values.values())

    def delta_ap_of(self, indices: Iterable[int]) -> float:
        """Compute the joint cost of some errors: average precision when they are corrected, minus that with them."""
        return self.average_precision_corrected(indices) - self.average_precision

    @cached_property
    def delta_ap_by_error(self) -> np.ndarray:
        """(n,) float64, the cost of each single error, as `delta_ap_of`; NaN for the only object, if it is missed."""
        columns, labels = self.errors.columns, self.errors.columns["label"]
        costs = np.zeros(len(columns))
        class_count = sum(not np.isnan(ranking.average_precision) for ranking in self.rankings.values())
        for label, ranking in self.rankings.items():
            if not ranking.object_count:
                continue
            becomes = (self.corrected_labels == label) & columns["is_false_positive"]
            of_class = (labels == label) & (self.ranks >= 0)
            removed, found, added = of_class & ~becomes, of_class & becomes, becomes & ~of_class
            costs[removed] += ranking.without_each()[self.ranks[removed]] - ranking.average_precision
            costs[found] += ranking.found_each(self.ranks[found]) - ranking.average_precision
            positions = self._positions(label, np.flatnonzero(added))
            costs[added] += ranking.added_each(positions) - ranking.average_precision
        costs /= max(class_count, 1)
        is_missed = columns["detection_index"] < 0
        for label in np.unique(labels[is_missed]).tolist():
            missed = np.flatnonzero(is_missed & (labels == label))
            costs[missed] = self.delta_ap_of(missed[:1].tolist())  # the same for all missed objects of a class
        return costs

    def _positions(self, label: int, rows: np.ndarray) -> np.ndarray:
        """The positions (k,) of false positives of other classes, indices in `errors`, in the ranking of a class."""
        columns = self.errors.columns[rows]
        keys = np.stack([columns["image_index"], columns["detection_index"]], axis=1)
        return self.rankings[label].positions(columns["score"], keys)

    @cached_property
    def ranks(self) -> np.ndarray:
        """(n,) int64, rank in its class of each false positive; -1 for other errors."""
        columns = self.errors.columns
        ranks = np.full(len(columns), -1, dtype=np.int64)
        keys = columns["image_index"].astype(np.int64) << 32 | columns["detection_index"]
        for label, ranking in self.rankings.items():
            rows = np.flatnonzero(columns["is_false_positive"] & (columns["label"] == label))
            ranked = ranking.keys[:, 0] << 32 | ranking.keys[:, 1]
            order = np.argsort(ranked)
            ranks[rows] = order[np.searchsorted(ranked[order], keys[rows])]
        return ranks


def analyze_errors(
    detections: Sequence[Detections],
    ground_truths: Iterable[GroundTruth] | Annotations,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    labels: Sequence[int] | None = None,
) -> ErrorAnalysis:
    """Match detections with annotations by COCO's rules and classify the errors as TIDE does.

    Args:
        detections: the model's detections of each image, including low scores, which average precision needs.
        ground_truths: the objects of each image in the same order, with labels in the model's class indices, for
            example `Annotations`.
        iou_threshold: minimum IoU of a true positive, in (0, 1].
        background_threshold: maximum IoU of a background error, below `iou_threshold`.
        iou_type: ``"bbox"``, or ``"segm"`` to compare masks.
        max_detections: maximum number of detections per image.
        labels: class indices to evaluate, for example `Annotations.labels` if the file lacks some of the model's
            classes; detections of other classes are left out and counted, and objects of other classes are not missed.
            None evaluates all.

    Returns:
        The matches and errors of each image, with counts and costs in average precision.

    Raises:
        ValueError: the lists do not correspond, a threshold is out of range, or masks are required and missing.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from detcam.auditing import analyze_errors
        >>> from detcam.data.ground_truth import GroundTruth
        >>> from detcam.detections import Detections, Source
        >>> boxes, size = torch.tensor([[10.0, 10, 30, 30]]), (64, 64)
        >>> ground_truth = GroundTruth(
        ...     1, "a.png", Path("a.png"), size, boxes, torch.tensor([[10, 10, 20, 20]]).numpy(), torch.tensor([1]),
        ...     torch.tensor([1]), torch.tensor([False]), torch.tensor([400.0]), torch.tensor([1]), (None,),
        ... )
        >>> detected = Detections(boxes + 15, torch.tensor([1]), torch.tensor([0.9]), size, (Source("region"),))
        >>> analyze_errors([detected], [ground_truth]).counts()["background"]
        1
    """
    if not isinstance(ground_truths, (Sequence, Annotations)):
        ground_truths = list(ground_truths)
    check_thresholds(iou_threshold, background_threshold, iou_type)
    if max_detections < 1:
        raise ValueError(f"expected max_detections of at least 1; got {max_detections}")
    evaluated = None if labels is None else list(labels)
    image_ids = tuple(truth.image_id for truth in ground_truths)
    names = {label: name for truth in ground_truths for label, name in truth.names.items()}
    matches, image_errors, scored = Packed[Match](), Packed[ImageErrors](), Packed[ScoredLabels]()

    def find_all() -> Iterator[Sequence[DetectionError]]:
        for index, detected, truth in paired_images(detections, ground_truths):
            scored.append(ScoredLabels.of(detected))  # nothing else is kept of detections that are read one by one
            names.update(detected.names)
            matched = match(
                detected,
                truth,
                iou_threshold=iou_threshold,
                iou_type=iou_type,
                max_detections=max_detections,
                labels=evaluated,
            )
            errors = find_errors(
                index,
                detected,
                truth,
                matched,
                iou_threshold=iou_threshold,
                background_threshold=background_threshold,
                max_detections=max_detections,
                labels=evaluated,
            )
            matches.append(replace(matched, iou=NO_IOU))
            image_errors.append(replace(errors, errors=()))
            yield errors.errors

    all_errors = ErrorTable(find_all(), image_ids)
    outside = sum(int((~is_evaluated(detected.labels, labels)).sum()) for detected in scored)
    rankings = rank_detections(scored, ground_truths, matches)
    classes = _summarize_classes(rankings, all_errors, names, _count_missed(ground_truths, matches))
    return ErrorAnalysis(
        errors=all_errors,
        average_precision=mean_average_precision(summary.average_precision for summary in classes.values()),
        classes=classes,
        delta_ap=compute_delta_ap(all_errors, image_errors, scored, ground_truths, evaluated),
        rankings=rankings,
        matches=matches,
        corrected_labels=_corrected_labels(all_errors, ground_truths, matches),
        dropped=sum(int(matched.dropped.sum()) for matched in matches) - outside,
        outside=outside,
        names=names,
        image_ids=image_ids,
        iou_type=iou_type,
    )


def check_thresholds(iou_threshold: float, background_threshold: float, iou_type: str) -> None:
    """Check the options of matching.

    Raises:
        ValueError: a threshold is out of range, or the IoU type is unknown.
    """
    if not 0 < background_threshold < iou_threshold <= 1:
        raise ValueError(
            f"expected 0 < background_threshold < iou_threshold <= 1; got {background_threshold} and {iou_threshold}"
        )
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'expected iou_type "bbox" or "segm"; got {iou_type!r}')


def _corrected_labels(
    errors: ErrorTable, ground_truths: Sequence[GroundTruth] | Annotations, matches: Sequence[Match]
) -> np.ndarray:
    """The class of the object that each error finds once it is corrected; -1 if it finds none."""
    columns = errors.columns
    labels = np.full(len(columns), MISSING, dtype=np.int64)
    correctable = np.isin(columns["type"], [ERROR_TYPES.index("classification"), ERROR_TYPES.index("localization")])
    rows = np.flatnonzero(correctable & columns["is_false_positive"] & (columns["ground_truth_index"] != MISSING))
    concerned = np.stack([columns["image_index"][rows], columns["ground_truth_index"][rows]], 1)
    first = np.sort(np.unique(concerned, axis=0, return_index=True)[1])  # errors of an image are sorted by score
    for row, (image, index) in zip(rows[first].tolist(), concerned[first].tolist(), strict=True):
        if matches[image].missed[index]:
            labels[row] = int(ground_truths[image].labels[index])
    return labels


def _count_missed(ground_truths: Sequence[GroundTruth] | Annotations, matches: Sequence[Match]) -> Counter[int]:
    return Counter(
        int(label)
        for truth, matched in zip(ground_truths, matches, strict=True)
        for label in truth.labels[torch.from_numpy(matched.missed)].tolist()
    )


def _summarize_classes(
    rankings: Mapping[int, Ranking],
    errors: ErrorTable,
    names: Mapping[int, str],
    missed: Mapping[int, int],
) -> dict[int, ClassSummary]:
    counts = Counter(zip(errors.columns["label"].tolist(), errors.types.tolist(), strict=True))
    return {
        label: ClassSummary(
            label=label,
            name=class_name(names, label),
            average_precision=ranking.average_precision,
            objects=ranking.object_count,
            true_positives=int(ranking.hits.sum()),
            false_positives=int((~ranking.hits).sum()),
            missed=missed[label],
            errors={kind: counts[label, kind] for kind in ERROR_TYPES},
        )
        for label, ranking in rankings.items()
    }
