"""Segmentation networks: every architecture finds what its own output says, and is explained there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

from detcam import GradCAM, HiResCAM, LayerCAM, ReachWarning
from detcam.adapters import adapt, segmenter
from detcam.adapters.normalization import IMAGENET
from detcam.adapters.segmentation import TorchvisionSegmentationAdapter
from detcam.data.images import load_image
from detcam.targets import BoxTarget, MaskTarget
from tests.helpers import Snapshot, tensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

VIT: dict[str, Any] = {
    "encoder_name": "tu-vit_tiny_patch16_224",
    "img_size": 96,
    "decoder_intermediate_channels": (16, 16, 16, 16),
    "decoder_fusion_channels": 16,
}
SWIN: dict[str, Any] = {"encoder_name": "tu-swin_tiny_patch4_window7_224", "img_size": 64, "depths": (1, 1, 1, 1)}
UNET = {"decoder_channels": (32, 16, 16, 8, 8)}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    # case: architecture, options, default target layer
    "Unet": ("Unet", UNET, "decoder"),
    "Unet mit": ("Unet", {"encoder_name": "mit_b0", **UNET}, "decoder"),
    "Unet timm": ("Unet", {"encoder_name": "tu-tf_efficientnet_lite0", **UNET}, "decoder"),
    "UnetPlusPlus": ("UnetPlusPlus", UNET, "decoder"),
    "MAnet": ("MAnet", UNET, "decoder"),
    "Linknet": ("Linknet", {}, "decoder"),
    "FPN": ("FPN", {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}, "decoder"),
    "FPN swin": ("FPN", SWIN, "decoder"),
    "PSPNet": ("PSPNet", {"psp_out_channels": 32}, "encoder.layer2"),
    "PSPNet mit": ("PSPNet", {"encoder_name": "mit_b0", "psp_out_channels": 32}, "encoder.norm2"),
    "PAN": ("PAN", {}, "decoder"),
    "DeepLabV3": ("DeepLabV3", {"decoder_channels": 16}, "encoder.layer4"),
    "DeepLabV3Plus": ("DeepLabV3Plus", {"decoder_channels": 16}, "decoder"),
    "UPerNet": ("UPerNet", {"decoder_channels": 16}, "decoder"),
    "Segformer": ("Segformer", {"decoder_segmentation_channels": 32}, "decoder"),
    "Segformer mit": ("Segformer", {"encoder_name": "mit_b0"}, "decoder"),
    "DPT": ("DPT", VIT, "decoder"),
    "DPT any size": ("DPT", {**VIT, "dynamic_img_size": True}, "decoder"),
}


def smp_model(architecture: str, **options: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    settings = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 4, **options}
    model: nn.Module = getattr(smp, architecture)(**settings).eval()
    return model


def torchvision_model(name: str, **options: Any) -> nn.Module:
    model: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, **options).eval()
    return model


def make_images() -> list[Tensor]:
    """Two of different shapes, neither square nor of sizes that a network likes."""
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, 5, 6, generator=generator), torch.rand(1, 3, 5, 4, generator=generator)]
    sizes = [(125, 143), (131, 113)]
    return [F.interpolate(c, s, mode="bilinear")[0] for c, s in zip(coarse, sizes, strict=True)]


def own_logits(
    model: nn.Module,
    image: Tensor,
    multiple: int,
    stretched: tuple[int, int] | None = None,
    mean: tuple[float, ...] = IMAGENET.mean,
    std: tuple[float, ...] = IMAGENET.std,
    read: Callable[[Any], Tensor] = lambda raw: raw,
) -> Tensor:
    """(C, H, W) logits on the image by the model's own forward pass, prepared and resized by hand."""
    height, width = image.shape[1:]
    resized = F.interpolate(image[None], stretched, mode="bilinear", antialias=True) if stretched else image[None]
    normalized = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    padded = F.pad(normalized, (0, -normalized.shape[3] % multiple, 0, -normalized.shape[2] % multiple))
    with torch.no_grad():
        logits = read(model(padded))
    logits = F.interpolate(logits, padded.shape[2:], mode="bilinear")
    return F.interpolate(logits, (height, width), mode="bilinear")[0] if stretched else logits[0, :, :height, :width]


