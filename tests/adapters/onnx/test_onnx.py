"""Detectors in ONNX files: box formats, methods, audits, benchmarks and the command line."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import detcam
from detcam.adapters import OnnxModel, segmenter
from detcam.models.load import load_model
from tests.adapters.onnx.networks import BOX, OUTPUTS, export, patch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NO_PROCESSOR = pytest.mark.filterwarnings("ignore:there is no preprocessor_config.json:UserWarning")
LABELS = {"torchvision": {1: "red", 2: "blue"}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {form: export(folder, form) for form in OUTPUTS}


def options(form: str) -> dict[str, Any]:
    """What the form itself does not tell."""
    activation = {"activation": form} if form in ("sigmoid", "softmax") else {}
    size = {"image_size": 64} if form in ("sigmoid", "softmax") else {}
    return {"names": ["red", "blue"], **activation, **size}


@NO_PROCESSOR
@pytest.mark.parametrize("form", ["grid", "end-to-end", "torchvision", "sigmoid", "softmax"])
def test_formats_are_recognized(files: dict[str, Path], form: str) -> None:
    adapter = detcam.adapt(str(files[form]), **options(form))
    for channel, name in ((0, "red"), (2, "blue")):
        found = adapter.predict([patch(channel), torch.zeros(3, 64, 64)])
        assert found[0].names[int(found[0].labels[0])] == name
        torch.testing.assert_close(found[0].boxes_xyxy[0], torch.tensor(BOX), atol=1e-3, rtol=0)
        assert float(found[0].scores[0]) == pytest.approx(0.99, abs=1e-3)
        assert len(found[1]) == 0
    expected = 21 if form in ("grid", "sigmoid", "softmax") else 1  # 1 + 4 + 16 cells in the square
    assert len(adapter.predict(patch())[0]) == expected


def test_images_of_other_sizes_are_padded_for_ultralytics_and_stretched_for_others(files: dict[str, Path]) -> None:
    wide = torch.full((3, 64, 128), 0.2)
    wide[:, 32:, 64:] = 0
    wide[0, 32:, 64:] = 1
    padded = detcam.adapt(files["grid"], names=["red", "blue"]).predict(wide)[0]
    torch.testing.assert_close(padded.boxes_xyxy[0], torch.tensor([64.0, 32.0, 128.0, 64.0]), atol=40, rtol=0)
    assert detcam.adapt(files["grid"]).prepare([wide]).geometries[0].offset_xy == (0.0, 16.0)
    stretched = detcam.adapt(files["torchvision"], names=["red", "blue"]).predict(wide)[0]
    torch.testing.assert_close(stretched.boxes_xyxy[0], torch.tensor([64.0, 32.0, 128.0, 64.0]), atol=1e-3, rtol=0)


def test_the_scores_of_transformers_come_from_the_configuration_beside_the_file(tmp_path: Path) -> None:
    path = export(tmp_path, "softmax")
    with pytest.raises(TypeError, match=r"logits: float32 \(1, 84, 3\)(.|\n)*activation='sigmoid'"):
        detcam.adapt(path)
    config = {"model_type": "detr", "id2label": {"0": "red", "1": "blue"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": 64, "width": 64},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    adapter = detcam.adapt(path)
    assert adapter.names == {0: "red", 1: "blue"}
    inputs = adapter.prepare([patch()]).inputs
    assert float(inputs.min()) == -1 and float(inputs.max()) == 1
    assert adapter.predict(patch())[0].scores[0] == pytest.approx(0.99, abs=1e-3)


class TestUnknownOutputs:
    def test_are_listed_with_the_lines_to_write(self, files: dict[str, Path]) -> None:
        with pytest.raises(TypeError) as error:
            detcam.adapt(files["other"])
        for part in ("corners: float32 (1, 4, 4)", "best: float32 (1, 4)", "def decode(output)", "output['corners']"):
            assert part in str(error.value)

    def test_are_read_by_a_decode_function(self, files: dict[str, Path]) -> None:
        def decode(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return output["corners"], output["best"][..., None]

        adapter = detcam.adapt(files["other"], decode=decode, names=["square"])
        (found,) = adapter.predict(patch())
        assert found.boxes_xyxy.tolist() == [BOX]
        assert repr(adapter) == "OnnxDetectorAdapter('other.onnx', format='decode')"


class TestMethods:
    @pytest.mark.parametrize("method", ["auto", "drise:passes=200", "rise:passes=200", "occlusion:grid=8,window=2"])
    def test_that_change_the_image_find_the_square(self, files: dict[str, Path], method: str) -> None:
        (result,) = detcam.explain(files["grid"], patch(), method, top_k=1, names=["red", "blue"])
        heatmap, inside = result.heatmaps[0], np.zeros((64, 64), dtype=bool)
        inside[32:, 32:] = True
        assert heatmap[inside].mean() > 1.5 * heatmap[~inside].mean()
        if method == "auto":
            assert result.method == "drise"

    @pytest.mark.parametrize("method", ["gradcam", "odam", "reachcam", "eigencam", "scorecam", "guidedbackprop"])
    def test_that_need_gradients_or_layers_name_the_remedies(self, files: dict[str, Path], method: str) -> None:
        message = r"runs in onnxruntime, without gradients.*(gradients|layers).*onnx2torch.convert\(.*grid.onnx.*drise"
        with pytest.raises(TypeError, match=message):
            detcam.explain(files["grid"], patch(), method)


def test_dynamic_int8_agrees_with_float(files: dict[str, Path], tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = tmp_path / "int8.onnx"
    quantize_dynamic(files["grid"], quantized, op_types_to_quantize=["Conv"], weight_type=QuantType.QUInt8)
    results = [
        detcam.explain(path, patch(), "occlusion:grid=8,window=2", top_k=1, names=["red", "blue"])[0]
        for path in (files["grid"], quantized)
    ]
    torch.testing.assert_close(results[0].scores, results[1].scores, atol=0.02, rtol=0)
    assert "ConvInteger" in {node.op_type for node in onnx.load(quantized).graph.node}
    assert np.corrcoef(*(result.heatmaps.ravel() for result in results))[0, 1] > 0.99
    assert not torch.equal(OnnxModel(files["grid"]).digest, OnnxModel(quantized).digest)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two images with a square that nobody annotated, and annotations of another one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.fromarray((patch() * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    box = {"category_id": 1, "bbox": [0, 0, 16, 16], "area": 256, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(2)],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{"id": i, "image_id": i, **box} for i in range(2)],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def test_an_audit_finds_evidence_by_removal(files: dict[str, Path], scenes: Path) -> None:
    found = detcam.audit(
        files["end-to-end"],
        scenes / "images",
        scenes / "annotations.json",
        out=scenes / "report",
        names=["red", "blue"],
    )
    explained = [case for case in found.explained if case.type == "background"]
    assert len(explained) == 2
    for case in explained:
        assert case.confirmed and case.proposal == "coarse-to-fine removal" and case.forward_passes <= 60
        assert case.evidence_location == "predicted box"
        assert min(case.peak_xy) >= 32
    assert {case.reason for case in found.cases if case.type == "missed"} == {"no heatmap: the model has no gradients"}


def test_an_audit_by_a_method_that_changes_the_image(files: dict[str, Path], scenes: Path) -> None:
    found = detcam.audit(
        files["end-to-end"], scenes / "images", scenes / "annotations.json", method="occlusion:grid=8,window=2",
        names=["red", "blue"], explain=1, explain_missed=0,
    )  # fmt: skip
    assert [case.method for case in found.explained] == ["occlusion"]
    assert found.explained[0].confirmed


def test_a_benchmark_leaves_out_what_needs_layers(files: dict[str, Path]) -> None:
    result = detcam.benchmark(
        files["end-to-end"], [patch()], ["drise:passes=50"], ["insertion:steps=4"], top_k=1, names=["red", "blue"]
    )
    names = {row.name for row in result.rows}
    assert {"drise:passes=50", "filled box", "sobel"} <= names and "randomcam" not in names
    assert [row.passes for row in result.rows if row.name.startswith("drise")] == [51.0]
    assert not any(row.failed for row in result.rows)


class TestFiles:
    def test_absent_and_broken_ones_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no ONNX file at .*absent\.onnx"):
            detcam.adapt(tmp_path / "absent.onnx")
        (tmp_path / "broken.onnx").write_bytes(b"not a model")
        with pytest.raises(ValueError, match=r"onnxruntime cannot read .*broken\.onnx"):
            detcam.adapt(tmp_path / "broken.onnx")

    def test_another_size_is_an_error(self, files: dict[str, Path]) -> None:
        with pytest.raises(ValueError, match="takes images of 64 x 64"):
            detcam.adapt(files["grid"], image_size=32)

    def test_weights_are_an_error(self, files: dict[str, Path]) -> None:
        for options in ({"weights": "w.pth"}, {"num_classes": 2}):
            with pytest.raises(ValueError, match="holds its weights and classes"):
                load_model(files["grid"], **options)

    def test_another_device_is_an_error_unless_it_was_not_asked_for(
        self, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("detcam.models.load.pick_device", lambda device: torch.device("cuda"))
        with pytest.raises(ValueError, match="on the CPU; leave out device="):
            load_model(files["grid"], device="cuda")
        assert load_model(files["grid"]).device.type == "cpu"

    def test_a_label_without_a_name_is_an_error(self, files: dict[str, Path]) -> None:
        with pytest.raises(ValueError, match="expected labels from 0 to 0; got labels from 0 to 1"):
            detcam.adapt(files["end-to-end"], names=["red"]).predict([patch(2)])


def test_yolox_nano_is_read_by_its_decode_function(data: Path) -> None:
    strides = torch.cat([torch.full(((416 // s) ** 2, 1), float(s)) for s in (8, 16, 32)])
    cells = torch.cat([torch.cartesian_prod(*[torch.arange(416 // s)] * 2).flip(1) for s in (8, 16, 32)])

    def decode(output: Tensor) -> tuple[Tensor, Tensor]:
        centers, sides = (output[..., :2] + cells) * strides, output[..., 2:4].exp() * strides
        return torch.cat([centers - sides / 2, centers + sides / 2], -1), output[..., 4:5] * output[..., 5:]

    path = data / "yolox_nano" / "yolox_nano.onnx"
    with pytest.raises(TypeError, match=r"output: float32 \(1, 3549, 85\)"):
        detcam.adapt(path)
    names = (data / "fastestdet" / "coco.names").read_text().splitlines()
    adapter = detcam.adapt(
        path, decode=decode, letterbox="top-left", preprocess=lambda image: image[[2, 1, 0]] * 255, names=names
    )
    (found,) = adapter.predict(data / "photos" / "dog_cat.png", score_threshold=0.5)
    assert [found.caption(index) for index in range(len(found))] == ["dog 0.90", "cat 0.73"]


def test_other_tasks_run_as_modules(files: dict[str, Path]) -> None:
    model = OnnxModel(files["grid"])
    adapter = segmenter(model, lambda output: output[:, 4:, :64].unflatten(2, (8, 8)), image_size=64)
    (result,) = detcam.explain(adapter, patch(), "occlusion:grid=8,window=2", top_k=1)
    assert result.heatmaps.shape == (1, 64, 64)


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolo11n-seg"])
def test_exports_of_ultralytics_agree_with_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: Any = pytest.importorskip("tests.adapters.ultralytics.networks")
    monkeypatch.chdir(tmp_path)  # the file is written there
    wrapper = models.wrapped(name)
    network = copy.copy(wrapper.model)  # the module is shared by tests
    network.args, network.task = {**wrapper.overrides, "data": None}, wrapper.task
    wrapper.model = network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = wrapper.export(
            format="onnx",
            imgsz=models.SIZE,
            simplify=False,
            verbose=False,
            **({"end2end": True} if "26" in name else {}),
        )
    image = models.make_image(4, models.SIZE, models.SIZE)
    adapter = detcam.adapt(path, score_threshold=0.15, iou_threshold=1.0, max_detections=6)
    expected = detcam.adapt(wrapper, **{**models.OPTIONS, "iou": 1.0}).predict(image)[0]
    (found,) = adapter.predict(image)
    assert adapter.names == expected.names and len(found) == len(expected) > 0
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert found.labels.tolist() == expected.labels.tolist()
