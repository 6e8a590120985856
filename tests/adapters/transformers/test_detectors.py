"""Detectors of transformers: the library's own result, exact gradients, identity of queries, image processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import FullGrad, HiResCAM
from detcam.adapters import adapt
from detcam.adapters.transformers.detector import TransformersDetector
from detcam.detections import Source
from detcam.targets import BoxTarget
from detcam.testing import check_adapter
from detcam.testing.state import ModelState
from detcam.trace import guarded
from tests.adapters.transformers.detectors import DETECTORS, NAMES, detector_adapter, image_processor

pytest.importorskip("transformers", reason="transformers is not installed")

IMAGES = [
    torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)),
    torch.rand(3, 120, 80, generator=torch.Generator().manual_seed(2)),
]


def library_result(adapter: TransformersDetector, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores by the library alone: processor, model, post-processing."""
    processor = adapter.preparation.processor
    features = processor(images=[(image * 255).round().byte()], return_tensors="pt")
    arguments = {k: v for k, v in features.items() if k == "pixel_values" or adapter.model.config.model_type != "yolos"}
    with torch.no_grad():
        output = adapter.model(**arguments)
    (result,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[tuple(image.shape[-2:])])
    order = result["scores"].argsort(descending=True, stable=True)
    return result["boxes"][order], result["labels"][order], result["scores"][order]


@pytest.mark.parametrize("name", list(DETECTORS))
def test_result_is_that_of_the_library(name: str) -> None:
    adapter = detector_adapter(name)
    for image in IMAGES:
        image = (image * 255).round() / 255
        boxes, labels, scores = library_result(adapter, image)
        before = ModelState(adapter.model)
        (found,) = adapter.predict(image)
        before.check()
        inside = adapter.preparation.geometry((image.shape[-2], image.shape[-1])).clip(boxes)
        keep = (inside[:, 2:] > inside[:, :2]).all(1)
        assert len(found) == int(keep.sum()) > 3
        torch.testing.assert_close(found.scores, scores[keep], atol=1e-4, rtol=0)
        assert float(found.scores[0]) - float(found.scores[-1]) > 2e-4  # the order has a meaning
        # Equal scores may come in another order.
        rows = torch.cat([found.boxes_xyxy, found.labels[:, None].float()], 1)
        expected = torch.cat([boxes, labels[:, None].float()], 1)[keep]
        distance = (rows[:, None] - expected[None]).abs().amax(-1)
        same_score = (found.scores[:, None] - scores[keep][None]).abs() < 1e-4
        assert float(torch.where(same_score, distance, torch.inf).amin(1).max()) < 2e-2  # of 128 pixels
        assert found.names == NAMES


@pytest.mark.parametrize("name", list(DETECTORS))
def test_pinned_gradient_is_that_of_the_whole_model(name: str) -> None:
    adapter = detector_adapter(name)
    (found,) = adapter.predict(IMAGES[0])
    target = adapter.targets_of(found[:1])[0]
    query, label = found.source[0].anchor, int(found.labels[0])
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare(IMAGES[:1])
        with adapter.trace(batch, gradients=True) as trace:
            outputs = adapter.outputs(adapter.forward(batch), batch)
        ((score,),) = adapter.score(outputs, [[target]])
        pinned = trace.gradients(score, retain_graph=False)
        held: list[Tensor] = []

        def hold(module: nn.Module, inputs: Any, output: Any) -> Any:
            held.append(output[0] if isinstance(output, tuple) else output)
            held[-1].requires_grad_(True)

        handles = [layer.register_forward_hook(hold) for layer in adapter.target_layers]
        raw = adapter.model(batch.inputs, **batch.model_kwargs)
        for handle in handles:
            handle.remove()
        logits = raw.intermediate_logits[:, -1] if name == "pp_doclayout_v2" else raw.logits
        row = logits[0, query]
        plain = row.softmax(-1)[label] if adapter.activation == "softmax" else row[label].sigmoid()
        direct = torch.autograd.grad(plain, held)
    assert float(plain.detach()) == pytest.approx(float(found.scores[0]), abs=1e-6)
    reshape = adapter.reshape_for(batch)
    maps = [level for gradient in direct for level in reshape(gradient)]
    for one, other in zip([level for levels in pinned for level in levels], maps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)
    assert max(float(level.abs().max()) for level in maps) > 1e-6


@pytest.mark.parametrize("name", list(DETECTORS))
def test_contract(name: str) -> None:
    adapter = detector_adapter(name)
    check_adapter(adapter, IMAGES)
    maps = HiResCAM(adapter).explain(IMAGES[:1], [adapter.predict(IMAGES[0], top_k=1)[0]])[0]
    height, width = maps.saliency[0].shape[-2:]
    assert min(height, width) >= 2
    assert abs(height / width - 64 / 96) < 0.2  # a map of the 64 x 96 input, not a mixture of tokens


def test_softmax_head_has_a_background_class() -> None:
    output = detector_output("detr")
    assert output.background == 3 and output.classes == 4
    assert detector_output("rt_detr").background is None


def detector_output(name: str) -> Any:
    adapter = detector_adapter(name)
    with guarded(adapter.model, gradients=False):
        batch = adapter.prepare(IMAGES[:1])
        return adapter.outputs(adapter.forward(batch), batch)[0]


