"""SESS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Batch, Target
from detcam.cam import BaseCAM, value_of
from detcam.geometry import Geometry
from detcam.methods.grad_cam import GradCAM
from detcam.methods.odam import ODAM
from detcam.outputs import DetectionTarget, DetectorOutput, SegmenterOutput, as_target, work_dtype
from detcam.perturbation.base import repeat_batch, select_image
from detcam.results import Measured, Pass, Sampling
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget
from detcam.trace import ReshapeTransform, Trace
from detcam.utils.batching import pieces
from detcam.utils.filters import blur

Pool = Literal["mean", "max"]

WHOLE = 0.9
"""A window holds a box if it holds so much of its area; a box that is cut by more is another one."""
SIGMA = 5 / 224
"""Width of the final blur, in shorter sides of the image, as in the authors' code."""


class SESS(BaseCAM):
    r"""Another method's maps of many windows at many scales, averaged where they speak.

    .. math:: L(\lambda) = \frac{\sum_w y_w L_w(\lambda)}{|\{w : L_w(\lambda) > \theta\}|}

    over windows w with maps L_w in [0, 1] of what is seen through them, laid back to where they belong. The image
    is enlarged to each scale and cut into windows of its own size, without overlap but at the far borders. A window's
    weight y_w is the target's score in it, and windows of low scores are left out before their maps are made: of a
    class its softmax, of a class over a region the mean softmax there, of a box IoU times class score, of any other
    target its value's sigmoid.

    A window is another image, into which targets travel: a class as it is; a region by its part in the window, if
    any; a box only into windows that hold it (nine tenths of its area), where the box moved is asked, of two-stage
    heads as a proposal, of dense heads at the candidate that fits it best, because a source is bound to the image's
    scale. The image itself is one of the windows, and there a box keeps its source.

    Tursun et al., *SESS: Saliency Enhancing with Scaling and Sliding*, ECCV 2022, https://arxiv.org/abs/2207.01769.

    How many windows there were is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        base_method: whose maps are averaged; None takes GradCAM, for detectors ODAM, which keeps a box's place.
        scales: how many scales, the first one the image's own.
        step: by how much each scale is greater than the one before, in sizes of the image.
        pre_filter: share of a target's windows, those of the lowest scores, that are left out.
        pool: ``"mean"``, the average above; ``"max"``, the greatest weighted value at each place.
        theta: places of a window's map up to this value have no say in the average; the authors take 0.
        smooth: whether the result is blurred.
        **options: further arguments of the base method.
    """

    name = "sess"
    paper = "Tursun et al., SESS, ECCV 2022, https://arxiv.org/abs/2207.01769"
    cost = "122 forwards, at most 13 forwards and backwards a target"
    use = "small or several objects of a class in a classifier's image"

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[BaseCAM] | None = None,
        scales: int = 12,
        step: float = 2 / 7,
        pre_filter: float = 0.9,
        pool: Pool = "mean",
        theta: float = 1e-4,
        smooth: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if scales < 1 or not step > 0:
            raise ValueError(f"expected at least 1 scale and a step above 0; got {scales} and {step}")
        if not 0 <= pre_filter < 1 or not 0 <= theta < 1:
            raise ValueError(f"expected pre_filter and theta from 0 to below 1; got {pre_filter} and {theta}")
        if pool not in get_args(Pool):
            raise ValueError(f"expected pool to be one of {', '.join(get_args(Pool))}; got {pool!r}")
        base_method = base_method or (ODAM if self.adapter.task == "detection" else GradCAM)
        self.base = base_method(self.adapter, **options)
        self.uses_gradients = self.base.uses_gradients
        self.class_discriminative = self.base.class_discriminative  # type: ignore[misc]
        self.tasks = self.base.tasks  # type: ignore[misc]
        self.scales, self.step, self.pre_filter = scales, step, pre_filter
        self.pool, self.theta, self.smooth = pool, theta, smooth

    def measure(self, run: Pass) -> Measured:
        scalars = run.adapter.score(run.outputs, run.targets) if any(run.targets) else [[] for _ in run.targets]
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        maps, sampling = [], []
        for image, targets in enumerate(run.targets):
            batch = select_image(run.batch, image)
            windows = list(cut(_size_of(batch.geometries[0]), self.scales, self.step))
            images = _Windows(run, image, batch)
            maps.append(self._enhanced(images, windows, targets))
            sampling.append(Sampling(len(windows)) if targets else None)
        return Measured([maps], values, None, sampling=sampling)

    def _enhanced(self, seen: _Windows, windows: list[Window], targets: Sequence[Target]) -> Tensor:
        """(N, H, W) maps of one image over the network's input."""
        geometry, inputs = seen.geometry, seen.batch.inputs
        rows, columns = geometry.valid_cells(geometry.input_size_hw)
        size = _size_of(geometry)
        on_canvas = Geometry(size, geometry.input_size_hw, offset_xy=(columns.start, rows.start))
        fusion = Fusion(len(targets), size, self.pool, self.theta, inputs)
        moved = [[window.target(target, geometry.image_size_hw) for target in targets] for window in windows]
        weights = self._weights(seen, windows, moved)
        kept = self._kept(weights)
        for part in _groups(kept.any(1), self.batch_size):
            asked = [[k for k in range(len(targets)) if kept[index, k]] for index in part]
            theirs = [[moved[index][k] for k in ks] for index, ks in zip(part, asked, strict=True)]
            found = self._maps(seen, [windows[index] for index in part], theirs)
            for place, (index, ks) in enumerate(zip(part, asked, strict=True)):
                heatmaps = self.base.combine([level[place] for level in found.maps], on_canvas)
                fusion.add(ks, weights[index, ks], heatmaps, windows[index])
        result = fusion.result()
        if self.smooth:
            result = blur(result, SIGMA * min(size))
        around = (columns.start, inputs.shape[-1] - columns.stop, rows.start, inputs.shape[-2] - rows.stop)
        return F.pad(result, around, mode="replicate" if len(targets) else "constant")

    @torch.no_grad()
    def _weights(self, seen: _Windows, windows: list[Window], moved: list[list[Any]]) -> Tensor:
        """(windows, N) score of each target in each window; NaN where the window does not hold it."""
        weights = torch.full((len(windows), len(moved[0])), torch.nan, dtype=torch.float64)
        holding = torch.tensor([[target is not None for target in row] for row in moved])
        for part in _groups(holding.any(1), self.batch_size):
            batch = seen.inputs([windows[index] for index in part])
            outputs = self.adapter.outputs(self.adapter.forward(batch), batch)
            for index, output in zip(part, outputs, strict=True):
                for k, target in enumerate(moved[index]):
                    if target is not None:
                        weights[index, k] = weight_of(self.adapter, target, output)
        return weights

    def _kept(self, weights: Tensor) -> Tensor:
        """(windows, N) bool: each target's windows of the highest scores, of those that hold it; ties by order."""
        kept = torch.zeros(weights.shape, dtype=torch.bool)
        for k, column in enumerate(weights.T):
            holding = (~column.isnan()).nonzero()[:, 0]
            best = column[holding].argsort(descending=True, stable=True)
            kept[holding[best[: len(best) - int(self.pre_filter * len(best))]], k] = True
        return kept & (weights > 0)

    def _maps(self, seen: _Windows, windows: list[Window], targets: list[list[Target]]) -> Measured:
        """The base method's raw maps of some windows, each with targets of its own."""
        base, adapter = self.base, self.base.adapter
        batch = base.entering(seen.inputs(windows))
        trace = Trace(
            adapter.target_layers,
            adapter.layer_names,
            gradients=base.uses_gradients,
            reshape_transform=adapter.reshape_for(batch),
        )
        with trace, base.watching(batch) as watched:
            raw = adapter.forward(batch)
        outputs = adapter.outputs(raw, batch)
        images = partial(seen.source_images, windows)
        return base.measure(Pass(adapter, batch, trace, outputs, targets, seen.run.eigen_smooth, images, watched))


