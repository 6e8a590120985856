"""Missed objects: regions whose removal makes the detector find the object, verified against controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from detcam.auditing.case import Box, Outcome, Trial
from detcam.auditing.error_targets import belongs_to
from detcam.auditing.verification.evidence import control_generator, random_controls, region_beside
from detcam.auditing.verification.hypothesis import VerificationResult
from detcam.auditing.verification.interventions import Investigation, Removal, keeping
from detcam.auditing.verification.proposals import Proposal
from detcam.auditing.verification.region_reduction import MAX_PARTS, connected_parts, shrink
from detcam.auditing.verification.region_search import RegionSearch, TriedRegion, try_region
from detcam.auditing.verification.transplants import Transplantation
from detcam.auditing.verification.verdict import Verdict, decide_appearance
from detcam.outputs import DetectorOutput

MAX_SEARCH_TRIALS = 14
"""Number of perturbed images from which on the region search tries no other region; with parts, controls
and transplants, a missed object takes at most 35."""


@dataclass(frozen=True)
class AppearanceCriterion:
    """Decides whether a missed object is found in a perturbed image.

    It is found if the detector reports one more detection of its class at its location than in the unperturbed image,
    after non-maximum suppression, with a score of at least the threshold.

    Attributes:
        box_xyxy: box of the object, pixels of the image.
        label: class index of the object.
        score_threshold: minimum score of a detection, in [0, 1].
        iou_threshold: minimum IoU of the detection with the object, in (0, 1].
        is_suppressed: whether the object has a candidate above the threshold in the unperturbed image. Then the score
            is that of the detection, else that of the best raw candidate.
        rivals: (K, 4) boxes of the other objects of the class; a detection that fits one of them better is none of the
            object.
        others: number of detections that fit the object best in the unperturbed image, but are matched with another
            one, such as an object with the same box.
    """

    box_xyxy: Box
    label: int
    score_threshold: float
    iou_threshold: float
    is_suppressed: bool = False
    rivals: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    others: int = 0

    @classmethod
    def from_output(
        cls,
        output: DetectorOutput,
        box_xyxy: Box,
        label: int,
        score_threshold: float,
        iou_threshold: float,
        *,
        rivals: Tensor,
        is_suppressed: bool,
    ) -> AppearanceCriterion:
        """Create the criterion from the output for the unperturbed image."""
        criterion = cls(box_xyxy, label, score_threshold, iou_threshold, is_suppressed, rivals)
        others = int((criterion._detected_scores(output) >= score_threshold).sum())
        return replace(criterion, others=others)

    def evaluate(self, output: DetectorOutput) -> tuple[float, Outcome]:
        """The object's score in [0, 1] in a perturbed image, and whether it is found."""
        own = self._detected_scores(output)[self.others :]
        score = float(own[0]) if len(own) else 0.0
        if score >= self.score_threshold:
            return score, "appeared"
        if self.is_suppressed:
            return score, "absent"
        boxes, scores = (part.detach().float().cpu() for part in output.raw_candidates(self.label))
        at_object = scores[self.reaches(boxes), self.label]
        return float(at_object.max()) if len(at_object) else 0.0, "absent"

    def _detected_scores(self, output: DetectorOutput) -> Tensor:
        """Scores of the detections of the class at the object, the highest first."""
        found = output.detections()
        at_object = (found.labels == self.label) & self.reaches(found.boxes_xyxy.float())
        return found.scores[at_object].float().sort(descending=True).values

    def reaches(self, boxes: Tensor) -> Tensor:
        """(K,) bool, whether boxes (K, 4) belong to the object."""
        return belongs_to(boxes, self.box_xyxy, self.rivals, self.iou_threshold)


@dataclass(frozen=True)
class AppearanceHypothesis:
    """The claim that one of several maps shows what prevents the detection of an object.

    Attributes:
        case_id: id of the case, the seed of its controls.
        criterion: decides whether the object is found.
        score: the object's score in the unperturbed image by the criterion, in [0, 1].
        proposals: maps of what suppresses the object, the most promising first.
        object_region: (h, w) bool, the object in the area of the network's input that the image covers. Maps are not
            searched there, and no control lies there, because a removed object cannot be found.
        surroundings: (h, w) bool, the ring around the object, where one of the controls lies.
        transplantation: what is tried if no removal is confirmed; None tries nothing.
    """

    case_id: str
    criterion: AppearanceCriterion
    score: float
    proposals: Sequence[Proposal]
    object_region: Tensor
    surroundings: Tensor
    transplantation: Transplantation | None = None

    @property
    def kept(self) -> Tensor:
        """(h, w) bool, pixels that are never removed: the object, unless another one that covers it suppresses it.

        Regions of maps are coarse, and may reach into the object: they do not end at the border between the two.
        """
        return self.object_region & (not self.criterion.is_suppressed)

    def investigate(self, fill_count: int) -> Investigation[VerificationResult]:
        """Search for the smallest region whose removal makes the object appear, and run controls of the same size."""
        return keeping(self._investigate(fill_count), self.kept)

    def _investigate(self, fill_count: int) -> Investigation[VerificationResult]:
        maps = [each.heatmap * ~self.object_region for each in self.proposals]
        search = RegionSearch(maps, self.object_region, fill_count, max_trials=MAX_SEARCH_TRIALS)
        found = yield from search.next_region()
        if found is None:
            return self._result(_best_attempt(search), [])
        found = yield from self._smallest_part(found, fill_count)
        region, generator = found.region & ~self.kept, control_generator(self.case_id)
        controls = random_controls(region, generator, region, self.object_region)
        requests = [Removal("random control", each, index % fill_count) for index, each in enumerate(controls)]
        near = region_beside(region, self.surroundings, generator, region | self.object_region)
        if near is not None:
            requests += [Removal("near control", near, fill) for fill in range(fill_count)]
        trials: list[Trial] = []
        if requests:
            trials = yield requests
        return self._result(found, trials, controls[0] if controls else near)

    def _smallest_part(self, tried: TriedRegion, fill_count: int) -> Investigation[TriedRegion]:
        """The smallest connected part that suffices, or half of the region if that suffices."""
        parts = connected_parts(tried.region)[:MAX_PARTS]
        if len(parts) < 2:
            return (yield from shrink(tried, None, fill_count))
        sufficient = [tried]
        for part in parts:
            attempt = yield from try_region(part, fill_count, tried.map_index)
            sufficient += [attempt] if attempt.ends else []
        return min(sufficient, key=lambda each: int(each.region.sum()))

    def _result(
        self, tried: TriedRegion | None, controls: Sequence[Trial], control: Tensor | None = None
    ) -> VerificationResult:
        if tried is None:
            name = self.proposals[0].name if self.proposals else ""
            empty = torch.zeros_like(self.object_region)
            verdict = Verdict("not tested", math.nan, "no region was removed: the maps are empty outside the object")
            return VerificationResult((), verdict, Proposal(name, empty.float()), empty, (), None, ends=False)
        trials = (*tried.trials, *controls)
        region = tried.region & ~self.kept
        fraction = float(region.float().mean())
        verdict = decide_appearance(self.score, self.criterion.score_threshold, trials, fraction)
        proposal = self.proposals[tried.map_index]
        outside = Proposal(proposal.name, proposal.heatmap * ~self.object_region)
        return VerificationResult(trials, verdict, outside, region, (), control, tried.ends)


def _best_attempt(search: RegionSearch) -> TriedRegion | None:
    """The tried region without which the object's score is highest."""
    return max(search.tried.values(), key=lambda each: min(trial.score for trial in each.trials), default=None)
