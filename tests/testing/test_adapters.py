"""The contract of adapters: every family keeps each rule that `check_adapter` knows (test_rejections breaks them)."""

import pytest

from detcam.testing import check_adapter
from tests.helpers import broken_rule
from tests.zoo import ZOO, shared


@pytest.mark.parametrize("model", list(ZOO))
def test_every_family(model: str) -> None:
    """Detections, scores of targets, geometry and gradients agree, and the model comes back as it was."""
    case = shared(model)
    assert len(case.images) > 1 and case.adapter.target_layers
    assert broken_rule(lambda: check_adapter(case.adapter, case.images)) is None
