"""YOLO and RT-DETR: the same detections as `YOLO.predict`, the same gradients as the model's own forward pass."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detcam import ODAM, Detections, GradCAM, Source, adapt
from detcam.adapters.ultralytics.detector import UltralyticsAdapter
from detcam.targets import BoxTarget, ClassifierOutputTarget, InstanceMaskTarget, MaskErrorTarget
from tests.helpers import Snapshot, tensors

pytest.importorskip("ultralytics")

from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.nms import non_max_suppression

from tests.adapters.ultralytics.networks import (
    CLASSES,
    END_TO_END,
    IMAGES,
    NAMES,
    OPTIONS,
    SIZE,
    array,
    assert_same_gradients,
    gradients,
    literal_run,
    literal_scalars,
    network,
    options,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore::detcam.ReachWarning", "ignore::detcam.EmptyMapWarning")


@pytest.mark.parametrize("name", NAMES)
def test_detections_equal_those_of_predict(name: str) -> None:
    wrapper = wrapped(name)
    adapter = adapt(wrapper, **options(name))
    found = adapter.predict(IMAGES)
    more: dict[str, Any] = {"nms": False if name in END_TO_END else None, "retina_masks": "-seg" in name}
    for image, ours in zip(IMAGES, found, strict=True):
        theirs = wrapper.predict(array(image), verbose=False, **options(name), **more)[0]
        boxes = theirs.obb if "-obb" in name else theirs.boxes
        limit = torch.tensor([image.shape[2], image.shape[1]]).repeat(2)
        clipped = torch.minimum(boxes.xyxy.clamp(min=0), limit)
        visible = (clipped[:, 2:] > clipped[:, :2]).all(1)  # a box on the padding, or inside out, has no pixels
        boxes = boxes[visible]
        assert len(ours) == len(boxes) > 1
        assert torch.allclose(ours.boxes_xyxy, boxes.xyxy if "rtdetr" in name else clipped[visible], atol=1e-2)
        assert torch.allclose(ours.scores, boxes.conf, atol=1e-4)
        assert ours.labels.tolist() == boxes.cls.tolist()
        assert float(ours.scores.std()) > 1e-3, "the test needs scores that differ"
        if "-obb" in name:
            assert torch.allclose(ours.extras["corners_xy"], boxes.xyxyxyxy, atol=1e-2)
        if "-pose" in name:
            assert torch.allclose(ours.extras["keypoints"], theirs.keypoints.data[visible], atol=1e-2)
        if "-seg" in name:
            assert ours.masks is not None and ours.masks.shape == theirs.masks.data[visible].shape
            assert float((ours.masks != theirs.masks.data[visible].bool()).float().mean()) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_detection_keeps_its_score_in_another_call_and_another_batch(name: str) -> None:
    adapter = adapt(network(name), image_size=SIZE, **options(name))
    found = adapter.predict(IMAGES)
    for order in ([0], [2, 1, 0]):
        results = GradCAM(adapter).explain([IMAGES[i] for i in order], [found[i] for i in order])
        for i, result in zip(order, results, strict=True):
            assert torch.allclose(result.scores, found[i].scores, atol=1e-4)
            assert result.heatmaps.shape == (len(found[i]), *IMAGES[i].shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_through_the_whole_model(name: str) -> None:
    model = network(name)
    adapter = adapt(model, image_size=SIZE, **options(name))
    assert [adapter.model.model[i] for i in model.model[-1].f] == adapter.target_layers  # type: ignore[index]
    inputs, fast = gradients(adapter, IMAGES[0])
    found, leaves = literal_run(model, inputs, adapter.target_layers)
    scalars = literal_scalars(name, found)
    if "-seg" in name:  # detections with an empty mask are no detections, for predict neither
        scalars = [s for s in scalars if any(abs(s.item() - value) < 1e-4 for value, _ in fast)]
    assert_same_gradients(fast, scalars, leaves)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("yolo11n", "model.4"), ("yolo26n", "model.4"), ("yolo11n", "model.23.cv3.0.0"), ("yolov8n-rtdetr", "model.4")],
)
def test_gradients_at_other_layers(name: str, layer: str) -> None:
    """Earlier than the head, and inside it, where the heads must run within reach of the hooks."""
    model = network(name)
    adapter = adapt(model, image_size=SIZE, target_layers=[layer], **options(name))
    level = (lambda d: [t for t in adapter.targets_of(d) if t.source.level == 0]) if "cv3" in layer else None
    inputs, fast = gradients(adapter, IMAGES[0], level)
    found, leaves = literal_run(model, inputs, adapter.target_layers)
    scalars = literal_scalars(name, found)
    if level:
        levels = [source.level for source in adapter.predict([IMAGES[0]])[0].source]
        scalars = [scalar for scalar, cell in zip(scalars, levels, strict=True) if cell == 0]
    assert_same_gradients(fast, scalars, leaves)


@pytest.mark.parametrize("name", ["yolo11n", "yolo11n-obb"])
def test_corner_cells_see_the_padding_of_the_whole_map(name: str) -> None:
    """The head runs on windows: at borders they must end where the map ends."""
    model = network(name)
    adapter = adapt(model, image_size=SIZE, **options(name))
    strides = [8, 16, 32]
    corners = [(level, y, x) for level in range(3) for y in (0, -1) for x in (0, 1)]
    batch = adapter.prepare([IMAGES[0]])
    shapes = [(batch.inputs.shape[2] // s, batch.inputs.shape[3] // s) for s in strides]

    def targets(_: Detections) -> list[BoxTarget]:
        made = []
        for level, y, x in corners:
            cell = ((x + 0.5) * strides[level], (y % shapes[level][0] + 0.5) * strides[level])
            source = Source("cell", level, 0, batch.geometries[0].point_to_image(cell))
            made += [BoxTarget((10, 10, 50, 50), 2, source), BoxTarget((10, 10, 50, 50), 2, source, quantity="width")]
        return made

    inputs, fast = gradients(adapter, IMAGES[0], targets)
    found, leaves = literal_run(model, inputs, adapter.target_layers)
    starts = [0, shapes[0][0] * shapes[0][1], shapes[0][0] * shapes[0][1] + shapes[1][0] * shapes[1][1]]
    scalars = []
    for level, y, x in corners:
        values = found[0][0, :, starts[level] + y % shapes[level][0] * shapes[level][1] + x]
        width = values[2]
        if "-obb" in name:  # the box around the rotated one
            width = values[2] * values[-1].cos().abs() + values[3] * values[-1].sin().abs()
        scalars += [values[4 + 2], width / batch.geometries[0].scale_xy[0]]
    assert_same_gradients(fast, scalars, leaves)


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolov8n-rtdetr"])
def test_coordinates_can_be_explained(name: str) -> None:
    model = network(name)
    adapter = adapt(model, image_size=SIZE, **options(name))

    def targets(found: Detections) -> list[BoxTarget]:
        made = adapter.targets_of(found[:3])
        return [BoxTarget(t.box_xyxy, t.label, t.source, quantity=q) for t in made for q in ("x1", "height")]  # type: ignore[union-attr]

    inputs, fast = gradients(adapter, IMAGES[0], targets)
    found, leaves = literal_run(model, inputs, adapter.target_layers)
    geometry = adapter.prepare([IMAGES[0]]).geometries[0]
    if name == "yolo11n":
        kept = non_max_suppression(found[0].detach().clone(), 0.15, 0.5, nc=CLASSES, return_idxs=True)[1][0][:3]
        x, y, width, height = found[0][0, :4, kept]
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    elif name == "yolo26n":
        boxes = found[0][0, :3, :4]
    else:
        x, y, width, height = (found[0][0, :3, :4] * torch.tensor([SIZE] * 4)).unbind(1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    boxes = geometry.boxes_to_image(boxes)
    assert_same_gradients(fast, [value for box in boxes for value in (box[0], box[3] - box[1])], leaves)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n-rtdetr"])
def test_an_undetected_box_uses_the_best_candidate(name: str) -> None:
    model = network(name)
    adapter = adapt(model, image_size=SIZE, **options(name))
    wanted, label = torch.tensor([[30.0, 20.0, 90.0, 100.0]]), 1
    batch = adapter.prepare([IMAGES[0]])
    geometry = batch.geometries[0]
    with torch.no_grad():
        found = model(batch.inputs)
    if "rtdetr" in name:
        boxes, scores = found[1][0][-1, 0] * SIZE, found[1][1][-1, 0].sigmoid()
    else:
        boxes, scores = found[0][0, :4].T, found[0][0, 4:].T
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    fit = box_iou(wanted, geometry.boxes_to_image(corners))[0] * scores[:, label]
    (result,) = GradCAM(adapter).explain([IMAGES[0]], [[BoxTarget(tuple(wanted[0].tolist()), label)]])
    assert float(result.scores[0]) == pytest.approx(float(scores[fit.argmax(), label]), abs=1e-5)


def test_mirrored_image_uses_the_mirrored_cell() -> None:
    model = network("yolo11n")
    adapter = adapt(model, image_size=SIZE, **OPTIONS)
    (found,) = adapter.predict([IMAGES[0]])
    mirrored = [target.hflip(150) for target in adapter.targets_of(found)]  # type: ignore[attr-defined]
    (result,) = GradCAM(adapter).explain([IMAGES[0].flip(-1)], [mirrored])
    with torch.no_grad():
        maps = model(adapter.prepare([IMAGES[0].flip(-1)]).inputs)[1]["scores"].sigmoid()[0]
    starts = np.cumsum([0, 16 * 20, 8 * 10])
    for score, source, label in zip(result.scores, found.source, found.labels, strict=True):
        stride, columns = 8 * 2**source.level, 20 // 2**source.level
        x, y = adapter.prepare([IMAGES[0]]).geometries[0].point_to_input(source.center_xy)  # type: ignore[arg-type]
        column, row = round(x / stride - 0.5), round(y / stride - 0.5)
        cell = starts[source.level] + row * columns + columns - 1 - column
        assert float(score) == pytest.approx(float(maps[label, cell]), abs=1e-5)


@pytest.mark.parametrize("name", ["yolo26n", "yolov8n-rtdetr"])
def test_mirrored_and_brightened_views(name: str) -> None:
    adapter = adapt(network(name), image_size=SIZE, **options(name))
    (found,) = adapter.predict([IMAGES[1]])
    (plain,) = tensors(GradCAM(adapter)([IMAGES[1]], [found[:2]]))
    (smooth,) = tensors(GradCAM(adapter)([IMAGES[1]], [found[:2]], aug_smooth=True))
    assert smooth.shape == plain.shape and not torch.equal(smooth, plain)
    assert torch.isfinite(smooth).all() and float(smooth.max()) > 0


def test_queries_have_the_position_of_their_token() -> None:
    """The encoder's box head starts at zero, so that a query's first box is its token's anchor: the cell's center."""
    model = network("yolov8n-rtdetr")
    adapter = adapt(model, image_size=SIZE, conf=0.0, max_det=300)
    (found,) = adapter.predict([IMAGES[0]])
    with torch.no_grad():
        anchors = model(adapter.prepare([IMAGES[0]]).inputs)[1][2][0]
    for source in found.source[:50]:
        assert source.kind == "query" and source.center_xy is not None
        expected = (anchors[source.anchor, :2] * torch.tensor([150.0, 120.0])).tolist()
        assert source.center_xy == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-seg"])
def test_mask_targets_read_prototypes_times_coefficients_inside_the_box(name: str) -> None:
    model = network(name)
    adapter = adapt(model, image_size=SIZE, **options(name))
    (found,) = adapter.predict([IMAGES[0]])
    targets = [
        InstanceMaskTarget(tuple(box), int(label), source)
        for box, label, source in zip(found.boxes_xyxy.tolist(), found.labels, found.source, strict=True)
    ]
    truth = torch.zeros(found.image_size_hw, dtype=torch.bool)
    truth[: found.image_size_hw[0] // 2] = True
    errors = [MaskErrorTarget(target.box_xyxy, target.label, target.source, mask=truth) for target in targets]
    (result,) = GradCAM(adapter).explain([IMAGES[0]], [targets])
    (of_errors,) = GradCAM(adapter).explain([IMAGES[0]], [errors])
    batch = adapter.prepare([IMAGES[0]])
    with torch.no_grad():
        (_, prototypes), raw = model(batch.inputs)
    raw = raw.get("one2one", raw)
    grids = [(16, 20), (8, 10), (4, 5)]
    for value, wrong, target in zip(result.scores, of_errors.scores, targets, strict=True):
        level = target.source.level  # type: ignore[union-attr]
        x, y = batch.geometries[0].point_to_input(target.source.center_xy)  # type: ignore[union-attr,arg-type]
        stride = 8 * 2**level
        cell = sum(h * w for h, w in grids[:level]) + int(y // stride) * grids[level][1] + int(x // stride)
        x1, y1, x2, y2 = batch.geometries[0].boxes_to_input(torch.tensor(target.box_xyxy)).tolist()
        inside, hinges = [], []
        for row in range(prototypes.shape[2]):
            for column in range(prototypes.shape[3]):
                if x1 <= column * 4 + 2 < x2 and y1 <= row * 4 + 2 < y2:
                    inside.append(float(prototypes[0, :, row, column] @ raw["mask_coefficient"][0, :, cell]))
                    y = int(batch.geometries[0].point_to_image((column * 4 + 2, row * 4 + 2))[1])
                    hinges.append(max(0.0, inside[-1] * (-1 if truth[min(max(y, 0), len(truth) - 1), 0] else 1)))
        positive = [logit for logit in inside if logit > 0]
        assert float(value) == pytest.approx(np.mean(positive) if positive else max(inside), rel=1e-4, abs=1e-5)
        assert float(wrong) == pytest.approx(np.mean(hinges), rel=1e-4, abs=1e-5)
    assert float(torch.as_tensor(result.heatmaps).amax((1, 2)).min()) > 0


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n-seg", "yolov8n-rtdetr"])
def test_a_fused_model_with_inference_tensors_gives_equal_results_and_is_restored(name: str) -> None:
    plain = adapt(network(name), image_size=SIZE, **options(name))
    expected = plain.predict(IMAGES)
    with torch.inference_mode():  # as after YOLO.predict
        model = copy.deepcopy(network(name)).fuse(verbose=False)
        model(torch.rand(1, 3, 96, 96))
    assert any(parameter.is_inference() for parameter in model.parameters())
    snapshot, head = Snapshot(model), dict(model.model[-1].__dict__)
    adapter = adapt(model, image_size=SIZE, **options(name))
    results = GradCAM(adapter).explain(IMAGES)
    for ours, result in zip(expected, results, strict=True):
        assert torch.allclose(result.scores, ours.scores, atol=1e-4)
        assert float(result.heatmaps.max()) > 0
    snapshot.check()
    assert {key: id(value) for key, value in model.model[-1].__dict__.items()} == {k: id(v) for k, v in head.items()}


@pytest.mark.filterwarnings("ignore:.*training mode:UserWarning")
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolov8n-rtdetr", "yolov8n-cls"])
def test_a_model_in_training_mode_stays_in_training_mode(name: str) -> None:
    model = copy.deepcopy(network(name))
    thresholds: dict[str, Any] = {} if "-cls" in name else {"conf": 0.15, "max_det": 3}
    expected = GradCAM(adapt(model, image_size=SIZE, **thresholds)).explain(IMAGES[:2])
    model.train()
    model.model[0].eval()
    model.model[-1].export = True
    snapshot, head = Snapshot(model), dict(model.model[-1].__dict__)
    results = GradCAM(adapt(model, image_size=SIZE, **thresholds)).explain(IMAGES[:2])
    for before, after in zip(expected, results, strict=True):
        assert torch.equal(torch.as_tensor(before.heatmaps), torch.as_tensor(after.heatmaps))

    def refuse(output: Any) -> Tensor:
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        GradCAM(adapt(model, image_size=SIZE)).explain(IMAGES[:1], [[refuse]])
    snapshot.check()
    assert dict(model.model[-1].__dict__) == head


def test_either_branch_of_a_head_with_two_can_be_explained() -> None:
    model = network("yolo26n")
    image = IMAGES[0]
    one_to_one, one_to_many = (adapt(model, image_size=SIZE, nms=nms, **OPTIONS) for nms in (False, True))
    with torch.no_grad():
        raw = model(one_to_one.prepare([image]).inputs)[1]
    for adapter, name in ((one_to_one, "one2one"), (one_to_many, "one2many")):
        (found,) = adapter.predict([image])
        assert float(found.scores[0]) == pytest.approx(float(raw[name]["scores"].max().sigmoid()), abs=1e-5)
        (result,) = GradCAM(adapter).explain([image], [found])
        assert torch.allclose(result.scores, found.scores, atol=1e-5)
    fused = copy.deepcopy(model).fuse(verbose=False)
    assert adapt(fused).end_to_end  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no such branch"):
        adapt(fused, nms=True)
    with pytest.raises(ValueError, match="no such branch"):
        adapt(network("yolo11n"), nms=False)


@pytest.mark.parametrize("size", [(480, 640), (97, 301), (64, 64), (101, 1000), (333, 40)])
def test_the_letterbox_is_known_exactly(size: tuple[int, int]) -> None:
    """A bright rectangle is found on the network's input where the geometry says, and gray 114 around the image."""
    adapter = adapt(network("yolo11n"), image_size=320)
    height, width = size
    image = torch.zeros(3, height, width)
    box = torch.tensor([width * 0.25, height * 0.25, width * 0.75, height * 0.75]).round()
    x1, y1, x2, y2 = box.int().tolist()
    image[:, y1:y2, x1:x2] = 1
    batch = adapter.prepare([image])
    assert all(side % 32 == 0 for side in batch.inputs.shape[-2:])
    bright = batch.inputs[0, 0] > 0.5
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (seen - batch.geometries[0].boxes_to_input(box)).abs().max() <= 1
    gray = (batch.inputs[0] == 114 / 255).all(0)
    inside = batch.geometries[0].boxes_to_input(torch.tensor([0.0, 0.0, width, height])).round().int().tolist()
    gray[inside[1] : inside[3], inside[0] : inside[2]] = True
    assert gray.all()


