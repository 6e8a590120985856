"""Classifiers, image-text models and image towers of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detcam import GradCAM
from detcam.adapters import adapt, embed, embedder
from detcam.adapters.transformers.classification import TransformersClassifier, TransformersImageText
from detcam.targets import ClassTarget, SimilarityToConceptTarget
from detcam.testing import check_adapter
from detcam.testing.state import ModelState
from detcam.trace import guarded
from tests.adapters.transformers.detectors import NAMES, resnet, seeded
from tests.adapters.transformers.text import TEXT, VISION, clip_text_config, clip_tokenizer

tf = pytest.importorskip("transformers", reason="transformers is not installed")

IMAGES = [
    torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1)).float() / 255,
    torch.randint(0, 256, (3, 120, 80), generator=torch.Generator().manual_seed(2)).float() / 255,
]
SQUARE = {"height": 64, "width": 64}
PROMPTS = ["a red boat", "a buoy", "water"]


def classifier(kind: str, **sizes: Any) -> Any:
    config = getattr(tf, f"{kind}Config")(**sizes, id2label=NAMES)
    return seeded(lambda: getattr(tf, f"{kind}ForImageClassification")(config))


def residual() -> Any:
    config = resnet()
    config.id2label = NAMES
    return seeded(lambda: tf.ResNetForImageClassification(config))


CLASSIFIERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "vit": (lambda: classifier("ViT", **VISION), lambda: tf.ViTImageProcessor(size=SQUARE)),
    "deit": (lambda: classifier("DeiT", **VISION), lambda: tf.DeiTImageProcessor(size=SQUARE, do_center_crop=False)),
    "dinov2": (
        lambda: classifier("Dinov2", **{**VISION, "mlp_ratio": 2}),
        lambda: tf.BitImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE),
    ),
    "swin": (
        lambda: classifier(
            "Swin", image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, patch_size=4
        ),
        lambda: tf.ViTImageProcessor(size=SQUARE),
    ),
    "cvt": (
        lambda: classifier("Cvt", embed_dim=[16, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3]),
        lambda: tf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    ),
    "dinov2_with_registers": (
        lambda: classifier("Dinov2WithRegisters", **{**VISION, "mlp_ratio": 2}),
        lambda: tf.BitImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE),
    ),
    "data2vec": (lambda: classifier("Data2VecVision", **VISION), lambda: tf.ViTImageProcessor(size=SQUARE)),
    "hiera": (
        lambda: classifier("Hiera", image_size=[64, 64], embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
        lambda: tf.BitImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE),
    ),
    "pvt_v2": (
        lambda: classifier(
            "PvtV2",
            image_size=64,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
        ),
        lambda: tf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    ),
    "resnet": (residual, lambda: tf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)),
    "mobilevit": (
        lambda: classifier("MobileViT", image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8] * 6 + [16]),
        lambda: tf.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE),
    ),
}


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classes_and_gradients_are_those_of_the_model(name: str) -> None:
    make_model, make_processor = CLASSIFIERS[name]
    processor = make_processor()
    adapter = adapt(make_model(), processor=processor)
    assert isinstance(adapter, TransformersClassifier) and adapter.names == NAMES
    state = ModelState(adapter.model)
    (found,) = adapter.predict(IMAGES[0], top_k=3)
    state.check()
    # By the library alone, on the whole image.
    whole = {} if name in ("resnet", "cvt", "pvt_v2") else {"size": SQUARE, "do_center_crop": False}
    if name in ("vit", "deit", "swin", "data2vec"):
        whole = {}
    features = processor(images=[(IMAGES[0] * 255).byte()], return_tensors="pt", **whole)
    logits = adapter.model(features["pixel_values"]).logits[0].detach()
    expected, order = logits.softmax(-1).sort(descending=True)
    torch.testing.assert_close(found.scores, expected, atol=1e-4, rtol=0)
    assert found.labels.tolist() == order.tolist()
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare(IMAGES[:1])
        with adapter.trace(batch, gradients=True) as trace:
            outputs = adapter.outputs(adapter.forward(batch), batch)
        ((score,),) = adapter.score(outputs, [[ClassTarget(1)]])
        (traced,) = trace.gradients(score, retain_graph=False)[0]
        held: list[Any] = []
        handle = adapter.target_layers[0].register_forward_hook(
            lambda _, __, out: held.append((out[0] if isinstance(out, tuple) else out).requires_grad_(True))
        )
        plain = adapter.model(batch.inputs).logits[0, 1]
        handle.remove()
        direct = torch.autograd.grad(plain, held)[0]
    torch.testing.assert_close(traced, adapter.reshape_for(batch)(direct)[0], atol=1e-6, rtol=1e-3)
    assert min(traced.shape[-2:]) >= 2 and float(traced.abs().max()) > 0
    check_adapter(adapter, IMAGES)


def test_small_images_do_not_reduce_the_windows_of_swin() -> None:
    side = {"height": 112, "width": 112}
    model = classifier("Swin", image_size=112, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=7)
    image = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model)(image).logits
    adapter = adapt(model, processor=tf.ViTImageProcessor(size=side))  # the probe is smaller
    adapter.predict(IMAGES[0])
    torch.testing.assert_close(model(image).logits, before)


def test_size_and_normalization_of_the_saved_processor(tmp_path: Path) -> None:
    model = classifier("ViT", **VISION)
    model.save_pretrained(tmp_path)
    tf.ViTImageProcessor(size=SQUARE, image_mean=[0.2] * 3, image_std=[0.4] * 3).save_pretrained(tmp_path)
    loaded = tf.ViTForImageClassification.from_pretrained(tmp_path)
    adapter = adapt(loaded)
    assert (adapter.mean, adapter.std) == (pytest.approx((0.2,) * 3), pytest.approx((0.4,) * 3))
    body = tf.ViTModel.from_pretrained(tmp_path)
    assert embedder(body, layer=body).mean == pytest.approx((0.2,) * 3)
    with pytest.warns(UserWarning, match="no image processor is saved"):
        defaults = adapt(model)
    assert defaults.mean == pytest.approx((0.5,) * 3)
    assert defaults.prepare(IMAGES[:1]).inputs.shape == (1, 3, 64, 64)  # the model's size, not the processor's 224


def test_independent_classes_of_the_configuration() -> None:
    model = classifier("ViT", **VISION, problem_type="multi_label_classification")
    adapter = adapt(model, processor=tf.ViTImageProcessor(size=SQUARE))
    (found,) = adapter.predict(IMAGES[0], top_k=3)
    logits = model(adapter.prepare(IMAGES[:1]).inputs).logits[0].detach()
    torch.testing.assert_close(found.scores, logits.sigmoid().sort(descending=True).values, atol=1e-5, rtol=0)


def clip() -> tuple[Any, Any]:
    config = tf.CLIPConfig(text_config=clip_text_config(), vision_config=VISION, projection_dim=16)
    processor = tf.CLIPProcessor(tf.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE), clip_tokenizer())
    return seeded(lambda: tf.CLIPModel(config)), processor


def siglip() -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 16}
    config = tf.SiglipConfig(text_config=text, vision_config=VISION)
    tokenizer.model_input_names = ["input_ids"]
    return seeded(lambda: tf.SiglipModel(config)), tf.SiglipProcessor(tf.SiglipImageProcessor(size=SQUARE), tokenizer)


@pytest.mark.parametrize("make", [clip, siglip])
def test_prompts_are_the_classes(make: Callable[[], tuple[Any, Any]]) -> None:
    model, processor = make()
    adapter = adapt(model, processor=processor, prompts=PROMPTS)
    assert isinstance(adapter, TransformersImageText) and adapter.names == dict(enumerate(PROMPTS))
    features = processor(
        images=[(IMAGES[0] * 255).byte()],
        text=PROMPTS,
        return_tensors="pt",
        padding="max_length",
        max_length=16,
        **({"size": SQUARE, "do_center_crop": False} if make is clip else {}),
    )
    similarity = model(**features).logits_per_image[0].detach()
    expected = similarity.softmax(-1) if make is clip else similarity.sigmoid()
    (found,) = adapter.predict(IMAGES[0], top_k=3)
    torch.testing.assert_close(found.scores, expected.sort(descending=True).values, atol=1e-4, rtol=0)
    check_adapter(adapter, IMAGES)
    result = GradCAM(adapter).explain(IMAGES[:1], [[ClassTarget(0)]])[0]
    assert float(torch.as_tensor(result.scores)[0]) == pytest.approx(float(similarity[0]), abs=1e-3)
    assert tuple(result.saliency[0].shape[-2:]) == (4, 4)


def test_image_text_models_need_prompts() -> None:
    model, processor = clip()
    with pytest.raises(ValueError, match="needs prompts="):
        adapt(model, processor=processor)


def test_embedding_of_an_image_tower_is_its_projection() -> None:
    config = tf.CLIPVisionConfig(**VISION, projection_dim=12)
    model = seeded(lambda: tf.CLIPVisionModelWithProjection(config))
    with pytest.warns(UserWarning, match="no image processor is saved"):
        adapter = embedder(model)
    assert adapter.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    inputs = torch.rand(2, 3, 64, 64)
    vectors = embed(adapter, inputs)
    torch.testing.assert_close(vectors, model(inputs).image_embeds.detach(), atol=1e-5, rtol=1e-4)
    maps = GradCAM(adapter)(inputs, targets=[SimilarityToConceptTarget(vectors[0])] * 2)
    assert maps.shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DINOv3ViT", VISION),
        ("DINOv3ConvNext", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}),
        ("IJepa", VISION),
    ],
)
def test_backbones_without_a_head_are_embedders(kind: str, options: dict[str, Any]) -> None:
    model = seeded(lambda: getattr(tf, f"{kind}Model")(getattr(tf, f"{kind}Config")(**options)))
    adapter = embedder(model, image_size=64)
    crop = IMAGES[0][:, 10:60, 20:80]
    target = SimilarityToConceptTarget(embed(adapter, crop)[0])
    (result,) = GradCAM(adapter).explain(IMAGES[0], [target])
    assert result.heatmaps.shape == (1, 96, 128) and -1 <= float(result.scores[0]) <= 1
    assert min(result.saliency[0].shape[-2:]) >= 2


def test_models_that_take_no_images_are_refused_with_the_remedy() -> None:
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    config = tf.Siglip2Config(vision_config={**vision, "num_patches": 16}, num_labels=3)
    with pytest.raises(TypeError, match="takes patches of images of any shape.*fixed resolution"):
        adapt(tf.Siglip2ForImageClassification(config).eval(), processor=tf.ViTImageProcessor())
    pytest.importorskip("timm")
    wrapped = tf.TimmWrapperForImageClassification(tf.TimmWrapperConfig(architecture="resnet18", num_labels=3))
    with pytest.raises(TypeError, match=r"holds a model of timm.*detcam.adapt\(model.timm_model\)"):
        adapt(wrapped.eval())
    assert adapt(wrapped.timm_model.eval(), image_size=64).layer_names == ["layer4"]
