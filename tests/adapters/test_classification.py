"""Classifiers: what they report, how images reach them, and what the maps show on a real photograph."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchvision.models as tv
from PIL import Image
from torch import Tensor, nn

from detcam import METHODS, GradCAM, HiResCAM, LayerCAM, adapt
from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.normalization import IMAGENET
from detcam.targets import ClassifierOutputTarget
from tests.helpers import Snapshot, TinyCNN, tensors

IMAGES = [torch.rand(3, 40, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def adapted(model: nn.Module, **options: object) -> ClassificationAdapter:
    found = adapt(model, **{"image_size": (32, 48), **options})
    assert type(found) is ClassificationAdapter
    return found


class TestPredict:
    def test_scores_are_the_models_own_softmax_of_the_prepared_image(self) -> None:
        model = TinyCNN(classes=7)
        adapter = adapted(model)
        before = Snapshot(model)
        found = adapter.predict(IMAGES, top_k=5)
        before.check()
        for image, one in zip(IMAGES, found, strict=True):
            small = nn.functional.interpolate(image[None], (32, 48), mode="bilinear", antialias=True)[0]
            mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
            expected = model(((small - mean[:, None, None]) / std[:, None, None])[None])[0].softmax(0)
            scores, labels = expected.sort(descending=True)
            assert one.labels.tolist() == labels[:5].tolist()
            torch.testing.assert_close(one.scores, scores[:5], atol=1e-6, rtol=0)
            assert one.boxes_xyxy.tolist() == [[0, 0, 64, 40]] * 5 and one.image_size_hw == (40, 64)

    def test_default_selection_is_the_top_class(self) -> None:
        adapter = adapted(TinyCNN(classes=7))
        everything = adapter.predict(IMAGES[0], top_k=7)[0]
        assert adapter.predict(IMAGES[0])[0].labels.tolist() == everything.labels[:1].tolist()
        selected = adapter.predict(IMAGES[0], labels=[4, 2])[0]
        assert sorted(selected.labels.tolist()) == [2, 4]
        assert adapter.predict(IMAGES[0], labels=[4, 2], top_k=1)[0].labels.tolist() == selected.labels[:1].tolist()
        threshold = float(everything.scores[2])
        above = adapter.predict(IMAGES[0], score_threshold=threshold, top_k=7)[0]
        assert above.labels.tolist() == everything.labels[:3].tolist()
        assert adapter.predict(IMAGES[0], score_threshold=threshold)[0].labels.tolist() == above.labels[:1].tolist()

    def test_unknown_label_is_refused(self) -> None:
        with pytest.raises(ValueError, match="class index from 0 to 6"):
            adapted(TinyCNN(classes=7)).predict(IMAGES[0], labels=[7])

    def test_explained_scores_are_the_logits_of_the_reported_classes(self) -> None:
        adapter = adapted(TinyCNN(classes=7))
        found = adapter.predict(IMAGES, top_k=3)
        for result, one in zip(HiResCAM(adapter).explain(IMAGES, found), found, strict=True):
            logits = result.scores
            expected = one.scores.log() - one.scores.log()[0]
            torch.testing.assert_close(logits - logits[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["(B,)", "(B, 1)"])
def test_a_single_logit_is_two_classes(shape: tuple[int, ...]) -> None:
    class Binary(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 0].reshape(len(x), *shape) + 17.0

    model = Binary()
    adapter = adapted(model, names=["healthy", "ill"])
    batch = adapter.prepare(IMAGES)
    logits = model(batch.inputs).flatten().tolist()
    assert min(logits) < 0 < max(logits), "both classes must occur"
    found = adapter.predict(IMAGES)
    for one, logit in zip(found, logits, strict=True):
        assert one.labels.tolist() == [int(logit > 0)]
        assert one.name(0) == ("ill" if logit > 0 else "healthy")
        assert float(one.scores[0]) == pytest.approx(1 / (1 + math.exp(-abs(logit))), abs=1e-5)
    both = adapter.predict(IMAGES[0], top_k=2)[0]
    assert float(both.scores.sum()) == pytest.approx(1.0, abs=1e-6)
    cam = HiResCAM(adapter)
    results = cam.explain(IMAGES, found)
    for result, logit in zip(results, logits, strict=True):
        assert float(result.scores[0]) == pytest.approx(abs(logit), abs=1e-4)
    default = cam.explain(IMAGES)
    zero, one = (cam.explain(IMAGES[0], [adapter.targets_of(both)[i]])[0].saliency[0] for i in (0, 1))
    torch.testing.assert_close(zero, -one)
    for result, same in zip(results, default, strict=True):
        assert torch.equal(result.saliency[0], same.saliency[0])


class TestOutputs:
    def test_objects_and_mappings_with_logits(self) -> None:
        plain = TinyCNN()
        wraps: list[Callable[[Tensor], object]] = [
            lambda out: SimpleNamespace(logits=out, hidden_states=None),
            lambda out: {"loss": out.sum(), "logits": out},
        ]
        expected = tensors(GradCAM(adapted(plain))(IMAGES))
        for wrap in wraps:

            class Wrapped(nn.Module):
                def __init__(self, wrap: Callable[[Tensor], object] = wrap) -> None:
                    super().__init__()
                    self.inner, self.wrap = TinyCNN(), wrap

                def forward(self, x: Tensor) -> object:
                    return self.wrap(self.inner(x))

            adapter = adapted(Wrapped().eval(), target_layers="inner.relu2")
            for found, wanted in zip(tensors(GradCAM(adapter)(IMAGES)), expected, strict=True):
                assert torch.equal(found, wanted)

    def test_output_without_logits_is_refused(self) -> None:
        class Pair(TinyCNN):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
                return super().forward(x), x

        with pytest.raises(TypeError, match=r"Pair returned tuple of 2: \[0\] float32 \(1, 3\)(.|\n)*output_key=0"):
            GradCAM(Pair(), ["relu2"])(torch.rand(1, 3, 32, 32))

    def test_maps_of_scores_need_a_target_that_reads_them(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        cam = GradCAM(model, [model[1]])
        batch = torch.rand(1, 3, 16, 16)
        with pytest.raises(TypeError, match=r"shape \(C,\) per image; got float32 \(2, 14, 14\)(.|\n)*targets="):
            cam(batch)
        assert cam(batch, [lambda output: output[1].sum()]).shape == (1, 16, 16)


class TestPreparation:
    def test_image_is_stretched_and_maps_return_to_its_pixels(self) -> None:
        adapter = adapted(TinyCNN())
        batch = adapter.prepare([torch.rand(3, 64, 24), torch.rand(3, 16, 96)])
        assert batch.inputs.shape == (2, 3, 32, 48)
        assert [g.scale_xy for g in batch.geometries] == [(2.0, 0.5), (0.5, 2.0)]
        found = tensors(LayerCAM(adapter)([torch.rand(3, 64, 24), torch.rand(3, 16, 96)]))
        assert [tuple(maps.shape) for maps in found] == [(1, 64, 24), (1, 16, 96)]

    def test_declared_sizes_normalization_and_names(self) -> None:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        layer = {"target_layers": [""]}  # the model itself: no probe, which nothing here is about
        lite = adapt(timm.create_model("tf_efficientnet_lite0"), **layer)
        assert (lite.image_size, lite.mean, lite.names[282]) == ((224, 224), (0.5, 0.5, 0.5), "tiger cat")
        other = adapt(timm.create_model("vit_tiny_patch16_224", img_size=(48, 96), depth=1, num_classes=9), **layer)
        assert (other.image_size, other.names) == ((48, 96), {})
        inception = adapt(tv.inception_v3(init_weights=False), **layer)
        assert (inception.image_size, inception.mean) == ((299, 299), IMAGENET.mean)
        assert inception.names[0] == "tench" and len(inception.names) == 1000
        mine = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000))
        assert adapt(mine, **layer).names == {}, "a thousand classes of one's own are not ImageNet's"
        assert adapt(tv.resnet18(num_classes=4), names=["a", "b", "c", "d"], **layer).names[3] == "d"

    @pytest.mark.parametrize(
        "options", [{"image_size": 0}, {"std": (0.0, 1.0, 1.0)}, {"mean": (0.5,)}], ids=["size", "std", "mean"]
    )
    def test_impossible_options_are_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="expected image_size as|one value per channel"):
            adapt(TinyCNN(), target_layers="relu2", **options)


@pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")
def test_auxiliary_heads_are_silent_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = tv.GoogLeNet(num_classes=4, aux_logits=True, init_weights=False)
    assert model.training and model.aux1 is not None
    before = Snapshot(model)
    with pytest.warns(UserWarning, match="training mode"):
        adapter = adapt(model, image_size=64)
        found = tensors(GradCAM(adapter)(IMAGES[:1]))
    before.check()
    assert adapter.layer_names == ["inception5b"] and found[0].shape == (1, 40, 64)


@pytest.fixture(scope="module")
def lite(reference: ModuleType) -> nn.Module:
    model: nn.Module = reference.efficientnet_lite0()
    return model


DOG, CAT = 243, 282
DOG_BOX, CAT_BOX = (78, 12, 168, 120), (42, 120, 205, 222)
"""Where head and chest of the dog, and the cat, are on dog_cat.png, xyxy."""


class TestARealClassifier:
    def test_reports_bull_mastiff_boxer_and_tiger_cat(self, lite: nn.Module, photos: Path) -> None:
        found = adapt(lite).predict(photos / "dog_cat.png", top_k=3)[0]
        assert [found.name(i) for i in range(3)] == ["bull mastiff", "boxer", "tiger cat"]
        torch.testing.assert_close(found.scores, torch.tensor([0.33, 0.15, 0.03]), atol=6e-3, rtol=0)

    @pytest.mark.parametrize(
        ("method", "least"),
        [("gradcam", 4), ("hirescam", 4), ("xgradcam", 4), ("eigengradcam", 10), ("layercam", 1.5)],
    )
    def test_dog_and_cat_are_explained_by_the_dog_and_by_the_cat(
        self, lite: nn.Module, photos: Path, method: str, least: float
    ) -> None:
        """Energy in the right animal's box over energy in the other's."""
        assert Image.open(photos / "dog_cat.png").size == (224, 224)
        targets = [ClassifierOutputTarget(DOG), ClassifierOutputTarget(CAT)]
        dog, cat = tensors(METHODS[method](lite)(photos / "dog_cat.png", targets))[0]

        def energy(heatmap: Tensor, box: tuple[int, int, int, int]) -> float:
            x1, y1, x2, y2 = box
            return float(heatmap[y1:y2, x1:x2].sum() / heatmap.sum())

        assert energy(dog, DOG_BOX) > least * energy(dog, CAT_BOX)
        assert energy(cat, CAT_BOX) > least * energy(cat, DOG_BOX)
        assert energy(dog, DOG_BOX) > 0.5 and energy(cat, CAT_BOX) > 0.5
        for heatmap, (x1, y1, x2, y2) in ((dog, DOG_BOX), (cat, CAT_BOX)):
            row, column = divmod(int(heatmap.argmax()), 224)
            assert y1 <= row < y2 and x1 <= column < x2


def test_networks_of_sequences_are_refused() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(TypeError, match="Sequential takes sequences: its convolutions are Conv1d"):
        GradCAM(model, [model[0]])