@dataclass(frozen=True)
class Window:
    """A part of the image that is enlarged to the image's size on the network's input.

    Attributes:
        scaled_hw: height and width of the whole image at the window's scale, input pixels.
        corner_xy: where the window begins in that.
        size_hw: the window's height and width, which are those of the image on the network's input.
    """

    scaled_hw: tuple[int, int]
    corner_xy: tuple[int, int]
    size_hw: tuple[int, int]

    def view(self, images: Tensor) -> Tensor:
        """What is seen through the window of images (K, C, H, W) at the window's scale."""
        (left, top), (height, width) = self.corner_xy, self.size_hw
        return images[..., top : top + height, left : left + width]

    def target(self, target: Any, image_size_hw: tuple[int, int]) -> Any:
        """The target in the window, as in an image of the same size; None where the window does not hold it."""
        if self.scaled_hw == self.size_hw:
            return target
        if isinstance(target, DetectionTarget):
            return self._box(target, image_size_hw)
        if isinstance(target, MaskTarget):
            return target if target.mask is None else self._mask(target)
        if as_target(target).has_position:
            raise TypeError(
                f"SESS does not know where {type(target).__name__} lies in a part of the image; give a BoxTarget, "
                "an InstanceMaskTarget or a MaskTarget, or use another method"
            )
        return target

    def _box(self, target: DetectionTarget, image_size_hw: tuple[int, int]) -> DetectionTarget | None:
        height, width = image_size_hw
        factors = (self.scaled_hw[1] / self.size_hw[1], self.scaled_hw[0] / self.size_hw[0])
        shifts = (self.corner_xy[0] / self.size_hw[1] * width, self.corner_xy[1] / self.size_hw[0] * height)
        moved = [value * factors[i % 2] - shifts[i % 2] for i, value in enumerate(target.box_xyxy)]
        clipped = [min(max(value, 0.0), float((width, height)[i % 2])) for i, value in enumerate(moved)]
        held = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        if held <= 0 or held < WHOLE * (moved[2] - moved[0]) * (moved[3] - moved[1]):
            return None
        return replace(target, box_xyxy=(clipped[0], clipped[1], clipped[2], clipped[3]), source=None)

    def _mask(self, target: MaskTarget) -> MaskTarget | None:
        height, width = target.mask.shape
        (scaled_h, scaled_w), (left, top) = self.scaled_hw, self.corner_xy
        rows = (((torch.arange(height) + 0.5) / height * self.size_hw[0] + top) / scaled_h * height).long()
        columns = (((torch.arange(width) + 0.5) / width * self.size_hw[1] + left) / scaled_w * width).long()
        seen = target.mask[rows.clamp(max=height - 1)][:, columns.clamp(max=width - 1)]
        return replace(target, mask=seen) if seen.any() else None


