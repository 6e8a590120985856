"""Methods compared on detectors with planted shortcuts, whose errors have a known cause."""

from detcam.benchmarking.planted.run import benchmark_planted, evaluate

__all__ = ["benchmark_planted", "evaluate"]
