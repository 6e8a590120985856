"""Further heads of ultralytics: open vocabulary, semantic segmentation, depth; images of one and four channels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import detcam
from detcam import GradCAM, HiResCAM, adapt
from detcam.models.load import load_model
from detcam.targets import MaskTarget
from tests.adapters.ultralytics.networks import (
    CLASSES,
    IMAGES,
    OPTIONS,
    SIZE,
    array,
    assert_same_gradients,
    gradients,
    literal_run,
    literal_scalars,
    make_image,
    spread,
)

YOLO: Any = pytest.importorskip("ultralytics").YOLO
tasks: Any = pytest.importorskip("ultralytics.nn.tasks")

NAMES = ["boat", "buoy", "gull"]
SQUARE = make_image(4, SIZE, SIZE)  # no padding, on which boxes are left out
OPEN = {
    "yolov8s-world": tasks.WorldModel,  # the image changes the embeddings
    "yolov8s-worldv2": tasks.WorldModel,
    "yoloe-11s": tasks.YOLOEModel,
    "yoloe-26n": tasks.YOLOEModel,
    "yoloe-11s-seg": tasks.YOLOESegModel,
}


@cache
def open_network(name: str) -> Any:
    """Random weights and random embeddings of three classes."""
    torch.manual_seed(3)
    model = OPEN[name](f"{name}.yaml", nc=CLASSES, verbose=False).eval()
    head = model.model[-1]
    embeddings = torch.randn(1, CLASSES, 512)
    if isinstance(model, tasks.WorldModel):
        model.txt_feats, model.names = embeddings, dict(enumerate(NAMES))
    else:
        model.set_classes(NAMES, torch.nn.functional.normalize(embeddings, dim=-1))
    spread(model, [level[-1] for level in head.cv2])
    if head.reg_max == 1:  # distances to the sides that are negative make no box
        for level in head.cv2:
            level[-1].weight.data *= 0.2
    for level in head.cv4:
        level.bias.data.fill_(-2.0)
        level.logit_scale.data.fill_(-1.0 if hasattr(level, "norm") else 1.5)
    return model


@pytest.mark.parametrize("name", OPEN)
def test_open_vocabularies_agree_with_the_model(name: str) -> None:
    model = open_network(name)
    adapter = adapt(model, image_size=SIZE, **OPTIONS)
    assert adapter.family == "ultralytics open vocabulary" and adapter.names == dict(enumerate(NAMES))
    inputs, fast = gradients(adapter, SQUARE)
    found, leaves = literal_run(model, inputs, adapter.target_layers)
    assert_same_gradients(fast, literal_scalars("yolov8n", found), leaves)
    (detections,) = adapter.predict([SQUARE])
    wrapper = YOLO("yolo11n-seg.yaml" if "seg" in name else "yolo11n.yaml")
    wrapper.model, wrapper.overrides["imgsz"] = model, SIZE
    (result,) = wrapper.predict(array(SQUARE), verbose=False, **OPTIONS)
    assert len(detections) == len(result) > 0
    torch.testing.assert_close(detections.boxes_xyxy, result.boxes.xyxy, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(detections.scores, result.boxes.conf, atol=1e-4, rtol=0)
    assert detections.labels.tolist() == result.boxes.cls.tolist()


def test_other_embeddings_are_other_classes() -> None:
    model = open_network("yoloe-11s")
    before = adapt(model, image_size=SIZE, **OPTIONS).predict(IMAGES[0])[0]
    names, embeddings = list(model.names.values()), model.pe
    try:
        model.set_classes(NAMES[::-1], embeddings.flip(1))
        after = adapt(model, image_size=SIZE, **OPTIONS).predict(IMAGES[0])[0]
    finally:
        model.set_classes(names, embeddings)
    assert [before.caption(i) for i in range(len(before))] == [after.caption(i) for i in range(len(after))]
    assert before.labels.tolist() == [2 - label for label in after.labels.tolist()]


def test_a_yoloe_without_classes_is_refused() -> None:
    model = tasks.YOLOEModel("yoloe-11s.yaml", nc=CLASSES, verbose=False).eval()
    with pytest.raises(ValueError, match="has no classes yet; call set_classes"):
        adapt(model)
    model.model[-1].lrpc = nn.ModuleList()
    with pytest.raises(TypeError, match="prompt-free YOLOE"):
        adapt(model)


@cache
def map_network(name: str) -> Any:
    torch.manual_seed(1)
    kind = tasks.DepthModel if "depth" in name else tasks.SemanticSegmentationModel
    model = kind(f"{name}.yaml", verbose=False, **({} if "depth" in name else {"nc": CLASSES})).eval()
    spread(model, [])
    return model


def test_semantic_segmentation_agrees_with_the_model() -> None:
    model = map_network("yolo26n-sem")
    adapter = adapt(model, image_size=SIZE, names=NAMES)
    (detections,) = adapter.predict([IMAGES[0]])
    wrapper = YOLO("yolo26n-sem.yaml")
    wrapper.model, wrapper.overrides["imgsz"] = model, SIZE
    (result,) = wrapper.predict(array(IMAGES[0]), verbose=False)
    expected = result.semantic_mask.data if hasattr(result.semantic_mask, "data") else result.semantic_mask
    expected = torch.as_tensor(expected).squeeze()
    assert len(detections) == len(expected.unique()) > 1
    assert detections.masks is not None
    for label, mask in zip(detections.labels.tolist(), detections.masks, strict=True):
        assert float((mask == (expected == label)).float().mean()) > 0.98
    (layer,) = adapter.target_layers
    region = detections.masks[0]
    target = MaskTarget(int(detections.labels[0]), region)
    with torch.no_grad():
        raw = model(adapter.prepare([IMAGES[0]]).inputs)
    output = adapter.outputs(raw, adapter.prepare([IMAGES[0]]))[0]
    (explained,) = HiResCAM(adapter).explain([IMAGES[0]], [[target]])
    assert float(explained.scores[0]) == pytest.approx(float(target(output)), rel=1e-4)
    assert explained.heatmaps.shape == (1, *IMAGES[0].shape[1:]) and explained.heatmaps.max() == 1
    assert layer is model.model[model.model[-1].f[0]]


def test_depth_is_explained_over_a_region() -> None:
    model = map_network("yolo26n-depth")
    adapter = adapt(model, image_size=SIZE)
    region = torch.zeros(IMAGES[0].shape[1:], dtype=torch.bool)
    region[20:60, 30:90] = True
    (explained,) = GradCAM(adapter).explain([IMAGES[0]], [[MaskTarget(0, region)]])
    batch = adapter.prepare([IMAGES[0]])
    with torch.no_grad():
        depth = batch.geometries[0].to_image(model(batch.inputs)[0])[0]
    assert float(explained.scores[0]) == pytest.approx(float(depth[region].mean()), rel=0.05)
    assert float(explained.scores[0]) > 0
    (whole,) = detcam.explain(adapter, [IMAGES[0]])
    assert whole.names == {0: "depth"}
    assert float(whole.scores[0]) == pytest.approx(float(depth.mean()), rel=0.05)


@pytest.mark.parametrize("name", ["yolo26n-sem.yaml", "yolo26n-depth.yaml", "yolov8s-worldv2.yaml"])
def test_architectures_load_by_name(name: str) -> None:
    adapter = load_model(name, weights="none", image_size=64)
    assert adapter.family.startswith("ultralytics")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n-sem"])
def test_networks_of_other_numbers_of_channels(name: str, channels: int) -> None:
    torch.manual_seed(0)
    kind = tasks.SemanticSegmentationModel if "sem" in name else tasks.DetectionModel
    model = kind(f"{name}.yaml", ch=channels, nc=CLASSES, verbose=False).eval()
    adapter = adapt(model, image_size=64)
    image = make_image(0, 48, 64)[[0, 1, 2, 0][:channels]]
    batch = adapter.prepare([image])
    assert batch.inputs.shape[1] == channels
    rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
    torch.testing.assert_close(batch.inputs[0, :, rows, columns], image, atol=1e-6, rtol=0)
    targets = [[MaskTarget(0)]] if "sem" in name else [[detcam.targets.BoxTarget((8, 8, 40, 40), 0)]]
    (heatmaps,) = HiResCAM(adapter)([image], targets)
    assert heatmaps.shape == (1, 48, 64) and np.isfinite(heatmaps).all()
