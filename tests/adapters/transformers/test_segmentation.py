"""Segmentation networks of transformers: the library's own segments, exact gradients, one target per mask query."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detcam import HiResCAM
from detcam.adapters import adapt
from detcam.adapters.transformers.masks import TransformersMaskQueries, TransformersSemanticQueries
from detcam.adapters.transformers.queries import mask_values
from detcam.adapters.transformers.segmentation import TransformersSegmenter
from detcam.geometry import Geometry
from detcam.targets import InstanceMaskTarget, MaskErrorTarget, MaskTarget
from detcam.testing import check_adapter
from detcam.testing.state import ModelState
from detcam.trace import guarded
from tests.adapters.transformers.detectors import NAMES
from tests.adapters.transformers.segmenters import MASK_QUERIES, SEMANTIC, rf_detr_masks
from tests.adapters.transformers.text import clip_tokenizer

tf = pytest.importorskip("transformers", reason="transformers is not installed")

IMAGES = [
    torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1)).float() / 255,
    torch.randint(0, 256, (3, 120, 80), generator=torch.Generator().manual_seed(2)).float() / 255,
]
PROCESSORS = {"data2vec": "Beit", "upernet": "Segformer", "mobilenet_v2": "MobileNetV2", "dpt": "DPT", "beit": "Beit"}
QUERY_PROCESSORS = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "Eomt", "detr_panoptic": "Detr"}


def processor_of(name: str) -> Any:
    square = {"height": 64, "width": 64}
    if name == "mobilevit":
        return tf.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size=square)
    if name == "eomt":
        return tf.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    if name == "oneformer":
        metadata = {**{str(index): label for index, label in NAMES.items()}, "class_names": list(NAMES.values())}
        images = tf.OneFormerImageProcessor(size=square, metadata={**metadata, "thing_ids": [0, 1, 2]})
        return tf.OneFormerProcessor(images, clip_tokenizer(), max_seq_length=16, task_seq_length=16)
    kind = QUERY_PROCESSORS.get(name) or PROCESSORS.get(name, "Segformer")
    return getattr(tf, f"{kind}ImageProcessor")(size=square, do_center_crop=False)


@functools.cache
def semantic_adapter(name: str) -> Any:
    return adapt(SEMANTIC[name](), processor=processor_of(name))


@functools.cache
def query_adapter(name: str, **options: Any) -> Any:
    return adapt(MASK_QUERIES[name](), processor=processor_of(name), **options)


def library_output(adapter: Any, image: Tensor) -> Any:
    pixels = [(image * 255).round().byte()]
    if adapter.model.config.model_type == "oneformer":
        task = "semantic" if isinstance(adapter, TransformersSemanticQueries) else "panoptic"
        features = processor_of("oneformer")(images=pixels, task_inputs=[task], return_tensors="pt")
    else:
        features = adapter.preparation.processor(images=pixels, return_tensors="pt")
    features = {key: features[key] for key in ("pixel_values", "task_inputs") if key in features}
    with torch.no_grad():
        return adapter.model(**features)


@pytest.mark.parametrize("name", list(SEMANTIC))
def test_classes_are_those_of_the_library(name: str) -> None:
    adapter = semantic_adapter(name)
    assert isinstance(adapter, TransformersSegmenter) and adapter.names == NAMES
    for image in IMAGES:
        output = library_output(adapter, image)
        state = ModelState(adapter.model)
        (found,) = adapter.predict(image)
        state.check()
        size = (image.shape[-2], image.shape[-1])
        if name == "mobilevit":  # its post-processing ignores the crop: the crop itself is compared
            geometry = adapter.preparation.geometry(size)
            assert geometry.offset_xy != (0, 0)
            continue
        (expected,) = adapter.preparation.processor.post_process_semantic_segmentation(output, target_sizes=[size])
        label_map = torch.full(size, -1)
        for label, mask in zip(found.labels.tolist(), found.masks, strict=True):
            label_map[mask] = label
        different = label_map != expected
        assert float(different.float().mean()) < 1e-3  # pixels on which two classes are equal to 1e-6
        assert len(found) > 1


@pytest.mark.parametrize("name", list(SEMANTIC))
def test_gradient_is_that_of_the_whole_model(name: str) -> None:
    adapter = semantic_adapter(name)
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare(IMAGES[:1])
        with adapter.trace(batch, gradients=True) as trace:
            outputs = adapter.outputs(adapter.forward(batch), batch)
        target = MaskTarget(1)
        ((score,),) = adapter.score(outputs, [[target]])
        traced = trace.gradients(score, retain_graph=False)
        held: list[Tensor] = []
        handle = adapter.target_layers[0].register_forward_hook(
            lambda _, __, out: held.append(out.requires_grad_(True))
        )
        logits = adapter.model(batch.inputs).logits
        handle.remove()
        if name == "mobilevit":  # only cells on the image count
            rows, columns = batch.geometries[0].valid_cells((logits.shape[-2], logits.shape[-1]))
            assert (rows, columns) == (slice(0, logits.shape[-2]), slice(0, logits.shape[-1]))
        plain = logits[0, 1].mean()
        direct = torch.autograd.grad(plain, held)
    torch.testing.assert_close(score, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(traced[0][0], adapter.reshape_for(batch)(direct[0])[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", list(SEMANTIC))
def test_contract_of_semantic_segmentation(name: str) -> None:
    check_adapter(semantic_adapter(name), IMAGES)


@pytest.mark.parametrize("name", list(MASK_QUERIES))
def test_segments_are_those_of_the_library(name: str) -> None:
    adapter = query_adapter(name, score_threshold=0.3)
    assert isinstance(adapter, TransformersMaskQueries)
    for image in IMAGES:
        output = library_output(adapter, image)
        size = (image.shape[-2], image.shape[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (expected,) = adapter.preparation.processor.post_process_panoptic_segmentation(
                output, threshold=0.3, target_sizes=[size]
            )
        state = ModelState(adapter.model)
        (found,) = adapter.predict(image)
        state.check()
        infos = expected["segments_info"]
        assert len(found) == len(infos) > 0
        assert sorted(found.labels.tolist()) == sorted(info["label_id"] for info in infos)
        scores = sorted((info["score"] for info in infos), reverse=True)
        assert found.scores.tolist() == pytest.approx(scores, abs=1e-4)
        for info in infos:
            mask = expected["segmentation"] == info["id"]
            overlaps = [
                (mask != own).float().mean()
                for own, label in zip(found.masks, found.labels, strict=True)
                if label == info["label_id"]
            ]
            assert min(overlaps) < 2e-3


@pytest.mark.parametrize("name", list(MASK_QUERIES))
def test_a_mask_query_is_pinned(name: str) -> None:
    adapter = query_adapter(name, score_threshold=0.3)
    (found,) = adapter.predict(IMAGES[0])
    target = adapter.targets_of(found)[0]
    query, label = found.source[0].anchor, int(found.labels[0])
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare(IMAGES[:1])
        with adapter.trace(batch, gradients=True) as trace:
            outputs = adapter.outputs(adapter.forward(batch), batch)
        mask_target = InstanceMaskTarget(target.box_xyxy, label, target.source)
        ((score, mask_score),) = adapter.score(outputs, [[target, mask_target]])
        traced = trace.gradients(score, retain_graph=True)
        of_mask = trace.gradients(mask_score, retain_graph=False)
        held: list[Tensor] = []
        handle = adapter.target_layers[0].register_forward_hook(
            lambda _, __, out: held.append((out[0] if isinstance(out, tuple) else out).requires_grad_(True))
        )
        raw = adapter.model(batch.inputs, **adapter.call_settings(batch))
        handle.remove()
        logits = raw.logits if name == "detr_panoptic" else raw.class_queries_logits
        plain = logits[0, query].softmax(-1)[label]
        direct = adapter.reshape_for(batch)(torch.autograd.grad(plain, held)[0])
    assert float(plain.detach()) == pytest.approx(float(found.scores[0]), abs=1e-5)
    for one, other in zip(traced[0], direct, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-3)
    assert any(float(level.abs().max()) > 0 for level in of_mask[0])
    maps = HiResCAM(adapter).explain(IMAGES[:1], [found[:1]])[0].saliency
    assert all(min(level.shape[-2:]) >= 2 for level in maps)


@pytest.mark.parametrize("name", list(MASK_QUERIES))
def test_contract_of_mask_queries(name: str) -> None:
    check_adapter(query_adapter(name, score_threshold=0.3), IMAGES)


@pytest.mark.parametrize("name", list(MASK_QUERIES))
def test_semantic_maps_are_those_of_the_library(name: str) -> None:
    adapter = query_adapter(name, segments="semantic")
    assert isinstance(adapter, TransformersSemanticQueries)
    image = IMAGES[0]
    size = (image.shape[-2], image.shape[-1])
    output = library_output(adapter, image)
    (found,) = adapter.predict(image)
    label_map = torch.full(size, -1)
    for label, mask in zip(found.labels.tolist(), found.masks, strict=True):
        label_map[mask] = label
    (expected,) = adapter.preparation.processor.post_process_semantic_segmentation(output, target_sizes=[size])
    if name == "eomt":  # its post-processing does not undo the padding: without it, the maps are the same
        padded = F.interpolate(expected[None, None].float(), (64, 64))[0, 0]
        assert set(padded.unique().long().tolist()) >= set(label_map.unique().tolist())
        return
    assert float((label_map != expected).float().mean()) < 1e-3
    check_adapter(adapter, IMAGES)


def test_masks_of_rf_detr_are_those_of_the_library() -> None:
    processor = tf.RfDetrImageProcessor(size={"height": 64, "width": 64})
    adapter = adapt(rf_detr_masks(), processor=processor, score_threshold=0.0)
    image = IMAGES[0]
    size = (image.shape[-2], image.shape[-1])
    output = library_output(adapter, image)
    (found,) = adapter.predict(image)
    (expected,) = processor.post_process_instance_segmentation(
        output, threshold=0.0, target_sizes=[size], return_binary_maps=True
    )
    assert found.masks is not None
    by_score = {round(float(score), 6): mask for score, mask in zip(found.scores, found.masks, strict=True)}
    assert len(expected["segments_info"]) > 0
    for info, mask in zip(expected["segments_info"], expected["segmentation"], strict=True):
        assert float((by_score[info["score"]] != mask).float().mean()) < 1e-3
    check_adapter(adapter, IMAGES)
    target = InstanceMaskTarget(tuple(found.boxes_xyxy[0].tolist()), int(found.labels[0]), found.source[0])
    assert float(torch.as_tensor(HiResCAM(adapter).explain([image], [[target]])[0].scores)[0]) != 0


def test_the_error_of_a_query_mask_is_read_on_the_image_alone() -> None:
    geometry = Geometry((60, 100), (128, 128), (1.28, 1.28), (0.0, 25.6))  # rows 3 to 12 of 16 touch the image
    truth = torch.zeros(60, 100, dtype=torch.bool)
    truth[:, :50] = True
    target = MaskErrorTarget((0, 0, 100, 60), 0, mask=truth)
    masks = torch.full((2, 16, 16), 5.0)
    masks[1, 3:13, 8:] = -1.0
    masks[1, 3:13, 6:8] = -2.0  # an eighth of the image, on the object
    values = mask_values(masks, [target, target], [0, 1], geometry)
    assert [float(value) for value in values] == [2.5, 0.25]
