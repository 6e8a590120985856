"""Perturbed images whose early layers run on windows score as in whole passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from detcam.adapters import adapt, detector
from detcam.adapters.base import Batch
from detcam.perturbation import early_layers
from detcam.perturbation.base import ImageScorer
from detcam.perturbation.early_layers import EarlyLayers
from detcam.trace import guarded
from tests.helpers import Snapshot


class Gate(nn.Module):
    """Squeeze-and-excitation: a weight per channel from the mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Network(nn.Module):
    """Three convolutions at strides 2, 4 and 4, a last one at stride 8, and class logits from the mean and maximum.

    Args:
        gate: the number of convolutions after the first one before a squeeze-and-excitation; None has none.
        skip: whether the scores read the first convolution's output as well.
    """

    def __init__(self, gate: int | None = None, *, skip: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.conv2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.conv3 = nn.Conv2d(8, 8, 3, 1, 1)
        self.conv4 = nn.Conv2d(8, 4, 3, 2, 1)
        self.gates = nn.ModuleList([Gate() if number == gate else nn.Identity() for number in range(3)])
        self.skip = skip
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        first = self.gates[0](self.conv1(x))
        second = self.gates[1](self.conv2(first))
        last = self.conv4(self.gates[2](self.conv3(second)))
        scores = last.mean((2, 3)) + last.amax((2, 3))
        return scores + first.amax((2, 3))[:, :4] if self.skip else scores


@contextmanager
def scorer_of(model: nn.Module, inputs: Tensor) -> Iterator[ImageScorer]:
    """A scorer of the first two classes of an image (1, C, H, W)."""
    adapter = adapt(model, target_layers=[list(model.modules())[-1]]).without_layers()
    with guarded(model, gradients=False), torch.no_grad():
        batch = adapter.prepare_tensor(inputs)
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        yield ImageScorer(adapter, batch, output, [lambda y: y[0], lambda y: y[1]])


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def perturbed(image: Tensor) -> Tensor:
    """Six versions of an image: unchanged, changed in the middle, at three borders, and everywhere."""
    versions = image.repeat(6, 1, 1, 1)
    versions[1, :, 41:60, 70:81] = 9
    versions[2, :, :7, :9] = 9
    versions[3, :, 90:, 110:] = 9
    versions[4, 1, -2:, 33] = 99
    versions[5] = versions[5].flip(-1)
    return versions


def computed(model: nn.Module, run: Callable[[], object]) -> int:
    """The number of values that the first convolution computes."""
    total: list[int] = []
    with model.get_submodule("conv1.0").register_forward_hook(
        lambda module, inputs, output: total.append(output.numel())
    ):
        run()
    return sum(total)


@pytest.mark.parametrize("size", [(128, 160), (121, 150)], ids=["multiples of the stride", "other sides"])
def test_versions_score_as_in_whole_passes(size: tuple[int, int]) -> None:
    model, image = Network(), random_image(*size)
    before, versions = Snapshot(model), perturbed(image)
    with scorer_of(model, image) as scorer:
        whole = scorer.score(versions)
        found = scorer.find_early_layers()
        assert found is not None and found.layer.module in (model.conv3, model.gates[2]), "the last one with a benefit"
        assert (found.layer.stride, found.layer.halo) == (4, 2)
        assert torch.allclose(scorer.score(versions), whole, atol=1e-5), "all together, so that windows grow"
        each = torch.cat([scorer.score(version[None]) for version in versions])
        assert torch.allclose(each, whole, atol=1e-5)
        values = computed(model, lambda: scorer.score(versions[1:2]))
        assert values < 0.35 * computed(model, lambda: model(image)), "only a window is computed"
        assert not computed(model, lambda: scorer.score(versions[:1])), "nothing has changed"
    assert (whole[1:] - whole[0]).abs().amax(1).min() > 1e-3, "every change has an effect"
    before.check()


def test_versions_of_two_images_share_a_pass() -> None:
    model, images = Network(), [random_image(96, 128, seed) for seed in (0, 1)]
    versions = [image.clone() for image in images]
    for version in versions:
        version[:, :, 20:30, 40:60] = 0
    with scorer_of(model, images[0]) as first, scorer_of(model, images[1]) as second:
        first.find_early_layers()
        second.early_layers = first.early_layers
        together = first.score(torch.cat(versions), scorers=[first, second])
        first.early_layers = second.early_layers = None
        assert torch.allclose(together, torch.cat([first.score(versions[0]), second.score(versions[1])]), atol=1e-5)


def test_images_that_change_everywhere_run_whole() -> None:
    model, image = Network(), random_image(128, 160)
    versions = image.flip(-1).repeat(2, 1, 1, 1)
    versions[1] += 1
    with scorer_of(model, image) as scorer:
        whole = scorer.score(versions)
        early = scorer.find_early_layers()
        assert early is not None
        scorer.score(perturbed(image)[1:2])  # the unperturbed image passes through them once
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(early, "until_layer", lambda batch: pytest.fail("the early layers ran apart"))
            assert torch.equal(scorer.score(versions), whole)


def test_halo_that_is_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Network(), random_image(128, 160)
    with scorer_of(model, image) as scorer:
        found = scorer.find_early_layers()
        assert found is not None
        whole = found.until_layer(scorer.batch)
        measured = early_layers.local_layers
        for missing, is_exact in ((0, True), (1, False)):
            narrow = [
                early_layers.LocalLayer(each.module, each.stride, each.halo - missing, each.saved_fraction)
                for each in measured(scorer.adapter, scorer.batch)
                if each.module is model.conv3
            ]
            monkeypatch.setattr(early_layers, "local_layers", lambda adapter, batch, found=narrow: found)
            assert (scorer.find_early_layers() is not None) == is_exact
            early = EarlyLayers(scorer.adapter, narrow[0], image.shape[-2:])
            original = early.original(scorer.batch)
            assert original is not None
            version = scorer.batch.inputs.clone()
            version[:, :, 50:60, 60:70] = 0
            batch = early_layers.select_rows(scorer.batch, [0], version)
            same = torch.allclose(early.features(batch, [original]), early.until_layer(batch), atol=1e-6)
            assert same == is_exact
        assert whole.shape == (1, 8, 32, 40)


@pytest.mark.parametrize(("gate", "layers"), [(0, ["conv1"]), (1, ["conv2", "gates.0"]), (2, ["conv3", "gates.1"])])
def test_layers_after_a_global_one_run_whole(gate: int, layers: list[str]) -> None:
    model, image = Network(gate), random_image(128, 160)
    versions = perturbed(image)
    with scorer_of(model, image) as scorer:
        whole = scorer.score(versions)
        found = scorer.find_early_layers()
        local = {module for layer in layers for module in model.get_submodule(layer).modules()}
        assert found is not None and found.layer.module in local
        assert torch.allclose(scorer.score(versions), whole, atol=1e-5)


class Detector(Network):
    """Scores of two classes at stride 8, and boxes from the last convolution, or from the first one."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        last = self.conv4(self.conv3(self.conv2(first)))
        sides = F.avg_pool2d(first, 4)[:, :2] if self.skip else last[:, 2:]
        return (torch.cat([last[:, :2], sides], 1) + last.mean((1, 2, 3), keepdim=True)).sigmoid()


def decode(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of up to 16 pixels around each cell, and scores."""
    y, x = (axis.flatten() * 8.0 + 4 for axis in torch.meshgrid(*map(torch.arange, raw.shape[-2:]), indexing="ij"))
    scores, sides = raw.flatten(2).transpose(1, 2).split(2, 2)
    centers = torch.stack([x, y], 1)
    return torch.cat([centers - 8 * sides, centers + 8 * sides], 2), scores


@pytest.mark.parametrize("skip", [False, True])
def test_boxes_are_those_of_whole_passes(skip: bool) -> None:
    model, image = Detector(skip=skip), random_image(128, 160)
    adapter = detector(model, decode=decode, target_layers=[model.conv4]).without_layers()
    candidates: list[Tensor] = []

    def read(raw: object, batch: Batch) -> Tensor:
        found = [torch.cat(output.raw_candidates(), 1) for output in adapter.outputs(raw, batch)]
        candidates.append(torch.stack(found))
        return torch.zeros(len(found), 0)

    with guarded(model, gradients=False), torch.no_grad():
        batch = adapter.prepare_tensor(image)
        output = adapter.outputs(adapter.forward(batch), batch)[0]
        targets = [lambda output: output.raw_candidates()[1].amax()]
        scorer = ImageScorer(adapter, batch, output, targets, reads_candidates=True)
        versions = perturbed(scorer.batch.inputs)
        scorer.score(versions, read)
        found = scorer.find_early_layers()
        assert found is not None and found.layer.stride == (2 if skip else 4)
        scorer.score(versions, read)
    whole, windows = candidates
    assert torch.allclose(windows, whole, atol=1e-4)
    assert not torch.allclose(whole[1:], whole[:1], atol=1e-2), "boxes and scores change"


@pytest.mark.filterwarnings("ignore:Sequential normalizes each image")
def test_network_that_starts_with_a_global_layer_runs_whole() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Gate(), Network()).eval()  # the first one saves nothing
    with scorer_of(model, random_image(128, 160)) as scorer:
        assert scorer.find_early_layers() is None