MULTIPLES = {"Unet": 1, "PSPNet": 8, "DeepLabV3": 8, "DeepLabV3Plus": 16, "PAN": 16}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_every_architecture(case: str) -> None:
    architecture, options, layer = ARCHITECTURES[case]
    model, images = smp_model(architecture, **options), make_images()
    adapter = adapt(model)
    assert adapter.family == "segmentation-models-pytorch" and adapter.layer_names == [layer]
    stretched = {"DPT": (96, 96), "FPN swin": (64, 64)}.get(case)
    mean, std = ((0.5,) * 3,) * 2 if case in ("Unet timm", "DPT", "DPT any size") else (IMAGENET.mean, IMAGENET.std)
    multiple = MULTIPLES.get(architecture, 32)
    results = GradCAM(adapter).explain(images)
    for image, result in zip(images, results, strict=True):
        logits = own_logits(model, image, multiple, stretched, mean, std)
        labels, probabilities = logits.argmax(0), logits.softmax(0)
        found = result.detections
        assert found is not None and found.masks is not None
        assert sorted(found.labels.tolist()) == labels.unique().tolist()
        for row, label in enumerate(found.labels.tolist()):
            mask = labels == label
            # A tie between two classes may fall either way in the last bit.
            assert int((found.masks[row] != mask).sum()) <= 2
            assert float(found.scores[row]) == pytest.approx(float(probabilities[label][mask].mean()), abs=1e-4)
        peaks = torch.as_tensor(result.heatmaps).flatten(1)
        assert result.reach is not None and all(reach.fraction > 0 for reach in result.reach)
        assert any(saliency.flatten(1).std(1).amax() > 0 for saliency in result.saliency)
        assert ((peaks.amax(1) > 0.999) & (peaks.std(1) > 0.01)).any(), "every map is empty or constant"
    alone = GradCAM(adapter).explain(images[1], results[1].detections)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.as_tensor(alone.heatmaps), torch.as_tensor(results[1].heatmaps), atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.scores, results[1].scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("fcn_resnet50", ["backbone.layer4"]),
        ("deeplabv3_mobilenet_v3_large", ["backbone.16"]),
        ("lraspp_mobilenet_v3_large", ["backbone.4", "backbone.16"]),
    ],
)
def test_torchvision(name: str, layers: list[str]) -> None:
    model, images = torchvision_model(name, num_classes=4), make_images()
    adapter = adapt(model)
    assert isinstance(adapter, TorchvisionSegmentationAdapter) and adapter.layer_names == layers
    results = GradCAM(adapter).explain(images)
    for image, result in zip(images, results, strict=True):
        logits = own_logits(model, image, 1, read=lambda raw: raw["out"])
        found = result.detections
        assert found is not None and found.masks is not None
        assert sorted(found.labels.tolist()) == logits.argmax(0).unique().tolist()
        for row, label in enumerate(found.labels.tolist()):
            mask = logits.argmax(0) == label
            assert int((found.masks[row] != mask).sum()) <= 2
            mean_logit = float(logits[label][found.masks[row]].mean())
            assert float(result.scores[row]) == pytest.approx(mean_logit, rel=1e-4, abs=1e-4)
        assert result.reach is not None and all(reach.fraction > 0 for reach in result.reach)
    assert max(float(torch.as_tensor(result.heatmaps).amax()) for result in results) > 0.999


def test_voc_names_and_background() -> None:
    model = torchvision_model("lraspp_mobilenet_v3_large")
    adapter: Any = adapt(model)
    assert adapter.names[15] == "person" and adapter.background == 0
    everything: Any = adapt(model, background=None)
    image = make_images()[0]
    labels = everything.predict(image)[0].labels.tolist()
    with torch.no_grad():
        adapter.model.classifier.high_classifier.bias[0] += 1e3  # the background everywhere
    assert adapter.predict(image)[0].labels.tolist() == []
    assert everything.predict(image)[0].labels.tolist() == [0] and 0 not in adapter.predict(image)[0].labels
    assert len(labels) > 0
    explained = GradCAM(adapter).explain(image)[0]
    assert explained.heatmaps.shape == (0, *image.shape[1:])
    assert GradCAM(adapter)(image, [MaskTarget(0)])[0].shape == (1, *image.shape[1:])
    named: Any = adapt(torchvision_model("lraspp_mobilenet_v3_large", num_classes=2), names=["Background", "cell"])
    assert named.background == 0
    unnamed: Any = adapt(torchvision_model("lraspp_mobilenet_v3_large", num_classes=2))
    assert unnamed.background is None and unnamed.names == {}


