"""Trained detectors on disk: trained once, then read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import nn

from detcam.benchmarking.planted.detectors import DetectorFamily, detector_families, train_detector
from detcam.synthetic.shortcut_scenarios import FIRST_SCENARIOS, ScenarioName, Split
from detcam.utils.console import ProgressBar
from detcam.utils.files import replace_file

PLAIN, CARTS = "plain", "carts"
"""Names of the detector without a shortcut, and of the one trained on scenes with unlabeled carts."""
LOSS_INTERVAL = 25
"""Steps between the losses in a file's metadata."""


def detector_name(scenario: ScenarioName, *, twin: bool = False) -> str:
    """The name of the detector of a scenario, or of its twin without the shortcut."""
    if scenario == "look-alike":
        return CARTS if twin else PLAIN
    return PLAIN if twin else scenario


def _training_scenes(name: str) -> tuple[ScenarioName, Split]:
    """The training scenes of a detector."""
    if name == PLAIN:
        return "look-alike", "shortcut"
    if name == CARTS:
        return "look-alike", "twin"
    return name, "shortcut"  # type: ignore[return-value]


@dataclass(frozen=True)
class TrainingCache:
    """A folder of trained detectors.

    Attributes:
        folder: folder of the weights.
        seed: seed of the training.
        effort: factor on the number of training steps; below 1 for trials.
    """

    folder: Path
    seed: int = 0
    effort: float = 1.0

    def detector(self, family: DetectorFamily, name: str, bar: ProgressBar | None = None) -> nn.Module:
        """Read a detector from the folder, or train it and write it there.

        Args:
            family: family of the detector.
            name: name from `detector_name`.
            bar: progress bar that shows the training.

        Returns:
            The detector in evaluation mode.
        """
        path = self.folder / f"{family.name}-{name}.safetensors"
        if path.exists():
            model = family.build()
            model.load_state_dict(load(path.read_bytes()))
            return model.eval()
        base = family if family.base is None else detector_families()[family.base]
        start = None if name == PLAIN and base is family else self.detector(base, PLAIN, bar)
        scenario, split = _training_scenes(name)
        usual = family.steps if scenario in FIRST_SCENARIOS else family.short_steps
        steps = max(2, round((family.base_steps if name == PLAIN else usual) * self.effort))
        losses: list[float] = []
        bar = bar or ProgressBar(enabled=False)
        bar.restart(f"training {family.name} {name}", steps)

        def on_step(loss: float) -> None:
            losses.append(loss)
            bar.advance()

        model = train_detector(family, scenario, split, steps, seed=self.seed, start=start, on_step=on_step)
        self.folder.mkdir(parents=True, exist_ok=True)
        sampled = [round(loss, 3) for loss in losses[::LOSS_INTERVAL]]
        metadata = {"steps": str(steps), "seed": str(self.seed), "losses": json.dumps(sampled)}
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        replace_file(path, save(state, metadata=metadata))
        return model
