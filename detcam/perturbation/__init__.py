"""Scores of changed images and of changed activations, and what changes them.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.perturbation.base import ImageScorer as ImageScorer
    from detcam.perturbation.base import InputCAM as InputCAM
    from detcam.perturbation.base import PerturbationCAM as PerturbationCAM
    from detcam.perturbation.base import WeightedCAM as WeightedCAM
    from detcam.perturbation.fills import BlurFill as BlurFill
    from detcam.perturbation.fills import EvenLightFill as EvenLightFill
    from detcam.perturbation.fills import Fill as Fill
    from detcam.perturbation.fills import HalfLightFill as HalfLightFill
    from detcam.perturbation.fills import LinearFill as LinearFill
    from detcam.perturbation.fills import MeanFill as MeanFill
    from detcam.perturbation.fills import RingFill as RingFill
    from detcam.perturbation.fills import SurroundingsFill as SurroundingsFill
    from detcam.perturbation.fills import UniformFill as UniformFill
    from detcam.perturbation.random_masks import RandomMasks as RandomMasks
    from detcam.perturbation.replay import LayerReplay as LayerReplay

_MODULES = {
    "BlurFill": "detcam.perturbation.fills",
    "EvenLightFill": "detcam.perturbation.fills",
    "Fill": "detcam.perturbation.fills",
    "HalfLightFill": "detcam.perturbation.fills",
    "ImageScorer": "detcam.perturbation.base",
    "InputCAM": "detcam.perturbation.base",
    "LayerReplay": "detcam.perturbation.replay",
    "LinearFill": "detcam.perturbation.fills",
    "MeanFill": "detcam.perturbation.fills",
    "PerturbationCAM": "detcam.perturbation.base",
    "RandomMasks": "detcam.perturbation.random_masks",
    "RingFill": "detcam.perturbation.fills",
    "SurroundingsFill": "detcam.perturbation.fills",
    "UniformFill": "detcam.perturbation.fills",
    "WeightedCAM": "detcam.perturbation.base",
}
"""The module that defines each public name."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)

__all__ = sorted(_MODULES)  # type checkers read the block above