class _Windows:
    """One image of a pass, seen through windows."""

    def __init__(self, run: Pass, image: int, batch: Batch) -> None:
        self.run = run
        self.image = image
        self.batch = batch
        self.geometry = batch.geometries[0]

    def inputs(self, windows: Sequence[Window]) -> Batch:
        """The network's input with windows in the image's place; one scale at a time exists."""
        rows, columns = self.geometry.valid_cells(self.geometry.input_size_hw)
        changed = self.batch.inputs.repeat(len(windows), 1, 1, 1)
        image = self.batch.inputs[:, :, rows, columns]
        for place, window in enumerate(windows):
            if not place or window.scaled_hw != windows[place - 1].scaled_hw:
                scaled = F.interpolate(image, window.scaled_hw, mode="bilinear")
            changed[place, :, rows, columns] = window.view(scaled)[0]
        return repeat_batch(self.batch, changed)

    def source_images(self, windows: Sequence[Window]) -> list[Tensor]:
        """Images (3, H, W) of the windows, as large as the image."""
        image = self.run.source_images()[self.image][None]
        size = (image.shape[-2], image.shape[-1])
        parts = [window.view(F.interpolate(image, window.scaled_hw, mode="bilinear")) for window in windows]
        return [F.interpolate(part, size, mode="bilinear")[0] for part in parts]


