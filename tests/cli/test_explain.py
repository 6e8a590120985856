"""``detcam explain``: its files equal the Python API's, and errors take one line."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import detcam.explanation.batch
from detcam.cli.app import app
from detcam.explanation.explain import explain
from detcam.explanation.writer import EXPLANATIONS_FILE, read_heatmap
from detcam.models.load import load_model
from detcam.utils.precision import autocast_precision
from tests.cli.files import CLASSIFIER, DETECTOR, Command, read_entries, save_image


def test_files_match_the_python_api(detcam_command: Command, detector: tuple[str, ...], tmp_path: Path) -> None:
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
    entries = read_entries(tmp_path / "why")
    assert [entry["path"] for entry in entries] == [str(path) for path in sorted(photos)]
    for entry, explanation in zip(entries, expected, strict=True):
        assert (entry["method"], entry["model"], len(entry["targets"])) == ("odam", f"{DETECTOR} cells.pth", 2)
        for index, target in enumerate(entry["targets"]):
            assert explanation.detections is not None
            assert target["name"] == explanation.detections.name(index)
            assert target["score"] == pytest.approx(float(explanation.detections.scores[index]), abs=1e-5)
            assert target["box_xyxy"] == pytest.approx(explanation.detections.boxes_xyxy[index].tolist(), abs=0.02)
            heat = torch.as_tensor(explanation.heatmaps)[index].numpy()
            np.testing.assert_allclose(read_heatmap(tmp_path / "why" / target["heatmap"]), heat, atol=1e-3)
            overlay = np.asarray(Image.open(tmp_path / "why" / target["overlay"])).astype(int)
            height, width = heat.shape
            factor = -(-192 // max(height, width))
            plain = explanation.image.repeat(factor, 0).repeat(factor, 1).astype(int)
            change = np.abs(overlay[: height * factor, : width * factor] - plain).sum(2)
            assert change[heat.repeat(factor, 0).repeat(factor, 1) > 0.9].mean() > 100
            assert target["overlay"] in out
    rows = out.splitlines()
    assert rows[0].split() == ["image", "target", "value", "reach", "overlay"]
    assert rows[-4].startswith("value: score; reach: share of the image")
    assert rows[-2] == f"2 images, 4 targets: {Path('why', EXPLANATIONS_FILE)}"
    first = read_entries(tmp_path / "why")[0]["targets"][0]["overlay"]
    assert rows[-1] == f"Open first: {Path('why', first)} (overlay; every number is in {EXPLANATIONS_FILE})"
    assert f"{expected[0].reach[0].fraction:.0%}" in rows[2]  # type: ignore[index]
    assert "odam at backbone" in err


def test_overlays_are_readable_in_a_narrow_terminal(
    detcam_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detcam.utils.console.PIPED_WIDTH", 80)
    save_image(tmp_path / "photograph_00007.png")
    code, out, err = detcam_command("explain", "photograph_00007.png", *CLASSIFIER, "--top-k", "1")
    assert code == 0, err
    rows = out.partition("value: ")[0].splitlines()[2:]
    overlay = "".join(row.split()[-1] for row in rows if row.strip())
    assert overlay == read_entries(tmp_path / "explanations")[0]["targets"][0]["overlay"]
    assert len(rows) <= 3, "no row has a few characters only"


def test_class_comparison_and_quantity(detcam_command: Command, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    options = ("--labels", "White", "--against", "red", "--quantity", "logit", "--score-threshold", "0", "--top-k", "1")
    code, out, err = detcam_command("explain", "a.png", *detector, *options)
    assert code == 0, err
    (target,) = read_entries(tmp_path / "explanations")[0]["targets"]
    assert (target["label"], target["against"], target["quantity"]) == (2, 1, "logit")
    assert target["caption"].startswith("logit of white rather than red")
    assert "logit of white rather than r" in out


def test_user_boxes(detcam_command: Command, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, _, err = detcam_command(
        "explain", "a.png", *detector, "--box", "10,20,60.5,70", "--box", "0,0,30,30", "--labels", "small"
    )
    assert code == 0, err
    first, second = read_entries(tmp_path / "explanations")[0]["targets"]
    assert (first["box_xyxy"], first["name"], first["score"]) == ([10, 20, 60.5, 70], "small", None)
    assert second["box_xyxy"] == [0, 0, 30, 30]


def test_user_box_of_a_segmentation_network(detcam_command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    save_image(tmp_path / "a.png", size_hw=(64, 96))
    options = ("--model", "lraspp_mobilenet_v3_large", "--weights", "w.pth", "--names", "road,car,tree")
    code, _, err = detcam_command("explain", "a.png", *options, "--box", "8,8,40,40", "--labels", "car")
    assert code == 0, err
    (target,) = read_entries(tmp_path / "explanations")[0]["targets"]
    assert (target["kind"], target["name"], target["quantity"]) == ("MaskTarget", "car", "logit")


def test_classifier(detcam_command: Command, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", "a.png", *CLASSIFIER, "--labels", "tabby", "--labels", "282")
    assert code == 0, err
    assert {target["name"] for target in read_entries(tmp_path / "explanations")[0]["targets"]} == {
        "tabby",
        "tiger cat",
    }
    assert "1 image, 2 targets" in out


def test_rotated_photo_is_explained_upright(detcam_command: Command, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    save_image(tmp_path / "lying.jpg", size_hw=(40, 80), exif=exif)
    code, _, err = detcam_command("explain", "lying.jpg", *CLASSIFIER)
    assert code == 0, err
    (entry,) = read_entries(tmp_path / "explanations")
    assert (entry["width"], entry["height"]) == (40, 80)
    assert read_heatmap(tmp_path / "explanations" / entry["targets"][0]["heatmap"]).shape == (80, 40)


def test_unreadable_image_is_reported_and_skipped(detcam_command: Command, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        save_image(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    code, out, err = detcam_command("explain", "in/*.png", *CLASSIFIER)
    assert code == 1
    assert [entry["name"] for entry in read_entries(tmp_path / "explanations")] == ["a.png", "c.png"]
    assert "detcam: skipped: cannot read in/b.png as an image" in err
    assert "\ndetcam: 1 of 3 images failed\n" in err
    assert "2 images, 2 targets" in out
    code, _, err = detcam_command("explain", "in/b.png", *CLASSIFIER, "--out", "other")
    assert code == 2
    assert "none of 1 image could be explained" in err


def test_image_reader_that_needs_a_package_is_reported(
    detcam_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ultralytics loaded, Image.open requires a HEIF package for a file that is no image."""

    def wanting(*arguments: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    save_image(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.open", wanting)
    code, _, err = detcam_command("explain", "a.png", *CLASSIFIER)
    assert code == 2
    assert "skipped: cannot read a.png as an image (unknown format)" in err


def test_failing_image_does_not_affect_its_batch(
    detcam_command: Command, detector: tuple[str, ...], tmp_path: Path
) -> None:
    """A box that lies outside of the small image only, and partly outside of the narrow one."""
    save_image(tmp_path / "in" / "large.png")
    save_image(tmp_path / "in" / "narrow.png", size_hw=(90, 100))
    save_image(tmp_path / "in" / "small.png", size_hw=(40, 40))
    code, out, err = detcam_command("explain", "in", *detector, "--box", "60,50,110,80", "--labels", "red")
    assert code == 1
    assert [entry["name"] for entry in read_entries(tmp_path / "explanations")] == ["large.png", "narrow.png"]
    assert err.count("partly outside") == 1
    assert "the box (60.0, 50.0, 110.0, 80.0) is partly outside the image, which is 100 x 90 pixels" in err
    assert "small.png: the box (60.0, 50.0, 110.0, 80.0) lies outside the image, which is 40 x 40 pixels" in err


def test_interrupted_run_keeps_finished_images(
    detcam_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    (entry,) = read_entries(tmp_path / "explanations")
    assert (tmp_path / "explanations" / entry["targets"][0]["overlay"]).is_file()


def test_interrupted_run_is_resumed(detcam_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        save_image(tmp_path / "in" / f"{name}.png", ord(name))
    calls: list[int] = []

    def ending(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return explain(*arguments, **options)

    command = ("explain", "in", *CLASSIFIER, "--batch-size", "1", "--out")
    assert detcam_command(*command, "whole")[0] == 0
    monkeypatch.setattr(detcam.explanation.batch, "explain", ending)
    assert detcam_command(*command, "in")[0] == 130
    (tmp_path / "in" / "explanations.json").unlink()  # as if the process was killed
    temporary = tmp_path / "in" / f".{'0' * 32}.tmp"
    temporary.touch()
    code, _, err = detcam_command(*command, "in")
    assert code == 2 and "unfinished explain" in err and "--resume" in err
    code, _, err = detcam_command(*command, "in", "--resume", "--top-k", "2")
    assert code == 2 and "top_k was None and is now 2" in err
    code, out, err = detcam_command(*command, "in", "--resume")
    assert code == 0 and "3 images, 3 targets" in out, err
    assert not temporary.exists()
    assert len(calls) == 4, "finished images are not explained again"
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir() if path.name in whole} == whole
    assert {path.name for path in (tmp_path / "in").iterdir()} == {*whole, "a.png", "b.png", "c.png"}


def test_dtype_is_that_of_autocast(detcam_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "in" / "a.png")
    seen: list[str] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(autocast_precision())
        return explain(*arguments, **options)

    monkeypatch.setattr(detcam.explanation.batch, "explain", watched)
    assert detcam_command("explain", "in", *CLASSIFIER, "--dtype", "bfloat16")[0] == 0
    assert seen == ["bfloat16"] and autocast_precision() == "float32"
    code, _, err = detcam_command("explain", "in", *CLASSIFIER, "--dtype", "int4")
    assert code == 2 and "expected dtype float32, bfloat16, float16; got 'int4'" in err


def test_no_predictions_is_not_an_error(detcam_command: Command, detector: tuple[str, ...], tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", "a.png", *detector, "--score-threshold", "1")
    assert code == 0
    assert "no targets at or above 1" in out
    assert "A lower --score-threshold" in err and "the model itself" not in err
    assert read_entries(tmp_path / "explanations")[0]["targets"] == []


@pytest.mark.parametrize("threshold", ["0.049", "0.05"])
def test_a_threshold_of_the_model_itself_is_told(detcam_command: Command, tmp_path: Path, threshold: str) -> None:
    save_image(tmp_path / "a.png")
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=2)
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, 0)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = -9.0
    torch.save(model.state_dict(), "none.pth")
    arguments = ("--model", DETECTOR, "--weights", "none.pth", "--image-size", "96", "--score-threshold", "0.049")
    code, _, err = detcam_command("explain", "a.png", *arguments)
    assert code == 0
    assert "The model predicts nothing.\n" in err, "a lower threshold finds no more"
    assert "drops detections with scores below 0.05: box_score_thresh" in err


def test_the_default_maximum_of_boxes_is_told(
    detcam_command: Command, detector: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detcam.explanation.explain.DEFAULT_MAX_BOXES", 1)
    save_image(tmp_path / "a.png")
    hint = "1 image with 1 targets, the default maximum: --top-k explains more"
    command = ("explain", "a.png", *detector, "--score-threshold", "0")
    assert hint in detcam_command(*command, "--out", "few")[2]
    assert hint not in detcam_command(*command, "--top-k", "1", "--out", "own")[2]


def test_similar_warnings_are_printed_once(detcam_command: Command, detector: tuple[str, ...], tmp_path: Path) -> None:
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
        (("a.png", *CLASSIFIER, "--labels", "tabbi"), "no class named 'tabbi'; did you mean tabby"),
        (("a.png", *CLASSIFIER, "--target-layer", "layer9"), "no layer named 'layer9'"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3", "--labels", "tabby"), "expected --box as four numbers x1,y1,x2,y2"),
        (("a.png", *CLASSIFIER, "--box", "9,2,3,4", "--labels", "tabby"), "x1 < x2"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3,4"), "--box needs --labels: a box x1,y1,x2,y2"),
        (("a.png", *CLASSIFIER, "--box", "1,2,3,4", "--labels", "tabby"), "--box is for detectors"),
        (("a.png", *CLASSIFIER, "--quantity", "love"), "no quantity is named 'love'; expected one of score"),
        (("a.png", *CLASSIFIER, "--colormap", "beige"), "unknown colormap 'beige'"),
        (("a.png", *CLASSIFIER, "--device", "tpu9"), "device"),
        (("a.png", "--model", "mobilenet_v3_small", "--image-size", "0"), "expected --image-size"),
        (("a.png", "--model", "mobilenet_v3_small", "--weights", "w.pth"), "no checkpoint file at w.pth"),
        (("a.png",), "Missing option '--model'"),
        (("a.png", *CLASSIFIER, "--top-k", "x"), "Invalid value for '--top-k'"),
    ],
)
def test_errors_take_one_line(
    detcam_command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    save_image(tmp_path / "a.png")
    code, out, err = detcam_command("explain", *arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("detcam")]
    assert len(lines) >= 1
    assert any(message in line for line in lines), err
    assert "Traceback" not in err
    assert not (tmp_path / "explanations").exists(), "nothing is run"


def test_debug_raises_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file or folder at nowhere.png"):
        app(["explain", "nowhere.png", *CLASSIFIER, "--debug"], prog_name="detcam")


def test_passes_option(detcam_command: Command, tmp_path: Path) -> None:
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


def test_results_among_the_images_are_not_explained(detcam_command: Command, tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png")
    for _ in range(2):
        code, out, err = detcam_command("explain", "in", *CLASSIFIER, "--out", "in")
        assert code == 0, err
        assert "1 image, 1 target" in out


def test_explain_as_a_process(tmp_path: Path) -> None:
    save_image(tmp_path / "dog.png")
    command = [sys.executable, "-m", "detcam.cli.main", "explain", "dog.png", *CLASSIFIER, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 image, 1 target" in done.stdout
    assert len(read_entries(tmp_path / "out")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_interrupt_of_a_process(tmp_path: Path) -> None:
    image = save_image(tmp_path / "in" / "000.png", size_hw=(300, 300)).read_bytes()
    for number in range(1, 400):  # more than are done before the signal comes on a busy machine
        (tmp_path / "in" / f"{number:03}.png").write_bytes(image)
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
    # A shell that runs the tests in the background lets them, and what they start, ignore the signal.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    try:
        deadline = time.monotonic() + 200  # until the first shard, of four images, is done
        while not list((tmp_path / "out").glob("005*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, err
    done = read_entries(tmp_path / "out")
    assert 1 <= len(done) < 400
    assert all((tmp_path / "out" / target["overlay"]).is_file() for entry in done for target in entry["targets"])
    assert "Traceback" not in err
