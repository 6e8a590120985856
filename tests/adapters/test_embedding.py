"""Embeddings: the layer of the vector, and explanations of its similarity to a concept."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F

from detcam import GradCAM, HiResCAM, adapt, explain
from detcam.adapters import embed, embedder
from detcam.targets import DifferenceFromConceptTarget, SimilarityToConceptTarget
from tests.helpers import Snapshot, TinyCNN, tensors

BATCH = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def pooled(model: TinyCNN, batch: Tensor) -> Tensor:
    """What the head of TinyCNN reads."""
    found = model.relu2(model.conv2(model.relu1(model.conv1(batch))))
    return (found * found).mean((2, 3))


class TestWhereTheVectorIsRead:
    def test_before_the_head_of_a_classifier(self) -> None:
        model = TinyCNN()
        before = Snapshot(model)
        adapter = embedder(model, image_size=(24, 32))
        found = embed(adapter, BATCH, batch_size=2)
        before.check()
        assert "input of head" in repr(adapter) and adapter.layer_names == ["relu2"]
        torch.testing.assert_close(found, pooled(model, BATCH).detach())

    def test_a_softmax_after_the_head_does_not_hide_it(self) -> None:
        model = nn.Sequential(TinyCNN(), nn.Softmax(1)).eval()
        torch.testing.assert_close(embed(embedder(model, image_size=(24, 32)), BATCH), pooled(model[0], BATCH).detach())

    def test_what_a_feature_extractor_returns(self) -> None:
        model = tv.resnet18().eval()
        expected = embed(embedder(model, image_size=64), BATCH)
        model.fc = nn.Identity()
        adapter = embedder(model, image_size=64)
        assert "layer='ResNet'" in repr(adapter)
        torch.testing.assert_close(embed(adapter, BATCH), expected)
        torch.testing.assert_close(expected, model(BATCH).detach(), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("layer", ["relu2", "head"])
    def test_embedding_of_a_given_layer(self, layer: str) -> None:
        model = TinyCNN()
        found = embed(embedder(model, layer=layer, image_size=(24, 32)), BATCH)
        if layer == "head":
            expected = model(BATCH)
            own = embedder(model, layer=model, image_size=(24, 32))
            torch.testing.assert_close(embed(own, BATCH), expected.detach())
        else:
            expected = model.relu2(model.conv2(model.relu1(model.conv1(BATCH)))).mean((2, 3))
        torch.testing.assert_close(found, expected.detach())

    def test_tokens_are_averaged_without_the_class_token(self) -> None:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        model = timm.models.VisionTransformer(
            img_size=(32, 48), patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=4
        ).eval()
        batch = torch.rand(2, 3, 32, 48)
        features = model.forward_features(batch)
        patches = embed(embedder(model, layer="norm"), batch)
        torch.testing.assert_close(patches, features[:, 1:].mean(1).detach(), atol=1e-5, rtol=1e-5)
        token = embed(embedder(model), batch)
        torch.testing.assert_close(token, features[:, 0].detach(), atol=1e-5, rtol=1e-5)

    def test_several_heads_require_a_choice(self) -> None:
        class TwoHeads(TinyCNN):
            def __init__(self) -> None:
                super().__init__()
                self.second = nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                x = pooled(self, x)
                return self.head(x) + self.second(x)

        with pytest.raises(ValueError, match=r"second is only one.*layer="):
            embedder(TwoHeads(), image_size=24)
        assert embed(embedder(TwoHeads(), layer="relu2", image_size=(24, 32)), BATCH).shape == (3, 5)

    def test_layers_that_cannot_be_an_embedding_are_refused(self) -> None:
        class Twice(TinyCNN):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + super().forward(x.flip(-1))

        with pytest.raises(RuntimeError, match="relu1 ran 2 times"):
            embed(embedder(Twice(), layer="relu1", target_layers="relu2", image_size=24), BATCH)
        with pytest.raises(TypeError, match="expected target layers as modules or dotted names; got int"):
            adapt(TinyCNN(), target_layers=10)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"no layer named 'a, b'; did you mean \['a', 'b'\]\?"):
            embed(adapt(TinyCNN(), target_layers="a, b"), BATCH)
        with pytest.raises(ValueError, match="no layer named 'nothing'"):
            embedder(TinyCNN(), layer="nothing")
        with pytest.raises(TypeError, match=r"torch\.nn\.Module; got str"):
            embedder("resnet18")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="embedder"):
            embed(adapt(TinyCNN(), target_layers="relu2"), BATCH)
        with pytest.raises(ValueError, match="expected an embedding of shape"):
            embed(embedder(Flat(), layer="flat", target_layers="conv", image_size=8), torch.rand(2, 3, 8, 8))


class Flat(nn.Module):
    """Puts the batch into one row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 2, 1), nn.Flatten(0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.conv(x))