def test_head_activations_do_not_hide_the_logits() -> None:
    plain = smp_model("Unet", **UNET)
    image = make_images()[0]
    target = [[MaskTarget(2)]]
    expected = HiResCAM(adapt(plain)).explain(image, target)[0]
    for activation in ("softmax2d", "logsoftmax", "sigmoid", "tanh"):
        model = smp_model("Unet", **UNET, activation=activation)
        model.load_state_dict(plain.state_dict())
        before = Snapshot(model)
        got = HiResCAM(adapt(model)).explain(image, target)[0]
        before.check()
        torch.testing.assert_close(got.scores, expected.scores)
        torch.testing.assert_close(got.saliency[0], expected.saliency[0])
    transformer = smp_model("DPT", **VIT, activation="softmax2d")
    logits = own_logits(_without_activation(transformer), image, 1, (96, 96), (0.5,) * 3, (0.5,) * 3)
    found = adapt(transformer).predict(image)[0]
    assert sorted(found.labels.tolist()) == logits.argmax(0).unique().tolist()
    assert found.scores.max() > logits.softmax(0).amax(0).min()  # not a softmax of a softmax, which is nearly flat


def _without_activation(model: Any) -> nn.Module:
    model.segmentation_head.activation.activation = nn.Identity()
    return model


def test_sigmoid_heads_are_multilabel() -> None:
    model, image = smp_model("Unet", **UNET, activation="sigmoid"), make_images()[0]
    adapter: Any = adapt(model)
    assert adapter.multilabel is True
    with torch.no_grad():
        probabilities = own_logits(model, image, 1)
    found = adapter.predict(image)[0]
    assert sorted(found.labels.tolist()) == [label for label in range(4) if (probabilities[label] > 0.5).any()]
    assert len(found) > 1 and int(sum(mask.sum() for mask in found.masks)) != image[0].numel()  # they overlap
    for row, label in enumerate(found.labels.tolist()):
        present = probabilities[label] > 0.5
        assert int((found.masks[row] != present).sum()) <= 2
        assert float(found.scores[row]) == pytest.approx(float(probabilities[label][present].mean()), abs=1e-4)
    requested: Any = adapt(smp_model("Unet", **UNET), multilabel=True)
    assert requested.multilabel is True
    exclusive: Any = adapt(model, multilabel=False)
    assert int(sum(mask.sum() for mask in exclusive.predict(image)[0].masks)) == image[0].numel()


def test_one_channel_with_a_classification_head() -> None:
    model, images = smp_model("Unet", **UNET, classes=1, aux_params={"classes": 2}), make_images()
    adapter: Any = adapt(model, names=["polyp"])
    for image, found in zip(images, adapter.predict(images), strict=True):
        logits = own_logits(model, image, 1, read=lambda raw: raw[0])
        assert found.labels.tolist() == [1] and found.name(0) == "polyp"
        assert int((found.masks[0] != (logits[0] > 0)).sum()) <= 2
    assert tensors(GradCAM(adapter)(images))[0].amax() > 0.999
    model.segmentation_head[0].bias.data -= 1e4  # type: ignore[index, union-attr, operator]
    nothing = GradCAM(adapter).explain(images)
    for image, result in zip(images, nothing, strict=True):
        assert result.detections is not None and len(result.detections) == 0
        assert result.heatmaps.shape == (0, *image.shape[1:])


def test_a_decoder_with_a_coarse_grid_reports_its_reach() -> None:
    mask = torch.zeros(125, 143, dtype=torch.bool)
    mask[60:64, 60:64] = True
    adapter = adapt(smp_model("FPN", decoder_segmentation_channels=32))
    with pytest.warns(ReachWarning, match="at decoder"):
        HiResCAM(adapter)(make_images()[0], [MaskTarget(1, mask)])


