"""SESS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from detcam.adapters.base import Adapter, Batch, ModelLike, Target
from detcam.cam import BaseCAM
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.methods.common.sliding_windows import MapFusion, Pool, Window, sliding_windows
from detcam.methods.common.wrapper import WrapperCAM
from detcam.methods.grad_cam import GradCAM
from detcam.methods.odam import ODAM
from detcam.outputs import DetectionTarget, DetectorOutput, is_multilabel
from detcam.perturbation.base import repeat_batch, select_image
from detcam.results import Measured, Pass, Sampling, value_of, values_of
from detcam.segmenter_output import SegmenterOutput
from detcam.targets import BoxTarget, ClassifierOutputTarget, MaskTarget
from detcam.trace import ReshapeTransform
from detcam.utils.batching import batch_slices
from detcam.utils.filters import blur

SIGMA = 5 / 224
"""Standard deviation of the final blur as a fraction of the image's shorter side, as in the authors' code."""


class SESS(WrapperCAM):
    r"""Maps of a base method for sliding windows at several scales, averaged where they have saliency.

    .. math:: L(\lambda) = \frac{\sum_w y_w L_w(\lambda)}{|\{w : L_w(\lambda) > \theta\}|}

    with :math:`L_w` the map in [0, 1] of window w, placed at the window's position, :math:`y_w` the target's score in
    the window, and :math:`\theta` the threshold of saliency. The image is enlarged to each scale and split into windows
    of its own size, which overlap only at the far borders. Windows of low scores are dropped before their maps are
    computed. The score is, for a class, its softmax; for a class over a region, the mean softmax there; for a box, IoU
    times class score; for any other target, the sigmoid of its value.

    Targets are mapped into each window: a class is unchanged; a region is cropped, and left out if empty; a box is
    mapped into windows that contain nine tenths of its area and scored there, by two-stage heads as a proposal, by
    dense heads at the candidate that fits best, because a source depends on the image's scale. The whole image is one
    of the windows, in which a box keeps its source.

    Tursun et al., *SESS: Saliency Enhancing with Scaling and Sliding*, ECCV 2022, https://arxiv.org/abs/2207.01769.

    Use it for small objects, and for several objects of a class. The number of windows is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: as in `BaseCAM`.
        reshape_transform: as in `BaseCAM`.
        base_method: class of the base method; None takes `GradCAM`, or `ODAM` for detectors.
        scales: number of scales, including the image's own.
        step: increment of the scale, in sizes of the image.
        pre_filter: fraction of a target's windows, those of the lowest scores, that are dropped.
        pool: ``"mean"``, the average above; ``"max"``, the maximum of the weighted maps.
        theta: saliency up to this value does not count in the average; 0 in the authors' code.
        smooth: if True, the result is blurred.
        **options: further arguments of the base method.
    """

    name = "sess"
    paper = "Tursun et al., SESS, ECCV 2022, https://arxiv.org/abs/2207.01769"
    cost = "122 forwards, at most 13 forwards and backwards per target"
    use = "classification of images with small or several objects"
    explains_volumes = False

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
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
        self.wrap(base_method, options)
        self.tasks = self.base.tasks  # type: ignore[misc]
        self.scales, self.step, self.pre_filter = scales, step, pre_filter
        self.pool, self.theta, self.smooth = pool, theta, smooth

    def measure(self, run: Pass) -> Measured:
        values = values_of(run.score())
        maps, sampling = [], []
        for image, targets in enumerate(run.targets):
            batch = select_image(run.batch, image)
            windows = list(sliding_windows(_size_of(batch.geometries[0]), self.scales, self.step))
            maps.append(self._fused(_WindowedImage(run, image, batch), windows, targets))
            sampling.append(Sampling(len(windows)) if targets else None)
        return Measured([maps], values, None, sampling=sampling)

    def _fused(self, source: _WindowedImage, windows: list[Window], targets: Sequence[Target]) -> Tensor:
        """(N, H, W) maps of one image over the network's input."""
        geometry, inputs = source.geometry, source.batch.inputs
        rows, columns = geometry.valid_cells(geometry.input_size_hw)
        size = _size_of(geometry)
        area_geometry = Geometry(size, geometry.input_size_hw, offset_xy=(columns.start, rows.start))
        fusion = MapFusion(len(targets), size, self.pool, self.theta, inputs)
        mapped = [[window.target(target, geometry.image_size_hw) for target in targets] for window in windows]
        weights = self._weights(source, windows, mapped)
        kept = self._kept(weights)
        for part in _groups(kept.any(1), self.batch_size):
            indices = [[k for k in range(len(targets)) if kept[index, k]] for index in part]
            window_targets = [
                [target for target, keep in zip(mapped[index], kept[index], strict=True) if keep and target is not None]
                for index in part
            ]
            measured = self._window_maps(source, [windows[index] for index in part], window_targets)
            for position, (index, ks) in enumerate(zip(part, indices, strict=True)):
                heatmaps = self.base.combine([level[position] for level in measured.maps], area_geometry)
                fusion.add(ks, weights[index, ks], heatmaps, windows[index])
        result = fusion.result()
        if self.smooth:
            result = blur(result, SIGMA * min(size))
        padding = (columns.start, inputs.shape[-1] - columns.stop, rows.start, inputs.shape[-2] - rows.stop)
        return F.pad(result, padding, mode="replicate" if len(targets) else "constant")

    @torch.no_grad()
    def _weights(self, source: _WindowedImage, windows: list[Window], mapped: list[list[Any]]) -> Tensor:
        """(windows, N) score of each target in each window; NaN if the window does not contain it."""
        weights = torch.full((len(windows), len(mapped[0])), torch.nan, dtype=torch.float64)
        containing = torch.tensor([[target is not None for target in row] for row in mapped])
        for part in _groups(containing.any(1), self.batch_size):
            batch = source.inputs([windows[index] for index in part])
            outputs = self.adapter.outputs(self.adapter.forward(batch), batch)
            for index, output in zip(part, outputs, strict=True):
                for k, target in enumerate(mapped[index]):
                    if target is not None:
                        weights[index, k] = window_score(self.adapter, target, output)
        return weights

    def _kept(self, weights: Tensor) -> Tensor:
        """(windows, N) bool: the windows of the highest scores of each target; ties by order."""
        kept = torch.zeros(weights.shape, dtype=torch.bool)
        for k, column in enumerate(weights.T):
            containing = (~column.isnan()).nonzero()[:, 0]
            best = column[containing].argsort(descending=True, stable=True)
            kept[containing[best[: len(best) - int(self.pre_filter * len(best))]], k] = True
        return kept & (weights > 0)

    def _window_maps(self, source: _WindowedImage, windows: list[Window], targets: list[list[Target]]) -> Measured:
        """The base method's raw maps of windows, each with its own targets."""
        base, adapter = self.base, self.base.adapter
        batch = base.prepare_input(source.inputs(windows))
        with adapter.trace(batch, gradients=base.uses_gradients) as trace, base.recording(batch) as recorded:
            raw = adapter.forward(batch)
        outputs = adapter.outputs(raw, batch)
        images = partial(source.source_images, windows)
        return base.measure(Pass(adapter, batch, trace, outputs, targets, source.run.eigen_smooth, images, recorded))


