"""The contract of metrics: each keeps every rule that `check_metric` knows (test_rejections breaks them)."""

import pytest

from detcam.metrics import METRICS
from detcam.testing import check_metric
from tests.helpers import broken_rule


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric(name: str) -> None:
    """Values are float64 in the range, one per heatmap, the same for arrays and for one image; NaN stays NaN."""
    assert METRICS[name].name == name and METRICS[name].range[0] < METRICS[name].range[1]
    assert broken_rule(lambda: check_metric(name)) is None
