"""The harbour scenes: the same from the same seed, and alike outside of what is taken away."""

from __future__ import annotations

import numpy as np
import pytest

from detcam.synthetic.harbour import BOAT_LABEL, BUOY_LABEL, DEMO_NAMES, DEMO_SEEDS, SCENE_SIZE_HW, Scene, draw_scene

SEEDS = (0, 1, 7, 42)


def changed(first: Scene, second: Scene) -> np.ndarray:
    return (first.image != second.image).any(axis=-1)


def reach(box_xyxy: np.ndarray, below: float = 0.0) -> np.ndarray:
    """Marks the box's pixels, and those of its reflection as deep as `below` box heights."""
    height, width = SCENE_SIZE_HW
    x0, y0, x1, y1 = box_xyxy
    y1 = y1 + np.ceil(below * (y1 - y0))
    rows, columns = np.mgrid[:height, :width]
    return (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)


@pytest.mark.parametrize("demo", [True, False])
def test_a_seed_gives_one_scene(demo: bool) -> None:
    first, again, other = draw_scene(5, demo=demo), draw_scene(5, demo=demo), draw_scene(6, demo=demo)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)
    assert [thing.name for thing in first.things] == [thing.name for thing in again.things]
    assert first.image.shape == (*SCENE_SIZE_HW, 3)
    assert first.image.dtype == np.uint8
    assert changed(first, other).mean() > 0.9


def test_training_and_demo_scenes_of_a_seed_differ() -> None:
    assert changed(draw_scene(3, demo=True), draw_scene(3, demo=False)).mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_taking_a_thing_away_changes_only_its_own_pixels(seed: int) -> None:
    scene = draw_scene(seed)
    assert scene.of_kind("gull")
    for thing in scene.things:
        redrawn = scene.redrawn([thing.name])
        difference = changed(scene, redrawn)
        reflects = thing.kind in ("boat", "anchored", "buoy")
        touched = thing.mask | (reach(thing.box_xyxy, below=0.4) & ~reach(thing.box_xyxy) & reflects)
        assert not (difference & ~touched).any(), thing.name
        assert difference[thing.mask].mean() > 0.6, thing.name
        assert thing.name not in [other.name for other in redrawn.things]


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_are_tight_around_what_is_drawn(seed: int) -> None:
    scene = draw_scene(seed)
    for thing in scene.things:
        rows, columns = np.nonzero(thing.mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(thing.box_xyxy, np.array(tight, np.float32))


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_only_boats_with_a_wake_and_buoys_are_labelled(seed: int, demo: bool) -> None:
    scene = draw_scene(seed, demo=demo)
    for label in (BOAT_LABEL, BUOY_LABEL):
        things = scene.of_kind(DEMO_NAMES[label])
        boxes = scene.boxes_xyxy[scene.labels == label]
        assert {tuple(thing.box_xyxy) for thing in things} == {tuple(box) for box in boxes}
    wakes = {thing.name for thing in scene.of_kind("wake")}
    made = {thing.name.replace("boat", "wake") for thing in scene.of_kind("boat")}
    assert wakes == made | set(scene.ghost_boxes_xyxy)
    assert bool(scene.ghost_boxes_xyxy) == demo


@pytest.mark.parametrize("seed", SEEDS)
def test_wakes_lie_fully_outside_every_box(seed: int) -> None:
    for scene in (draw_scene(seed), draw_scene(seed, demo=False)):
        boxes = [*scene.boxes_xyxy, *scene.ghost_boxes_xyxy.values()]
        for wake in scene.of_kind("wake"):
            for box in boxes:
                assert not (wake.mask & reach(box)).any(), (seed, wake.name)


def test_removals_add_up() -> None:
    scene = draw_scene(0)
    first, second = (thing.name for thing in scene.things[:2])
    together, in_turn = scene.redrawn([first, second]), scene.redrawn([first]).redrawn([second])
    np.testing.assert_array_equal(together.image, in_turn.image)
    assert in_turn.without == {first, second}


def test_a_boat_taken_away_loses_its_label_and_keeps_its_wake() -> None:
    scene = draw_scene(0)
    boat = scene.of_kind("boat")[0]
    redrawn = scene.redrawn([boat.name])
    assert len(redrawn.labels) == len(scene.labels) - 1
    assert redrawn.thing(boat.name.replace("boat", "wake")).kind == "wake"


def test_unknown_names_are_refused() -> None:
    scene = draw_scene(0)
    with pytest.raises(ValueError, match="whale-0"):
        scene.redrawn(["whale-0"])
    with pytest.raises(ValueError, match="whale-0"):
        scene.thing("whale-0")


def test_the_chosen_scenes_tell_the_story() -> None:
    assert len(DEMO_SEEDS) >= 4
    for seed in DEMO_SEEDS:
        scene = draw_scene(seed)
        assert scene.of_kind("boat")
        assert scene.of_kind("gull")
        assert scene.ghost_boxes_xyxy
