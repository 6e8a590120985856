"""Images as an image processor of transformers prepares them, with the position of each image on the input."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from detcam.adapters.transformers.model import find_processor
from detcam.geometry import Geometry, checked_size

MAX_SNAP_DISTANCE = 0.05
"""Maximum distance, in input pixels, at which a measured side or offset is taken as the whole number beside it."""


class ImagePreparation:
    """Calls an image processor, and measures where it puts the image: resize, padding and crop.

    Args:
        processor: an image processor of transformers.
        image_size: height and width that replace the processor's size, or one number: the shorter side where the
            processor keeps the aspect ratio, else both sides. None keeps the processor's size.
    """

    def __init__(self, processor: Any, image_size: int | tuple[int, int] | None = None) -> None:
        self.processor = processor
        size = checked_size(image_size)
        self.settings = {} if size is None else _size_settings(processor, size)
        self._geometries: dict[tuple[int, int], Geometry] = {}

    @cached_property
    def mean(self) -> tuple[float, ...] | None:
        """The mean that the processor subtracts from pixels in [0, 1], or None if it does not normalize."""
        return self._normalization("image_mean")

    @cached_property
    def std(self) -> tuple[float, ...] | None:
        """The standard deviation that the processor divides by, or None if it does not normalize."""
        return self._normalization("image_std")

    def _normalization(self, name: str) -> tuple[float, ...] | None:
        values = getattr(self.processor, name, None) if getattr(self.processor, "do_normalize", True) else None
        return None if values is None else tuple(float(value) for value in values)

    def geometry(self, image_size_hw: tuple[int, int]) -> Geometry:
        """Return the position of an image of a given size on the input.

        The processor is run on an image whose values are its coordinates, without normalization, so that any
        combination of resize, padding and crop is measured as it is.
        """
        if image_size_hw not in self._geometries:
            self._geometries[image_size_hw] = self._measure(image_size_hw)
        return self._geometries[image_size_hw]

    def prepare(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """Return an image (3, H, W) in [0, 1] as the network takes it, (C, h, w), and its position there."""
        features = self._run(self.processor, _pixels(image, _has_eight_bits(self.processor)))
        return torch.as_tensor(features["pixel_values"])[0], self.geometry((image.shape[-2], image.shape[-1]))

    def _run(self, processor: Any, image: Tensor, **settings: Any) -> Any:
        common: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}
        if type(processor).__name__.startswith("OneFormer"):
            common["task_inputs"] = ["panoptic"]
        return processor(images=[image], **common, **self.settings, **settings)

    def _measure(self, image_size_hw: tuple[int, int]) -> Geometry:
        height, width = image_size_hw
        columns = ((torch.arange(width) + 0.5) / width).expand(height, width)
        rows = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
        # The first and the last channel are the same, for processors that swap them.
        ramp = torch.stack([columns, rows, columns])
        features = self._run(_with_floats(self.processor), ramp, do_rescale=False, do_normalize=False)
        output = torch.as_tensor(features["pixel_values"])[0].double()
        input_size = (output.shape[-2], output.shape[-1])
        scale_x, left = _line(output[0], 1, width)
        scale_y, top = _line(output[1], 0, height)
        return Geometry(image_size_hw, input_size, (scale_x, scale_y), (left, top))


def stored_preparation(model: Any) -> dict[str, Any]:
    """Return the input size, mean and standard deviation of a model's image processor; empty for an unknown family."""
    try:
        preparation = ImagePreparation(find_processor(model))
    except ValueError:
        return {}
    return {
        "input_size": (3, *preparation.geometry((64, 64)).input_size_hw),
        "mean": preparation.mean or (0.0, 0.0, 0.0),
        "std": preparation.std or (1.0, 1.0, 1.0),
    }


def is_whole(geometry: Geometry) -> bool:
    """Return whether an image fills the input."""
    corner = geometry.point_to_input((float(geometry.image_size_hw[1]), float(geometry.image_size_hw[0])))
    return geometry.offset_xy == (0.0, 0.0) and tuple(map(round, corner)) == geometry.input_size_hw[::-1]


def pixel_mask(geometry: Geometry) -> Tensor:
    """Return a mask (h, w) int64 over the input: 1 on the image, 0 on padding."""
    mask = torch.zeros(geometry.input_size_hw, dtype=torch.int64)
    mask[geometry.valid_cells(geometry.input_size_hw)] = 1
    return mask


def _line(values: Tensor, axis: int, side: int) -> tuple[float, float]:
    """Return scale and offset along an axis of a map whose values are fractions of the image's side.

    The steepest lines of the map cross the image, the others lie on padding. The outermost pixels, which a resize
    blends with what lies beyond the border, are left out.
    """
    lines = values if axis == 1 else values.T
    line = lines[(lines.amax(1) - lines.amin(1)).argmax()]
    steps = line.diff()
    inside = (steps > 0.5 * steps[steps > 0].median()).nonzero()[:, 0] if (steps > 0).any() else steps.new_zeros(0)
    if len(inside) < 2:
        return 1.0, 0.0  # an image of a few pixels
    first, last = int(inside[0]), int(inside[-1]) + 1
    trim = (last - first) // 16 if last - first < 32 else max((last - first) // 16, 3)
    positions = torch.arange(first + trim, last - trim + 1, dtype=torch.float64)
    fractions = line[first + trim : last - trim + 1]
    spread = positions - positions.mean()
    slope = float((spread * fractions).sum() / spread.square().sum())
    extent = _snapped(1 / slope)  # the image's side on the input
    offset = _snapped(float(positions.mean()) + 0.5 - float(fractions.mean()) * extent)
    return extent / side, offset


def _snapped(value: float) -> float:
    nearest = float(round(value))
    return nearest if abs(value - nearest) <= MAX_SNAP_DISTANCE else value


def _has_eight_bits(processor: Any) -> bool:
    """Return whether a processor resizes by Pillow, which takes 8 bits."""
    return getattr(processor, "backend", "torchvision") == "pil"


def _with_floats(processor: Any) -> Any:
    """Return the processor of the same geometry that resizes floats, where there is one."""
    if not _has_eight_bits(processor):
        return processor
    import transformers

    twin = getattr(transformers, type(processor).__name__.removesuffix("Pil"), type(processor))
    return twin.from_dict(processor.to_dict())


def _size_settings(processor: Any, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of a processor's call that replace its size."""
    if not isinstance(image_size, int):
        size = {"height": image_size[0], "width": image_size[1]}
    else:
        stored = dict(getattr(processor, "size", None) or {})
        shortest, longest = stored.get("shortest_edge"), stored.get("longest_edge")
        if shortest and longest:
            size = {"shortest_edge": image_size, "longest_edge": round(longest * image_size / shortest)}
        elif shortest:
            size = {"shortest_edge": image_size}
        else:
            size = {"height": image_size, "width": image_size}
    settings: dict[str, Any] = {"size": size}
    if getattr(processor, "do_center_crop", False):
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        settings["crop_size"] = {"height": sides[0], "width": sides[1]}
    return settings


def _pixels(image: Tensor, eight_bits: bool) -> Tensor:
    """Return an image in 0..255: uint8 if it has 8 bits, since resizing then rounds, else float."""
    if image.dtype == torch.uint8:
        return image.cpu().contiguous()
    scaled = image.detach().float().cpu() * 255
    rounded = scaled.round()
    whole = (scaled - rounded).abs().max() < 1e-3 and rounded.min() >= 0 and rounded.max() <= 255
    return rounded.clamp(0, 255).byte() if whole or eight_bits else scaled