def test_normalization_is_that_of_the_encoder() -> None:
    timm_encoder: Any = adapt(smp_model("Unet", encoder_name="tu-tf_efficientnet_lite0", **UNET))
    assert timm_encoder.mean == timm_encoder.std == (0.5, 0.5, 0.5)
    own: Any = adapt(smp_model("Unet", **UNET))
    assert (own.mean, own.std) == (IMAGENET.mean, IMAGENET.std)
    requested: Any = adapt(smp_model("Unet", **UNET), mean=(0, 0, 0), std=(1, 1, 1))
    image = make_images()[0]
    assert torch.equal(requested.prepare([image]).inputs[0], image)


def test_normalization_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = smp_model("Unet", **UNET)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}), encoding="utf-8")
    requested = []

    def cached(repo_id: str, filename: str, revision: str) -> str:
        requested.append((repo_id, filename, revision))
        return str(stored)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    adapter: Any = adapt(model)
    assert adapter.mean == (0.1, 0.2, 0.3) and adapter.std == (0.4, 0.5, 0.6)
    assert requested[0][0] == "smp-hub/resnet18.imagenet" and requested[0][1] == "config.json"


def test_image_sizes() -> None:
    model = torchvision_model("lraspp_mobilenet_v3_large", num_classes=2)
    assert adapt(model).prepare([torch.rand(3, 60, 90)]).inputs.shape[2:] == (60, 90)
    assert adapt(model, image_size=40).prepare([torch.rand(3, 60, 90)]).inputs.shape[2:] == (40, 60)
    assert adapt(model, image_size=(64, 48)).prepare([torch.rand(3, 60, 90)]).inputs.shape[2:] == (64, 48)
    fpn = smp_model("FPN")
    assert adapt(fpn, image_size=50).prepare([torch.rand(3, 60, 90)]).inputs.shape[2:] == (64, 64)
    for wrong in (0, (32,), (32, -1), (1, 2, 3), 1.5, "64"):
        with pytest.raises(ValueError, match="expected image_size"):
            adapt(fpn, image_size=wrong)


def test_an_image_that_is_too_small_for_the_network_is_named() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    model = smp.PAN("resnet18", encoder_weights=None, classes=2).eval()
    with pytest.raises(ValueError, match=r"96x144 pixels is too small for PAN .*image_size= .*\(192, 288\)"):
        adapt(model).predict(torch.rand(3, 90, 130))
    assert len(adapt(model, image_size=(192, 288)).predict(torch.rand(3, 90, 130))) == 1
    with pytest.raises(ValueError, match=r"96x144 pixels is too small for PAN .*enlarge the image, such as to \(192, "):
        GradCAM(adapt(model))(torch.rand(1, 3, 96, 144))  # image_size= does not resize a ready tensor


def test_detections_of_a_detector_are_refused() -> None:
    adapter = adapt(torchvision_model("lraspp_mobilenet_v3_large", num_classes=3))
    found = adapter.predict(make_images()[0])[0]
    boxes_only = type(found)(found.boxes_xyxy, found.labels, found.scores, found.image_size_hw, found.source)
    with pytest.raises(ValueError, match="detections with masks"):
        GradCAM(adapter)(make_images()[0], boxes_only)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        GradCAM(adapter)(make_images()[0], [BoxTarget((1, 1, 9, 9), 1)])


