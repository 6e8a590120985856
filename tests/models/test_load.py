"""load_model(): the right weights in the right model, no code run without leave, and errors that say what to do."""

from __future__ import annotations

import argparse
import inspect
import json
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import FrozenBatchNorm2d

from detcam.models import timm
from detcam.models.checkpoints import infer_num_classes
from detcam.models.files import check_files, read_names
from detcam.models.load import load_model
from tests.models.markers import Marker

TINY = "mobilenet_v3_small"
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"


def tiny(classes: int = 5) -> nn.Module:
    torch.manual_seed(7)
    return torchvision.models.mobilenet_v3_small(weights=None, num_classes=classes)


def same_weights(model: nn.Module, other: nn.Module, tolerance: float = 0) -> bool:
    wanted = other.state_dict()
    return all(
        torch.allclose(value, wanted[key].to(value.dtype), rtol=0, atol=tolerance)
        for key, value in model.state_dict().items()
    )


# --------------------------------------------------------------------------------------------- weights of your own


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_state_dict_gives_the_number_of_classes(tmp_path: Path, suffix: str) -> None:
    model = tiny().half()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    adapter = load_model(TINY, weights=path, names="abcde")
    assert same_weights(adapter.model, model.float())
    assert {parameter.dtype for parameter in adapter.model.parameters()} == {torch.float32}
    assert not adapter.model.training
    assert adapter.names == dict(enumerate("abcde"))


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "module.model."])
def test_wrappers_of_training_scripts_are_removed(tmp_path: Path, wrap: str) -> None:
    state = {wrap + key: value for key, value in tiny().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "weights.pth")
    assert same_weights(load_model(TINY, weights=tmp_path / "weights.pth").model, tiny())


@pytest.mark.parametrize(
    "name",
    [
        DETECTOR,
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
        "maskrcnn_resnet50_fpn",
        "lraspp_mobilenet_v3_large",
        "deeplabv3_mobilenet_v3_large",
        "vit_b_32",
        "densenet121",
    ],
)
def test_the_number_of_classes_is_inferred_for_every_family(name: str) -> None:
    builder: Any = torchvision.models.get_model_builder(name)
    bare = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}

    def build(classes: int) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = builder(weights=None, num_classes=classes, **bare)
        return model

    assert infer_num_classes(build(7).state_dict(), build) == 7
    assert infer_num_classes(build(1).state_dict(), build) == 1
    assert infer_num_classes({"other": torch.zeros(3)}, build) is None


def test_a_detector_keeps_background_and_input_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    adapter = load_model(DETECTOR, weights=tmp_path / "w.pth", names=["a", "b", "c"], image_size=64)
    assert same_weights(adapter.model, model)
    assert adapter.names == {1: "a", 2: "b", 3: "c"}
    assert min(adapter.prepare([torch.rand(3, 128, 128)]).geometries[0].input_size_hw) == 64
    assert load_model(DETECTOR, weights=tmp_path / "w.pth", names=["_", "a", "b", "c"]).names[3] == "c"
    with pytest.raises(ValueError, match="expected names of 4 classes; got 2: a, b"):
        load_model(DETECTOR, weights=tmp_path / "w.pth", names=["a", "b"])
    with pytest.raises(
        ValueError, match=r"does not fit fasterrcnn_resnet50_fpn: \d+ weights missing \(backbone"
    ) as caught:
        load_model("fasterrcnn_resnet50_fpn", weights=tmp_path / "w.pth")
    assert len(str(caught.value)) < 900


def test_a_published_file_builds_the_published_model(tmp_path: Path) -> None:
    """Published detectors freeze their batch norms and use another epsilon; a file of that name gets just that."""
    published = torchvision.models.get_model_weights(DETECTOR).DEFAULT
    torch.manual_seed(1)
    state = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).state_dict()
    path = tmp_path / published.url.rsplit("/", 1)[-1]
    torch.save(state, path)
    before = torch.hub.get_dir()
    adapter = load_model(DETECTOR, weights=path)
    norms = [module for module in adapter.model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms
    assert torch.equal(adapter.model.state_dict()["backbone.body.0.0.weight"], state["backbone.body.0.0.weight"])
    assert adapter.names[18] == "dog"
    assert torch.hub.get_dir() == before
    torch.save(state, tmp_path / "mine.pth")
    own = load_model(DETECTOR, weights=tmp_path / "mine.pth")
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in own.model.modules())


def test_a_segmentation_network_with_its_auxiliary_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    )
    torch.save(model.state_dict(), tmp_path / "w.pth")
    adapter = load_model("deeplabv3_mobilenet_v3_large", weights=tmp_path / "w.pth")
    assert adapter.task == "segmentation"
    assert same_weights(adapter.model, model)


