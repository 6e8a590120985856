"""The detcam command: what it writes is what Python gives, and what it says when something is wrong is one line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import detcam.explanation.batch
from detcam import METHODS, __version__
from detcam.cli.explain import parse_box
from detcam.cli.main import app
from detcam.cli.options import parse_size
from detcam.explanation.batch import find_images
from detcam.explanation.explain import explain
from detcam.explanation.writer import INDEX, read_heatmap
from detcam.models.load import load_model
from detcam.utils.console import printable, shorten

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSIFIER = ("--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "64")
Detcam = Callable[..., tuple[int, str, str]]


@pytest.fixture
def detcam_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Detcam:
    """Runs the command in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app([str(argument) for argument in arguments], prog_name="detcam")
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for a small detector with four classes, seeded."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    path = tmp_path_factory.mktemp("weights") / "cells.pth"
    torch.save(model.half().state_dict(), path)
    return ("--model", DETECTOR, "--weights", str(path), "--names", "red,white,small", "--image-size", "96")


def save_image(path: Path, seed: int = 0, size_hw: tuple[int, int] = (90, 120), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def entries(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["images"]
    return found


# --------------------------------------------------------------------------------------------------------- explain


def test_it_writes_what_python_gives(detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path) -> None:
    photos = [save_image(tmp_path / "in" / "Zelle größe.png"), save_image(tmp_path / "in" / "b.png", 1, (80, 100))]
    code, out, err = detcam_command(
        "explain",
        tmp_path / "in",
        *detector,
        "--method",
        "odam",
        "--score-threshold",
        "0",
        "--top-k",
        "2",
        "--out",
        "why",
    )
    assert code == 0, err
    adapter = load_model(DETECTOR, weights=detector[3], names=["red", "white", "small"], image_size=96)
    expected = explain(adapter, sorted(photos), "odam", score_threshold=0, top_k=2)
    found = entries(tmp_path / "why")
    assert [entry["path"] for entry in found] == [str(path) for path in sorted(photos)]
    for entry, one in zip(found, expected, strict=True):
        assert (entry["method"], entry["model"], len(entry["targets"])) == ("odam", f"{DETECTOR} cells.pth", 2)
        for index, target in enumerate(entry["targets"]):
            assert one.detections is not None
            assert target["name"] == one.detections.name(index)
            assert target["score"] == pytest.approx(float(one.detections.scores[index]), abs=1e-5)
            assert target["box_xyxy"] == pytest.approx(one.detections.boxes_xyxy[index].tolist(), abs=0.02)
            heat = one.heatmaps[index].numpy()
            np.testing.assert_allclose(read_heatmap(tmp_path / "why" / target["heatmap"]), heat, atol=1e-3)
            overlay = np.asarray(Image.open(tmp_path / "why" / target["overlay"])).astype(int)
            height, width = heat.shape
            factor = -(-192 // max(height, width))
            plain = one.image.repeat(factor, 0).repeat(factor, 1).astype(int)
            change = np.abs(overlay[: height * factor, : width * factor] - plain).sum(2)
            assert change[heat.repeat(factor, 0).repeat(factor, 1) > 0.9].mean() > 100
            assert target["overlay"] in out
    rows = out.splitlines()
    assert rows[0].split() == ["image", "target", "value", "reach", "overlay"]
    assert rows[-1].strip() == f"2 images, 4 targets: {Path('why', INDEX)}"
    assert f"{expected[0].reach[0].fraction:.0%}" in rows[2]  # type: ignore[index]
    assert "odam at backbone" in err


def test_a_class_a_comparison_and_a_quantity(detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    asked = ("--class", "White", "--against", "red", "--quantity", "logit", "--score-threshold", "0", "--top-k", "1")
    code, out, err = detcam_command("explain", "a.png", *detector, *asked)
    assert code == 0, err
    (target,) = entries(tmp_path / "explanations")[0]["targets"]
    assert (target["label"], target["against"], target["quantity"]) == (2, 1, "logit")
    assert target["caption"].startswith("logit of white rather than red")
    assert "logit of white rather than r" in out


def test_a_box_drawn_by_hand(detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, _, err = detcam_command(
        "explain", "a.png", *detector, "--box", "10,20,60.5,70", "--box", "0,0,30,30", "--label", "small"
    )
    assert code == 0, err
    first, second = entries(tmp_path / "explanations")[0]["targets"]
    assert (first["box_xyxy"], first["name"], first["score"]) == ([10, 20, 60.5, 70], "small", None)
    assert second["box_xyxy"] == [0, 0, 30, 30]


def test_a_region_drawn_by_hand_for_a_segmenter(detcam_command: Detcam, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    save_image(tmp_path / "a.png", size_hw=(64, 96))
    options = ("--model", "lraspp_mobilenet_v3_large", "--weights", "w.pth", "--names", "road,car,tree")
    code, _, err = detcam_command("explain", "a.png", *options, "--box", "8,8,40,40", "--label", "car")
    assert code == 0, err
    (target,) = entries(tmp_path / "explanations")[0]["targets"]
    assert (target["kind"], target["name"], target["quantity"]) == ("MaskTarget", "car", "logit")


def test_a_classifier(detcam_command: Detcam, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", "a.png", *CLASSIFIER, "--class", "tabby", "--class", "282")
    assert code == 0, err
    assert {target["name"] for target in entries(tmp_path / "explanations")[0]["targets"]} == {"tabby", "tiger cat"}
    assert "1 image, 2 targets" in out


def test_a_rotated_photo_is_explained_upright(detcam_command: Detcam, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    save_image(tmp_path / "lying.jpg", size_hw=(40, 80), exif=exif)
    code, _, err = detcam_command("explain", "lying.jpg", *CLASSIFIER)
    assert code == 0, err
    (entry,) = entries(tmp_path / "explanations")
    assert (entry["width"], entry["height"]) == (40, 80)
    assert read_heatmap(tmp_path / "explanations" / entry["targets"][0]["heatmap"]).shape == (80, 40)


def test_a_bad_image_among_good_ones_is_told_and_passed_over(detcam_command: Detcam, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        save_image(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    code, out, err = detcam_command("explain", "in/*.png", *CLASSIFIER)
    assert code == 1
    assert [entry["name"] for entry in entries(tmp_path / "explanations")] == ["a.png", "c.png"]
    assert "detcam: skipped cannot read in/b.png as an image" in err
    assert "\ndetcam: 1 of 3 images failed\n" in err
    assert "2 images, 2 targets" in out
    code, _, err = detcam_command("explain", "in/b.png", *CLASSIFIER, "--out", "other")
    assert code == 2
    assert "none of 1 image could be explained" in err


def test_a_reader_that_wants_a_package_is_a_bad_image_too(
    detcam_command: Detcam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ultralytics loaded, Image.open asks for a HEIF package at whatever is no image."""

    def wanting(*arguments: Any) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    save_image(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.open", wanting)
    code, _, err = detcam_command("explain", "a.png", *CLASSIFIER)
    assert code == 2
    assert "skipped cannot read a.png as an image (unknown format)" in err


def test_one_images_trouble_does_not_take_its_batch_along(
    detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path
) -> None:
    """A box that lies outside of the small image only."""
    save_image(tmp_path / "in" / "large.png")
    save_image(tmp_path / "in" / "small.png", size_hw=(40, 40))
    code, out, err = detcam_command("explain", "in", *detector, "--box", "60,50,110,80", "--label", "red")
    assert code == 1
    assert [entry["name"] for entry in entries(tmp_path / "explanations")] == ["large.png"]
    assert "small.png: the box (60.0, 50.0, 110.0, 80.0) lies outside the image, which is 40 x 40 pixels" in err


def test_an_interrupted_run_leaves_what_is_done(
    detcam_command: Detcam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save_image(tmp_path / "in" / f"{name}.png")
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explain(*arguments, **options)

    monkeypatch.setattr(detcam.explanation.batch, "explain", interrupted)
    code, _, err = detcam_command("explain", "in", *CLASSIFIER, "--batch-size", "1")
    assert code == 130
    assert "interrupted; 1 of 3 images are done" in err
    (entry,) = entries(tmp_path / "explanations")
    assert (tmp_path / "explanations" / entry["targets"][0]["overlay"]).is_file()


def test_nothing_found_is_no_error(detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", "a.png", *detector, "--score-threshold", "1")
    assert code == 0
    assert "no targets at or above 1" in out
    assert "A lower --score-threshold" in err
    assert entries(tmp_path / "explanations")[0]["targets"] == []


def test_warnings_are_told_once_at_the_end(detcam_command: Detcam, detector: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / "in" / f"{number}.png", number)
    code, _, err = detcam_command(
        "explain",
        "in",
        *detector,
        "--method",
        "eigencam",
        "--score-threshold",
        "0",
        "--top-k",
        "2",
        "--batch-size",
        "1",
    )
    assert code == 0
    assert err.count("EigenCAM ignores the target") == 1
    assert err.strip().splitlines()[-1].startswith("note: ")
    assert "(and 3 similar warnings)" in err
    assert "Warning" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png", "--model", "fasterrcn_resnet50"), "did you mean fasterrcnn_resnet50_fpn"),
        (("nowhere.png", *CLASSIFIER), "no file or folder at nowhere.png"),
        (("*.gif", *CLASSIFIER), "no images in *.gif"),
        (("a.png", *CLASSIFIER, "--method", "gradcamm"), "did you mean gradcam"),
        (("a.png", *CLASSIFIER, "--class", "tabbi"), "no class named 'tabbi'; did you mean tabby"),
        (("a.png", *CLASSIFIER, "--target-layer", "layer9"), "no layer named 'layer9'"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3", "--label", "tabby"), "expected --box as four numbers x1,y1,x2,y2"),
        (("a.png", *CLASSIFIER, "--box", "9,2,3,4", "--label", "tabby"), "x1 < x2"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3,4"), "--box and --label go together"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3,4", "--label", "tabby"), "--box is for detectors"),
        (("a.png", *CLASSIFIER, "--quantity", "love"), "no --quantity is named 'love'; expected one of score"),
        (("a.png", *CLASSIFIER, "--colormap", "beige"), "unknown colormap 'beige'"),
        (("a.png", *CLASSIFIER, "--device", "tpu9"), "device"),
        (("a.png", "--model", "mobilenet_v3_small", "--image-size", "0"), "expected --image-size"),
        (("a.png", "--model", "mobilenet_v3_small", "--weights", "w.pth"), "no checkpoint file at w.pth"),
        (("a.png",), "Missing option '--model'"),
        (("a.png", *CLASSIFIER, "--top-k", "x"), "Invalid value for '--top-k'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    detcam_command: Detcam, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", *arguments)
    assert code == 2
    told = [line for line in err.splitlines() if line.startswith("detcam")]
    assert len(told) >= 1
    assert any(message in line for line in told), err
    assert "Traceback" not in err
    assert not (tmp_path / "explanations" / INDEX).exists() or entries(tmp_path / "explanations") == []


def test_debug_shows_where_it_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file or folder at nowhere.png"):
        app(["explain", "nowhere.png", *CLASSIFIER, "--debug"], prog_name="detcam")


# ---------------------------------------------------------------------------------------------------- other commands


def test_methods_lists_the_registry(detcam_command: Detcam) -> None:
    code, out, _ = detcam_command("methods")
    assert code == 0
    rows = {line.split()[0]: re.split("  +", line.strip()) for line in out.splitlines() if line}
    for name, method in METHODS.items():
        own = "yes" if method.class_discriminative else "no"
        assert rows[name][1:4] == [method.use, method.cost, own]
        assert rows[name][5] == method.paper
    assert rows["drise"][4] == "detection" and rows["odam"][4] == "all"


def test_passes_are_asked_for_and_told(detcam_command: Detcam, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 48), "green").save(image)
    out = tmp_path / "out"
    command = ["explain", str(image), *CLASSIFIER, "--out", str(out), "--method", "rise:grid=3"]
    code, said, err = detcam_command(*command, "--passes", "12")
    assert code == 0, err
    assert "12 passes per image" in said
    (entry,) = json.loads((out / "explanations.json").read_text())["images"]
    assert entry["sampling"]["passes"] == 12 and entry["sampling"]["seed"] == 0
    code, _, err = detcam_command("explain", str(image), *CLASSIFIER, "--method", "hirescam", "--passes", "12")
    assert code == 2 and "hirescam has no setting 'passes'; it has none" in err
    code, _, err = detcam_command("explain", str(image), *CLASSIFIER, "--method", "rise", "--passes", "some")
    assert code == 2 and "a number of at least 1, or 'auto'" in err


def test_layers_lists_shapes_and_marks_the_default(detcam_command: Detcam) -> None:
    code, out, err = detcam_command("layers", "--model", DETECTOR, "--image-size", "96")
    assert code == 0, err
    rows = {line[3:].split()[0]: line for line in out.splitlines() if line.strip()}
    assert rows["backbone"].startswith("*")
    assert "256 x 3 x 4, 256 x 3 x 4, 256 x 2 x 2" in rows["backbone"]
    assert rows["backbone.body.6"].split() == ["backbone.body.6", "InvertedResidual", "8", "40", "x", "12", "x", "16"]
    assert "roi_heads.box_head" not in rows
    assert "backbone.body.6.block" not in rows
    code, out, _ = detcam_command("layers", "--model", DETECTOR, "--image-size", "96", "--depth", "4")
    assert "backbone.body.6.block" in out


def test_layers_that_are_listed_can_be_explained(detcam_command: Detcam, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    _, out, _ = detcam_command("layers", *CLASSIFIER)
    names = [name for line in out.splitlines() for name in line.split()[:1] if name.startswith("features.")]
    assert len(names) > 5
    for name in names[::4]:
        code, _, err = detcam_command("explain", "a.png", *CLASSIFIER, "--target-layer", name, "--out", name)
        assert code == 0, err
        assert entries(tmp_path / name)[0]["target_layers"] == [name]


def test_the_demo_is_called_with_its_folder(detcam_command: Detcam, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path] = []
    monkeypatch.setattr("detcam.demo.run.run", given.append)
    assert detcam_command("demo", "--out", "there")[0] == 0
    assert given == [Path("there")]


def test_help_version_and_typing_errors(detcam_command: Detcam) -> None:
    assert detcam_command("--version") == (0, f"detcam {__version__}\n", "")
    for arguments in ((), ("--help",)):
        code, out, _ = detcam_command(*arguments)
        assert code == 0
        assert all(word in out for word in ("explain", "methods", "layers", "demo", "Examples"))
    code, out, _ = detcam_command("explain", "-h")
    assert code == 0
    assert all(word in out for word in ("What to explain", "Exit codes", "--trust-checkpoint"))
    code, _, err = detcam_command("explian")
    assert (code, err.count("\n")) == (2, 1)
    assert "No such command 'explian'" in err


# ------------------------------------------------------------------------------------------------------------- parts


def test_images_are_found_in_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.PNG", ".hidden/d.png", "deep/.e.png"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.jpg", "b.png", "c.PNG"]
    assert [path.name for path in find_images([str(tmp_path / "**" / "*.*")])] == ["a.jpg", "b.png", "c.PNG"]
    assert len(find_images([str(tmp_path), str(tmp_path / "b.png")])) == 3
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        find_images([str(tmp_path / "void")])


def test_results_among_the_images_are_not_explained_again(detcam_command: Detcam, tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png")
    for _ in range(2):
        code, out, err = detcam_command("explain", "in", *CLASSIFIER, "--out", "in")
        assert code == 0, err
        assert "1 image, 1 target" in out


def test_parts() -> None:
    assert parse_box("1, 2.5,3,4") == (1, 2.5, 3, 4)
    assert (parse_size("320"), parse_size("256x320")) == (320, (256, 320))
    assert shorten("a" * 20 + "b" * 20, 11) == "aaaa…bbbbbb"
    assert printable("evil\x1b[2Jname\n") == "evil?[2Jname?"


# ------------------------------------------------------------------------------------------------------------ process


def test_as_a_process(tmp_path: Path) -> None:
    save_image(tmp_path / "dog.png")
    command = [sys.executable, "-m", "detcam.cli.main", "explain", "dog.png", *CLASSIFIER, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 image, 1 target" in done.stdout
    assert len(entries(tmp_path / "out")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_control_c_in_a_process(tmp_path: Path) -> None:
    for number in range(400):  # more than are done before the signal comes on a busy machine
        save_image(tmp_path / "in" / f"{number:03}.png", size_hw=(300, 300))
    command = [
        sys.executable,
        "-m",
        "detcam.cli.main",
        "explain",
        "in",
        *CLASSIFIER,
        "--batch-size",
        "1",
        "--out",
        "out",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "out").glob("001*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, err
    done = entries(tmp_path / "out")
    assert 1 <= len(done) < 400
    assert all((tmp_path / "out" / target["overlay"]).is_file() for entry in done for target in entry["targets"])
    assert "Traceback" not in err
