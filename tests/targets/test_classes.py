"""Class and embedding targets: their numbers, their refusals, and their agreement with grad-cam's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detcam.targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    ClassTarget,
    DifferenceFromConceptTarget,
    FinerWeightedTarget,
    RawScoresOutputTarget,
    SimilarityToConceptTarget,
    SoftmaxOutputTarget,
)

LOGITS = torch.tensor([1.0, 3.0, -2.0, 0.5])


def test_values_by_hand() -> None:
    odds = [np.exp(z) for z in LOGITS.tolist()]
    p = [o / sum(odds) for o in odds]
    assert float(ClassifierOutputTarget(1)(LOGITS)) == 3.0
    assert float(ClassTarget(2)(LOGITS)) == -2.0
    assert float(ClassifierOutputSoftmaxTarget(1)(LOGITS)) == pytest.approx(p[1], abs=1e-6)
    assert float(ClassifierOutputReST(3)(LOGITS)) == pytest.approx(0.5 + np.log(p[3]), abs=1e-6)
    assert float(BinaryClassifierOutputTarget(0)(torch.tensor([2.0]))) == -2.0
    assert float(BinaryClassifierOutputTarget(1)(torch.tensor([2.0]))) == 2.0
    torch.testing.assert_close(SoftmaxOutputTarget()(LOGITS).double(), torch.tensor(p, dtype=torch.float64))
    assert RawScoresOutputTarget()(LOGITS) is LOGITS
    finer = (p[0] * (3.0 - 0.6 * 1.0) + p[3] * (3.0 - 0.6 * 0.5)) / (p[0] + p[3])
    assert float(FinerWeightedTarget(1, [0, 3], 0.6)(LOGITS)) == pytest.approx(finer, abs=1e-5)
    assert float(FinerWeightedTarget(1, [0], 0.0)(LOGITS)) == pytest.approx(3.0, abs=1e-6)
    certain = torch.tensor([40.0, 1.0, 1.0], requires_grad=True)  # the others' probabilities are below 1e-16
    value = FinerWeightedTarget(0, [1], 1.0)(certain)
    value.backward()
    assert float(value.detach()) == 39 and certain.grad is not None and certain.grad.tolist() == [1, -1, 0]


@pytest.mark.parametrize("logit", [torch.tensor(1.5), torch.tensor([1.5])], ids=["scalar", "one entry"])
def test_a_class_of_a_single_logit(logit: Tensor) -> None:
    assert ClassTarget(1)(logit).shape == () and float(ClassTarget(1)(logit)) == 1.5
    assert float(ClassTarget(0)(logit)) == -1.5


@pytest.mark.peers
def test_the_same_numbers_as_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="grad-cam is not installed")
    batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    pairs = [
        (made(2), theirs(2))
        for made, theirs in [
            (ClassifierOutputTarget, peer.ClassifierOutputTarget),
            (ClassifierOutputSoftmaxTarget, peer.ClassifierOutputSoftmaxTarget),
            (ClassifierOutputReST, peer.ClassifierOutputReST),
        ]
    ]
    pairs += [
        (SoftmaxOutputTarget(), peer.SoftmaxOutputTarget()),
        (RawScoresOutputTarget(), peer.RawScoresOutputTarget()),
        (FinerWeightedTarget(1, [0, 4], 0.7), peer.FinerWeightedTarget(1, [0, 4], 0.7)),
    ]
    for made, theirs in pairs:
        torch.testing.assert_close(made(batch), theirs(batch), atol=1e-6, rtol=1e-6)
        for row in batch:
            torch.testing.assert_close(made(row), theirs(row).reshape(made(row).shape), atol=1e-6, rtol=1e-6)
    for category in (0, 1):
        made, theirs = BinaryClassifierOutputTarget(category), peer.BinaryClassifierOutputTarget(category)
        assert torch.equal(made(batch[:, :1]), theirs(batch[:, :1]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ClassifierOutputTarget(4)(LOGITS), ValueError, "from 0 to 3; got 4"),
        (lambda: ClassifierOutputSoftmaxTarget(9)(LOGITS), ValueError, "from 0 to 3; got 9"),
        (lambda: ClassTarget(2)(torch.tensor([1.0])), ValueError, "from 0 to 0; got 2"),
        (lambda: ClassTarget(2)(torch.tensor(1.0)), ValueError, "got 2"),
        (lambda: ClassifierOutputTarget(0)({"boxes": 1}), TypeError, r"logits.*dict.*BoxTarget"),
        (lambda: FinerWeightedTarget(0, [7], 0.5)(LOGITS), ValueError, "got 7"),
        (lambda: FinerWeightedTarget(0, [], 0.5), ValueError, "at least one"),
        (lambda: BinaryClassifierOutputTarget(2), ValueError, "0 or 1"),
        (lambda: SimilarityToConceptTarget(torch.rand(2, 2, 2)), ValueError, r"\(D,\) or \(M, D\)"),
        (lambda: SimilarityToConceptTarget(torch.tensor([])), ValueError, r"\(D,\) or \(M, D\)"),
        (lambda: SimilarityToConceptTarget([1.0, float("nan")]), ValueError, "NaN"),
        (lambda: SimilarityToConceptTarget([1.0, 2.0])(torch.rand(3)), ValueError, "2 features and the image 3"),
        (lambda: SimilarityToConceptTarget([0.0, 0.0]), ValueError, "zero"),
    ],
)
def test_invalid_arguments_raise(call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()  # type: ignore[operator]


def test_similarity_is_the_mean_cosine() -> None:
    image, two = torch.tensor([3.0, 4.0]), np.array([[4.0, 3.0], [0.0, 2.0]])
    assert float(SimilarityToConceptTarget([4.0, 3.0])(image)) == pytest.approx(24 / 25)
    assert float(SimilarityToConceptTarget(two)(image)) == pytest.approx((0.96 + 0.8) / 2)
    assert float(DifferenceFromConceptTarget([4.0, 3.0])(image)) == pytest.approx(1 / 25)
    assert float(SimilarityToConceptTarget([4.0, 3.0])(image.reshape(2, 1, 1))) == pytest.approx(24 / 25)


def test_similarity_of_large_half_precision_vectors_does_not_overflow() -> None:
    vector = torch.full((512,), 200.0, dtype=torch.float16)
    assert float(SimilarityToConceptTarget(vector)(vector)) == pytest.approx(1.0, abs=1e-3)
