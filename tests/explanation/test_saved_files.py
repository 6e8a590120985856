"""Files of explanations: written beside the network, and read back."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detcam.adapters import Adapter
from detcam.explanation import writer
from detcam.explanation.explain import Explanation, explain
from detcam.explanation.writer import EXPLANATIONS_FILE, read_heatmap, save_explanations
from detcam.utils.files import slug
from detcam.utils.opencv import cv2
from tests.drawn import noise


def test_saved_files_match_the_explanation(adapter: Adapter, tmp_path: Path) -> None:
    Image.fromarray(noise(90, 120)).save(tmp_path / "a b.png")
    one = explain(adapter, tmp_path / "a b.png", "odam", top_k=2, score_threshold=0)[0]
    index = one.save(tmp_path / "out")
    content = json.loads(index.read_text(encoding="utf-8"))
    assert (content["schema"], content["version"]) == ("detcam/explanations", 2)
    (entry,) = content["images"]
    assert (entry["path"], entry["width"], entry["height"]) == (str(tmp_path / "a b.png"), 120, 90)
    assert (entry["method"], entry["target_layers"], entry["model"]) == ("odam", ["backbone"], "FasterRCNN")
    assert one.detections is not None and one.reach is not None
    for number, target in enumerate(entry["targets"]):
        known = one.detections.to_dict(number)
        assert (target["label"], target["name"]) == (known["label"], known["name"])
        assert target["score"] == pytest.approx(known["score"], abs=1e-6)
        assert target["value"] == pytest.approx(float(one.scores[number]), rel=1e-6)
        assert target["box_xyxy"] == pytest.approx(known["box_xyxy"], abs=0.006)
        assert target["reach"]["fraction"] == pytest.approx(one.reach[number].fraction, rel=1e-6)
        raw = torch.cat([level[number].flatten() for level in one.saliency])
        assert target["saliency_range"] == pytest.approx([float(raw.min()), float(raw.max())], rel=1e-6)
        assert (target["quantity"], target["against"], target["caption"]) == ("score", None, one.captions[number])
        heat = read_heatmap(tmp_path / "out" / target["heatmap"])
        assert np.abs(heat - torch.as_tensor(one.heatmaps)[number].numpy()).max() <= 1 / 131070 + 1e-7
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / target["overlay"])), one.overlay(number))
    named = {target[kind] for target in entry["targets"] for kind in ("overlay", "heatmap")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == named | {EXPLANATIONS_FILE}
    assert entry["targets"][1]["overlay"] == f"a_b.odam.2.{entry['targets'][1]['name']}.png"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own there")
def test_files_are_encoded_with_lower_priority(
    classifier: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found: list[int] = []
    encode = writer.encode_heatmap
    monkeypatch.setattr(writer, "encode_heatmap", lambda heatmap: found.append(priority()) or encode(heatmap))
    before = priority()
    explain(classifier, noise(24, 24), top_k=2)[0].save(tmp_path)
    assert found == [min(before + 5, 19)] * 2 and priority() == before


@pytest.fixture
def cv2_threads() -> Iterator[None]:
    """Two threads of OpenCV, of which one is not started yet."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    cv2.GaussianBlur(noise(600, 600), (5, 5), 2)  # ends the others
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own there")
@pytest.mark.usefixtures("cv2_threads")
def test_threads_of_opencv_keep_their_priority(
    classifier: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> dict[int, int]:
        found = {}
        for folder in Path("/proc/self/task").iterdir():
            with suppress(FileNotFoundError):  # it has ended
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[16])
        return found

    def encode_large(heatmap: np.ndarray) -> bytes:
        writers.add(threading.get_native_id())
        cv2.GaussianBlur(noise(600, 600), (5, 5), 2)
        return encode(heatmap)

    writers: set[int] = set()  # they have ended, but may still be listed
    encode, before = writer.encode_heatmap, threads()
    monkeypatch.setattr(writer, "encode_heatmap", encode_large)
    explain(classifier, noise(24, 24), top_k=1)[0].save(tmp_path)
    started = {thread: nice for thread, nice in threads().items() if thread not in before and thread not in writers}
    assert set(started.values()) <= {before[os.getpid()]}


