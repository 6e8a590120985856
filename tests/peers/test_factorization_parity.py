"""Parity with grad-cam: Deep Feature Factorization from the same seed, and scripts with changed import lines."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from detcam import DeepFeatureFactorization, create_labels_legend, show_factorization_on_image
from detcam.factorization import run_dff_on_image
from detcam.layers import vit_reshape_transform
from detcam.visualize.overlay import grid

peer = pytest.importorskip("pytorch_grad_cam.feature_factorization.deep_feature_factorization", reason="no grad-cam")
peer_image = pytest.importorskip("pytorch_grad_cam.utils.image", reason="no grad-cam")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(("images", "components"), [(1, 5), (3, 4), (2, 16)])
def test_equal_concepts_and_maps(images: int, components: int) -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    batch = torch.rand(images, 3, 96, 64)
    ours = DeepFeatureFactorization(
        model=model, target_layer=model.layer4, computation_on_concepts=model.fc, reshape_transform=None
    )
    copied = copy.deepcopy(model)
    theirs = peer.DeepFeatureFactorization(model=copied, target_layer=copied.layer4, computation_on_concepts=copied.fc)
    concepts, explanations, outputs = ours(batch, components)
    expected = theirs(batch, n_components=components)
    np.testing.assert_allclose(concepts, expected[0], atol=1e-5, rtol=1e-4)
    assert len(explanations) == len(expected[1]) == images
    for maps, expected_maps in zip(explanations, expected[1], strict=True):
        assert maps.shape == expected_maps.shape == (components, 96, 64)
        # grad-cam adds 1e-7 in the normalization, which lowers the maps of concepts that are nearly absent.
        np.testing.assert_allclose(maps, expected_maps, atol=1e-4 if components < 16 else 5e-3)
    np.testing.assert_allclose(outputs, expected[2], atol=1e-4)


def test_equal_concepts_and_maps_of_tokens() -> None:
    torch.manual_seed(0)
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()

    def reshape(tensor: torch.Tensor) -> torch.Tensor:
        return vit_reshape_transform(tensor, 4, 4)

    batch, layer = torch.rand(2, 3, 64, 64), model.blocks[-1].norm1  # type: ignore[index,union-attr]
    expected = peer.DeepFeatureFactorization(model, layer, reshape)(batch, 4)
    for transform in (reshape, None):
        concepts, explanations = DeepFeatureFactorization(model, layer, transform)(batch, 4)
        np.testing.assert_allclose(concepts, expected[0], atol=1e-4)
        np.testing.assert_allclose(np.stack(explanations), np.stack(expected[1]), atol=1e-3)


def test_run_dff_on_image() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    model.config = SimpleNamespace(id2label={index: f"thing {index}, stuff" for index in range(10)})  # type: ignore[assignment]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 320, 3), dtype=np.uint8))
    tensor = torch.from_numpy(np.array(image).transpose(2, 0, 1)).float() / 255
    figure = run_dff_on_image(model, model.layer4, model.fc, image, tensor, reshape_transform=None, n_components=3)
    dff = DeepFeatureFactorization(model, model.layer4, computation_on_concepts=model.fc)
    _, maps, outputs = dff(tensor[None], 3)
    labels = create_labels_legend(torch.from_numpy(outputs).softmax(-1), model.config.id2label)  # type: ignore[arg-type]
    overlay = show_factorization_on_image(image, maps[0], image_weight=0.3, concept_labels=labels)
    np.testing.assert_array_equal(figure, grid([image, overlay]))


def test_tutorial_runs_with_changed_import_lines() -> None:
    """Runs the code of grad-cam's tutorial after its imports."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    image = np.random.default_rng(0).random((96, 64, 3)).astype(np.float32)
    batch = torch.from_numpy(image.transpose(2, 0, 1))[None]
    dff = DeepFeatureFactorization(model=model, target_layer=model.layer4, computation_on_concepts=model.fc)
    _, batch_explanations, concept_outputs = dff(batch, 4)
    concept_outputs = torch.softmax(torch.from_numpy(concept_outputs), axis=-1).numpy()  # type: ignore[call-arg]
    names = {index: f"thing {index}, stuff" for index in range(10)}
    labels = create_labels_legend(concept_outputs, labels=names, top_k=2)
    for line, expected in zip(labels, peer_image.create_labels_legend(concept_outputs, names, top_k=2), strict=True):
        assert line.split() == expected.replace(", stuff", "").replace(":", " ").split()
    original = batch_explanations[0].copy()
    figure = show_factorization_on_image(image, batch_explanations[0], image_weight=0.3, concept_labels=labels)
    assert figure.shape[1] > 5 * 64  # enlarged five times, with a legend
    np.testing.assert_array_equal(batch_explanations[0], original)