class Own(nn.Module):
    """A user's network: its output is wrapped as requested."""

    def __init__(self, wrap: Callable[[Tensor], Any], channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2))
        self.merge = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, channels, 1)
        self.auxiliary = nn.Conv2d(8, channels, 1)
        self.wrap = wrap
        self.eval()

    def forward(self, x: Tensor) -> Any:
        stem = self.stem(x)
        logits = self.head(self.merge(torch.cat([stem, self.deep(stem)], 1)))
        self.auxiliary(stem)
        return self.wrap(logits)


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("wrap", "decode", "read"),
    [
        (lambda logits: logits, None, lambda raw: raw),
        (Answer, None, lambda raw: raw.logits),
        (lambda logits: {"aux": 0, "out": logits}, None, lambda raw: raw["out"]),
        (lambda logits: {"logits": logits}, None, lambda raw: raw["logits"]),
        (lambda logits: ([logits], 7), lambda raw: raw[0][0], lambda raw: raw[0][0]),
    ],
)
def test_a_custom_network(wrap: Any, decode: Any, read: Any) -> None:
    model, images = Own(wrap), make_images()
    before = Snapshot(model)
    adapter = segmenter(model, decode, multiple=4)
    assert adapter.layer_names == ["merge"]  # what the last used layer reads; the auxiliary head is not used
    results = GradCAM(adapter).explain(images)
    before.check()
    for image, result in zip(images, results, strict=True):
        found = result.detections
        assert found is not None and found.masks is not None
        labels = own_logits(model, image, 4, read=read).argmax(0)
        assert sorted(found.labels.tolist()) == labels.unique().tolist()
        for row, label in enumerate(found.labels.tolist()):
            assert int((found.masks[row] != (labels == label)).sum()) <= 2


def test_features_are_distinguished_from_logits() -> None:
    # As many features as classes, and a model that adds two classifiers' logits.
    assert segmenter(Own(Answer, channels=8)).layer_names == ["merge"]
    two_heads = torchvision_model("lraspp_mobilenet_v3_large", num_classes=3)
    assert segmenter(two_heads).layer_names == ["classifier.cbr"]


@pytest.mark.parametrize(
    ("wrap", "decode", "error", "words"),
    [
        (lambda logits: {"masks": logits}, None, TypeError, r"got dict of 1: \['masks'\] float32(.|\n)*decode="),
        (lambda logits: (logits, logits), None, TypeError, "got tuple"),
        (lambda logits: logits, lambda raw: [raw], TypeError, "tensor of logits .*got list"),
        (lambda logits: logits, lambda raw: raw[:, 0], ValueError, r"\(B, C, h, w\); got \(1, 112, 112\)"),
        (lambda logits: logits, lambda raw: raw.argmax(1, keepdim=True), TypeError, "not labels"),
    ],
)
def test_output_without_logits(wrap: Any, decode: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        segmenter(Own(wrap), decode)


def test_segmenter_refuses_invalid_arguments() -> None:
    with pytest.raises(TypeError, match=r"torch.nn.Module; got function"):
        segmenter(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decode to be a function"):
        segmenter(Own(Answer), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple"):
        segmenter(Own(Answer), multiple=0)
    with pytest.raises(RuntimeError, match="target_layers="):
        segmenter(nn.Conv2d(3, 2, 1))


def test_trained_unet_is_explained_where_its_cells_are(data: Path, reference: ModuleType) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    names = {0: "background", 1: "RBC", 2: "WBC", 3: "Platelets"}
    adapter = adapt(reference.bccd_unet(), image_size=(256, 320), names=names)
    annotations = json.loads((data / "bccd" / "test.json").read_text(encoding="utf-8"))
    entry = annotations["images"][0]
    image = load_image(data / "bccd" / "images" / entry["file_name"])
    for method in (GradCAM, HiResCAM, LayerCAM):
        result = method(adapter).explain(image)[0]
        found = result.detections
        assert found is not None and found.masks is not None
        assert sorted(found.name(row) for row in range(len(found))) == ["Platelets", "RBC", "WBC"]
        for row, heatmap in enumerate(torch.as_tensor(result.heatmaps)):
            mask = found.masks[row]
            energy = float(heatmap[mask].sum() / heatmap.sum())
            assert energy > 2 * float(mask.float().mean()), (method.__name__, found.name(row))
            assert bool(mask.flatten()[heatmap.argmax()]), f"{method.__name__}: {found.name(row)} peaks elsewhere"
    boxes = [one for one in annotations["annotations"] if one["image_id"] == entry["id"]]
    x, y, width, height = next(one["bbox"] for one in boxes if one["category_id"] == 2)
    box = found.boxes_xyxy[found.labels.tolist().index(2)]
    torch.testing.assert_close(box, torch.tensor([x, y, x + width, y + height]).float(), atol=40, rtol=0)
