"""What a detection of nothing is: made up from its surroundings, a look-alike, or an object that nobody labelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase, BackgroundType
from detcam.auditing.conformal import pool_boxes, typicality
from detcam.auditing.sentences import rests_outside
from detcam.data.annotations import Annotations
from detcam.data.images import load_image
from detcam.detections import Detections
from detcam.trace import Trace, guarded

UNLABELLED = 0.15
"""Least typicality of what may be an object that nobody labelled: one in seven of such objects lies below.

Chosen on blood cells with a fifth of the annotations hidden (training and validation images, two detectors): 86 % of
the detections of hidden objects lie above; of detections whose cause is certified to be no object, 0 %.
"""
MOST = 200
"""So many right detections of a class are compared with, and so many wrong ones."""
IMAGES = 64
"""So many further images are looked at for them, or as many as there are cases, where those are more."""

At = tuple[int, int]
"""A detection: its image's position, and its index there."""


class BackgroundClassifier:
    """Tells what background errors are.

    Args:
        adapter: the detector; its target layers give the features.
        analysis: the matching.
        found: each image's detections.
        truth: each image's true objects.
        threshold: least score of the detections that are compared.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        adapter: Adapter,
        analysis: ErrorAnalysis,
        found: Sequence[Detections],
        truth: Annotations,
        threshold: float,
        batch_size: int,
    ) -> None:
        self.adapter = adapter
        self.analysis = analysis
        self.found = found
        self.truth = truth
        self.threshold = threshold
        self.batch_size = batch_size

    def tell(self, cases: Mapping[int, AuditCase]) -> dict[int, tuple[BackgroundType | None, float]]:
        """What each explained background error is, and its typicality to right detections, NaN where not compared.

        Args:
            cases: explained errors, by their position in the analysis.

        Returns:
            by position; without a nature where the evidence is in the box and there are too few right detections.
        """
        asked = {
            at: case for at, case in cases.items() if case.type == "background" and case.evidence_shares is not None
        }
        told: dict[int, tuple[BackgroundType | None, float]] = {
            at: ("context", np.nan) for at, case in asked.items() if rests_outside(case)
        }
        inside = [at for at in asked if at not in told]
        typicalities = self._typicalities(inside) if inside else {}
        for at in inside:
            value = typicalities.get(at, np.nan)
            background_type: BackgroundType | None = None
            if not np.isnan(value):
                background_type = "missing annotation" if value >= UNLABELLED else "look-alike"
            told[at] = background_type, value
        return told

    def _typicalities(self, asked: Sequence[int]) -> dict[int, float]:
        """Each error's typicality to the right detections of its class."""
        places = {at: self._place(at) for at in asked}
        labels = sorted({self.analysis[at].label for at in asked})
        right = {label: self._right(label) for label in labels}
        wrong = {label: self._wrong(label) for label in labels}
        chosen = self._images({place[0] for place in places.values()}, right, len(asked))
        compared = {
            label: (_some(right[label], chosen), list(dict.fromkeys(_some(wrong[label], chosen)))) for label in labels
        }
        for at, place in places.items():
            own = compared[self.analysis[at].label][1]
            if place not in own:
                own.append(place)
        wanted: dict[int, set[int]] = {}
        for sides in compared.values():
            for image, index in (*sides[0], *sides[1]):
                wanted.setdefault(image, set()).add(index)
        features = self._features({image: sorted(indices) for image, indices in wanted.items()})
        values: dict[At, float] = {}
        for good, bad in compared.values():
            members = [place for place in (*good, *bad) if place in features]
            if not members:
                continue
            found = typicality(
                np.stack([features[place] for place in members]),
                np.array([float(self.found[image].scores[index]) for image, index in members]),
                np.array([place in set(good) for place in members]),
                np.array([image for image, _ in members]),
            )
            values |= dict(zip(members, found.tolist(), strict=True))
        return {at: values[place] for at, place in places.items() if place in values}

    def _place(self, at: int) -> At:
        error = self.analysis[at]
        if error.detection is None:
            raise ValueError(f"expected a detection; got {error}")
        return error.image, error.detection

    def _right(self, label: int) -> list[At]:
        """The right detections of a class, image by image."""
        return [
            (image, int(index))
            for image, (match, own) in enumerate(zip(self.analysis.matches, self.found, strict=True))
            for index in np.flatnonzero(match.true_positive & self._counts(own, label))
        ]

    def _wrong(self, label: int) -> list[At]:
        """The detections of a class where there is none of it."""
        return [
            (error.image, error.detection)
            for error in self.analysis
            if error.label == label
            and error.detection is not None
            and error.is_false_positive
            and error.type in ("background", "classification", "both")
            and (error.score or 0.0) >= self.threshold
        ]

    def _counts(self, found: Detections, label: int) -> np.ndarray:
        chosen: np.ndarray = ((found.labels == label) & (found.scores >= self.threshold)).numpy()
        return chosen

    def _images(self, own: set[int], right: Mapping[int, Sequence[At]], cases: int) -> set[int]:
        """The errors' images, and others that hold right detections of each class in turn."""
        chosen, budget = set(own), max(IMAGES, cases)
        order = np.random.default_rng(0).permutation(len(self.truth)).tolist()
        per_class = {label: {image for image, _ in places} for label, places in right.items()}
        waiting = {label: [image for image in order if image in images] for label, images in per_class.items()}
        held = {label: sum(image in chosen for image, _ in places) for label, places in right.items()}
        while budget and any(waiting[label] and held[label] < MOST for label in waiting):
            for label in sorted(waiting):
                if not budget or not waiting[label] or held[label] >= MOST:
                    continue
                image = waiting[label].pop(0)
                if image in chosen:
                    continue
                chosen.add(image)
                budget -= 1
                for other, places in right.items():
                    held[other] += sum(at == image for at, _ in places)
        return chosen

    def _features(self, wanted: Mapping[int, Sequence[int]]) -> dict[At, np.ndarray]:
        """The network's features over some detections' boxes, (D,) each."""
        features: dict[At, np.ndarray] = {}
        images = sorted(wanted)
        for start in range(0, len(images), self.batch_size):
            some = images[start : start + self.batch_size]
            image_list = [load_image(self.truth[image].path) for image in some]
            for group in self.adapter.groups(image_list, self.batch_size):
                pooled = self._pooled(
                    [image_list[at] for at in group],
                    [self.found[some[at]].boxes_xyxy[wanted[some[at]]] for at in group],
                )
                for at, rows in zip(group, pooled, strict=True):
                    features |= {
                        (some[at], index): row for index, row in zip(wanted[some[at]], rows, strict=True) if len(row)
                    }
        return features

    def _pooled(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> Iterator[np.ndarray]:
        """Per image, (n, D) features over its boxes: every level of the target layers, one after the other."""
        plain = self.adapter.without_layers()
        with guarded(self.adapter.model, gradients=False), torch.no_grad():
            batch = plain.prepare(images)
            layers, names = self.adapter.target_layers, self.adapter.layer_names
            trace = Trace(layers, names, gradients=False, reshape_transform=self.adapter.reshape_for(batch))
            with trace:
                plain.forward(batch)
            levels = [level for layer in trace.activations() for level in layer if len(level) == len(images)]
        for row, (geometry, own) in enumerate(zip(batch.geometries, boxes, strict=True)):
            corners = geometry.boxes_to_input(geometry.clip(own)).double().numpy()
            parts = [pool_boxes(level[row].float().cpu().numpy(), corners, geometry.input_size_hw) for level in levels]
            yield np.concatenate(parts, axis=1) if parts else np.zeros((len(corners), 0))


def _some(places: Sequence[At], images: set[int]) -> list[At]:
    """Of the detections in some images so many as are compared, spread evenly."""
    own = [place for place in places if place[0] in images]
    if len(own) <= MOST:
        return own
    return [own[at] for at in np.linspace(0, len(own) - 1, MOST).round().astype(int).tolist()]
