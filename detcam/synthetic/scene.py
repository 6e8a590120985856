"""Scenes made of sprites: placement, drawing, and drawing again without some of the objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from detcam.synthetic.sprites import FloatArray, Sprite, paste, reflection

Area = tuple[float, float, float, float]
SceneT = TypeVar("SceneT", bound="Scene")


@dataclass(frozen=True, eq=False)
class SceneObject:
    """An object that can be removed from a scene.

    Attributes:
        name: kind and number, such as "wake-1". Objects that belong together share the number.
        kind: what the object is, such as "wake".
        box_xyxy: (4,) float32, tight half-open box in pixels, without the reflection.
        mask: (H, W) bool, visible pixels of the object.
    """

    name: str
    kind: str
    box_xyxy: FloatArray
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene(ABC):
    """An image with its labels and its removable objects.

    Attributes:
        seed: seed of the scene.
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, boxes of the labeled objects in half-open pixels.
        labels: (N,) int64 class indices.
        objects: removable objects in the image, sorted by name.
        removed: names of the objects that were left out of this drawing.
    """

    seed: int
    image: npt.NDArray[np.uint8]
    boxes_xyxy: FloatArray
    labels: npt.NDArray[np.int64]
    objects: tuple[SceneObject, ...]
    removed: frozenset[str]

    def get(self, name: str) -> SceneObject | None:
        """Return the object of that name, or None."""
        return next((item for item in self.objects if item.name == name), None)

    def object(self, name: str) -> SceneObject:
        """Return the object of that name.

        Raises:
            ValueError: the image holds no object of that name.
        """
        item = self.get(name)
        if item is None:
            raise ValueError(f"expected the name of an object in this scene, {_names(self.objects)}; got {name!r}")
        return item

    def of_kind(self, kind: str) -> tuple[SceneObject, ...]:
        """Return the objects of one kind, sorted by name."""
        return tuple(item for item in self.objects if item.kind == kind)

    @abstractmethod
    def without(self: SceneT, names: Iterable[str]) -> SceneT:
        """Draw the scene again without the named objects; all pixels that they do not touch stay the same."""


@dataclass(frozen=True)
class Placement:
    """Position and look of an object before it is drawn.

    Attributes:
        name: kind and number.
        x: column of the anchor.
        y: row of the anchor.
        size: size in pixels.
        heading: +1 or -1, the horizontal direction that the object faces.
        opacity: factor in (0, 1].
    """

    name: str
    x: int
    y: int
    size: float
    heading: int = 1
    opacity: float = 1.0

    @property
    def kind(self) -> str:
        """The part of the name before the hyphen."""
        return self.name.split("-")[0]


Painter = Callable[[int, Placement], Sprite]
"""Paints the sprite of a placement, given its index and the placement."""


class OccupiedAreas:
    """Areas of a scene that are taken, so that objects do not overlap."""

    def __init__(self) -> None:
        self.areas: list[Area] = []

    def add(self, area: Area) -> None:
        """Mark an area (x1, y1, x2, y2) as taken."""
        self.areas.append(area)

    def claim(self, area: Area) -> bool:
        """Mark an area as taken if it is free, and return whether it was."""
        x1, y1, x2, y2 = area
        free = all(x1 >= right or x2 <= left or y1 >= bottom or y2 <= top for left, top, right, bottom in self.areas)
        if free:
            self.add(area)
        return free


def check_removed(removed: Collection[str], placements: Sequence[Placement]) -> None:
    """Raise ValueError if a name to remove is not the name of a placement."""
    unknown = sorted(set(removed) - {placement.name for placement in placements})
    if unknown:
        raise ValueError(f"expected names of objects in this scene, {_names(placements)}; got {unknown}")


def draw_objects(
    image: FloatArray,
    placements: Sequence[Placement],
    paint: Painter,
    *,
    order: Callable[[Placement], tuple[float, ...]],
    skipped: Collection[str],
    reflecting: Collection[str] = (),
) -> dict[str, SceneObject]:
    """Draw objects on an image, in place, from the back to the front.

    Args:
        image: (H, W, 3) float32 RGB in [0, 255].
        placements: what to draw.
        paint: paints one sprite. Every placement has its own random stream, so skipping one changes no other.
        order: sort key of the drawing order.
        skipped: names of placements that are not drawn.
        reflecting: kinds that are drawn with a reflection in the water.

    Returns:
        The objects by name, in drawing order. The mask of an object excludes the pixels that a later object covers.
    """
    objects: dict[str, SceneObject] = {}
    for index, placement in sorted(enumerate(placements), key=lambda entry: order(entry[1])):
        if placement.name in skipped:
            continue
        sprite = paint(index, placement)
        if placement.kind in reflecting:
            paste(image, reflection(sprite), placement.x, placement.y)
        opacity = paste(image, sprite, placement.x, placement.y)
        for other in objects.values():
            other.mask[opacity > 0.5] = False
        objects[placement.name] = SceneObject(placement.name, placement.kind, tight_box(opacity), opacity > 0)
    return objects


def finish_image(image: FloatArray, rng: np.random.Generator, max_noise: float) -> npt.NDArray[np.uint8]:
    """Add Gaussian noise with a random standard deviation in [1, max_noise] and round to uint8."""
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1.0, max_noise))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def tight_box(opacity: FloatArray) -> FloatArray:
    """Return the (4,) float32 half-open box around the nonzero pixels of an (H, W) array."""
    rows, columns = np.flatnonzero(opacity.any(1)), np.flatnonzero(opacity.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def stack_boxes(objects: Iterable[SceneObject]) -> FloatArray:
    """Return the boxes of objects as one (N, 4) float32 array."""
    return np.array([item.box_xyxy for item in objects], np.float32).reshape(-1, 4)


def sort_objects(objects: Iterable[SceneObject]) -> tuple[SceneObject, ...]:
    """Return the objects sorted by name."""
    return tuple(sorted(objects, key=lambda item: item.name))


def _names(items: Iterable[SceneObject | Placement]) -> list[str]:
    return [item.name for item in items]