@pytest.mark.parametrize("name", ["rt_detr", "lw_detr", "deformable_detr_two_stage"])
def test_a_query_is_found_again_by_its_token(name: str) -> None:
    output = detector_output(name)
    before = [output.source_of(BoxTarget((0, 0, 8, 8), 0, Source("query", anchor=query))) for query in range(7)]
    assert len({(source.level, source.center_xy) for source in before}) == 7
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    output.tokens, output.logits, output.boxes = output.tokens[order], output.logits[order], output.boxes[order]
    for query, source in enumerate(before):
        target = BoxTarget((0, 0, 8, 8), 0, source)
        assert int(order[output.query(target)]) == query


def test_processor_of_a_folder_and_of_its_saved_model(tmp_path: Path) -> None:
    import transformers as tf

    model = DETECTORS["rt_detr"]()
    model.save_pretrained(tmp_path)
    image_processor("RTDetr", 96, 64, do_normalize=True, image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(
        tmp_path
    )
    loaded = adapt(tf.RTDetrForObjectDetection.from_pretrained(tmp_path))
    given = adapt(model, processor=tmp_path)
    for adapter in (loaded, given):
        assert isinstance(adapter, TransformersDetector)
        batch = adapter.prepare(IMAGES[:1])
        assert batch.inputs.shape == (1, 3, 96, 64)
        assert adapter.mean == pytest.approx((0.1,) * 3) and adapter.std == pytest.approx((0.2,) * 3)
    torch.testing.assert_close(
        loaded.predict(IMAGES[0], score_threshold=0.0)[0].boxes_xyxy,
        given.predict(IMAGES[0], score_threshold=0.0)[0].boxes_xyxy,
    )


def test_default_processor_is_announced() -> None:
    with pytest.warns(UserWarning, match="no image processor is saved beside RTDetrV2ForObjectDetection"):
        adapter = adapt(DETECTORS["rt_detr_v2"]())
    assert adapter.prepare(IMAGES[:1]).inputs.shape == (1, 3, 640, 640)


def test_wrong_processor() -> None:
    with pytest.raises(TypeError, match="expected an image processor of transformers"):
        adapt(DETECTORS["detr"](), processor=3)


def test_unknown_family_is_refused_until_its_activation_is_given() -> None:
    import transformers as tf

    class OtherConfig(tf.DetrConfig):
        model_type = "other"

    class OtherForObjectDetection(tf.DetrForObjectDetection):
        config_class = OtherConfig

    model = DETECTORS["detr"]()
    settings = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    other = OtherForObjectDetection(OtherConfig(**settings)).eval()
    processor = image_processor("Detr")
    with pytest.raises(ValueError, match="activation='sigmoid'"):
        adapt(other, processor=processor)
    assert adapt(other, processor=processor, activation="softmax").activation == "softmax"


def test_focal_loss_decides_on_the_activation_of_rt_detr() -> None:
    model = DETECTORS["rt_detr"]()
    model.config.use_focal_loss = False
    assert adapt(model, processor=image_processor("RTDetr")).activation == "softmax"


def test_image_size_replaces_that_of_the_processor() -> None:
    import transformers as tf

    keeps_ratio = tf.DetrImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333})
    model = DETECTORS["detr"]()
    by_side = adapt(model, processor=keeps_ratio, image_size=72)
    assert by_side.prepare(IMAGES[:1]).inputs.shape == (1, 3, 72, 96)
    stretched = adapt(model, processor=keeps_ratio, image_size=(64, 96))
    assert stretched.prepare(IMAGES[1:]).inputs.shape == (1, 3, 64, 96)


def test_score_threshold_and_limit() -> None:
    adapter = adapt(DETECTORS["rt_detr"](), processor=image_processor("RTDetr"), max_detections=2)
    assert len(adapter.predict(IMAGES[0], score_threshold=0.0)[0]) == 2
    all_scores = detector_adapter("rt_detr").predict(IMAGES[0])[0].scores
    threshold = float(all_scores[:4].mean())
    found = detector_adapter("rt_detr").predict(IMAGES[0], score_threshold=threshold)[0]
    assert len(found) == int((all_scores >= threshold).sum()) > 0


def test_fixed_padding_is_masked_and_undone() -> None:
    import transformers as tf

    processor = tf.DetrImageProcessor(size={"height": 64, "width": 96}, pad_size={"height": 96, "width": 128})
    adapter = adapt(DETECTORS["detr"](), processor=processor, score_threshold=0.0)
    features = processor(images=[(IMAGES[0] * 255).round().byte()], return_tensors="pt")
    with torch.no_grad():
        raw = adapter.model(**features)
    (found,) = adapter.predict((IMAGES[0] * 255).round() / 255, top_k=1)
    x, y, w, h = raw.pred_boxes[0, found.source[0].anchor].tolist()
    # Boxes are fractions of the padded input, on which the image of 128 x 96 fills 96 x 64 of 128 x 96.
    corners = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * torch.tensor([128.0, 96, 128, 96])
    expected = corners * torch.tensor([128 / 96, 96 / 64, 128 / 96, 96 / 64])
    torch.testing.assert_close(found.boxes_xyxy[0], expected, atol=1e-3, rtol=1e-4)


def test_full_grad_skips_layers_without_a_gradient() -> None:
    """The reading order of PP-DocLayout is computed from class indices, behind which no gradient exists."""
    adapter = detector_adapter("pp_doclayout_v2")
    (found,) = adapter.predict(IMAGES[0], top_k=1)
    (result,) = FullGrad(adapter).explain(IMAGES[:1], [found])
    assert float(torch.as_tensor(result.heatmaps).max()) == pytest.approx(1)