class _WindowedImage:
    """One image of a pass, cropped to windows."""

    def __init__(self, run: Pass, image: int, batch: Batch) -> None:
        self.run = run
        self.image = image
        self.batch = batch
        self.geometry = batch.geometries[0]

    def inputs(self, windows: Sequence[Window]) -> Batch:
        """Network inputs with windows in place of the image; one scaled image exists at a time."""
        rows, columns = self.geometry.valid_cells(self.geometry.input_size_hw)
        changed = self.batch.inputs.repeat(len(windows), 1, 1, 1)
        image = self.batch.inputs[:, :, rows, columns]
        for position, window in enumerate(windows):
            if not position or window.scaled_hw != windows[position - 1].scaled_hw:
                scaled = F.interpolate(image, window.scaled_hw, mode="bilinear")
            changed[position, :, rows, columns] = window.crop(scaled)[0]
        return repeat_batch(self.batch, changed)

    def source_images(self, windows: Sequence[Window]) -> list[Tensor]:
        """Images (3, H, W) of the windows, of the size of the image."""
        image = self.run.source_images()[self.image][None]
        size = (image.shape[-2], image.shape[-1])
        parts = [window.crop(F.interpolate(image, window.scaled_hw, mode="bilinear")) for window in windows]
        return [F.interpolate(part, size, mode="bilinear")[0] for part in parts]


def _size_of(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the image on the network's input."""
    rows, columns = geometry.valid_cells(geometry.input_size_hw)
    return rows.stop - rows.start, columns.stop - columns.start


def window_score(adapter: Adapter, target: Target, output: object) -> float:
    """A target's score in a window, in [0, 1]: a probability, or the sigmoid of any other value."""
    if isinstance(target, DetectionTarget) and isinstance(output, DetectorOutput):
        candidates = output.candidates([BoxTarget(target.box_xyxy, target.label, target.source)])
        box = torch.tensor([target.box_xyxy])
        overlap = box_iou(box, output.geometry.clip(candidates.boxes_xyxy).float().cpu()).nan_to_num(0.0)
        return float(overlap * candidates.class_scores.float().cpu()[0, target.label])
    if isinstance(target, MaskTarget) and isinstance(output, SegmenterOutput):
        exclusive = not (output.binary or output.multilabel)
        probability = output.logits.float().softmax(0)[target.label] if exclusive else output.class_map(target.label)
        probability = probability if exclusive else probability.float().sigmoid()
        cells = output.cells(target.mask)
        return float((probability * cells).sum() / cells.sum())
    if (
        isinstance(target, ClassifierOutputTarget)
        and isinstance(output, Tensor)
        and output.numel() > 1
        and not is_multilabel(output)
    ):
        return float(output.float().softmax(-1)[..., target.category])
    return 1 / (1 + math.exp(-min(max(value_of(adapter.score([output], [[target]])[0][0]), -50.0), 50.0)))


def _groups(chosen: Tensor, size: int) -> Iterator[list[int]]:
    """Yield the indices of the chosen windows (K,), at most `size` at a time."""
    indices = chosen.nonzero()[:, 0].tolist()
    for part in batch_slices(len(indices), size):
        yield indices[part]
