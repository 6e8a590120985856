"""Learners of fastai have the names, size and normalization of their data loaders: a stand-in, and fastai itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detcam import adapt, explain
from detcam.adapters.fastai import FastaiClassificationAdapter, FastaiSegmentationAdapter
from detcam.models.load import load_model

MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)
IMAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)


def transform(name: str, **attributes: Any) -> Any:
    return type(name, (), attributes)()


def normalize() -> Any:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return transform("Normalize", mean=mean, std=std)


def learner(model: nn.Module, *, of_item: Any = (), of_batch: Any = (), loss: str = "CrossEntropyLossFlat") -> Any:
    """A learner as fastai makes it; transforms of an item store the width first."""
    loaders = SimpleNamespace(after_item=SimpleNamespace(fs=of_item), after_batch=SimpleNamespace(fs=of_batch))
    kind = type("Learner", (), {"__module__": "fastai.learner"})
    made = kind()
    made.model, made.dls, made.loss_func = model.eval(), loaders, transform(loss)
    return made


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class DynamicUnet(nn.Sequential):
    """Named as fastai's."""


def unet() -> nn.Module:
    return DynamicUnet(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))


def test_a_classifier_has_the_names_size_and_normalization_of_the_data_loaders() -> None:
    given = learner(classifier(), of_item=[transform("Resize", size=(48, 32))], of_batch=[normalize()])
    given.dls.vocab = ["cat", "dog", "fox"]
    adapter: Any = adapt(given)
    assert isinstance(adapter, FastaiClassificationAdapter) and adapter.model is given.model
    assert (adapter.names, adapter.image_size) == ({0: "cat", 1: "dog", 2: "fox"}, (32, 48))
    normalized = (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    expected = given.model(normalized[None]).softmax(-1)[0].sort(descending=True).values
    assert torch.allclose(adapter.predict(IMAGE, top_k=3)[0].scores, expected, atol=1e-6)
    assert adapt(given, names=["a", "b", "c"]).names[0] == "a"


def test_the_last_size_counts_and_pixels_stay_as_they_are_without_a_normalization() -> None:
    sizes = {"of_item": [transform("Resize", size=(48, 32))], "of_batch": [transform("Affine", size=16)]}
    adapter: Any = adapt(learner(classifier(), **sizes, loss="BCEWithLogitsLossFlat"))
    assert (adapter.image_size, adapter.mean, adapter.std) == ((16, 16), (0, 0, 0), (1, 1, 1))


def test_a_binary_cross_entropy_over_classes_makes_them_independent() -> None:
    given = learner(classifier(), loss="BCEWithLogitsLossFlat")
    given.dls.vocab = ["cat", "dog", "fox"]
    assert "multilabel" in repr(adapt(given))


def test_names_may_be_an_array_and_channels_more_than_three() -> None:
    codes = np.array(["background", "cell"])  # as np.loadtxt(dtype=str) returns
    assert adapt(learner(unet(), of_item=[transform("AddMaskCodes", vocab=codes)])).names == {
        0: "background",
        1: "cell",
    }
    bands = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    adapter: Any = adapt(learner(bands))
    assert (adapter.mean, adapter.std) == ((0,) * 4, (1,) * 4)


def test_a_learner_of_text_or_tables_is_refused() -> None:
    text = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(TypeError, match="got Learner whose network has no convolution of images"):
        adapt(learner(text))


def test_a_unet_whose_classes_have_names_is_a_segmenter() -> None:
    given = learner(unet(), of_item=[transform("AddMaskCodes", vocab=["background", "cell"])])
    assert isinstance(adapt(given), FastaiSegmentationAdapter) and adapt(given).names[1] == "cell"
    (explanation,) = explain(given, IMAGE)
    assert explanation.heatmaps.shape[1:] == (32, 48)
    with pytest.raises(TypeError, match=r"DynamicUnet returned float32 .*\n.*import segmenter"):
        adapt(learner(unet()))


def test_learners_of_fastai_are_explained_as_they_predict(tmp_path: Path) -> None:
    vision = pytest.importorskip("fastai.vision.all", reason="fastai is not installed")
    for index in range(4):
        folder = tmp_path / ("dog" if index % 2 else "cat")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.roll(IMAGE[:, :32], index, 1)).save(folder / f"{index}.png")
    loaders = vision.ImageDataLoaders.from_folder(
        tmp_path,
        valid_pct=0.5,
        seed=1,
        bs=2,
        num_workers=0,
        item_tfms=vision.Resize(32),
        batch_tfms=[vision.Normalize.from_stats(MEAN, STD)],
    )
    made = vision.vision_learner(loaders, vision.resnet18, pretrained=False)
    made.model.eval()
    photo = tmp_path / "cat" / "0.png"
    with made.no_bar():
        expected = made.predict(photo)[2]
    scores = adapt(made).predict(photo, top_k=2)[0]
    assert {scores.name(row): float(scores.scores[row]) for row in range(2)} == pytest.approx(
        dict(zip(["cat", "dog"], expected.tolist(), strict=True)), abs=1e-4
    )
    made.export(tmp_path / "export.pkl")
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        load_model(tmp_path / "export.pkl")
    loaded = load_model(tmp_path / "export.pkl", trust_checkpoint=True)
    assert loaded.predict(photo, top_k=2)[0].scores == pytest.approx(scores.scores.tolist(), abs=1e-6)
    codes = vision.SegmentationDataLoaders.from_label_func(
        tmp_path,
        vision.get_image_files(tmp_path),
        lambda file: vision.PILMask.create(np.zeros((32, 32), np.uint8)),
        codes=["background", "cell"],
        bs=2,
        num_workers=0,
    )
    assert adapt(vision.unet_learner(codes, vision.resnet18, pretrained=False)).names == {0: "background", 1: "cell"}
