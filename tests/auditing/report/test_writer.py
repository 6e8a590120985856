"""The files of a report: images, maps and thumbnails are right, complete and reproducible."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detcam.auditing.case import AuditCase, CaseMaps
from detcam.auditing.report import ReportWriter, images, layout
from detcam.synthetic.harbor import draw_scene
from detcam.visualize.overlay import overlay_heatmap
from tests.auditing.report.made_up import HOSTILE, SampleImage, make_images, summary_of, write


@pytest.fixture(scope="module")
def samples() -> list[SampleImage]:
    return make_images(range(4))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def explained(samples: list[SampleImage]) -> tuple[SampleImage, AuditCase, CaseMaps]:
    for image in samples:
        for case, maps in image.cases:
            if maps is not None and case.is_false_positive:
                return image, case, maps
    raise LookupError


def test_files_are_those_named_in_audit_json(tmp_path: Path, samples: list[SampleImage]) -> None:
    write(tmp_path, samples)
    audit = json.loads((tmp_path / "audit.json").read_text("utf-8"))
    named = {path for case in audit["cases"] for path in case["files"].values() if path}
    named |= {image["file"] for image in audit["images"]}
    described = {image["file"].replace(".jpg", ".json") for image in audit["images"]}
    top = {layout.INDEX, layout.AUDIT, layout.TABLE, layout.COCO, layout.ERRORS}
    data = {f"data/{path.name}" for path in (tmp_path / "data").iterdir()}
    assert set(files_in(tmp_path)) == named | described | top | data
    assert [re.sub(r"-[0-9a-f]{10}\.js", "", name) for name in sorted(data)] == [
        "data/details-0", "data/rows-0", "data/summary",
    ]  # fmt: skip
    for case, entry in zip(summary_of(samples).cases, audit["cases"], strict=True):
        assert entry["files"]["thumbnail"] and entry["files"]["image"]
        assert all(bool(entry["files"][kind]) == bool(case.method) for kind in ("heatmap", "evidence", "control"))
    assert {bool(case.method) for case in summary_of(samples).cases} == {True, False}


def test_maps_round_trip(tmp_path: Path, samples: list[SampleImage]) -> None:
    pixels, case, maps = explained(samples)
    ReportWriter(tmp_path).case(case, pixels.scene.image, maps)
    stored = {
        kind: Image.open(tmp_path / "cases" / f"{case.id}.{kind}.png") for kind in ("heatmap", "evidence", "control")
    }
    assert {kind: image.mode for kind, image in stored.items()} == {"heatmap": "L", "evidence": "1", "control": "1"}
    assert np.array_equal(stored["heatmap"], maps.heatmap)
    assert np.array_equal(stored["evidence"], maps.evidence)
    assert maps.control is not None and np.array_equal(stored["control"], maps.control)
    overlay = Image.open(tmp_path / "cases" / f"{case.id}.overlay.png").convert("RGBA")
    black = Image.new("RGBA", overlay.size, (0, 0, 0, 255))
    shown = np.asarray(Image.alpha_composite(black, overlay))[..., :3].astype(int)
    expected = overlay_heatmap(np.zeros_like(pixels.scene.image), maps.heatmap / 255, alpha=1.0)
    assert expected.max() > 100 and np.abs(shown - expected).max() <= 1


def test_large_images_and_maps_are_downsized(tmp_path: Path, samples: list[SampleImage]) -> None:
    image, case, _ = explained(samples)
    height, width = 1000, 2400
    large = np.zeros((height, width, 3), np.uint8)
    large[:, 1200:] = 200
    evidence = np.zeros((height, width), bool)
    evidence[300:600, 900:1500] = True
    heatmap = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    case = replace(case, image_size_hw=(height, width))
    writer = ReportWriter(tmp_path)
    writer.case(case, large, CaseMaps(heatmap, evidence, evidence, None))
    path = writer.image(7, "large.png", large, replace(image.truths, image_size_hw=(height, width)))
    shown = np.asarray(Image.open(path))
    assert shown.shape == (667, 1600, 3)
    assert shown[:, :780].max() < 20 and shown[:, 820:].min() > 180
    small = np.asarray(Image.open(tmp_path / "cases" / f"{case.id}.heatmap.png"))
    assert small.shape == (267, 640) and np.abs(small[100].astype(int) - np.linspace(0, 255, 640)).max() < 2
    mask = np.asarray(Image.open(tmp_path / "cases" / f"{case.id}.evidence.png"))
    expected = np.zeros((667, 1600), bool)
    expected[200:400, 600:1000] = True
    assert mask.shape == expected.shape and (mask != expected).mean() < 0.002
    assert not (tmp_path / "cases" / f"{case.id}.control.png").exists()


def test_writing_twice_gives_the_same_files(tmp_path: Path, samples: list[SampleImage]) -> None:
    write(tmp_path, samples)
    before = files_in(tmp_path)
    write(tmp_path, samples)
    assert files_in(tmp_path) == before


def test_an_interrupted_run_can_be_resumed(tmp_path: Path, samples: list[SampleImage]) -> None:
    write(tmp_path / "whole", samples)
    broken = tmp_path / "broken"
    writer = ReportWriter(broken)
    first = samples[0]
    writer.image(first.truths.image_id, first.truths.file_name, first.scene.image, first.truths)
    for case, maps in first.cases:
        writer.case(case, first.scene.image, maps)
    (broken / "cases" / f".{'0' * 32}.tmp").write_bytes(b"half")
    (broken / "cases" / ".own notes.tmp").write_bytes(b"kept")
    again = ReportWriter(broken)
    for image in samples[1:]:
        again.image(image.truths.image_id, image.truths.file_name, image.scene.image, image.truths)
        for case, maps in image.cases:
            again.case(case, image.scene.image, maps)
    again.finish(summary_of(samples))
    got = files_in(broken)
    assert got.pop("cases/.own notes.tmp") == b"kept"
    assert got == files_in(tmp_path / "whole")


def test_existing_images_are_not_rewritten(tmp_path: Path, samples: list[SampleImage]) -> None:
    truths, image = samples[0].truths, samples[0].scene.image
    writer = ReportWriter(tmp_path)
    path = writer.image(0, "a.png", image, truths)
    path.write_bytes(b"there")
    assert writer.image(0, "a.png", image, truths) == path
    assert path.read_bytes() == b"there"


def test_maps_of_an_unexplained_case_are_removed(tmp_path: Path, samples: list[SampleImage]) -> None:
    image, case, maps = explained(samples)
    writer = ReportWriter(tmp_path)
    writer.case(case, image.scene.image, maps)
    writer.case(replace(case, method=""), image.scene.image, None)
    assert set(files_in(tmp_path)) == {f"cases/{case.id}.thumbnail.jpg"}


def test_files_are_written_under_a_temporary_name(
    tmp_path: Path, samples: list[SampleImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []
    real = os.replace

    def seen(source: str, target: str) -> None:
        assert Path(source).parent == Path(target).parent
        assert layout.INDEX not in Path(source).name
        replaced.append(str(Path(target).relative_to(tmp_path)))
        real(source, target)

    monkeypatch.setattr(os, "replace", seen)
    write(tmp_path, samples)
    assert set(replaced) == set(files_in(tmp_path))


def test_names_from_the_data_set_do_not_become_paths(tmp_path: Path) -> None:
    hostile = make_images(range(1), hostile=True)
    case, maps = hostile[0].cases[0]
    wild = replace(case, id="../../../x/<b>.Ü")
    hostile[0].cases[0] = (wild, maps)
    write(tmp_path / "report", hostile)
    assert {path.name for path in tmp_path.iterdir()} == {"report"}
    for name in files_in(tmp_path / "report"):
        assert re.fullmatch(r"((cases|images|data)/)?[a-z0-9_-]+(\.[a-z]+){1,2}", name), name
    long = layout.image_stem(1, HOSTILE * 20)
    assert len(long) <= 80 and layout.image_stem(1, "a/x.png") != layout.image_stem(1, "b/x.png")
    assert layout.image_stem(1, "x.png") != layout.image_stem("1", "x.png")
    assert layout.case_stem("image-A") != layout.case_stem("image-a") == "image-a"


def test_names_with_lone_surrogates_are_written(tmp_path: Path) -> None:
    samples = make_images(range(1))
    samples[0].cases[:] = [(replace(case, file_name="bad\udcff.png"), maps) for case, maps in samples[0].cases]
    write(tmp_path, samples)
    assert json.loads((tmp_path / "audit.json").read_bytes())["cases"][0]["file_name"] == "bad\udcff.png"


def test_region_outline_follows_the_edge(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    mask[15:25, 30:40] = False
    mask[50, 70] = True
    path = tmp_path / "mask.png"
    path.write_bytes(images.mask_png(mask))
    rings = [
        np.array([[float(n) for n in point.split()] for point in part.split("L")])
        for part in re.findall(r"M([^MZ]+)Z", images.region_outline(path, (120, 160)))
    ]
    # In an image twice as large as the mask: the region, its hole, and the single pixel.
    expected = [(40, 20, 100, 60), (60, 30, 80, 50), (140, 100, 142, 102)]
    got = sorted((*ring.min(0), *ring.max(0)) for ring in rings)
    assert len(got) == 3
    for ring, box in zip(got, sorted(expected), strict=True):
        assert np.abs(np.array(ring) - box).max() <= 1


def test_thumbnail_shows_box_heatmap_and_surroundings(tmp_path: Path) -> None:
    image = np.full((300, 600, 3), 90, np.uint8)
    heatmap = np.zeros((300, 600), np.uint8)
    heatmap[140:160, 300:320] = 255
    maps = CaseMaps(heatmap, heatmap > 0, heatmap > 0, None)
    box = (200.0, 130.0, 240.0, 170.0)
    left, top, right, bottom = images.crop_window((300, 600), box, maps.evidence)
    assert left < 200 - 11 and right > 320 + 11 and top < 130 and bottom > 170
    assert abs((right - left) / (bottom - top) - 4 / 3) < 0.03
    path = tmp_path / "thumbnail.jpg"
    path.write_bytes(images.thumbnail_jpeg(image, box, maps))
    thumbnail = np.asarray(Image.open(path)).astype(int)
    assert thumbnail.shape == (240, 320, 3)
    scale = 320 / (right - left)

    def at(x: float, y: float) -> np.ndarray:
        return thumbnail[round((y - top) * scale), round((x - left) * scale)]

    assert np.abs(at(220, 150) - 90).max() < 12, "inside the box, without heat"
    assert at(310, 150)[0] > 200 and at(310, 150)[0] - at(310, 150)[2] > 30, "heat, yellow"
    assert at(200, 150)[2] > 180 and at(200, 150)[2] - at(200, 150)[0] > 60, "the box's blue line"
    # Without maps the window is about the box alone; at the image's edge it moves inside.
    near = images.crop_window((300, 600), (0.0, 0.0, 30.0, 30.0), None)
    assert near[:2] == (0, 0) and near[2] < 90
    far = images.crop_window((300, 600), (570.0, 270.0, 600.0, 300.0), None)
    assert far == (600 - near[2], 300 - near[3], 600, 300)
    assert images.crop_window((40, 500), (100.0, 0.0, 400.0, 40.0), None)[1::2] == (0, 40)
    # The outline of a box at the image's edge, or beyond it, is visible.
    for cut in ((570.0, 270.0, 600.0, 300.0), (560.0, 250.0, 640.0, 330.0)):
        path.write_bytes(images.thumbnail_jpeg(image, cut, None))
        right_end, below = (
            np.asarray(Image.open(path)).astype(int)[-20, -4:],
            np.asarray(Image.open(path)).astype(int)[-4:, -20],
        )
        assert all((line[:, 2] - line[:, 0]).max() > 60 for line in (right_end, below))


def test_thumbnail_of_a_missed_object_uses_the_ground_truth_color(tmp_path: Path) -> None:
    scene = draw_scene(0)
    samples = make_images(range(1))
    case = next(case for case, _ in samples[0].cases if case.type == "missed")
    ReportWriter(tmp_path).case(case, scene.image, None)
    expected = images.thumbnail_jpeg(scene.image, case.box_xyxy, None, images.TRUTH_COLOR)
    assert (tmp_path / "cases" / f"{case.id}.thumbnail.jpg").read_bytes() == expected
    assert expected != images.thumbnail_jpeg(scene.image, case.box_xyxy, None)


def test_wrong_images_and_maps_raise(tmp_path: Path, samples: list[SampleImage]) -> None:
    pixels, case, maps = explained(samples)
    image, writer = pixels.scene.image, ReportWriter(tmp_path)
    with pytest.raises(TypeError, match="uint8"):
        writer.image(1, "a.png", image.astype(np.float32), pixels.truths)
    with pytest.raises(ValueError, match="check that it is the same image"):
        writer.image(1, "a.png", image[:-1], pixels.truths)
    with pytest.raises(ValueError, match="check that it is the same image"):
        writer.case(case, image[:, :-1], None)
    with pytest.raises(TypeError, match="heatmap as a uint8 array"):
        writer.case(case, image, replace(maps, heatmap=maps.heatmap / 255))
    with pytest.raises(TypeError, match="evidence as a bool array"):
        writer.case(case, image, replace(maps, evidence=maps.heatmap))
    with pytest.raises(ValueError, match="control in the size of the image"):
        writer.case(case, image, replace(maps, control=np.zeros((3, 3), bool)))
    assert not files_in(tmp_path)


def test_damaged_files_are_named(tmp_path: Path, samples: list[SampleImage]) -> None:
    write(tmp_path, samples)
    damaged = next((tmp_path / "images").glob("*.json"))
    whole = damaged.read_bytes()
    damaged.write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{damaged.name}.*delete it"):
        ReportWriter(tmp_path).finish(summary_of(samples))
    damaged.write_bytes(whole)
    evidence = next((tmp_path / "cases").glob("*.evidence.png"))
    evidence.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{evidence.name}.*delete it"):
        ReportWriter(tmp_path).finish(summary_of(samples))
