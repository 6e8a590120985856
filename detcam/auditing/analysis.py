"""All errors of a detector on annotated images: named, counted, and what each costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from detcam.auditing.average_precision import Ranking, mean_average_precision, rank
from detcam.auditing.errors import ERROR_TYPES, DetectionError, ErrorType, find_errors
from detcam.auditing.matching import IouType, Match, as_array, match, of_labels, paired
from detcam.auditing.oracle import DeltaAP, delta_ap
from detcam.data.ground_truth import GroundTruth
from detcam.detections import Detections, class_name


@dataclass(frozen=True)
class ClassSummary:
    """One class over all images.

    Attributes:
        label: class index.
        name: its name.
        average_precision: COCO's, in [0, 1]; NaN where there is no object of the class.
        objects: how many there are to find.
        true_positives: how many detections are right.
        false_positives: how many are wrong; ignored and dropped ones are neither.
        missed: how many objects no detection found, also where one came near.
        errors: how many cases of each type; those of classification stand under the detection's class.
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
    """What a detector got wrong.

    Attributes:
        cases: every error, image by image: detections best first, then missed objects.
        average_precision: COCO's mean over classes at this overlap, in [0, 1], equal to pycocotools'; NaN where
            there is nothing to find.
        classes: a summary per class index.
        delta_ap: what each type of error costs, by TIDE's rules.
        rankings: each class's detections, best first.
        matches: each image's matching.
        dropped: how many detections were left out, because an image has more of a class than are counted.
        outside: how many detections were left out, because their class is none of those judged.
        names: class index to name.
    """

    cases: tuple[DetectionError, ...]
    average_precision: float
    classes: Mapping[int, ClassSummary]
    delta_ap: DeltaAP
    rankings: Mapping[int, Ranking] = field(repr=False)
    matches: tuple[Match, ...] = field(repr=False)
    dropped: int
    outside: int
    names: Mapping[int, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[DetectionError]:
        return iter(self.cases)

    def __getitem__(self, index: int) -> DetectionError:
        return self.cases[index]

    def indices(
        self,
        *types: ErrorType,
        label: int | None = None,
        image: int | None = None,
        false_positives_only: bool = False,
    ) -> list[int]:
        """Positions in `cases` of some types (none given: all), of a class, of an image."""
        return [
            position
            for position, case in enumerate(self.cases)
            if (not types or case.type in types)
            and label in (None, case.label)
            and image in (None, case.image)
            and (case.is_false_positive or not false_positives_only)
        ]

    def counts(self) -> dict[ErrorType, int]:
        """How many cases of each type, detections in crowd regions included, as TIDE counts."""
        found = Counter(case.type for case in self.cases)
        return {kind: found[kind] for kind in ERROR_TYPES}

    def average_precision_without(self, indices: Iterable[int]) -> float:
        """The average precision if some of the cases were not there, by COCO's rules, in [0, 1].

        The false positives among them are taken out of the detections, and missed objects out of the annotations.
        Nothing else is matched anew: a false positive stands in nobody's way.

        Args:
            indices: positions in `cases`.

        Raises:
            ValueError: no such case.
        """
        removed: dict[int, list[int]] = {}
        fewer: Counter[int] = Counter()
        for index in set(indices):
            if not 0 <= index < len(self.cases):
                raise ValueError(f"expected positions in the {len(self.cases)} cases, from 0; got {index}")
            case = self.cases[index]
            if case.is_false_positive:
                removed.setdefault(case.label, []).append(self._places[case.image, case.detection])
            elif case.detection is None:
                fewer[case.label] += 1
        values = {label: summary.average_precision for label, summary in self.classes.items()}
        for label in removed.keys() | fewer.keys():
            ranking = self.rankings[label]
            gone = np.zeros(len(ranking.hits), dtype=bool)
            gone[removed.get(label, [])] = True
            values[label] = ranking.without(gone, fewer[label])
        return mean_average_precision(values.values())

    def delta_ap_without(self, indices: Iterable[int]) -> float:
        """What some of the cases cost together: the average precision without them, less that with them."""
        return self.average_precision_without(indices) - self.average_precision

    @cached_property
    def delta_ap_by_case(self) -> np.ndarray:
        """(n,) float64, what each false positive alone costs, as `delta_ap_without`; 0 for all other cases."""
        lost = np.zeros(len(self.cases))
        known = sum(not np.isnan(ranking.average_precision) for ranking in self.rankings.values())
        each = {
            label: (ranking.without_each() - ranking.average_precision) / known
            for label, ranking in self.rankings.items()
            if ranking.truths
        }
        for position, case in enumerate(self.cases):
            if case.is_false_positive and case.label in each:
                lost[position] = each[case.label][self._places[case.image, case.detection]]
        return lost

    @cached_property
    def _places(self) -> dict[tuple[int, int | None], int]:
        """ImageArray and detection to its place in its class's ranking."""
        return {
            (image, detection): place
            for ranking in self.rankings.values()
            for place, (image, detection) in enumerate(ranking.keys.tolist())
        }


def analyze_errors(
    detections: Sequence[Detections],
    truths: Iterable[GroundTruth],
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    labels: Sequence[int] | None = None,
) -> ErrorAnalysis:
    """Match detections with annotations by COCO's rules, and name each error as TIDE does.

    Args:
        detections: of each image, as the model reports them, low scores included: average precision needs them.
        truths: of each image in the same order, with labels in the model's class indices: `Annotations`.
        iou_threshold: least overlap of a right detection, in (0, 1].
        background_threshold: greatest overlap of a detection of nothing, below the other.
        iou_type: ``"bbox"``, or ``"segm"`` to compare masks.
        max_detections: at most so many of an image count.
        labels: the class indices to judge: `Annotations.labels`, where the file has not all of the model's classes;
            detections of others are left out and counted. None judges all.

    Raises:
        ValueError: the lists do not belong together, a threshold is out of range, or masks are asked for where there
            are none.
    """
    truths = list(truths)
    if not 0 < background_threshold < iou_threshold <= 1:
        raise ValueError(
            f"expected 0 < background_threshold < iou_threshold <= 1; got {background_threshold} and {iou_threshold}"
        )
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'expected iou_type "bbox" or "segm"; got {iou_type!r}')
    if max_detections < 1:
        raise ValueError(f"expected max_detections of at least 1; got {max_detections}")
    options: dict[str, Any] = {
        "iou_threshold": iou_threshold,
        "max_detections": max_detections,
        "judged": None if labels is None else list(labels),
    }
    matches, errors, light = [], [], []
    for image, found, truth in paired(detections, truths):
        light.append(replace(found, masks=None))  # masks may be unpacked anew at every look; only matching needs them
        matches.append(match(found, truth, iou_type=iou_type, **options))
        errors.append(
            find_errors(image, found, truth, matches[-1], background_threshold=background_threshold, **options)
        )
    cases = tuple(case for image in errors for case in image.cases)
    rankings = rank(light, truths, matches)
    names = dict(pair for truth in truths for pair in truth.names.items())
    names |= dict(pair for found in light for pair in found.names.items())
    missed = Counter(
        int(label)
        for truth, matched in zip(truths, matches, strict=True)
        for label in truth.labels[torch.from_numpy(matched.missed)].tolist()
    )
    outside = sum(int((~of_labels(as_array(found.labels), labels)).sum()) for found in light)
    errors_of = Counter((case.label, case.type) for case in cases)
    summaries = {label: _summarize(label, rankings[label], errors_of, names, missed[label]) for label in rankings}
    return ErrorAnalysis(
        cases=cases,
        average_precision=mean_average_precision(summary.average_precision for summary in summaries.values()),
        classes=summaries,
        delta_ap=delta_ap(errors, light, truths),
        rankings=rankings,
        matches=tuple(matches),
        dropped=sum(int(matched.dropped.sum()) for matched in matches) - outside,
        outside=outside,
        names=names,
    )


def _summarize(
    label: int, ranking: Ranking, errors: Counter[tuple[int, ErrorType]], names: Mapping[int, str], missed: int
) -> ClassSummary:
    right = int(ranking.hits.sum())
    return ClassSummary(
        label=label,
        name=class_name(names, label),
        average_precision=ranking.average_precision,
        objects=ranking.truths,
        true_positives=right,
        false_positives=len(ranking.hits) - right,
        missed=missed,
        errors={kind: errors[label, kind] for kind in ERROR_TYPES},
    )
