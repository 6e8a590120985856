"""Default target layers and token grids, determined by a probe."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from detcam import EmptyMapWarning, GradCAM, HiResCAM, LayerCAM, adapt
from detcam.layers import InferredReshape, find_target_layers, infer_reshape, input_channels
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN, tensors

timm = pytest.importorskip("timm", reason="timm is not installed")

CPU = torch.device("cpu")


def chosen(model: nn.Module, size_hw: tuple[int, int], dtype: torch.dtype = torch.float32) -> str:
    """The dotted name of the layer that the probe picks."""
    (layer,) = find_target_layers(model, size_hw, CPU, dtype)
    return next(name for name, module in model.named_modules() if module is layer)


def vit(**options: object) -> nn.Module:
    return timm.models.VisionTransformer(
        **{"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5, **options}
    ).eval()


def small_vgg() -> nn.Module:
    features = tv.vgg.make_layers([8, "M", 16, "M"])
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(16 * 49, 5))


def torchvision_vit() -> nn.Module:
    return tv.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=5).eval()


def swin(version: int) -> nn.Module:
    block = tv.swin_transformer.SwinTransformerBlockV2 if version == 2 else None
    merging = tv.swin_transformer.PatchMergingV2 if version == 2 else tv.swin_transformer.PatchMerging
    return tv.SwinTransformer(
        [4, 4], 24, [1, 2], [2, 2], [4, 4], num_classes=5, block=block, downsample_layer=merging
    ).eval()


def timm_swin(version: int = 1) -> nn.Module:
    made = timm.models.SwinTransformerV2 if version == 2 else timm.models.SwinTransformer
    options = {} if version == 2 else {"strict_img_size": False}
    return made(
        img_size=64, embed_dim=24, depths=(1, 2), num_heads=(2, 2), window_size=4, num_classes=5, **options
    ).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str]] = {
    "resnet": (lambda: tv.resnet18(num_classes=5), (64, 64), "layer4"),
    "vgg, before its last pooling": (small_vgg, (64, 64), "0.4"),
    "mobilenet": (lambda: tv.mobilenet_v3_small(num_classes=5), (64, 64), "features"),
    "densenet": (lambda: tv.DenseNet(8, (2, 2), 16, num_classes=5), (64, 64), "features"),
    "squeezenet": (lambda: tv.squeezenet1_1(num_classes=5), (64, 64), "classifier.2"),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), (64, 64), "stages"),
    "torchvision vit": (torchvision_vit, (64, 64), "encoder.layers.encoder_layer_1.ln_1"),
    "torchvision swin": (lambda: swin(1), (64, 64), "permute"),
    "torchvision swin v2": (lambda: swin(2), (64, 64), "permute"),
    "vit, class token": (vit, (64, 64), "blocks.2.norm1"),
    "vit, wide": (lambda: vit(img_size=(48, 80)), (48, 80), "blocks.2.norm1"),
    "vit, registers": (lambda: vit(reg_tokens=4), (64, 64), "blocks.2.norm1"),
    "vit, mean of its tokens": (lambda: vit(global_pool="avg", class_token=False), (64, 64), "blocks"),
    "vit, attention pooling": (lambda: vit(global_pool="map"), (64, 64), "norm"),
    "deit, two tokens": (
        lambda: timm.models.deit.VisionTransformerDistilled(
            img_size=64, embed_dim=24, depth=3, num_heads=2, num_classes=5
        ),
        (64, 64),
        "blocks.2.norm1",
    ),
    "timm swin": (timm_swin, (64, 64), "norm"),
    "timm swin, wide": (timm_swin, (48, 80), "norm"),
    "timm swin v2": (lambda: timm_swin(2), (64, 64), "norm"),
    "mobilenet v4": (lambda: timm.create_model("mobilenetv4_conv_small", num_classes=5), (64, 64), "blocks"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_selects_the_last_map_on_every_path(name: str) -> None:
    build, size_hw, expected = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    before = Snapshot(model)
    assert chosen(model, size_hw) == expected
    before.check()


@pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")
@pytest.mark.parametrize("name", MODELS)
def test_default_layers_give_maps_with_a_gradient_everywhere(name: str) -> None:
    build, size_hw, _ = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():  # torchvision's transformer starts with a head of zeros
        [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1].weight.normal_()
    batch = torch.rand(2, 3, *size_hw)
    adapter = adapt(model, image_size=size_hw)
    for result in HiResCAM(adapter).explain(batch, [[ClassifierOutputTarget(1)]] * 2):
        assert result.reach is not None and result.reach[0].fraction > 0.5
        height, width = result.saliency[0].shape[-2:]
        assert height / width == pytest.approx(size_hw[0] / size_hw[1])
        assert float(result.saliency[0].abs().amax()) > 0


def test_heads_of_zeros_do_not_hide_the_layers() -> None:
    model = torchvision_vit()
    assert not bool(model.heads.head.weight.any())
    adapter = adapt(model, image_size=64)
    assert adapter.layer_names == ["encoder.layers.encoder_layer_1.ln_1"]
    assert not bool(model.heads.head.weight.any())
    with pytest.warns(EmptyMapWarning, match="zero everywhere"):
        GradCAM(adapter)(torch.rand(1, 3, 64, 64), [ClassifierOutputTarget(1)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert chosen(TinyCNN().to(dtype), (32, 48), dtype) == "relu2"
    assert chosen(vit().to(dtype), (64, 64), dtype) == "blocks.2.norm1"


def test_a_model_that_returns_an_object_with_logits_or_a_wrapped_one() -> None:
    class Like(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = vit()

        def forward(self, pixel_values: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=None, logits=self.backbone(pixel_values))

    torch.manual_seed(0)
    model = Like().eval()
    adapter = adapt(model, image_size=64)
    assert adapter.layer_names == ["backbone.blocks.2.norm1"]
    batch = torch.rand(2, 3, 64, 64)
    targets = [ClassifierOutputTarget(1)] * 2
    assert torch.equal(
        tensors(GradCAM(adapter)(batch, targets)), tensors(GradCAM(adapt(model.backbone))(batch, targets))
    )


def test_gray_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert chosen(model.eval(), (16, 16)) == "1"


class Branches(nn.Module):
    """Two branches from the first layer to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.right = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.left(x).mean((2, 3)), self.right(x).amax((2, 3))], 1))


