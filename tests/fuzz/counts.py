"""How many examples a property is checked with: few in every run, many in the slow one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings


def counts(quick: int, slow: int) -> Any:
    """The parameter `count` of a test; the greater count is marked as slow."""
    return pytest.mark.parametrize("count", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def check(count: int, property_: Callable[..., None], **strategies: Any) -> None:
    """Check a property with examples drawn from strategies, the same ones in every run."""
    run = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    run(given(**strategies)(property_))()