def test_scores_that_read_an_earlier_layer_are_right() -> None:
    model, image = Network(skip=True), random_image(128, 160)
    versions = perturbed(image)
    with scorer_of(model, image) as scorer:
        whole = scorer.score(versions)
        found = scorer.find_early_layers()
        assert found is not None and found.layer.stride == 2, "the second convolution is not all that the scores read"
        assert torch.allclose(scorer.score(versions), whole, atol=1e-5)


def test_small_images_run_whole() -> None:
    with scorer_of(Network(), random_image(48, 64)) as scorer:
        assert scorer.find_early_layers() is None


def test_image_whose_size_does_not_suit_the_layers_runs_whole() -> None:
    model = Network()
    model.conv2[0] = nn.Conv2d(8, 8, 2, 2)  # of an odd number of rows, the last one gets no cell
    with scorer_of(model, random_image(128, 160)) as fitting, scorer_of(model, random_image(126, 160)) as other:
        found = fitting.find_early_layers()
        assert found is not None and found.layer.stride == 4
        other.early_layers = fitting.early_layers
        versions = perturbed(other.batch.inputs)
        scores = other.score(versions)
        assert other.early_layers is None
        assert torch.allclose(scores, model(versions)[:, :2], atol=1e-5)


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does: of an odd number of rows, one on both sides; else one below."""

    def forward(self, x: Tensor) -> Tensor:
        row, column = (1 if side % 2 else 0 for side in x.shape[-2:])
        return super().forward(F.pad(x, (column, 1, row, 1)))


def test_padding_that_depends_on_the_size_is_tested_for_each_remainder() -> None:
    model = Network()
    model.conv1[0] = SamePadding(3, 8, 3, 2)
    with scorer_of(model, random_image(128, 160)) as even, scorer_of(model, random_image(127, 160)) as odd:
        assert even.find_early_layers() is not None
        odd.early_layers = even.early_layers
        versions = perturbed(odd.batch.inputs)
        assert torch.allclose(odd.score(versions), model(versions)[:, :2], atol=1e-5)
        assert odd.early_layers is None


class Deformable(nn.Module):
    """A deformable convolution with offsets from its input; with NaN among them, it ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(8, 2 * 9, 3, 1, 1)
        self.weight = nn.Parameter(torch.full((8, 8, 3, 3), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return deform_conv2d(x, self.offsets(x), self.weight, padding=1)


class Lookup(nn.Module):
    """A table of activations, at indices from its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(-1, 1, 256)[(x.tanh() * 127 + 128).long().clamp(0, 255)]


class Sampler(nn.Module):
    """Samples features at positions that depend on them."""

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.eye(2, 3).expand(len(x), -1, -1)
        grid = F.affine_grid(identity, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid + 0 * x[:, :2].permute(0, 2, 3, 1), align_corners=False)


@pytest.mark.parametrize("module", [Deformable, Lookup, Sampler])
def test_nan_is_no_position(module: type[nn.Module]) -> None:
    model = Network()
    model.gates[1] = module()
    seen: list[bool] = []
    model.gates[1].register_forward_hook(lambda module, inputs, output: seen.append(bool(inputs[0].isnan().any())))
    versions = perturbed(random_image(128, 160))
    with scorer_of(model, versions[:1]) as scorer:
        whole = scorer.score(versions)
        found = scorer.find_early_layers()
        assert found is not None and found.layer.stride in (2, 4) and not any(seen)
        assert torch.allclose(scorer.score(versions), whole, atol=1e-5)


class Bright(Network):
    """Adds one to the scores of bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.is_bright = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Above())

    def forward(self, x: Tensor) -> Tensor:
        bright = self.is_bright(x)
        return super().forward(x) + bright.any(1, keepdim=True)


class Above(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 1


def test_integers_of_earlier_modules_are_not_replaced() -> None:
    model, dark, bright = Bright(), random_image(128, 160), 3 * random_image(128, 160)
    with scorer_of(model, dark) as first, scorer_of(model, bright) as second:
        second.early_layers = first.find_early_layers()
        versions = perturbed(bright)
        assert torch.allclose(second.score(versions), model(versions)[:, :2], atol=1e-5)


class Flattening(Network):
    """Flattens a map with view(), which refuses the channels-last memory format."""

    def forward(self, x: Tensor) -> Tensor:
        last = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        return last.view(len(x), -1).unflatten(1, (4, -1)).mean(2)


def test_images_that_share_a_folding_agree_on_the_memory_format() -> None:
    model, images = Flattening(), [random_image(128, 160, seed) for seed in (0, 1)]
    with scorer_of(model, images[0]) as first, scorer_of(model, images[1]) as second:
        second.early_layers, second.folding = first.find_early_layers(), first.folding
        assert second.early_layers is not None and not first.channels_last
        versions = perturbed(images[1])
        assert torch.allclose(second.score(versions), model(versions)[:, :2], atol=1e-5)


def test_deviations_of_half_precision_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Network().bfloat16(), random_image(128, 160).bfloat16()
    run = EarlyLayers.features
    with scorer_of(model, image) as scorer:
        assert scorer.find_early_layers() is not None
        monkeypatch.setattr(EarlyLayers, "features", lambda self, *inputs: run(self, *inputs) * 1.05)
        assert scorer.find_early_layers() is None
