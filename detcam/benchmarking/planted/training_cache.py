"""Planted detectors on disk: trained where they are missing, read where they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import nn

from detcam.benchmarking.planted.detectors import Family, train
from detcam.synthetic.shortcuts import ScenarioName, Split
from detcam.utils.files import replace_file

PLAIN = "plain"
"""The detector without a shortcut: the twin of those that have one, and the one that carts deceive."""

ProgressCallback = Callable[[str, int, int], None]
"""Is told what is trained, the step, and of how many."""


def detector_name(scenario: ScenarioName, *, twin: bool = False) -> str:
    """Which detector a scenario deceives, or its twin, which the same scenes do not deceive."""
    if scenario == "look-alike":
        return "carts" if twin else PLAIN
    return PLAIN if twin else scenario


def _scenes_of(name: str) -> tuple[ScenarioName, Split]:
    """The training scenes of a detector."""
    if name == PLAIN:
        return "look-alike", "shortcut"
    if name == "carts":
        return "look-alike", "twin"
    return name, "shortcut"  # type: ignore[return-value]


@dataclass(frozen=True)
class TrainingCache:
    """A folder of planted detectors.

    Attributes:
        folder: where their weights are.
        seed: of their training.
        effort: factor on the steps of training; below 1 for trials.
    """

    folder: Path
    seed: int = 0
    effort: float = 1.0

    def detector(self, family: Family, name: str, on_progress: ProgressCallback | None = None) -> nn.Module:
        """A detector in evaluation mode, read from the folder or trained and put there.

        Args:
            family: its family.
            name: as `detector_name` says.
            on_progress: is told of the progress of training.
        """
        path = self.folder / f"{family.name}-{name}.safetensors"
        if path.exists():
            model = family.build()
            model.load_state_dict(load(path.read_bytes()))
            return model.eval()
        start = None if name == PLAIN else self.detector(family, PLAIN, on_progress)
        scenario, split = _scenes_of(name)
        wanted = family.base_steps if start is None else family.steps
        steps = max(2, round(wanted * self.effort))
        losses: list[float] = []

        def step_done(step: int, loss: float) -> None:
            losses.append(loss)
            if on_progress is not None:
                on_progress(f"{family.name} {name}", step + 1, steps)

        model = train(family, scenario, split, steps, seed=self.seed, start=start, on_progress=step_done)
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"steps": str(steps), "seed": str(self.seed), "losses": json.dumps([round(x, 3) for x in losses[::25]])}
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        replace_file(path, save(state, metadata=facts))
        return model
