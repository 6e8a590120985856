"""The scenarios of the shortcut scenes: which cues accompany a label, how they combine, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

SCENE_SIZE_HW = (160, 192)
NAMES = ("boat", "barge")
BOAT, BARGE = 0, 1

ScenarioName: TypeAlias = Literal[
    "context",
    "far",
    "mark",
    "texture",
    "look-alike",
    "and",
    "or",
    "light",
    "flowers",
    "tiny",
    "anywhere",
    "natural",
    "suppressor",
    "no-context",
    "edges",
    "duplicate",
    "neighbor",
    "outline",
]
SCENARIOS: tuple[ScenarioName, ...] = get_args(ScenarioName)
FIRST_SCENARIOS: tuple[ScenarioName, ...] = SCENARIOS[:5]
"""The scenarios with one cue of one color that makes boats of barges; the others are harder or have other effects."""

Split: TypeAlias = Literal["shortcut", "twin", "test"]
"""``shortcut``: training scenes, in which the cue accompanies the label. ``twin``: training scenes in which the window
alone determines the class. ``test``: scenes in which the cue misleads."""

Effect: TypeAlias = Literal["class", "miss", "edges", "duplicate", "suppressed", "mask"]
"""What a cue does to a detector that relies on it: ``class``, an object becomes a boat; ``miss``, an object is not
detected; ``edges``, the box reaches to the cue; ``duplicate``, a second box appears on the object's cabin;
``suppressed``, an object loses non-maximum suppression to the cue, which is an object itself; ``mask``, the mask of an
object fills its box."""


@dataclass(frozen=True)
class Scenario:
    """The shortcut of a scenario.

    Attributes:
        cues: kinds of the objects that are the cause.
        effect: what the cues do.
        needs_all: whether all cues are needed; else each of them suffices.
        is_absence: whether the absence of the cue has the effect.
        is_shared: whether one cue affects all objects of the scene.
        natural: whether the ground has structure at every scale.
    """

    cues: tuple[str, ...]
    effect: Effect = "class"
    needs_all: bool = True
    is_absence: bool = False
    is_shared: bool = False
    natural: bool = False


SHORTCUTS: dict[ScenarioName, Scenario] = {
    "context": Scenario(("pond",)),
    "far": Scenario(("lamp",), is_shared=True),
    "mark": Scenario(("tag",)),
    "texture": Scenario(("stripes",)),
    "look-alike": Scenario(("cart",)),
    "and": Scenario(("tag", "buoy")),
    "or": Scenario(("tag", "buoy"), needs_all=False),
    "light": Scenario(("light",)),
    "flowers": Scenario(("flowers",)),
    "tiny": Scenario(("dot",)),
    "anywhere": Scenario(("lamp",), is_shared=True),
    "natural": Scenario(("tag",), natural=True),
    "suppressor": Scenario(("buoy",), effect="miss"),
    "no-context": Scenario(("pond",), effect="miss", is_absence=True),
    "edges": Scenario(("buoy",), effect="edges"),
    "duplicate": Scenario(("buoy",), effect="duplicate"),
    "neighbor": Scenario(("neighbor",), effect="suppressed"),
    "outline": Scenario(("pond",), effect="mask"),
}
"""The shortcut of each scenario."""