def test_no_layer_of_a_branch_is_selected_silently() -> None:
    with pytest.raises(RuntimeError, match=r"no single layer.*target_layers="):
        adapt(Branches().eval())
    assert adapt(Branches().eval(), target_layers=["left", "right"]).layer_names == ["left", "right"]


def test_small_networks_have_layers_too() -> None:
    lenet = nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)),
    )
    assert chosen(lenet.eval(), (32, 32)) == "4"
    assert chosen(vit(depth=2), (64, 64)) == "blocks.1.norm1"


class Shared(nn.Module):
    """One convolution that runs three times; only what joins its runs has one map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.join = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.join(self.conv(self.conv(x)))).mean((2, 3)))


def test_a_repeated_layer_is_not_selected() -> None:
    assert chosen(Shared().eval(), (8, 8)) == "join"


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (vit(img_size=32), r"cannot probe.*image_size="),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)).eval(), "no single layer"),
        (nn.Bilinear(3, 3, 2).eval(), r"cannot probe.*target_layers="),
    ],
    ids=["wrong size", "no map", "two inputs"],
)
def test_models_that_cannot_be_probed_raise_with_a_remedy(model: nn.Module, match: str) -> None:
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match=match):
        find_target_layers(model, (64, 64), CPU, torch.float32)
    before.check()


def test_a_model_without_input_gradient_raises() -> None:
    class Cut(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(RuntimeError, match="no gradient with respect to its input"):
        find_target_layers(Cut(), (16, 16), CPU, torch.float32)


def spot(height: int, width: int, channels: int) -> Tensor:
    """A map (1, C, h, w) that is one at row 1, last column, in the last channel, and zero elsewhere."""
    grid = torch.zeros(1, channels, height, width)
    grid[0, -1, 1, -1] = 1.0
    return grid


class TestInferredReshape:
    @pytest.mark.parametrize("size_hw", [(64, 64), (48, 80), (96, 32)])
    @pytest.mark.parametrize("prefix", [0, 1, 2, 5])
    @pytest.mark.parametrize("declared", [True, False])
    def test_tokens_keep_their_positions(self, size_hw: tuple[int, int], prefix: int, declared: bool) -> None:
        grid = spot(size_hw[0] // 8, size_hw[1] // 8, 7)
        tokens = torch.cat([torch.full((1, prefix, 7), 9.0), grid.flatten(2).transpose(1, 2)], 1)
        reshape = InferredReshape(size_hw, prefix if declared else None)
        assert torch.equal(reshape.to_map(tokens), grid)

    @pytest.mark.parametrize("size_hw", [(225, 300), (230, 170)])
    @pytest.mark.parametrize("cut", [True, False])
    def test_patches_at_the_border_may_be_cut_off_or_padded(self, size_hw: tuple[int, int], cut: bool) -> None:
        height, width = (side // 16 if cut else -(-side // 16) for side in size_hw)
        grid = spot(height, width, 7)
        tokens = torch.cat([torch.zeros(1, 1, 7), grid.flatten(2).transpose(1, 2)], 1)
        assert torch.equal(InferredReshape(size_hw).to_map(tokens), grid)

    def test_declared_prefix_tokens_may_be_missing_from_a_layer(self) -> None:
        grid = spot(14, 14, 7)
        assert torch.equal(InferredReshape((224, 224), 1).to_map(grid.flatten(2).transpose(1, 2)), grid)

    @pytest.mark.parametrize("size_hw", [(64, 64), (48, 80), (100, 75)])
    @pytest.mark.parametrize("channels", [3, 48, 200])
    def test_channels_last_maps_are_turned(self, size_hw: tuple[int, int], channels: int) -> None:
        grid = spot(-(-size_hw[0] // 8), -(-size_hw[1] // 8), channels)
        reshape = InferredReshape(size_hw)
        assert torch.equal(reshape.to_map(grid.permute(0, 2, 3, 1)), grid)
        assert torch.equal(reshape.to_map(grid), grid)

    @pytest.mark.parametrize("channels", [6, 10])
    def test_as_many_channels_as_rows_or_columns_in_a_wide_image(self, channels: int) -> None:
        grid = spot(6, 10, channels)
        reshape = InferredReshape((48, 80))
        assert torch.equal(reshape.to_map(grid.permute(0, 2, 3, 1)), grid)
        assert torch.equal(reshape.to_map(grid), grid)

    def test_as_many_channels_as_rows_and_columns_follow_what_the_model_normalizes(self) -> None:
        cube = torch.rand(1, 8, 8, 8)
        assert torch.equal(InferredReshape((64, 64)).to_map(cube), cube)
        assert torch.equal(InferredReshape((64, 64), None, frozenset({8})).to_map(cube), cube.permute(0, 3, 1, 2))
        small_swin = timm.models.SwinTransformer(
            img_size=64, embed_dim=8, patch_size=8, depths=(1,), num_heads=(2,), window_size=4, num_classes=2
        )
        assert infer_reshape(small_swin, (64, 64)).last_axis_channels >= {8}
        convnext = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=2)
        assert not infer_reshape(convnext, (32, 32)).last_axis_channels & {8, 16, 32}
        assert not infer_reshape(TinyCNN(), (32, 32)).last_axis_channels

    def test_tokens_without_a_grid_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"150 tokens.*64 x 64.*reshape_transform="):
            InferredReshape((64, 64)).to_map(torch.rand(1, 150, 4))
        with pytest.raises(ValueError, match="tokens"):
            InferredReshape((64, 64), 1).to_map(torch.rand(1, 18, 4))
        assert not InferredReshape((64, 64)).fits(torch.rand(1, 3, 197, 64)), "heads x tokens x features"

    @pytest.mark.parametrize("name", ["vit", "wide vit", "swin", "cnn"])
    def test_layers_of_real_models_preserve_position(self, name: str) -> None:
        """A patch embedding is local: what changes in one corner of the image changes that corner of the map."""
        torch.manual_seed(0)
        size_hw = (48, 80) if name == "wide vit" else (64, 64)
        model, layer = {
            "vit": lambda: (vit(reg_tokens=2), "blocks.0.norm1"),
            "wide vit": lambda: (vit(img_size=(48, 80)), "blocks.0.norm1"),
            "swin": lambda: (timm_swin(), "layers.0.blocks.0.norm1"),
            "cnn": lambda: (tv.resnet18(num_classes=5).eval(), "layer1"),
        }[name]()
        held: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: held.append(o.detach()))
        image = torch.zeros(1, 3, *size_hw)
        model(image)
        image[..., :16, -16:] = torch.rand(16, 16)
        model(image)
        handle.remove()
        reshape = infer_reshape(model, size_hw)
        moved = (reshape.to_map(held[1]) - reshape.to_map(held[0])).abs().sum(1)[0]
        rows, columns = moved.shape
        assert rows / columns == size_hw[0] / size_hw[1]
        corner = moved[: rows // 2, columns // 2 :]
        assert float(corner.sum()) > 0.9 * float(moved.sum()) > 0


def test_given_reshape_transform_has_priority() -> None:
    torch.manual_seed(0)
    model, batch = vit(), torch.rand(1, 3, 64, 64)
    targets = [ClassifierOutputTarget(2)]

    def turned(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)).flip(-1)

    own = tensors(LayerCAM(model, [model.blocks[-1].norm1], turned)(batch, targets))
    inferred = tensors(LayerCAM(model, [model.blocks[-1].norm1])(batch, targets))
    torch.testing.assert_close(own, inferred.flip(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([(3, 8), (8, 4)], 3),
        ([(5, 8), (8, 2)], 5),
        ([(1, 3), (3, 2)], 1),
        ([(4, 3), (3, 4)], 4),
        ([(4, 2), (3, 4)], 3),
        ([(64, 2), (3, 64)], 3),
        ([], 3),
    ],
    ids=["color", "five bands", "gray", "three features", "head first", "wide head first", "no convolution"],
)
def test_input_channels(layers: list[tuple[int, int]], expected: int) -> None:
    assert input_channels(nn.Sequential(*(nn.Conv2d(*sides, 1) for sides in layers))) == expected
