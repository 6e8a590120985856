"""The contract of metrics."""

import pytest

from detcam.metrics import METRICS
from detcam.testing import check_metric


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric(name: str) -> None:
    check_metric(name)
