"""Harbor scenes are deterministic, and removing an object changes only its own pixels."""

from __future__ import annotations

import numpy as np
import pytest

from detcam.synthetic.harbor import (
    BOAT_LABEL,
    BUOY_LABEL,
    DEMO_NAMES,
    DEMO_SEEDS,
    SCENE_SIZE_HW,
    HarborScene,
    draw_scene,
)

SEEDS = (0, 1, 7, 42)


def changed(first: HarborScene, second: HarborScene) -> np.ndarray:
    return (first.image != second.image).any(axis=-1)


def box_mask(box_xyxy: np.ndarray, below: float = 0.0) -> np.ndarray:
    """Return a mask of the box and of a strip of `below` box heights under it."""
    height, width = SCENE_SIZE_HW
    x0, y0, x1, y1 = box_xyxy
    y1 = y1 + np.ceil(below * (y1 - y0))
    rows, columns = np.mgrid[:height, :width]
    return (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)


@pytest.mark.parametrize("demo", [True, False])
def test_scenes_are_deterministic(demo: bool) -> None:
    first, again, other = draw_scene(5, demo=demo), draw_scene(5, demo=demo), draw_scene(6, demo=demo)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)
    assert [item.name for item in first.objects] == [item.name for item in again.objects]
    assert first.image.shape == (*SCENE_SIZE_HW, 3)
    assert first.image.dtype == np.uint8
    assert changed(first, other).mean() > 0.9


def test_training_and_demo_scenes_of_a_seed_differ() -> None:
    assert changed(draw_scene(3, demo=True), draw_scene(3, demo=False)).mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_removing_an_object_changes_only_its_own_pixels(seed: int) -> None:
    scene = draw_scene(seed)
    assert scene.of_kind("gull")
    for item in scene.objects:
        edited = scene.without([item.name])
        difference = changed(scene, edited)
        reflects = item.kind in ("boat", "anchored", "buoy")
        touched = item.mask | (box_mask(item.box_xyxy, below=0.4) & ~box_mask(item.box_xyxy) & reflects)
        assert not (difference & ~touched).any(), item.name
        assert difference[item.mask].mean() > 0.6, item.name
        assert item.name not in [other.name for other in edited.objects]


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_are_tight(seed: int) -> None:
    scene = draw_scene(seed)
    for item in scene.objects:
        rows, columns = np.nonzero(item.mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(item.box_xyxy, np.array(tight, np.float32))


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_only_boats_with_a_wake_and_buoys_are_labeled(seed: int, demo: bool) -> None:
    scene = draw_scene(seed, demo=demo)
    for label in (BOAT_LABEL, BUOY_LABEL):
        objects = scene.of_kind(DEMO_NAMES[label])
        boxes = scene.boxes_xyxy[scene.labels == label]
        assert {tuple(item.box_xyxy) for item in objects} == {tuple(box) for box in boxes}
    wakes = {item.name for item in scene.of_kind("wake")}
    made = {item.name.replace("boat", "wake") for item in scene.of_kind("boat")}
    assert wakes == made | set(scene.ghost_boxes_xyxy)
    assert bool(scene.ghost_boxes_xyxy) == demo


@pytest.mark.parametrize("seed", SEEDS)
def test_wakes_lie_fully_outside_every_box(seed: int) -> None:
    for scene in (draw_scene(seed), draw_scene(seed, demo=False)):
        boxes = [*scene.boxes_xyxy, *scene.ghost_boxes_xyxy.values()]
        for wake in scene.of_kind("wake"):
            for box in boxes:
                assert not (wake.mask & box_mask(box)).any(), (seed, wake.name)


def test_removals_compose() -> None:
    scene = draw_scene(0)
    first, second = (item.name for item in scene.objects[:2])
    combined, sequential = scene.without([first, second]), scene.without([first]).without([second])
    np.testing.assert_array_equal(combined.image, sequential.image)
    assert sequential.removed == {first, second}


def test_removing_a_boat_removes_its_label_and_keeps_its_wake() -> None:
    scene = draw_scene(0)
    boat = scene.of_kind("boat")[0]
    edited = scene.without([boat.name])
    assert len(edited.labels) == len(scene.labels) - 1
    assert edited.object(boat.name.replace("boat", "wake")).kind == "wake"


def test_unknown_names_raise() -> None:
    scene = draw_scene(0)
    with pytest.raises(ValueError, match="whale-0"):
        scene.without(["whale-0"])
    with pytest.raises(ValueError, match="whale-0"):
        scene.object("whale-0")


def test_demo_scenes_contain_boats_gulls_and_boatless_wakes() -> None:
    assert len(DEMO_SEEDS) >= 4
    for seed in DEMO_SEEDS:
        scene = draw_scene(seed)
        assert scene.of_kind("boat")
        assert scene.of_kind("gull")
        assert scene.ghost_boxes_xyxy
