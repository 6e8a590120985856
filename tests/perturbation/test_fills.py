"""Fills against literal versions: dense systems, pixel loops, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from detcam.auditing.case import LIGHT_FILLS
from detcam.perturbation.fills import (
    DEFAULT_BLUR,
    BlurFill,
    EvenLightFill,
    HalfLightFill,
    LinearFill,
    MeanFill,
    RingFill,
    SurroundingsFill,
    fill_of,
)
from detcam.perturbation.harmonic_solver import Multigrid, harmonic_fill, solve_by_factorization


def literal_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Every missing pixel (C, h, w) the weighted mean of its neighbors, by a dense system built pixel by pixel."""
    _, height, width = image.shape
    pixels = [(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)]
    number = {pixel: index for index, pixel in enumerate(pixels)}
    system, known = np.zeros((len(pixels), len(pixels))), np.zeros((len(pixels), len(image)))
    for (y, x), row in number.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                there = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= there[0] < height and 0 <= there[1] < width):
                    continue
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                system[row, row] += weight
                if there in number:
                    system[row, number[there]] -= weight
                else:
                    known[row] += weight * image[:, there[0], there[1]]
    filled = image.copy()
    filled[:, mask] = np.linalg.solve(system, known).T
    return filled


def masks(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    blob, checker = np.zeros((height, width), bool), np.zeros((height, width), bool)
    blob[1 : height - 3, 2 : width - 1] = True
    checker[::2, ::2] = True
    corner = np.ones((height, width), bool)
    corner[height // 2, width // 3] = False
    border = np.ones((height, width), bool)
    border[3 : height - 2, 2 : width - 4] = False
    smooth = gaussian_filter(rng.random((height, width)), 3)
    return {
        "blob": blob,
        "checker": checker,
        "all but one": corner,
        "border": border,
        "noise": rng.random((height, width)) < 0.8,
        "hills": smooth > np.quantile(smooth, 0.3),
    }


@pytest.mark.parametrize("name", list(masks(9, 9)))
@pytest.mark.parametrize("size", [(12, 15), (17, 10)])
def test_both_solvers_match_the_dense_system(name: str, size: tuple[int, int]) -> None:
    mask, image = masks(*size)[name], np.random.default_rng(1).random((3, *size))
    wanted = literal_fill(image, mask)[:, mask]
    np.testing.assert_allclose(solve_by_factorization(mask, image), wanted, atol=1e-10)
    np.testing.assert_allclose(Multigrid(*size, 3).solve(mask, image), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 131), (130, 64)])
def test_multigrid_matches_factorization_for_successive_masks(size: tuple[int, int]) -> None:
    solver, rng = Multigrid(*size, 2), np.random.default_rng(2)
    for mask in masks(*size).values():
        image = rng.random((2, *size)) * 2 - 0.5
        np.testing.assert_allclose(solver.solve(mask, image), solve_by_factorization(mask, image), atol=1e-5)


def test_large_and_small_holes_of_a_batch_are_exact() -> None:
    images, removed = torch.rand(4, 3, 120, 110), torch.zeros(4, 120, 110, dtype=torch.bool)
    removed[0, 10:115, 5:105] = True
    removed[1, 40:60, 40:60] = True
    removed[2, 80:, :40] = True  # a corner of the image, whose pixels have fewer neighbors
    filled = harmonic_fill(images, removed)
    for k in range(3):
        mask = removed[k].numpy()
        wanted = torch.from_numpy(solve_by_factorization(mask, images[k].double().numpy())).float()
        torch.testing.assert_close(filled[k][:, removed[k]], wanted, atol=1e-5, rtol=0)
    assert torch.equal(filled[3], images[3])
    assert torch.equal(filled[0][:, ~removed[0]], images[0][:, ~removed[0]])


def test_gray_images_are_filled_and_inputs_unchanged() -> None:
    images, removed = torch.rand(2, 1, 120, 110, dtype=torch.float64), torch.zeros(2, 120, 110, dtype=torch.bool)
    removed[:, 10:115, 5:105] = True
    before = images.clone()
    filled = harmonic_fill(images, removed)
    assert torch.equal(images, before)
    for k in range(2):
        wanted = torch.from_numpy(solve_by_factorization(removed[k].numpy(), images[k].numpy()))
        torch.testing.assert_close(filled[k][:, removed[k]], wanted, atol=1e-5, rtol=0)


def test_a_ramp_is_filled_linearly() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 30, 40)
    removed = torch.zeros(1, 30, 40, dtype=torch.bool)
    removed[0, 5:25, 6:33] = True
    torch.testing.assert_close(LinearFill(noise=0)(ramp, removed), ramp.clone(), atol=1e-5, rtol=0)