def test_random_weights_are_reproducible_and_preserve_the_random_state() -> None:
    state = torch.get_rng_state()
    one, two = (load_model(TINY, weights="none", num_classes=3, target_layers="features.1") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(one.model, two.model)
    assert one.layer_names == ["features.1"]


def test_the_preset_of_a_model_is_kept() -> None:
    assert load_model("efficientnet_b1", weights="none").image_size == (240, 240)  # type: ignore[attr-defined]
    assert load_model(TINY, weights="none", image_size=96).image_size == (96, 96)  # type: ignore[attr-defined]
    assert load_model(TINY, weights="none").names[0] == "tench"


# ------------------------------------------------------------------------------------------------------------ trust


def test_code_in_a_checkpoint_needs_permission(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"state_dict": tiny().state_dict(), "extra": Marker(ran)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors \(.*pathlib.*--trust-checkpoint"):
        load_model(TINY, weights=tmp_path / "w.pth")
    assert not ran.exists()
    assert same_weights(load_model(TINY, weights=tmp_path / "w.pth", trust_checkpoint=True).model, tiny())
    assert ran.exists()


def test_a_published_name_does_not_allow_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / torchvision.models.get_model_weights(TINY).DEFAULT.url.rsplit("/", 1)[-1]
    torch.save({"state_dict": tiny(1000).state_dict(), "extra": Marker(ran)}, path)
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        load_model(TINY, weights=path)
    assert not ran.exists()


def test_a_plain_pickle_is_not_run_either(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Marker(ran)))
    for name, weights in ((TINY, tmp_path / "w.pt"), (str(tmp_path / "w.pt"), None)):
        with pytest.raises(ValueError, match=r"w\.pt"):
            load_model(name, weights=weights)
    assert not ran.exists()


def test_training_arguments_are_named(tmp_path: Path) -> None:
    torch.save({"model": tiny().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors \(argparse.Namespace\)"):
        load_model(TINY, weights=tmp_path / "w.pth")


def test_files_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(tiny(), tmp_path / "whole.pt")
    torch.save(tiny().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "names.txt").write_text("a\nb\n")
    for name, options in (("~/whole.pt", {"trust_checkpoint": True}), (TINY, {"weights": "~/weights.pth"})):
        assert same_weights(load_model(name, **options).model, tiny())
        check_files(name, options.get("weights"))
    assert read_names("~/names.txt") == ["a", "b"]
    for name in ("~/absent.onnx", "hf:~/absent"):
        with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path / "absent"))):
            load_model(name)


def test_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(tiny().half(), path)
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        load_model(path)
    adapter = load_model(path, trust_checkpoint=True)
    assert same_weights(adapter.model, tiny().half().float())
    torch.save(tiny().state_dict(), path)
    for trust in (False, True):
        with pytest.raises(ValueError, match="holds weights only; name the model they belong to with --model"):
            load_model(path, trust_checkpoint=trust)
    with pytest.raises(ValueError, match="is a file already"):
        load_model(path, weights=path)


# ----------------------------------------------------------------------------------------------------------- errors


def test_damaged_files_are_named(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "good.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:4000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "short.safetensors").write_bytes(b"\0" * 20)
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    expected = {
        "short.pth": "is the file complete",
        "text.pth": "was not written by torch.save",
        "short.safetensors": "as safetensors",
        "empty.pth": "expected weights .* it holds epoch",
        "absent.pth": "no checkpoint file",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message):
            load_model(TINY, weights=tmp_path / name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fasterrcn_resnet50", "fasterrcnn_resnet50_fpn"),
        ("lraspp", "lraspp_mobilenet_v3_large"),
        ("resnet81", "resnet18"),
    ],
)
def test_unknown_names_get_the_nearest_ones(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"no model is called '{name}'; did you mean .*{meant}"):
        load_model(name)
    with pytest.raises(ValueError, match="no model file at some/where.pth"):
        load_model("some/where.pth")


def test_offline_errors_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known. See the manual for")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"cannot be downloaded \(Name or service not known\)\.") as caught:
        load_model("resnet18")
    message = str(caught.value)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    assert f"download {url}, then pass --weights {url.rsplit('/', 1)[-1]}" in message
    assert "TORCH_HOME" in message and "\n" not in message
    with pytest.raises(ValueError, match="num_classes needs weights="):
        load_model("resnet18", num_classes=3)


def test_names_come_from_text_and_files(tmp_path: Path) -> None:
    assert read_names("cat, dog") == ["cat", "dog"]
    (tmp_path / "n.txt").write_text("Katze\n\nHündin\n", encoding="utf-8")
    assert read_names(str(tmp_path / "n.txt")) == ["Katze", "Hündin"]
    (tmp_path / "n.json").write_text(json.dumps({"1": "a", "7": "b"}))
    assert read_names(str(tmp_path / "n.json")) == {1: "a", 7: "b"}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="expected a JSON list of names"):
        read_names(str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="no file of class names"):
        read_names(str(tmp_path / "absent.txt"))