def test_images_with_equal_names_get_different_files(classifier: Adapter, tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate(("a/x.png", "b/X.png", "c/x.jpg")):
        paths.append(tmp_path / name)
        paths[-1].parent.mkdir()
        Image.fromarray(noise(24, 24, number)).save(paths[-1])
    first = explain(classifier, paths[:2])
    first.save(tmp_path / "out")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    explain(classifier, paths[2]).save(tmp_path / "out")
    entries = json.loads((tmp_path / "out" / EXPLANATIONS_FILE).read_text(encoding="utf-8"))["images"]
    assert [entry["stem"] for entry in entries] == ["x.gradcam", "X.gradcam-2", "x.gradcam-3"]
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in kept.items())
    heat = read_heatmap(tmp_path / "out" / entries[1]["targets"][0]["heatmap"])
    assert np.abs(heat - torch.as_tensor(first[1].heatmaps)[0].numpy()).max() < 1e-4


def test_arrays_get_different_files(classifier: Adapter, tmp_path: Path) -> None:
    for seed in (0, 1, 1):
        explain(classifier, noise(24, 24, seed)).save(tmp_path)
    entries = json.loads((tmp_path / EXPLANATIONS_FILE).read_text(encoding="utf-8"))["images"]
    assert [entry["stem"] for entry in entries] == ["image-1.gradcam", "image-1.gradcam-2"]
    assert entries[0]["digest"] != entries[1]["digest"]


def test_same_explanation_replaces_its_files(classifier: Adapter, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    Image.fromarray(noise(24, 24)).save(image)
    explain(classifier, image, top_k=3).save(tmp_path / "out")
    explain(classifier, image, "hirescam").save(tmp_path / "out")
    explain(classifier, image, labels=["bus"]).save(tmp_path / "out")
    entries = sorted(
        json.loads((tmp_path / "out" / EXPLANATIONS_FILE).read_text(encoding="utf-8"))["images"],
        key=lambda entry: entry["method"],
    )
    assert {(entry["method"], len(entry["targets"])) for entry in entries} == {("gradcam", 1), ("hirescam", 1)}
    assert len(list((tmp_path / "out").glob("x.gradcam.*"))) == 2
    assert entries[0]["targets"][0]["name"] == "bus"


def test_foreign_files_are_kept(classifier: Adapter, tmp_path: Path) -> None:
    (tmp_path / "image-1.GRADCAM.1.cat.png").write_text("mine")
    explain(classifier, noise(24, 24), labels=["cat"]).save(tmp_path)
    assert (tmp_path / "image-1.GRADCAM.1.cat.png").read_text() == "mine"
    assert (tmp_path / "image-1.gradcam-2.1.cat.png").is_file()
    index = tmp_path / EXPLANATIONS_FILE
    content = json.loads(index.read_text(encoding="utf-8"))
    (tmp_path.parent / "precious.txt").write_text("keep")
    content["images"][0]["targets"][0]["overlay"] = "../precious.txt"
    index.write_text(json.dumps(content), encoding="utf-8")
    explain(classifier, noise(24, 24), labels=["dog"]).save(tmp_path)
    assert (tmp_path.parent / "precious.txt").read_text() == "keep"
    for wrong in ("[1, 2]", '{"schema": "detcam/explanations", "version": 1}', "not json"):
        index.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match="move it away, or choose another folder"):
            explain(classifier, noise(24, 24)).save(tmp_path)
        assert index.read_text(encoding="utf-8") == wrong


def test_index_is_valid_after_an_interruption(classifier: Adapter, tmp_path: Path) -> None:
    explained = explain(classifier, [noise(24, 24), noise(24, 24, 1)])

    def interrupted() -> Iterator[Explanation]:
        yield from explained
        raise KeyboardInterrupt

    (tmp_path / f".{'0' * 32}.tmp").write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        save_explanations(tmp_path, interrupted())
    entries = json.loads((tmp_path / EXPLANATIONS_FILE).read_text(encoding="utf-8"))["images"]
    assert [entry["name"] for entry in entries] == ["image-1", "image-2"]
    assert all((tmp_path / target["overlay"]).is_file() for entry in entries for target in entry["targets"])
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dog", "dog"),
        ("hair drier", "hair_drier"),
        ("../../etc/passwd", "etc_passwd"),
        ("寿司.1", "寿司_1"),
        ("///", "unnamed"),
    ],
)
def test_file_names_are_safe(text: str, name: str) -> None:
    assert slug(text) == name
    assert len(slug("寿" * 200).encode()) <= 80
