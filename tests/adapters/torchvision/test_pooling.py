"""Region pooling equals torchvision's, and can be differentiated twice."""

from __future__ import annotations

import pytest
import torch
from torchvision import ops

from detcam.adapters.torchvision.pooling import roi_align


@pytest.mark.parametrize("samples", [2, -1])
def test_it_equals_torchvision_and_has_a_second_derivative(samples: int) -> None:
    features = torch.rand(2, 3, 12, 14, dtype=torch.float64, requires_grad=True)
    boxes = [torch.tensor([[3.0, 4, 40, 50], [0, 0, 30, 20]]).double(), torch.tensor([[5.0, 5, 44, 33]]).double()]
    theirs = ops.roi_align(features, boxes, (3, 4), 0.25, samples)
    ours = roi_align(features, boxes, (3, 4), 0.25, samples)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    weights = torch.rand_like(ours)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), features)
    (found,) = torch.autograd.grad((ours * weights).sum(), features)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradgradcheck(lambda x: roi_align(x, boxes, (2, 2), 0.25, samples).tanh(), (features,))
