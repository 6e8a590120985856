"""Types of background errors: context, look-alike, missing annotation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase, BackgroundType
from detcam.auditing.conformal import pool_boxes, typicality
from detcam.auditing.errors import ERROR_TYPES
from detcam.auditing.sentences import is_inside, is_outside
from detcam.data.annotations import Annotations
from detcam.detections import Detections
from detcam.trace import guarded
from detcam.utils.batching import batches, run_each

MIN_TYPICALITY = 0.15
"""Minimum typicality of a possible missing annotation: rejects about one in seven objects without an annotation.

Chosen on images of blood cells with a fifth of the annotations hidden (training and validation images, two detectors):
86 % of the detections of hidden objects reach it; of detections that are certified to have another cause, 0 %.
"""
MAX_COMPARED = 200
"""Maximum number of correct detections of a class, and of wrong ones, that are compared."""
MIN_EXTRA_IMAGES = 64
"""Number of further images searched for them, or the number of cases if that is larger."""
MAX_FEATURE_IMAGES = 500
"""Maximum number of images of unexplained errors whose features are computed."""

DetectionKey: TypeAlias = tuple[int, int]
"""A detection: index of its image, and index of the detection in the image."""


@dataclass(frozen=True)
class BackgroundClassifier:
    """Determines the types of background errors.

    Args:
        adapter: the detector; its target layers provide the features.
        analysis: the error analysis.
        detections: detections of each image.
        annotations: ground truth of each image.
        score_threshold: minimum score of the detections that are compared.
        batch_size: images per forward pass.
        planned: indices of errors whose `box_features` are asked for later, and computed in the same passes.
    """

    adapter: Adapter
    analysis: ErrorAnalysis
    detections: Sequence[Detections]
    annotations: Annotations
    score_threshold: float
    batch_size: int
    planned: Sequence[int] = ()
    _known: dict[DetectionKey, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def classify(self, cases: Mapping[int, AuditCase]) -> dict[int, tuple[BackgroundType | None, float]]:
        """Determine type and typicality of the background errors among explained cases.

        Args:
            cases: explained cases, by their index in the analysis.

        Returns:
            Type and typicality by index. The typicality is NaN if the evidence lies outside the box, or if there are
            too few correct detections of the class to compare with. The type is None where nothing is confirmed, unless
            the detection is typical of its class.
        """
        background = {
            index: case
            for index, case in cases.items()
            if case.type == "background" and case.evidence_shares is not None
        }
        compared = [index for index, case in background.items() if not is_outside(case)]
        values = self._typicalities(compared) if compared else {}
        types: dict[int, tuple[BackgroundType | None, float]] = {}
        for index, case in background.items():
            value = values.get(index, np.nan)
            if is_outside(case):
                types[index] = "context", np.nan
            elif value >= MIN_TYPICALITY:
                types[index] = "missing annotation", value
            else:
                types[index] = "look-alike" if is_inside(case) and not np.isnan(value) else None, value
        return types

    def box_features(self, indices: Sequence[int], max_images: int = MAX_FEATURE_IMAGES) -> dict[int, np.ndarray]:
        """Compute the network's features (D,) over the boxes of wrong detections, by their index in the analysis.

        Errors in further images than `max_images`, and missed objects, have none.
        """
        keys = self._keys(indices, max_images)
        features = self.features(_by_image(keys.values()))
        return {index: features[key] for index, key in keys.items() if key in features}

    def planned_keys(self) -> list[DetectionKey]:
        """The planned detections, whose features cost no further passes."""
        return list(self._keys(self.planned).values())

    def _keys(self, indices: Sequence[int], max_images: int = MAX_FEATURE_IMAGES) -> dict[int, DetectionKey]:
        """The detections of errors in the first images, by index of the error; missed objects have none."""
        keys = {index: self._key(index) for index in indices if self.analysis[index].detection_index is not None}
        images = set(sorted({image for image, _ in keys.values()})[:max_images])
        return {index: key for index, key in keys.items() if key[0] in images}

    def _typicalities(self, indices: Sequence[int]) -> dict[int, float]:
        """Typicality of errors with their evidence in the box, by their index in the analysis."""
        keys = {index: self._key(index) for index in indices}
        compared = self._choose_compared(keys)
        features = self.features(_by_image(key for pair in compared.values() for keys_of in pair for key in keys_of))
        values: dict[DetectionKey, float] = {}
        for correct, wrong in compared.values():
            members = [key for key in (*correct, *wrong) if key in features]
            if not members:
                continue
            correct_keys = set(correct)
            of_class = typicality(
                np.stack([features[key] for key in members]),
                np.array([float(self.detections[image].scores[detection]) for image, detection in members]),
                np.array([key in correct_keys for key in members]),
                np.array([image for image, _ in members]),
            )
            values |= dict(zip(members, of_class.tolist(), strict=True))
        return {index: values[key] for index, key in keys.items() if key in values}

    def _choose_compared(
        self, keys: Mapping[int, DetectionKey]
    ) -> dict[int, tuple[list[DetectionKey], list[DetectionKey]]]:
        """By class index, the correct and the wrong detections that are compared; the errors are among the wrong."""
        labels = sorted({self.analysis[index].label for index in keys})
        correct = {label: self._correct(label) for label in labels}
        images = self._choose_images({image for image, _ in keys.values()}, correct, len(keys))
        compared = {
            label: (_spread(correct[label], images), list(dict.fromkeys(_spread(self._wrong(label), images))))
            for label in labels
        }
        for index, key in keys.items():
            wrong = compared[self.analysis[index].label][1]
            if key not in wrong:
                wrong.append(key)
        return compared

    def _key(self, index: int) -> DetectionKey:
        error = self.analysis[index]
        if error.detection_index is None:
            raise ValueError(f"expected the error of a detection; got {error}")
        return error.image_index, error.detection_index

    def _correct(self, label: int) -> list[DetectionKey]:
        """The true positives of a class above the threshold, image by image."""
        ranking = self.analysis.rankings.get(label)
        if ranking is None:
            return []
        is_relevant = ranking.scores.astype(np.float32) >= np.float32(self.score_threshold)
        return sorted((image, index) for image, index in ranking.keys[ranking.hits & is_relevant].tolist())

    def _wrong(self, label: int) -> list[DetectionKey]:
        """The false positives of a class above the threshold that overlap no object of the class."""
        errors = self.analysis.errors.columns
        types = [ERROR_TYPES.index(kind) for kind in ("background", "classification", "both")]
        chosen = (errors["label"] == label) & errors["is_false_positive"] & np.isin(errors["type"], types)
        chosen = errors[chosen & (errors["score"] >= self.score_threshold)]
        return list(zip(chosen["image_index"].tolist(), chosen["detection_index"].tolist(), strict=True))

    def _choose_images(
        self, error_images: set[int], correct: Mapping[int, Sequence[DetectionKey]], case_count: int
    ) -> set[int]:
        """The images of the errors, and further ones that contain correct detections, taking the classes in turn."""
        chosen, budget = set(error_images), max(MIN_EXTRA_IMAGES, case_count)
        order = np.random.default_rng(0).permutation(len(self.annotations)).tolist()
        images_of = {label: {image for image, _ in keys} for label, keys in correct.items()}
        waiting = {label: [image for image in order if image in images] for label, images in images_of.items()}
        counts = {label: sum(image in chosen for image, _ in keys) for label, keys in correct.items()}
        while budget and any(waiting[label] and counts[label] < MAX_COMPARED for label in waiting):
            for label in sorted(waiting):
                if not budget or not waiting[label] or counts[label] >= MAX_COMPARED:
                    continue
                image = waiting[label].pop(0)
                if image in chosen:
                    continue
                chosen.add(image)
                budget -= 1
                for other, keys in correct.items():
                    counts[other] += sum(each == image for each, _ in keys)
        return chosen

    def features(self, detections: Mapping[int, Sequence[int]]) -> dict[DetectionKey, np.ndarray]:
        """(D,) features of detections, given as detection indices by image index; those of a detection are kept."""
        asked = [(image, detection) for image, of_image in detections.items() for detection in of_image]
        missing = {key[0] for key in asked if key not in self._known}
        planned = self._keys(self.planned).values()
        self._compute(_by_image(key for key in (*asked, *planned) if key[0] in missing))
        return {key: self._known[key] for key in asked if key in self._known}

    def _compute(self, detections: Mapping[int, Sequence[int]]) -> None:
        """Compute the features of detections, given as detection indices by image index."""
        for chunk in batches(sorted(detections), self.batch_size):
            read = partial(self.adapter.reader.read, keep_bytes=self.adapter.takes_bytes)
            pixels = [read(self.annotations[image].path) for image in chunk]
            for group in self.adapter.groups(pixels, self.batch_size):
                items = [(pixels[row], self.detections[chunk[row]].boxes_xyxy[detections[chunk[row]]]) for row in group]
                for row, pooled in zip(group, run_each(items, self._pool), strict=True):
                    if isinstance(pooled, Exception):  # compared with nothing, as an image of no detection
                        continue
                    keys = [(chunk[row], detection) for detection in detections[chunk[row]]]
                    self._known.update({key: each for key, each in zip(keys, pooled, strict=True) if len(each)})

    def _pool(self, items: Sequence[tuple[Tensor, Tensor]]) -> list[np.ndarray]:
        """Per image and its boxes (n, 4), features (n, D) over the boxes: all levels of the target layers together."""
        adapter, images = self.adapter.without_layers(), [image for image, _ in items]
        features = []
        with guarded(self.adapter.model, gradients=False), torch.no_grad():
            batch = adapter.prepare(images)
            with self.adapter.trace(batch, gradients=False) as trace:
                adapter.forward(batch)
            levels = [level for layer in trace.activations() for level in layer if len(level) == len(images)]
        for row, (geometry, (_, of_image)) in enumerate(zip(batch.geometries, items, strict=True)):
            corners = geometry.boxes_to_input(geometry.clip(of_image)).double().numpy()
            parts = [pool_boxes(level[row].float().cpu().numpy(), corners, geometry.input_size_hw) for level in levels]
            features.append(np.concatenate(parts, axis=1) if parts else np.zeros((len(corners), 0)))
        return features


def _by_image(keys: Iterable[DetectionKey]) -> dict[int, list[int]]:
    """Sorted detection indices by image index."""
    found: dict[int, set[int]] = {}
    for image, detection in keys:
        found.setdefault(image, set()).add(detection)
    return {image: sorted(detections) for image, detections in found.items()}


def _spread(keys: Sequence[DetectionKey], images: set[int]) -> list[DetectionKey]:
    """At most `MAX_COMPARED` of the detections in some images, spread evenly."""
    in_images = [key for key in keys if key[0] in images]
    if len(in_images) <= MAX_COMPARED:
        return in_images
    return [in_images[index] for index in np.linspace(0, len(in_images) - 1, MAX_COMPARED).round().astype(int).tolist()]