def test_noise_depends_on_the_seed_only() -> None:
    image, removed = torch.rand(1, 3, 20, 20), torch.rand(4, 20, 20) < 0.4
    state = torch.get_rng_state()
    whole = LinearFill(0.1, seed=3)(image, removed)
    assert torch.equal(torch.get_rng_state(), state)
    apart = torch.cat([LinearFill(0.1, seed=3)(image, part) for part in removed.split(1)])
    torch.testing.assert_close(whole, apart)
    assert not torch.allclose(whole, LinearFill(0.1, seed=4)(image, removed))
    added = (whole - LinearFill(0)(image, removed)).permute(0, 2, 3, 1)
    assert not added[~removed].any()
    assert float(added[removed].std()) == pytest.approx(0.1, rel=0.2)


def test_a_fully_removed_image_is_filled_with_its_mean() -> None:
    image = torch.rand(1, 3, 8, 8)
    filled = LinearFill(noise=0)(image, torch.ones(1, 8, 8, dtype=torch.bool))
    torch.testing.assert_close(filled, image.mean((-2, -1), keepdim=True).expand_as(image))
    with pytest.raises(ValueError, match="nothing to fill it from"):
        harmonic_fill(image, torch.ones(1, 8, 8, dtype=torch.bool))


def literal_blur(image: Tensor, sigma: float) -> Tensor:
    """Each pixel the Gaussian mean of all pixels of the image, by loops."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            rows = (-((torch.arange(height) - y) ** 2) / (2 * sigma**2)).double().exp()
            columns = (-((torch.arange(width) - x) ** 2) / (2 * sigma**2)).double().exp()
            weights = rows[:, None] * columns
            out[:, y, x] = (image * weights).sum((1, 2)) / weights.sum()
    return out


def test_blur_and_mean() -> None:
    images, removed = torch.rand(2, 3, 9, 12), torch.rand(2, 9, 12) < 0.5
    blurred, flat = BlurFill(1.5)(images, removed), MeanFill()(images, removed)
    for k in range(2):
        wanted = literal_blur(images[k].double(), 1.5).float()
        torch.testing.assert_close(blurred[k][:, removed[k]], wanted[:, removed[k]])
        mean = images[k].mean((1, 2))
        torch.testing.assert_close(flat[k][:, removed[k]], mean[:, None].expand(-1, int(removed[k].sum())))
        for filled in (blurred, flat):
            assert torch.equal(filled[k][:, ~removed[k]], images[k][:, ~removed[k]])


@pytest.mark.parametrize("name", ["blur", "mean", "linear"])
def test_fills_follow_a_change_of_scale_per_channel(name: str) -> None:
    image, removed = torch.rand(1, 3, 16, 16), torch.rand(2, 16, 16) < 0.6
    scale, shift = torch.tensor([2.0, 0.5, 3.0])[:, None, None], torch.tensor([1.0, -2.0, 0.3])[:, None, None]
    fill = LinearFill(noise=0) if name == "linear" else fill_of(name)
    torch.testing.assert_close(fill(image * scale + shift, removed), fill(image, removed) * scale + shift)


def test_invalid_calls_raise() -> None:
    image, removed = torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)
    with pytest.raises(TypeError, match="bool"):
        MeanFill()(image, removed.float())
    with pytest.raises(ValueError, match="size"):
        BlurFill()(image, torch.zeros(1, 8, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected images"):
        LinearFill()(image[0], removed)
    with pytest.raises(ValueError, match="blur, mean, linear"):
        fill_of("gray")
    with pytest.raises(TypeError, match="fill or its name"):
        fill_of(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma"):
        BlurFill(0)
    with pytest.raises(ValueError, match="noise"):
        LinearFill(-1)


def test_a_fill_from_the_surroundings_is_their_weighted_mean_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 2, 20, 24, generator=generator, dtype=torch.float64)
    removed = torch.zeros(3, 20, 24, dtype=torch.bool)
    removed[0, 4:7, 5:9] = True  # a small hole, a large one, and none
    removed[1, 2:17, 3:20] = True
    found = SurroundingsFill()(images, removed)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    for mask, filled in zip(removed[:2], found[:2], strict=True):

        def weights(y: int, x: int, sigma: float) -> Tensor:
            bell = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)).double()
            return bell / bell.sum()

        holes = mask.nonzero().tolist()
        sigma = DEFAULT_BLUR * 24
        while min(float(weights(y, x, sigma)[~mask].sum()) for y, x in holes) < 0.1:
            sigma *= 2
        for y, x in holes:
            kept = weights(y, x, sigma) * ~mask
            expected = (images[0] * kept).sum((1, 2)) / kept.sum()
            torch.testing.assert_close(filled[:, y, x], expected)
        torch.testing.assert_close(filled[:, ~mask], images[0][:, ~mask])
    assert torch.equal(found[2], images[0])


def test_a_fill_from_the_surroundings_of_a_large_image_is_that_of_a_small_one() -> None:
    small = torch.rand(1, 3, 15, 20, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(small, (120, 160), mode="bicubic")
    removed = torch.zeros(1, 120, 160, dtype=torch.bool)
    removed[:, 20:100, 40:110] = True
    found = SurroundingsFill()(image, removed)
    large = (
        F.interpolate(image, (480, 640), mode="bilinear"),
        removed.repeat_interleave(4, 1).repeat_interleave(4, 2),
    )
    again = F.interpolate(SurroundingsFill()(*large), (120, 160), mode="area")
    inside = removed[0].clone()
    inside[:, 39:42] = inside[:, 108:111] = inside[19:22] = inside[98:101] = False  # the edge is not where pixels end
    assert float((again - found)[0][:, inside].abs().max()) < 0.01
    assert float(found[0][:, inside].std()) > 0.02


def test_a_fill_from_the_surroundings_ignores_removed_pixels() -> None:
    image = torch.zeros(1, 3, 40, 40)
    removed = torch.zeros(1, 40, 40, dtype=torch.bool)
    removed[:, 10:30, 10:30] = True
    blue = image.clone()
    blue[:, 2, 10:30, 10:30] = 1
    torch.testing.assert_close(SurroundingsFill()(blue, removed), image)
    assert float(BlurFill()(blue, removed)[0, 2, 20, 20]) > 0.9, "which a blurred image does"
    torch.testing.assert_close(
        SurroundingsFill()(blue, torch.ones_like(removed)), torch.tensor([0, 0, 0.25])[:, None, None].expand_as(blue)
    )


def test_ring_fill_is_the_mean_of_a_ring_around_each_part() -> None:
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(1, 40, 50, dtype=torch.bool)
    removed[0, 5:11, 5:11], removed[0, 30:40, 40:50] = True, True
    filled = RingFill()(image, removed)
    assert torch.equal(filled[:, :, ~removed[0]], image[:, :, ~removed[0]])
    for top, left, side in ((5, 5, 6), (30, 40, 10)):
        width = max(2, round(0.35 * side))
        ring = torch.zeros(40, 50, dtype=torch.bool)
        for row in range(40):  # every kept pixel whose ellipse of that width reaches the part
            for column in range(50):
                dy = max(top - row, row - (top + side - 1), 0)
                dx = max(left - column, column - (left + side - 1), 0)
                ring[row, column] = not removed[0, row, column] and dy**2 + dx**2 <= width**2
        expected = image[0][:, ring].mean(1)
        part = filled[0, :, top : top + side, left : left + side]
        assert bool((part == part[:, :1, :1]).all())
        torch.testing.assert_close(part[:, 0, 0], expected, atol=0.02, rtol=0)
    whole = torch.ones(1, 40, 50, dtype=torch.bool)
    torch.testing.assert_close(RingFill()(image, whole)[0, :, 0, 0], image[0].mean((1, 2)))
    bound = LinearFill(noise=0.1).for_image(image)
    torch.testing.assert_close(bound(removed), LinearFill(noise=0.1)(image, removed), atol=0, rtol=0)


def test_evened_light_keeps_details() -> None:
    """Red light that fades slowly is gone, the structure of the ground stays."""
    rows, columns = torch.arange(64)[:, None], torch.arange(80)[None]
    squared = (rows - 32).square() + (columns - 40).square()
    ground = 0.4 + 0.1 * torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))
    image = ground[None].clone()
    image[:, 0] += 0.5 * torch.exp(-squared / (2 * 12**2))
    removed = (squared <= 30**2)[None]
    evened = EvenLightFill()(image, removed)
    assert torch.equal(evened[:, :, ~removed[0]], image[:, :, ~removed[0]])
    inner = squared <= 20**2
    torch.testing.assert_close(evened[0].mean((1, 2)), ground.mean((1, 2)), atol=0.03, rtol=0)
    assert all(
        float(torch.corrcoef(torch.stack(pair))[0, 1]) > 0.9
        for pair in zip(evened[0][:, inner], ground[:, inner], strict=True)
    )
    scale, shift = torch.tensor([3, 0.5, -2])[None, :, None, None], torch.tensor([1, 0, 4])[None, :, None, None]
    scaled = EvenLightFill()(image * scale + shift, removed)
    torch.testing.assert_close(scaled, evened * scale + shift, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("fill", "expected"), [(EvenLightFill(), 0.125), (HalfLightFill(), 0.25)])
def test_the_light_is_that_of_the_pixels_that_are_least_like_the_removed_ones(
    fill: EvenLightFill, expected: float
) -> None:
    image = torch.full((1, 1, 40, 50), 2.0)
    image[..., :40] = torch.linspace(0, 1, 1600).view(40, 40)
    removed = torch.zeros(1, 40, 50, dtype=torch.bool)
    removed[..., 40:] = True
    torch.testing.assert_close(fill(image, removed)[..., 40:], torch.full((1, 1, 40, 10), expected), atol=0.01, rtol=0)
    saturated = torch.cat([image, torch.where(removed, 2.0, 1.0)[:, None]], 1)
    evened = fill(saturated, removed)[:, 0, :, 40:]
    torch.testing.assert_close(evened, torch.full((1, 40, 10), expected), atol=0.01, rtol=0)
    whole = torch.ones_like(removed)
    torch.testing.assert_close(fill(image, whole).mean(), image.mean(), atol=0.05, rtol=0)
    assert fill.name in LIGHT_FILLS
