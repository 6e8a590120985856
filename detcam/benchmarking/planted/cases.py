"""Cases of the planted benchmark: errors of a detector whose cause is certified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from detcam.detections import Detections
from detcam.synthetic.scene import SceneObject
from detcam.synthetic.shortcut_scenarios import SHORTCUTS, ScenarioName
from detcam.synthetic.shortcuts import ShortcutScene
from detcam.targets import BoxTarget, EdgesTarget, MaskErrorTarget, MaskTarget

SeedSet: TypeAlias = Literal["development", "hold-out"]
"""``development``: the test scenes on which constants of methods are chosen. ``hold-out``: scenes for the final result
only; never choose a constant on them."""
SEED_SETS: tuple[SeedSet, ...] = get_args(SeedSet)
FIRST_SEEDS: dict[SeedSet, int] = {"development": 1_000_000, "hold-out": 2_000_000}
"""Seed of the first test scene of each set."""


CaseTarget: TypeAlias = BoxTarget | EdgesTarget | MaskErrorTarget | MaskTarget
"""What a method explains in a case."""


@dataclass(frozen=True, eq=False)
class PlantedCase:
    """An error with a certified cause.

    Attributes:
        scenario: scenario of the scene.
        scene: the image and its objects.
        detections: the detector's predictions in the scene.
        index: index of the wrong detection in `detections`; None for a missed object.
        target: what a method explains: the score of a detection, or the mean logit of a region, minus that of the true
            class if it is another one; the displacement of edges; the error of a mask; or, for a missed object, a
            `detcam.targets.SuppressionTarget`.
        body: the object that is classified, boxed or missed.
        cues: the cause. Without them, the error vanishes.
        unrelated: an object of another kind: without it, the error persists.
    """

    scenario: ScenarioName
    scene: ShortcutScene
    detections: Detections
    index: int | None
    target: CaseTarget
    body: SceneObject
    cues: tuple[SceneObject, ...]
    unrelated: SceneObject

    @property
    def parts(self) -> list[Tensor]:
        """Masks (H, W) bool of the visible pixels of each cue; of an absent cue, of the pixels where it was."""
        return [torch.from_numpy(cue.mask) for cue in self.cues]

    @property
    def cause(self) -> Tensor:
        """Mask (H, W) bool of the pixels of all cues."""
        return torch.stack(self.parts).any(0)

    @property
    def needs_all_cues(self) -> bool:
        """Whether the error vanishes without any one of the cues; else only without all of them."""
        return SHORTCUTS[self.scenario].needs_all
