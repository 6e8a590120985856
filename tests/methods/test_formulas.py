"""Every formula against loops over channels and positions in float64, and against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence
from torch import Tensor, nn

from detcam import (
    ODAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from detcam.cam import BaseCAM
from detcam.targets import ClassifierOutputTarget
from detcam.utils.pca import first_principal_component
from tests.helpers import TinyCNN
from tests.methods.formulas import FORMULAS, TinyViT, patches_to_map


def models() -> list[tuple[nn.Module, nn.Module, Callable[[Tensor], Tensor] | None]]:
    cnn, vit = TinyCNN().double(), TinyViT().double()
    return [(cnn, cnn.conv2, None), (cnn, cnn.relu1, None), (vit, vit.norm, patches_to_map)]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["signed CNN layer", "rectified CNN layer", "ViT tokens"])
@pytest.mark.parametrize("method", FORMULAS, ids=lambda method: method.__name__)
def test_raw_saliency_equals_the_formula(method: type[BaseCAM], which: int) -> None:
    model, layer, reshape = models()[which]
    batch = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    scores = model(batch)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), kept[0])
    shaped = reshape or (lambda tensor: tensor)
    expected = [
        FORMULAS[method](a.tolist(), g.tolist())
        for a, g in zip(shaped(kept[0].detach()), shaped(gradient), strict=True)
    ]
    found = method(model, [layer], reshape).explain(batch, [[ClassifierOutputTarget(1)]] * 2)
    saliency = torch.stack([result.saliency[0][0] for result in found])
    torch.testing.assert_close(saliency, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)


# Two channels of 1 x 2 positions.
A = torch.tensor([[[[2.0, 1.0]], [[4.0, -1.0]]]])
G = torch.tensor([[[[1.0, -3.0]], [[0.5, 0.5]]]])
BY_HAND = {
    # mean gradients -1 and 0.5: (-2 + 2, -1 - 0.5)
    GradCAM: [0.0, -1.5],
    # (2 * 1 + 4 * 0.5, 1 * -3 + -1 * 0.5)
    HiResCAM: [4.0, -3.5],
    ODAM: [4.0, -3.5],
    # (2 + 2, 0 + 0)
    GradCAMElementWise: [4.0, 0.0],
    # positive gradients (1, 0) and (0.5, 0.5): (2 + 2, 0 - 0.5)
    LayerCAM: [4.0, -0.5],
    # weights (2 * 1 + 1 * -3) / 3 = -1/3 and (4 * 0.5 - 1 * 0.5) / 3 = 0.5: (-2/3 + 2, -1/3 - 0.5)
    XGradCAM: [4 / 3, -5 / 6],
    # sums 3 and 3; weights 1 / (2 + 3 * 1) * 1 = 0.2 and twice 1 / (2 + 3 * 0.5) * 0.5 = 2/7
    GradCAMPlusPlus: [0.2 * 2 + 2 / 7 * 4, 0.2 * 1 - 2 / 7],
    # centered positions (0.5, 2.5) and (-0.5, -2.5): one axis, length sqrt(6.5)
    EigenCAM: [math.sqrt(6.5), -math.sqrt(6.5)],
    # products (2, -3) and (2, -0.5), centered (2.5, 1.25) and (-2.5, -1.25): length sqrt(7.8125)
    EigenGradCAM: [math.sqrt(7.8125), -math.sqrt(7.8125)],
}


@pytest.mark.parametrize("method", BY_HAND, ids=lambda method: method.__name__)
def test_values_by_hand(method: type[BaseCAM]) -> None:
    cnn = TinyCNN()
    found = method(cnn, [cnn.conv2]).saliency(A, G)
    torch.testing.assert_close(found, torch.tensor([[BY_HAND[method]]]), atol=1e-5, rtol=0)


def test_hirescam_sums_to_the_score_before_linear_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 30, 2, bias=False))
    model = model.double().eval()
    batch = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    found = HiResCAM(model, [model[0]]).explain(batch, [ClassifierOutputTarget(1)])[0]
    assert float(found.saliency[0].sum()) == pytest.approx(model(batch)[0, 1].item(), abs=1e-9)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, XGradCAM, EigenCAM, EigenGradCAM])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_and_constant_channels_give_no_nan(method: type[BaseCAM], value: float) -> None:
    cnn = TinyCNN()
    constant, varied = torch.full((1, 3, 4, 5), value), torch.rand(1, 3, 4, 5)
    for activations, gradients in ((constant, constant), (constant, varied), (varied, 0 * constant)):
        assert torch.isfinite(method(cnn, [cnn.conv2]).saliency(activations, gradients)).all()


class TestFirstPrincipalComponent:
    @pytest.mark.parametrize(
        "shape", [(3, 5, 4, 6), (2, 40, 3, 5), (1, 700, 27, 26)], ids=["positions", "channels", "large"]
    )
    def test_equals_numpys_svd(self, shape: tuple[int, int, int, int]) -> None:
        maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(min=-0.5)
        maps[:, :, 0] += 1.0
        for found, one in zip(first_principal_component(maps), maps, strict=True):
            table = one.flatten(1).T.numpy()
            centered = table - table.mean(0)
            expected = centered @ np.linalg.svd(centered, full_matrices=False)[2][0]
            if (expected * centered.sum(1)).sum() < 0:
                expected = -expected
            np.testing.assert_allclose(found.flatten().numpy(), expected, atol=1e-8)

    def test_both_sides_and_the_solver_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = torch.randn(2, 30, 5, 6, generator=torch.Generator().manual_seed(0))
        fewer, more = maps, torch.cat([maps, torch.zeros(2, 1, 5, 6)], 1)  # 30 and 31 channels of 30 positions
        expected = first_principal_component(fewer)
        torch.testing.assert_close(first_principal_component(more), expected, atol=1e-5, rtol=0)
        monkeypatch.setattr("detcam.utils.pca.MAX_FULL_SOLVER_SIZE", 8)
        torch.testing.assert_close(first_principal_component(fewer), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(first_principal_component(more), expected, atol=1e-5, rtol=0)

    def test_a_solver_that_does_not_converge_falls_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = torch.randn(1, 20, 5, 6, generator=torch.Generator().manual_seed(0))
        expected = first_principal_component(maps)
        monkeypatch.setattr("detcam.utils.pca.MAX_FULL_SOLVER_SIZE", 8)

        def lost(*args: object, **kwargs: object) -> None:
            raise ArpackNoConvergence("no convergence", [], [])

        monkeypatch.setattr("detcam.utils.pca.eigsh", lost)
        torch.testing.assert_close(first_principal_component(maps), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("side", [640, 8])
    def test_is_deterministic_and_independent_of_the_batch(self, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("detcam.utils.pca.MAX_FULL_SOLVER_SIZE", side)
        maps = torch.randn(4, 12, 6, 7, generator=torch.Generator().manual_seed(0)).relu()
        random_state = torch.get_rng_state()
        together = first_principal_component(maps)
        assert torch.equal(together, first_principal_component(maps))
        assert torch.equal(random_state, torch.get_rng_state())
        alone = torch.cat([first_principal_component(one[None]) for one in maps])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)

    def test_sign_follows_the_sum_over_channels(self) -> None:
        bright = torch.zeros(1, 4, 5, 5)
        bright[:, :3, 2, 2], bright[:, 3, 2, 2] = 1.0, -0.5
        assert int(first_principal_component(bright).flatten().argmax()) == 12
        assert int(first_principal_component(-bright).flatten().argmin()) == 12

    def test_sign_follows_the_peak_where_the_sum_is_rounding(self) -> None:
        """After a LayerNorm the channels add up to nothing but rounding, which must not decide."""
        maps = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        maps[:, :, 1, 4] *= 6
        normalized = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
        expected = first_principal_component(normalized)
        assert float(expected.amax()) == float(expected.abs().amax())
        for seed in range(8):
            noise = 1e-6 * torch.randn(normalized.shape, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(first_principal_component(normalized + noise), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("side", [640, 4])
    @pytest.mark.parametrize(
        "maps",
        [
            torch.zeros(1, 16, 4, 5),
            torch.full((2, 6, 4, 5), 3.5),
            torch.rand(1, 16, 1, 1),
            torch.rand(1, 1, 4, 5),
            torch.rand(1, 1, 4, 5) * torch.rand(1, 16, 1, 1),
            torch.rand(1, 16, 4, 5) * 1e-20,
            torch.rand(1, 16, 4, 5) * 1e15,
        ],
        ids=["zero", "constant", "one position", "one channel", "rank one", "tiny", "huge"],
    )
    def test_degenerate_maps(self, maps: Tensor, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("detcam.utils.pca.MAX_FULL_SOLVER_SIZE", side)
        found = first_principal_component(maps)
        assert torch.isfinite(found).all() and found.shape == (len(maps), *maps.shape[2:])
        rows = maps.double().flatten(2) - maps.double().flatten(2).mean(2, keepdim=True)
        length = torch.linalg.svdvals(rows).amax(1)  # the projection is as long as the first singular value
        torch.testing.assert_close(found.double().flatten(1).norm(dim=1), length, rtol=1e-5, atol=1e-30)