@pytest.mark.parametrize("target", [SimilarityToConceptTarget, DifferenceFromConceptTarget])
def test_maps_explain_the_cosine_similarity(target: type[SimilarityToConceptTarget]) -> None:
    model = TinyCNN()
    adapter = embedder(model, image_size=(24, 32))
    concept = embed(adapter, BATCH[:2])
    results = HiResCAM(adapter).explain(BATCH, [[target(concept)]] * 3)
    slow = copy.deepcopy(model).double()
    for image, result in zip(BATCH.double(), results, strict=True):
        activation = slow.relu2(slow.conv2(slow.relu1(slow.conv1(image[None])))).detach().requires_grad_(True)
        vector = (activation * activation).mean((2, 3))[0]
        cosines = [(vector @ c) / (vector.norm() * c.norm()) for c in concept.double()]
        score = sum(cosines) / 2
        score = score if target is SimilarityToConceptTarget else 1 - score
        (gradient,) = torch.autograd.grad(score, activation)
        assert float(result.scores[0]) == pytest.approx(score.item(), abs=1e-6)
        expected = (gradient * activation).sum(1)[0].detach()
        torch.testing.assert_close(result.saliency[0][0].double(), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::detcam.EmptyMapWarning")
def test_images_of_any_size_and_embed() -> None:
    adapter = embedder(TinyCNN(), image_size=(24, 32))
    images = [torch.rand(3, 20, 50), torch.rand(3, 60, 30)]
    concept = embed(adapter, images)
    assert concept.shape == (2, 5) and concept.dtype == torch.float32 and not concept.requires_grad
    prepared = adapter.prepare(images).inputs
    torch.testing.assert_close(concept, pooled(adapter.model, prepared).detach())
    targets = [SimilarityToConceptTarget(concept[1])] * 2
    maps = tensors(GradCAM(adapter)(images, targets))
    assert [tuple(one.shape) for one in maps] == [(1, 20, 50), (1, 60, 30)]
    for found, expected in zip(explain(adapter, images, method="gradcam", targets=targets), maps, strict=True):
        assert torch.equal(torch.as_tensor(found.heatmaps), expected)


def test_missing_targets_raise_with_a_remedy() -> None:
    adapter = embedder(TinyCNN(), image_size=(24, 32))
    with pytest.raises(ValueError, match="SimilarityToConceptTarget"):
        GradCAM(adapter)(BATCH)
    with pytest.raises(ValueError, match="SimilarityToConceptTarget"):
        adapter.predict([torch.rand(3, 24, 32)])


def test_similarity_to_a_cat_highlights_another_cat(reference: ModuleType, photos: Path) -> None:
    """Similarity to cats highlights the cat, similarity to dogs the dog."""
    from PIL import Image

    adapter = embedder(reference.efficientnet_lite0())
    scene = Image.open(photos / "dog_cat.png").convert("RGB")
    cats, dogs = (embed(adapter, photos / name)[0] for name in ("cat_mirror.jpg", "puppies.jpg"))
    concepts = F.normalize(cats, dim=0) - F.normalize(dogs, dim=0)
    cat, dog = tensors(
        GradCAM(adapter)(scene, [SimilarityToConceptTarget(concepts), SimilarityToConceptTarget(-concepts)])
    )[0]

    def lower(heatmap: Tensor) -> float:
        return float(heatmap[120:].sum() / heatmap.sum())

    assert lower(cat) > 0.6 and lower(dog) < 0.4
