"""Compares methods on images of one's own: how faithful their maps are, at what cost, and against which controls."""

from detcam.benchmarking.compare import Benchmark, benchmark
from detcam.benchmarking.statistics import Difference, Estimate, Row

__all__ = ["Benchmark", "Difference", "Estimate", "Row", "benchmark"]
