"""The contract of adapters."""

import pytest

from detcam.testing import check_adapter
from tests.zoo import ZOO, shared


@pytest.mark.parametrize("model", list(ZOO))
def test_every_family(model: str) -> None:
    case = shared(model)
    check_adapter(case.adapter, case.images)