def test_classifiers_give_the_probabilities_of_predict_and_explain_logits() -> None:
    wrapper = wrapped("yolov8n-cls")
    adapter = adapt(wrapper)
    assert adapter.layer_names == ["model.9.conv"] and adapter.task == "classification"
    found = adapter.predict(IMAGES)
    for image, ours in zip(IMAGES, found, strict=True):
        theirs = wrapper.predict(array(image), verbose=False)[0].probs
        assert ours.labels.tolist() == [theirs.top1]
        assert float(ours.scores[0]) == pytest.approx(float(theirs.top1conf), abs=1e-5)
    result = GradCAM(adapter).explain(IMAGES[:1], [ClassifierOutputTarget(1)])[0]
    with torch.no_grad():
        probabilities, logits = network("yolov8n-cls")(adapter.prepare(IMAGES[:1]).inputs)
    assert float(result.scores[0]) == pytest.approx(float(logits[0, 1]), abs=1e-5)
    assert float(found[0].scores[0]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    # Mean pooling and one linear layer: GradCAM is CAM, the class's own weights times the activations.
    kept: list[Tensor] = []
    handle = adapter.target_layers[0].register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        network("yolov8n-cls")(adapter.prepare(IMAGES[:1]).inputs)
    handle.remove()
    cells = kept[0].shape[-1] * kept[0].shape[-2]
    with torch.no_grad():
        cam = (network("yolov8n-cls").model[-1].linear.weight[1, :, None, None] * kept[0][0]).sum(0) / cells
    assert torch.allclose(result.saliency[0][0], cam, atol=1e-5 * float(cam.abs().max()) + 1e-7)


def test_the_classifier_s_center_crop_is_known() -> None:
    adapter = adapt(network("yolov8n-cls"), image_size=64)
    image = torch.zeros(3, 100, 300)
    image[:, 25:75, 140:180] = 1
    batch = adapter.prepare([image])
    bright = batch.inputs[0, 0] > 0.5
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (seen - batch.geometries[0].boxes_to_input(torch.tensor([140.0, 25.0, 180.0, 75.0]))).abs().max() <= 1


def test_unsupported_models_raise_with_a_remedy() -> None:
    model = network("yolo11n")
    with pytest.raises(ValueError, match="conf in"):
        adapt(model, conf=2)
    with pytest.raises(ValueError, match="max_det"):
        adapt(model, max_det=0)
    with pytest.raises(ValueError, match="image_size"):
        adapt(model, image_size=(1, 2, 3))
    adapter = adapt(model, image_size=SIZE)
    with pytest.raises(ValueError, match="multiples of 32"):
        GradCAM(adapter)(torch.rand(1, 3, 100, 128))
    with pytest.raises(ValueError, match="Divide by 255"):
        GradCAM(adapter)(torch.rand(1, 3, 128, 128) * 255)
    with pytest.raises(ValueError, match="no objectness"):
        target = BoxTarget((0, 0, 30, 30), 0, quantity="objectness")
        GradCAM(adapter)([IMAGES[0]], [[target]])
    unknown = tasks.DetectionModel("yolo11n.yaml", verbose=False)
    unknown.model.append(nn.Identity())
    with pytest.raises(TypeError, match="semantic segmentation and depth; got a DetectionModel with a Identity head"):
        adapt(unknown)
    exported = YOLO("yolo11n.yaml")
    del exported.model
    exported.model = "yolo11n.onnx"
    with pytest.raises(TypeError, match="exported model"):
        adapt(exported)
    assert not UltralyticsAdapter.supports(nn.Conv2d(3, 3, 3))


def test_the_order_of_colors_in_arrays_is_announced_unless_it_is_given() -> None:
    rgb = array(IMAGES[0])[..., ::-1]
    with pytest.warns(UserWarning, match="read as RGB here, and as BGR by the model's library: pass bgr=True"):
        hinted = adapt(wrapped("yolo11n")).reader.read(rgb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, image, options in (
            (wrapped("yolo11n"), rgb, {"bgr": False}),
            (wrapped("yolo11n"), rgb[..., ::-1], {"bgr": True}),
            (wrapped("yolo11n"), IMAGES[0], {}),
            (network("yolo11n"), rgb, {}),
        ):
            assert torch.allclose(adapt(model, **options).reader.read(image), hinted, atol=0.01)


def test_a_prepared_tensor_is_used_unchanged() -> None:
    adapter = adapt(network("yolo11n"), image_size=SIZE, **OPTIONS)
    batch = adapter.prepare([IMAGES[0]])
    (expected,) = adapter.predict([IMAGES[0]])
    (result,) = GradCAM(adapter).explain(batch.inputs)
    assert torch.allclose(result.scores, expected.scores, atol=1e-5)
    assert result.heatmaps.shape[1:] == batch.inputs.shape[2:]


@pytest.mark.slow
def test_rt_detr_large() -> None:
    test_gradients_equal_those_through_the_whole_model("rtdetr-l")
    test_detections_equal_those_of_predict("rtdetr-l")


def test_a_trained_detector_s_evidence_lies_on_the_cells(data: Path) -> None:
    wrapper = YOLO(data / "models" / "bccd_yolo11n.pt")
    files = sorted((data / "bccd" / "images").iterdir())[:2]
    adapter = adapt(wrapper)
    assert sorted(adapter.names.values()) == ["Platelets", "RBC", "WBC"]
    found = adapter.predict(files, score_threshold=0.5)
    for file, ours in zip(files, found, strict=True):
        theirs = wrapper.predict(file, conf=0.5, verbose=False)[0].boxes
        assert len(ours) == len(theirs) > 3
        assert torch.allclose(ours.scores, theirs.conf, atol=1e-2)  # two JPEG decoders
    for result in ODAM(adapter).explain(files, found):
        assert torch.allclose(result.scores, result.detections.scores, atol=1e-4)  # type: ignore[union-attr]
        for heatmap, (x1, y1, x2, y2) in zip(
            torch.as_tensor(result.heatmaps), result.detections.boxes_xyxy, strict=True
        ):  # type: ignore[union-attr]
            y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
            assert x1 <= x < x2 and y1 <= y < y2
