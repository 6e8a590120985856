"""The errors of an audit with their groups, causes and inventory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import ErrorGroup
from detcam.auditing.case_table import CaseTable
from detcam.auditing.grouping.assignment import Assignment, assign_errors
from detcam.auditing.grouping.clustering import group_cases
from detcam.auditing.grouping.hierarchy import CauseNode, build_causes
from detcam.auditing.grouping.inventory import POPULATIONS, CauseShare, estimate_shares


@dataclass(frozen=True)
class GroupedErrors:
    """The errors of an audit, grouped.

    Attributes:
        cases: all errors, with the kinds of evidence and the groups of the explained ones.
        groups: groups of explained errors with similar evidence, by decreasing cost.
        causes: the hierarchy of causes.
        assignment: the unexplained errors, with the explained ones that resemble them; None if there are too few.
        inventory: shares of the kinds of evidence among all relevant errors; empty if it was not estimated.
    """

    cases: CaseTable
    groups: tuple[ErrorGroup, ...]
    causes: tuple[CauseNode, ...]
    assignment: Assignment | None
    inventory: tuple[CauseShare, ...]


def group_errors(
    analysis: ErrorAnalysis,
    cases: CaseTable,
    features: Mapping[int, np.ndarray | None],
    relevant: Sequence[Sequence[int]],
    box_features: Mapping[int, np.ndarray],
    *,
    is_random_sample: bool,
) -> GroupedErrors:
    """Group the explained errors and build the hierarchy of their causes.

    Args:
        analysis: the errors.
        cases: the same errors as cases, explained or not.
        features: the network's features over the evidence of each explained error, by its index.
        relevant: indices of the relevant errors: false positives, missed objects.
        box_features: the network's features over the box, by index of the error.
        is_random_sample: whether the explained errors are random samples of these, so that shares can be estimated.
    """
    indices = [index for index, case in cases.explained.items() if case.method]

    def joint_cost(members: Sequence[int]) -> float:
        return _joint_cost(analysis, members)

    explained, groups = group_cases(
        [cases[index] for index in indices],
        [features[index] for index in indices],
        lambda members: joint_cost([indices[member] for member in members]),
    )
    cases = cases.with_explained(dict(zip(indices, explained, strict=True)))
    counted = {index for members in relevant for index in members} | set(indices)
    assignment = assign_errors(cases, sorted(counted), box_features)
    causes = build_causes(cases, {group.number: group.sentence for group in groups}, joint_cost, assignment)
    inventory: list[CauseShare] = []
    if is_random_sample:
        for name, members in zip(POPULATIONS, relevant, strict=True):
            inventory += estimate_shares(cases, members, joint_cost, name=name)
    return GroupedErrors(cases, tuple(groups), causes, assignment, tuple(inventory))


def _joint_cost(analysis: ErrorAnalysis, indices: Sequence[int]) -> float:
    """Increase of average precision when some errors are corrected; NaN if none of their classes has objects."""
    labels = {analysis[index].label for index in indices} | set(analysis.corrected_labels[list(indices)].tolist())
    if all(math.isnan(analysis.classes[label].average_precision) for label in labels & analysis.classes.keys()):
        return math.nan
    return analysis.delta_ap_of(indices)
