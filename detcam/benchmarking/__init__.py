"""Compares methods on a user's images: faithfulness, cost and controls."""

from detcam.benchmarking.compare import benchmark
from detcam.benchmarking.result import Benchmark
from detcam.benchmarking.statistics import Difference, Estimate, Row

__all__ = ["Benchmark", "Difference", "Estimate", "Row", "benchmark"]