# ------------------------------------------------------------------------------------------------- optional packages


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name, extra in (
        ("timm", "timm:resnet18", "timm"),
        ("segmentation_models_pytorch", "smp:Unet", "smp"),
        ("ultralytics", "yolo11n.yaml", "ultralytics"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"pip install 'detcam\[{extra}\]'"):
            load_model(name, weights="none")
    with pytest.raises(ValueError, match=r"no model is called 'zzz'.*detcam\[timm\]"):
        load_model("zzz")


def test_timm_by_name(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = timm.create_timm_model("test_resnet", num_classes=6)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    for name in ("timm:test_resnet", "test_resnet"):
        adapter = load_model(name, weights=tmp_path / "w.pth")
        assert same_weights(adapter.model, model)
    assert adapter.model.num_classes == 6
    with pytest.raises(ValueError, match="timm has no model 'nosuch'"):
        load_model("timm:nosuch", weights="none")


def test_timm_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match=r"download model.safetensors of timm/\S+ on the Hugging Face hub, then pass --weights"
    ):
        load_model("timm:tf_efficientnet_lite0")


def test_smp_by_description(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    spec = "smp:Unet?encoder=tu-test_resnet&encoder_depth=3&decoder_channels=16,8,8"
    first = load_model(f"{spec}&classes=3", weights="none")
    torch.save(first.model.state_dict(), tmp_path / "w.pth")
    second = load_model(spec, weights=tmp_path / "w.pth")
    assert same_weights(second.model, first.model)
    assert second.task == "segmentation"
    with pytest.raises(ValueError, match="no published weights of whole segmentation networks"):
        load_model(spec)
    with pytest.raises(ValueError, match="cannot build smp:Nonet: .*unet"):
        load_model("smp:Nonet", weights="none")


def test_ultralytics_architecture_with_weights(data: Path, reference: ModuleType) -> None:
    pytest.importorskip("ultralytics")
    adapter = load_model(
        "yolo11n",
        weights=data / "models" / "bccd_yolo11n.safetensors",
        names=["RBC", "WBC", "Platelets"],
        image_size=64,
    )
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(adapter.model(image)[0], reference.bccd_yolo()(image)[0])
    with pytest.raises(ValueError, match="yolo11n.yaml is an architecture without weights"):
        load_model("yolo11n.yaml")


def test_ultralytics_file_needs_trust(data: Path, reference: ModuleType) -> None:
    pytest.importorskip("ultralytics")
    path = data / "models" / "bccd_yolo11n.pt"
    with pytest.raises(ValueError, match=r"\(ultralytics\.nn\..*--trust-checkpoint"):
        load_model(path)
    adapter = load_model(path, trust_checkpoint=True)
    assert adapter.family == "ultralytics"
    assert same_weights(adapter.model, reference.bccd_yolo(), tolerance=1e-3)
    named = load_model("yolo11n.pt", weights=path, trust_checkpoint=True)
    assert same_weights(named.model, adapter.model)
    assert named.names == adapter.names == {0: "RBC", 1: "WBC", 2: "Platelets"}


def test_published_ultralytics_weights_are_read_from_the_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ultralytics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    requested: list[str] = []

    def refuse(name: str, **options: Any) -> nn.Module:
        requested.append(name)
        raise ConnectionError("offline")

    monkeypatch.setattr("detcam.adapters.ultralytics.detector.create_ultralytics_model", refuse)
    with pytest.raises(OSError, match="Download yolo11n.pt from ultralytics' releases .* --trust-checkpoint"):
        load_model("yolo11n")
    assert requested == [str(tmp_path / "hub" / "checkpoints" / "yolo11n.pt")]


def test_what_is_no_model_has_a_remedy(tmp_path: Path) -> None:
    from detcam.adapters import adapt

    with pytest.raises(TypeError, match=r"got str 'best.pt'; load it first: detcam.models.load_model"):
        adapt("best.pt")
    with pytest.raises(TypeError, match="the weights of a model; load them into it first"):
        adapt(torchvision.models.resnet18().state_dict())  # type: ignore[arg-type]


def test_a_folder_of_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rtdetr").mkdir()
    (tmp_path / "rtdetr" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="pass hf:rtdetr for a folder of transformers"):
        load_model("rtdetr")


def test_weights_of_other_channels_are_named(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=2)
    torch.save(model.state_dict(), tmp_path / "four.pth")
    with pytest.raises(ValueError, match="trained on images of 4 channels, not 3: for smp append &in_channels=4"):
        load_model("smp:Unet?encoder=resnet18", weights=tmp_path / "four.pth")
    adapter = load_model(
        "smp:Unet?encoder=resnet18&in_channels=4", weights=tmp_path / "four.pth", mean=(0.1,) * 4, std=(0.5,) * 4
    )
    assert adapter.channels == 4 and adapter.mean == (0.1,) * 4


def test_many_names_are_taken_for_no_path() -> None:
    assert read_names(",".join(["giraffe"] * 80)) == ["giraffe"] * 80
