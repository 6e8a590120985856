"""Whether an audit says the right thing of a certified false positive, and refuses causes that are none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from detcam.adapters import Adapter
from detcam.auditing.analysis import analyze_errors
from detcam.auditing.case import EVIDENCE_LOCATIONS, EvidenceLocation
from detcam.auditing.evidence import box_region, elsewhere, places, shares
from detcam.auditing.explainer import ErrorExplainer, ErrorImage, ExplainedError, object_regions
from detcam.auditing.pipeline import plain_case
from detcam.benchmarking.planted.certify import THRESHOLD, PlantedCase
from detcam.benchmarking.planted.hit_metrics import MapHit, judge_map
from detcam.cam import BaseCAM
from detcam.data.ground_truth import GroundTruth
from detcam.data.images import load_image


@dataclass(frozen=True)
class AuditCheck:
    """What an audit said of one case.

    Attributes:
        finding: of its map against the cause.
        place: where it says that the evidence lies; None where it could not tell.
        true_place: where most of the cause lies.
        confirmed: whether it calls its evidence the cause.
        on_cause: whether that evidence touches the cause.
        wrong: of causes that are none, held out to it: how many.
        wrong_confirmed: how many of those it confirmed.
        passes: images that the network saw for the case: map, verification and controls.
    """

    finding: MapHit
    place: EvidenceLocation | None
    true_place: EvidenceLocation
    confirmed: bool
    on_cause: bool
    wrong: int
    wrong_confirmed: int
    passes: float


class _Given:
    """Stands where a method would, and answers with maps that were made beforehand."""

    name = "given"

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.maps = maps

    def explain(self, images: Sequence[Any], targets: Sequence[Sequence[Any]]) -> list[SimpleNamespace]:
        """The maps, for one image."""
        return [SimpleNamespace(heatmaps=self.maps)]


def audit_case(adapter: Adapter, cam: BaseCAM, case: PlantedCase, first_label: int) -> AuditCheck:
    """Let an audit examine a case, and then causes that are none: an unrelated thing, and a place of the cue's shape.

    Args:
        adapter: the detector.
        cam: what makes the audit's maps.
        case: the case.
        first_label: the detector's label of the first class.
    """
    image = _image(adapter, case, first_label)
    found = _examine(adapter, cam, image)
    if found.maps is None:
        raise RuntimeError(f"the audit could not explain scene {case.scene.seed}: {found.case.reason}")
    truth = image.truth
    where = places(truth.image_size_hw, found.case.box_xyxy, *object_regions(image.errors[0], truth, masks=False))
    held = shares(case.cause.float(), where)
    evidence = torch.from_numpy(np.asarray(found.maps.evidence))
    wrong = wrong_causes(case)
    verdicts = [_examine(adapter, cast(BaseCAM, _Given([heat.float()])), image).case.verdict for heat in wrong]
    return AuditCheck(
        judge_map(torch.from_numpy(np.asarray(found.maps.heatmap)).float(), case.cause),
        found.case.evidence_location,
        max(EVIDENCE_LOCATIONS, key=held.__getitem__),
        found.case.verdict == "confirmed",
        bool((evidence & case.cause).any()),
        len(wrong),
        verdicts.count("confirmed"),
        found.case.forward_passes,
    )


def wrong_causes(case: PlantedCase) -> list[Tensor]:
    """Regions (H, W) bool that are certified to be no cause, or were drawn at random off the cue and off the box."""
    seed = int.from_bytes(hashlib.sha256(f"{case.scene.seed} {case.cue.name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    found = [torch.from_numpy(case.unrelated.mask) & ~case.cause]
    box = box_region(case.target.box_xyxy, (case.cause.shape[0], case.cause.shape[1]))
    for _ in range(20):
        moved = elsewhere(case.cause, generator)
        if moved is not None and not bool((moved & (box | case.cause)).any()):
            return [*found, moved]
    return found


def _examine(adapter: Adapter, cam: BaseCAM, image: ErrorImage) -> ExplainedError:
    return ErrorExplainer(adapter, cam, adapter.names, THRESHOLD).examine([image])[0][0]


def _image(adapter: Adapter, case: PlantedCase, first_label: int) -> ErrorImage:
    """The case as an audit meets it: matched with the labels of its scene."""
    truth = ground_truth(case, adapter, first_label)
    analysis = analyze_errors([case.found], [truth])
    position = next(i for i, error in enumerate(analysis) if error.detection == case.index)
    plain = plain_case(analysis, position, [case.found], [truth])
    return ErrorImage(load_image(case.scene.image), case.found, truth, [analysis[position]], [plain])


def ground_truth(case: PlantedCase, adapter: Adapter, first_label: int) -> GroundTruth:
    """A scene's labels as annotations."""
    boxes = torch.from_numpy(case.scene.boxes_xyxy)
    x1, y1, x2, y2 = case.scene.boxes_xyxy.astype(np.float64).T.reshape(4, -1)
    labels = torch.from_numpy(case.scene.labels) + first_label
    name = f"{case.scenario}-{case.scene.seed}"
    return GroundTruth(
        image_id=name,
        file_name=f"{name}.png",
        path=Path(f"{name}.png"),
        image_size_hw=(case.scene.image.shape[0], case.scene.image.shape[1]),
        boxes_xyxy=boxes,
        boxes_xywh=np.stack([x1, y1, x2 - x1, y2 - y1], 1),
        labels=labels,
        category_ids=labels,
        crowd=torch.zeros(len(labels), dtype=torch.bool),
        area=torch.from_numpy((x2 - x1) * (y2 - y1)),
        ids=torch.arange(len(labels)),
        segmentations=(None,) * len(labels),
        names=adapter.names,
    )
