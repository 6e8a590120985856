"""Scoring of perturbed images, and the base classes of perturbation methods."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Batch, ModelLike, Target
from detcam.cam import BaseCAM, LayerlessCAM
from detcam.geometry import Geometry
from detcam.layers import LayersLike
from detcam.outputs import BaseTarget
from detcam.perturbation.bn_folding import MAX_OUTPUT_BYTES, BatchNormFolding
from detcam.perturbation.early_layers import EarlyLayers, OriginalPass, find_early_layers
from detcam.results import Measured, Pass, Sampling, levels_of, value_of, values_of
from detcam.trace import ReshapeTransform, map_tensors
from detcam.utils.batching import batch_slices, run_slices
from detcam.utils.pca import first_principal_component
from detcam.utils.precision import work_dtype

ReadOutput: TypeAlias = Callable[[Any, Batch], Tensor]
"""From a model's raw output for K images, and their batch, to scores (K, N)."""


@dataclass
class ImageScorer:
    """Scores the targets of one image on perturbed versions of it.

    Attributes:
        adapter: decodes the model's output.
        batch: the image as a batch of one, the network's input.
        output: the decoded output of the unperturbed image, the argument of targets.
        targets: the N targets of the image.
        values: (N,) float64, the score of each target on the unperturbed image.
        levels: activations of the target layers, each (C, h, w), all levels of all layers; empty for methods without
            target layers.
        runs: number of runs of each target layer in a pass.
        batch_size: maximum number of images per forward pass.
        eigen_smooth: if True, maps are the first principal component over channels instead of their sum.
        channels_last: if True, inputs on a CPU use the channels-last memory format, which is faster.
        folding: the batch-norm folding used while scoring; None until the first pass.
        reads_candidates: whether the raw candidates of a detector are read, so that its whole head is folded.
        early_layers: the layers that run on windows, for versions that differ from the image in a small part; None
            runs whole passes.
        sampling: statistics of the perturbed versions, set by methods that report them.
    """

    adapter: Adapter
    batch: Batch
    output: Any
    targets: Sequence[Target]
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    levels: Sequence[Tensor] = ()
    runs: Sequence[int] = ()
    batch_size: int = 8
    eigen_smooth: bool = False
    channels_last: bool = True
    folding: BatchNormFolding | None = None
    reads_candidates: bool = False
    early_layers: EarlyLayers | None = None
    sampling: Sampling | None = None
    _original: OriginalPass | None = field(default=None, init=False, repr=False)
    _image: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def geometry(self) -> Geometry:
        """Mapping between the image and the network's input."""
        return self.batch.geometries[0]

    @property
    def images_per_pass(self) -> int:
        """Number of perturbed images per pass: `batch_size`, limited by the model and, on a CPU, by its cache."""
        limit = min(self.batch_size, self.adapter.max_batch_size or self.batch_size)
        largest = self.prepared_folding().largest_output
        if not largest or self.batch.inputs.device.type != "cpu":
            return limit
        return max(1, min(limit, MAX_OUTPUT_BYTES // largest))

    def read_scores(self, raw: object, batch: Batch) -> Tensor:
        """Read the score of every target from the model's raw output.

        Args:
            raw: the output for K perturbed versions of the image.
            batch: the K versions.

        Returns:
            (K, N) scores.

        Raises:
            RuntimeError: a score is NaN or infinite.
        """
        if not self.targets:
            return torch.zeros(len(batch.geometries), 0, device=batch.inputs.device)
        rows = self.adapter.score(self.adapter.outputs(raw, batch), [self.targets] * len(batch.geometries))
        scores = torch.stack([torch.stack([detached_score(scalar) for scalar in row]) for row in rows])
        if not torch.isfinite(scores).all():
            raise RuntimeError("a perturbed image scores NaN or infinity; check the model, or use float32")
        return scores

    def score_variants(self, count: int, make_inputs: Callable[[slice], Tensor]) -> Tensor:
        """Score every target on perturbed versions of the image, `images_per_pass` at a time.

        Args:
            count: number of versions.
            make_inputs: returns the network inputs (k, C, H, W) of the versions in a slice.

        Returns:
            (count, N) scores.
        """
        if not count:
            return torch.zeros(0, len(self.targets), device=self.batch.inputs.device)
        return torch.cat([self.score(make_inputs(part)) for part in batch_slices(count, self.images_per_pass)])

    def score(
        self, inputs: Tensor, read_output: ReadOutput | None = None, scorers: Sequence[ImageScorer] | None = None
    ) -> Tensor:
        """Run one pass on perturbed inputs, or several where memory does not suffice for one.

        Args:
            inputs: (K, C, H, W), replace the image.
            read_output: from the model's raw output to (K, N); None reads the score of every target.
            scorers: for each, the image that it is a version of, all with inputs of one size; None takes this image.

        Returns:
            (K, N) scores.
        """
        read = read_output or self.read_scores
        versions_of = scorers or [self] * len(inputs)

        def run(part: slice) -> Tensor:
            return self._forward(inputs[part], read, versions_of[part])

        with self.prepared_folding().applied():
            return torch.cat(run_slices(len(inputs), len(inputs), run))

    def prepared_folding(self) -> BatchNormFolding:
        """The batch-norm folding, which the first call records with one pass, and tests with another."""
        if self.folding is None:
            self.folding = BatchNormFolding(self.adapter.model)
            self._prepare_folding(self.folding)
        return self.folding

    def _prepare_folding(self, folding: BatchNormFolding) -> None:
        """Record the foldable layers, and disable the folding if it changes the targets' scores."""
        if not folding.is_applicable or not self.targets:
            return
        read = self._read_all if self.reads_candidates else self.read_scores
        with folding.record():
            plain = self._forward_once(self.batch, read)
        with folding.applied():
            folded = self._forward(self.batch.inputs, read)
        if ((folded - plain).abs() > 1e-4 * (1 + plain.abs())).any():
            folding.disable()  # another module reads the tensor between convolution and normalization

    def _read_all(self, raw: object, batch: Batch) -> Tensor:
        """The score of every target, and the greatest score of each class among a detector's raw candidates.

        The greatest scores are NaN if a box is.
        """
        candidates = [output.raw_candidates() for output in self.adapter.outputs(raw, batch)]
        greatest = torch.stack([table.amax(0) if len(table) else table.sum(0) for _, table in candidates])
        for row, (boxes, _) in zip(greatest, candidates, strict=True):
            row.masked_fill_(boxes.isnan().any(), torch.nan)
        scores = self.read_scores(raw, batch)
        return torch.cat([scores, greatest.to(scores)], 1)

    def find_early_layers(self) -> EarlyLayers | None:
        """Find the layers that run on windows, and use them; None without targets, which their test reads."""
        if self.targets:
            read = self._read_all if self.reads_candidates else self.read_scores
            with self.prepared_folding().applied():
                self.early_layers = find_early_layers(self.adapter, self._in_memory_format(self.batch), read)
        return self.early_layers

    def _original_pass(self) -> OriginalPass | None:
        """The early layers' pass of the image; None for whole passes."""
        if self._original is None and self.early_layers is not None:
            self._original = self.early_layers.original(self._in_memory_format(self.batch))
            if self._original is None:
                self.early_layers = None
        return self._original

    @property
    def image_in_memory_format(self) -> Tensor:
        """The network's input (1, C, H, W), in the memory format of passes of perturbed images."""
        if self._image is None or not self.channels_last:
            self._image = self._in_memory_format(self.batch).inputs
        return self._image

    def _in_memory_format(self, batch: Batch) -> Batch:
        if not self.channels_last or batch.inputs.device.type != "cpu":
            return batch
        return replace(batch, inputs=batch.inputs.contiguous(memory_format=torch.channels_last))

    def _forward(self, inputs: Tensor, read_output: ReadOutput, scorers: Sequence[ImageScorer] | None = None) -> Tensor:
        batch = repeat_batch(self.batch, inputs)
        if scorers is not None:
            batch = replace(batch, geometries=tuple(scorer.geometry for scorer in scorers))
        try:
            return self._forward_once(self._in_memory_format(batch), read_output, scorers)
        except RuntimeError as error:
            if not self.channels_last or "view size is not compatible" not in str(error):
                raise
            for scorer in (self, *(scorers or ())):
                scorer.channels_last = False  # the model flattens with view(), which needs contiguous tensors
                scorer._original = None
            self.prepared_folding().set_memory_format(torch.contiguous_format)
            batch = replace(batch, inputs=batch.inputs.contiguous())
            return self._forward_once(batch, read_output, scorers)

    def _forward_once(
        self, batch: Batch, read_output: ReadOutput, scorers: Sequence[ImageScorer] | None = None
    ) -> Tensor:
        originals = [scorer._original_pass() for scorer in scorers or ()]
        known = [original for original in originals if original is not None]
        if self.early_layers is None or not known or len(known) < len(originals):
            return read_output(self.adapter.forward(batch), batch)
        with self.early_layers.replaying(batch, known):
            raw = self.adapter.forward(batch)
        return read_output(raw, batch)


def default_batch_size(device: torch.device) -> int:
    """Number of perturbed images per pass: small on a CPU, so that a pass stays in its cache."""
    return 8 if device.type == "cpu" else 32


def detached_score(scalar: Tensor) -> Tensor:
    """Return a target's scalar as a 0-dimensional tensor without autograd history.

    Raises:
        ValueError: not a tensor with one element.
    """
    if not isinstance(scalar, Tensor) or scalar.numel() != 1:
        value_of(scalar)  # raises with a message
    score = scalar.detach().reshape(())
    return score.to(work_dtype(score))


def pin_targets(output: object, targets: Sequence[Target]) -> list[Target]:
    """Pin box targets to the source (anchor, query, proposal) that produces them in the unperturbed image."""
    return [target.pinned(output) if isinstance(target, BaseTarget) else target for target in targets]


def select_image(batch: Batch, image: int) -> Batch:
    """Select one image of a batch; tensors among further inputs with one entry per image are sliced alike."""
    count = len(batch.inputs)

    def select(tensor: Tensor) -> Tensor:
        return tensor[image : image + 1] if tensor.ndim and len(tensor) == count else tensor

    return Batch(
        select(batch.inputs),
        batch.geometries[image : image + 1],
        tuple(map_tensors(value, select) for value in batch.extra_inputs),
        {name: map_tensors(value, select) for name, value in batch.model_kwargs.items()},
        batch.is_ready,
    )


def repeat_batch(batch: Batch, inputs: Tensor) -> Batch:
    """Repeat a batch of one image K times with other inputs (K, C, H, W)."""
    count = len(inputs)

    def expand(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:]) if tensor.ndim and len(tensor) == 1 else tensor

    return Batch(
        inputs,
        batch.geometries * count,
        tuple(map_tensors(value, expand) for value in batch.extra_inputs),
        {name: map_tensors(value, expand) for name, value in batch.model_kwargs.items()},
        batch.is_ready,
    )


class PerturbationCAM(BaseCAM, abstract=True):
    """Base class of methods that score perturbed versions of one image at a time, without gradients.

    All targets of an image share its passes.
    """

    uses_gradients = False
    compares_scores = True
    explains_volumes = False
    pins_targets: ClassVar[bool] = True
    """Whether a box target without a source is pinned to the source that fits it best in the unperturbed image."""

    @abstractmethod
    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        """Compute the raw maps of one image with at least one target.

        Returns:
            Per level (one map for methods without target layers), (N, h, w) signed saliency over the network's input.
        """

    def measure(self, run: Pass) -> Measured:
        levels = levels_of(run.trace, len(run.targets))
        values = values_of(run.score())
        runs = [len(outputs) for outputs in run.trace.outputs()]
        per_image = []
        sampling: list[Sampling | None] = [None] * len(values)
        for image, targets in enumerate(run.targets):
            image_levels = [level[image] for level in levels]
            if not targets:
                per_image.append(self.empty_maps(image_levels, run.batch))
                continue
            scorer = ImageScorer(
                run.adapter,
                select_image(run.batch, image),
                run.outputs[image],
                pin_targets(run.outputs[image], targets) if self.pins_targets else targets,
                torch.tensor(values[image], dtype=torch.float64),
                image_levels,
                runs,
                self.batch_size,
                run.eigen_smooth,
            )
            per_image.append(self.maps(scorer))
            sampling[image] = scorer.sampling
        maps = [list(level) for level in zip(*per_image, strict=True)]
        return Measured(maps, values, None, sampling=sampling)

    def empty_maps(self, levels: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """The maps of an image without targets."""
        return [level.new_zeros((0, *level.shape[1:])) for level in levels]


class WeightedCAM(PerturbationCAM, abstract=True):
    """Base class of perturbation methods whose map is a weighted sum of the layer's channels."""

    def weighted_sum(self, weights: Tensor, level: Tensor, scorer: ImageScorer) -> Tensor:
        """Compute maps (N, h, w) from weights (N, C) and a level (C, h, w)."""
        level = level.to(work_dtype(level))
        weights = weights.to(level)
        if scorer.eigen_smooth:
            return torch.cat([first_principal_component((row[:, None, None] * level)[None]) for row in weights])
        return torch.tensordot(weights, level, 1)


class InputCAM(LayerlessCAM, PerturbationCAM, abstract=True):
    """Base class of methods that perturb the image; their maps have the resolution of the network's input.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.

    Attributes:
        batch_size: images, perturbed ones included, per forward pass.
    """

    def __init__(
        self, model: ModelLike, target_layers: LayersLike = None, reshape_transform: ReshapeTransform | None = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = default_batch_size(self.adapter.device)

    def empty_maps(self, levels: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        return [batch.inputs.new_zeros((0, *batch.inputs.shape[-2:]), dtype=work_dtype(batch.inputs))]


class ImageArea:
    """The area of the network's input that an image covers, without its padding.

    Args:
        scorer: the image.

    Attributes:
        inputs: (1, C, H, W), the network's input.
        rows: rows of the input that the image covers.
        columns: columns of the input that the image covers.
        size_hw: height and width of the area, input pixels.
    """

    def __init__(self, scorer: ImageScorer) -> None:
        self.inputs = scorer.batch.inputs
        self.rows, self.columns = scorer.geometry.valid_cells(scorer.geometry.input_size_hw)
        self.size_hw = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)

    @property
    def image(self) -> Tensor:
        """The image (1, C, h, w) on the network's input."""
        return self.inputs[:, :, self.rows, self.columns]

    def paste(self, images: Tensor) -> Tensor:
        """Network inputs (K, C, H, W) with images (K, C, h, w) in the area."""
        inputs = self.inputs.repeat(len(images), 1, 1, 1)
        inputs[:, :, self.rows, self.columns] = images.to(inputs.dtype)
        return inputs

    def apply_masks(self, masks: Tensor) -> Tensor:
        """Network inputs (K, C, H, W) with the area multiplied by masks (K, h, w)."""
        if self.size_hw == self.inputs.shape[-2:]:
            return self.inputs * masks[:, None].to(self.inputs.dtype)
        inputs = self.inputs.repeat(len(masks), 1, 1, 1)
        inputs[:, :, self.rows, self.columns] *= masks[:, None].to(self.inputs.dtype)
        return inputs

    def pad_maps(self, maps: Tensor) -> Tensor:
        """Pad maps (N, h, w) of the area to maps (N, H, W) of the input by replicating the border."""
        height, width = self.inputs.shape[-2:]
        padding = (self.columns.start, width - self.columns.stop, self.rows.start, height - self.rows.stop)
        return F.pad(maps, padding, mode="replicate") if any(padding) else maps