def cut(size_hw: tuple[int, int], scales: int, step: float) -> Iterator[Window]:
    """The windows of an image of some height and width: at each scale as many as cover it, at the first one."""
    height, width = size_hw
    for number in range(scales):
        scaled_hw = (round(height * (1 + number * step)), round(width * (1 + number * step)))
        for top in _starts(scaled_hw[0], height):
            for left in _starts(scaled_hw[1], width):
                yield Window(scaled_hw, (left, top), (height, width))


def _size_of(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the image on the network's input."""
    rows, columns = geometry.valid_cells(geometry.input_size_hw)
    return rows.stop - rows.start, columns.stop - columns.start


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length; the last one is moved back to end with it."""
    return [min(start * window, length - window) for start in range(math.ceil(length / window))]


def weight_of(adapter: Adapter, target: Any, output: Any) -> float:
    """A target's score in a window, in [0, 1]; of one that is no probability, its sigmoid."""
    if isinstance(target, DetectionTarget) and isinstance(output, DetectorOutput):
        asked = BoxTarget(target.box_xyxy, target.label, target.source)
        said = output.candidates([asked])
        box = torch.tensor([target.box_xyxy])
        fit = box_iou(box, output.geometry.clip(said.boxes_xyxy).float().cpu()).nan_to_num(0.0)
        return float(fit * said.class_scores.float().cpu()[0, target.label])
    if isinstance(target, MaskTarget) and isinstance(output, SegmenterOutput):
        exclusive = not (output.binary or output.multilabel)
        probability = output.logits.float().softmax(0)[target.label] if exclusive else output.class_map(target.label)
        probability = probability if exclusive else probability.float().sigmoid()
        cells = output.cells(target.mask)
        return float((probability * cells).sum() / cells.sum())
    if isinstance(target, ClassifierOutputTarget) and isinstance(output, Tensor) and output.numel() > 1:
        return float(output.float().softmax(-1)[..., target.category])
    return 1 / (1 + math.exp(-min(max(value_of(adapter.score([output], [[target]])[0][0]), -50.0), 50.0)))


class Fusion:
    """Lays maps of windows back and averages them, one by one.

    Args:
        targets: how many maps come out.
        size_hw: of the image on the network's input.
        pool: mean over the windows that speak, or greatest value.
        theta: up to this value a window does not speak.
        like: whose device, and whose dtype at least, is taken.
    """

    def __init__(self, targets: int, size_hw: tuple[int, int], pool: Pool, theta: float, like: Tensor) -> None:
        self.pool, self.theta, self.size_hw = pool, theta, size_hw
        self.total = like.new_zeros((targets, *size_hw), dtype=work_dtype(like))
        self.count = torch.zeros_like(self.total)

    def add(self, targets: Sequence[int], weights: Tensor, heatmaps: Tensor, window: Window) -> None:
        """A window's maps (K, h, w) of some targets, with weights (K,)."""
        (height, width), (left, top) = window.scaled_hw, window.corner_xy
        around = (left, width - left - window.size_hw[1], top, height - top - window.size_hw[0])
        laid = F.pad(heatmaps.to(self.total), around)[None]
        laid = F.interpolate(laid, self.size_hw, mode="bilinear")[0] if any(around) else laid[0]
        speaks = laid > self.theta
        weighted = laid * weights.to(laid)[:, None, None] * speaks
        if self.pool == "max":
            self.total[targets] = torch.maximum(self.total[targets], weighted)
        else:
            self.total[targets] += weighted
            self.count[targets] += speaks

    def result(self) -> Tensor:
        """(targets, H, W)."""
        return self.total if self.pool == "max" else self.total / self.count.clamp(min=1)


def _groups(chosen: Tensor, size: int) -> Iterator[list[int]]:
    """Numbers of the chosen windows (K,), at most `size` at a time."""
    numbers = chosen.nonzero()[:, 0].tolist()
    for part in pieces(len(numbers), size):
        yield numbers[part]
