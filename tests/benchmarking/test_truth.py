"""Annotated regions of detections and classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detcam.benchmarking import benchmark
from detcam.benchmarking.samples import annotated_regions, collect_samples
from detcam.data.annotations import Annotations
from detcam.detections import Detections, Source
from detcam.targets import BoxTarget, ClassTarget
from tests.benchmarking.harbor import SEEDS, DrawnMaps, harbor_detector, write_scenes
from tests.drawn import harbor_scene


def coco(folder: Path, annotations: list[dict[str, Any]], files: list[str]) -> Path:
    path = folder / "truth.json"
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": number, "file_name": name, "width": 256, "height": 192} for number, name in enumerate(files)
                ],
                "annotations": [
                    {"id": number, "area": 1, "iscrowd": 0, "image_id": 0, **annotation}
                    for number, annotation in enumerate(annotations, 1)
                ],
                "categories": [{"id": 1, "name": "boat"}, {"id": 2, "name": "buoy"}],
            }
        )
    )
    return path


def test_patterns_are_those_of_the_shell(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b1.png"):
        (tmp_path / name).touch()
    for pattern, count in (("a?.png", 2), ("[ab]1.png", 2), ("*.png", 3)):
        samples, _ = collect_samples(str(tmp_path / pattern), None)
        assert len(samples) == count


def box(x: float, y: float, side: float, category: int, **more: Any) -> dict[str, Any]:
    return {"bbox": [x, y, side, side], "category_id": category, **more}


def detections_of(*targets: BoxTarget) -> Detections:
    return Detections(
        torch.tensor([target.box_xyxy for target in targets]),
        torch.tensor([target.label for target in targets]),
        torch.ones(len(targets)),
        (192, 256),
        (Source("image"),) * len(targets),
    )


def test_box_matches_the_overlapping_object_of_its_class(tmp_path: Path) -> None:
    write_scenes(tmp_path, SEEDS[:1])
    name = f"scene-{SEEDS[0]:02d}.png"
    crowd = {"iscrowd": 1, "segmentation": {"size": [192, 256], "counts": [0, 192 * 256]}}
    path = coco(
        tmp_path, [box(10, 20, 40, 1), box(12, 20, 40, 2), box(100, 100, 20, 1), box(0, 0, 256, 1, **crowd)], [name]
    )
    objects = Annotations.load(path, tmp_path).for_classes({1: "boat", 2: "buoy"})[0]
    targets = [
        BoxTarget((12, 22, 50, 60), 1),  # the first boat, although the buoy's box overlaps too
        BoxTarget((12, 22, 50, 60), 2),
        BoxTarget((100, 100, 120, 109), 1),  # IoU 0.45: no match
        BoxTarget((1, 1, 255, 191), 1),  # a crowd region matches no detection
    ]
    found = annotated_regions(objects, detections_of(*targets), targets)
    assert found.objects[0].nonzero().amin(0).tolist() == [20, 10]
    assert found.objects[0].sum() == found.objects[1].sum() == 1600
    assert found.objects[1].nonzero().amin(0).tolist() == [20, 12]
    assert not found.objects[2:].any()
    assert found.ignored[0].all()
    assert not found.ignored[1].any()
    whole = annotated_regions(objects, detections_of(*targets[:1]), [ClassTarget(1)])
    assert whole.objects[0].sum() == 1600 + 400
    nothing = annotated_regions(None, detections_of(*targets), targets)
    assert nothing.objects.shape == (4, 192, 256)
    assert not nothing.objects.any()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_only_annotated_images_are_used_and_false_positives_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    folder = write_scenes(tmp_path / "in", SEEDS[:3])
    adapter = harbor_detector()
    names = [f"scene-{seed:02d}.png" for seed in SEEDS[:2]]
    scene = harbor_scene(SEEDS[0])
    objects = [
        {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(label)}
        for (x1, y1, x2, y2), label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True)
    ]
    # the second image has no object, the third is not annotated, the fourth does not exist
    path = coco(tmp_path, objects, [*names, "gone.png"])

    def box_map(image: Any, target: BoxTarget) -> Any:
        drawn = torch.zeros(image.shape[-2:])
        x1, y1, x2, y2 = (round(value) for value in target.box_xyxy)
        drawn[y1:y2, x1:x2] = 1
        return drawn

    methods = {"box": lambda adapter: DrawnMaps(adapter, box_map)}
    found = benchmark(
        adapter, "~/in", methods, ["pointing_game", "energy_pointing_game"], "~/truth.json", controls=False, top_k=20
    )
    detected = [len(adapter.predict(folder / name, score_threshold=0.3)[0]) for name in names]
    own = found.row("box").scores["energy_pointing_game"]
    assert found.images == 2
    assert own.targets + own.undefined == sum(detected)
    assert own.images == 1
    assert 0 < own.targets <= len(objects)
    assert own.mean > 0.6
    assert (
        f"{own.undefined} predictions have no annotated object; pointing_game and energy_pointing_game exclude them."
        in (found.notes)
    )
    assert "1 image not in truth.json excluded." in found.notes
    assert any("gone.png" in note or "missing" in note for note in found.notes)
    assert found.failed == {}
    with pytest.raises(ValueError, match="no image of 1 is annotated"):
        alone = write_scenes(tmp_path / "alone", SEEDS[3:4])
        benchmark(adapter, alone, methods, ["pointing_game"], Annotations.load(path, folder))
