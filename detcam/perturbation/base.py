"""What perturbation methods share: one image's targets scored on changed inputs, or on a changed layer's output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Batch, Target
from detcam.cam import BaseCAM, LayerlessCAM, levels_of, value_of
from detcam.geometry import Geometry
from detcam.outputs import DetectionTarget, DetectorOutput, work_dtype
from detcam.perturbation.bn_folding import CACHED, Folding
from detcam.results import Measured, Pass, Sampling
from detcam.trace import ReshapeTransform, map_tensors
from detcam.utils.batching import pieces
from detcam.utils.pca import first_principal_component


@dataclass
class ImageScorer:
    """One image of a pass, and its targets, to be scored again.

    Attributes:
        adapter: says what the model's output means.
        batch: the image alone, as the network's input.
        output: what targets are called with.
        targets: the image's targets.
        values: (N,) float64, what each target scored on the image itself.
        levels: what the target layers put out, each (C, h, w), all levels of all layers; empty for methods that look
            at no layer.
        runs: how often each target layer ran.
        batch_size: images per forward pass at most.
        eigen_smooth: whether the first principal component over channels replaces their sum.
        channels_last: whether inputs are laid out channels last, which is faster on a CPU.
        folding: convolutions that take over their normalisation while other inputs are scored; None until asked for.
        sampling: how many changed versions were scored, for methods that leave it here.
    """

    adapter: Adapter
    batch: Batch
    output: Any
    targets: Sequence[Target]
    values: Tensor
    levels: Sequence[Tensor]
    runs: Sequence[int]
    batch_size: int
    eigen_smooth: bool
    channels_last: bool = True
    folding: Folding | None = None
    sampling: Sampling | None = None

    @property
    def geometry(self) -> Geometry:
        """Where the image lies on the network's input."""
        return self.batch.geometries[0]

    def read(self, raw: Any, batch: Batch) -> Tensor:
        """Every target's score (K, N) in the model's raw output for K changed versions of the image."""
        if not self.targets:
            return torch.zeros(len(batch.geometries), 0, device=batch.inputs.device)
        rows = self.adapter.score(self.adapter.outputs(raw, batch), [self.targets] * len(batch.geometries))
        scores = torch.stack([torch.stack([checked(scalar) for scalar in row]) for row in rows])
        if not torch.isfinite(scores).all():
            raise RuntimeError("a changed image scores NaN or infinity; check the model, or use float32")
        return scores

    @property
    def together(self) -> int:
        """Changed versions that make a pass: `batch_size`, or as many as the model takes, or stay in a CPU's cache."""
        most = min(self.batch_size, getattr(self.adapter, "max_batch_size", None) or self.batch_size)
        largest = self._folding().largest
        if not largest or self.batch.inputs.device.type != "cpu":
            return most
        return max(1, min(most, CACHED // largest))

    def scores(self, count: int, change: Callable[[slice], Tensor]) -> Tensor:
        """Every target's score (count, N) on changed versions of the image, `together` of them in a pass.

        Args:
            count: how many versions.
            change: from some of them, by number, to the network's inputs (k, C, H, W).
        """
        if not count:
            return torch.zeros(0, len(self.targets), device=self.batch.inputs.device)
        return torch.cat([self.score(change(part)) for part in pieces(count, self.together)])

    def score(self, inputs: Tensor, read: Callable[[Any, Batch], Tensor] | None = None) -> Tensor:
        """One pass of K network inputs (K, C, H, W) in the image's place.

        Args:
            inputs: the changed versions.
            read: from the model's raw output to (K, N); None takes every target's score.
        """
        with self._folding().applied():
            return self._pass(inputs, read or self.read)

    def _folding(self) -> Folding:
        if self.folding is None:
            self.folding = Folding(self.adapter.model)
            self._fold(self.folding)
        return self.folding

    def _fold(self, folding: Folding) -> None:
        """Find what can be folded, and see that the image's targets, of which it needs some, score the same with it."""
        if not folding.possible or not self.targets:
            return
        with folding.record():
            plain = self._run(self.batch.inputs, self.read)
        with folding.applied():
            folded = self._pass(self.batch.inputs, self.read)
        if ((folded - plain).abs() > 1e-4 * (1 + plain.abs())).any():
            folding.forget()  # somebody reads what is between: nothing is folded

    def _pass(self, inputs: Tensor, read: Callable[[Any, Batch], Tensor]) -> Tensor:
        if not self.channels_last or inputs.device.type != "cpu":
            return self._run(inputs, read)
        try:
            return self._run(inputs.contiguous(memory_format=torch.channels_last), read)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            self.channels_last = False  # the model flattens with view(), which knows one layout only
            self._folding().lay_out(torch.contiguous_format)
            return self._run(inputs, read)

    def _run(self, inputs: Tensor, read: Callable[[Any, Batch], Tensor]) -> Tensor:
        batch = repeated(self.batch, inputs)
        return read(self.adapter.forward(batch), batch)


def masked_batch_size(device: torch.device) -> int:
    """How many changed images make a pass: on a CPU few, which stay in its cache."""
    return 8 if device.type == "cpu" else 32


def checked(scalar: Any) -> Tensor:
    """A target's scalar without its autograd history, as a tensor without dimensions."""
    if not isinstance(scalar, Tensor) or scalar.numel() != 1:
        value_of(scalar)  # says what is wrong
    found: Tensor = scalar.detach().reshape(())
    return found.to(work_dtype(found))


def pinned(output: Any, targets: Sequence[Target]) -> list[Target]:
    """Targets that stay with the part of a detector which answers for them now, whatever else changes."""
    if not isinstance(output, DetectorOutput):
        return list(targets)
    return [
        replace(target, source=output.source_of(target)) if isinstance(target, DetectionTarget) else target
        for target in targets
    ]


def single(batch: Batch, image: int) -> Batch:
    """One image of a batch. Of further inputs, tensors with an entry per image follow it; all else is shared."""
    count = len(batch.inputs)

    def pick(tensor: Tensor) -> Tensor:
        return tensor[image : image + 1] if tensor.ndim and len(tensor) == count else tensor

    return Batch(
        batch.inputs[image : image + 1],
        batch.geometries[image : image + 1],
        tuple(map_tensors(value, pick) for value in batch.extra_inputs),
        {name: map_tensors(value, pick) for name, value in batch.model_kwargs.items()},
    )


def repeated(batch: Batch, inputs: Tensor) -> Batch:
    """A batch of one image with other inputs (K, C, H, W) in its place; all that goes with the image is repeated."""
    count = len(inputs)

    def expand(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:]) if tensor.ndim and len(tensor) == 1 else tensor

    return Batch(
        inputs,
        batch.geometries * count,
        tuple(map_tensors(value, expand) for value in batch.extra_inputs),
        {name: map_tensors(value, expand) for name, value in batch.model_kwargs.items()},
    )


class PerturbationCAM(BaseCAM):
    """A method that changes something and looks at the scores: no gradients, one image at a time.

    All targets of an image share its passes.
    """

    uses_gradients = False
    pins: ClassVar[bool] = True
    """Whether a box that no detection produced is asked, in changed versions, where it fits the plain image best."""

    @abstractmethod
    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        """The raw maps of one image with at least one target.

        Returns:
            per level (or the one map of a method without layers), (N, h, w) signed saliency over the network's input.
        """

    def measure(self, run: Pass) -> Measured:
        levels = levels_of(run.trace, len(run.targets))
        scalars = run.adapter.score(run.outputs, run.targets) if any(run.targets) else [[] for _ in run.targets]
        values = [[value_of(scalar) for scalar in row] for row in scalars]
        runs = [len(ran) for ran in run.trace.outputs()]
        per_image = []
        sampling: list[Sampling | None] = [None] * len(values)
        for image, targets in enumerate(run.targets):
            own = [level[image] for level in levels]
            if not targets:
                per_image.append(self.empty(own, run.batch))
                continue
            scorer = ImageScorer(
                run.adapter,
                single(run.batch, image),
                run.outputs[image],
                pinned(run.outputs[image], targets) if self.pins else targets,
                torch.tensor(values[image], dtype=torch.float64),
                own,
                runs,
                self.batch_size,
                run.eigen_smooth,
            )
            per_image.append(self.maps(scorer))
            sampling[image] = scorer.sampling
        maps = [list(level) for level in zip(*per_image, strict=True)]
        return Measured(maps, values, None, sampling=sampling)

    def empty(self, levels: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """The maps of an image without targets."""
        return [level.new_zeros((0, *level.shape[1:])) for level in levels]


class WeightedCAM(PerturbationCAM):
    """A perturbation method whose map is a weighted sum of the layer's channels."""

    def weighted(self, weights: Tensor, level: Tensor, scorer: ImageScorer) -> Tensor:
        """(N, h, w) maps from weights (N, C) and a level (C, h, w)."""
        level = level.to(work_dtype(level))
        weights = weights.to(level)
        if scorer.eigen_smooth:
            return torch.cat([first_principal_component((row[:, None, None] * level)[None]) for row in weights])
        return torch.tensordot(weights, level, 1)


class InputCAM(LayerlessCAM, PerturbationCAM):
    """A method that changes the image and looks at no layer; its maps are as fine as the network's input.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.

    Attributes:
        batch_size: images, changed ones too, per forward pass.
    """

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = masked_batch_size(self.adapter.device)

    def empty(self, levels: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        return [batch.inputs.new_zeros((0, *batch.inputs.shape[-2:]), dtype=work_dtype(batch.inputs))]


class Canvas:
    """Where one image lies on the network's input: changes are made to the image, not to its padding.

    Args:
        scorer: the image.

    Attributes:
        size_hw: height and width of the image on the input, pixels.
    """

    def __init__(self, scorer: ImageScorer) -> None:
        self.inputs = scorer.batch.inputs
        self.rows, self.columns = scorer.geometry.valid_cells(scorer.geometry.input_size_hw)
        self.size_hw = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)

    def masked(self, masks: Tensor) -> Tensor:
        """The input (K, C, H, W) with the image on it times masks (K, h, w)."""
        if self.size_hw == self.inputs.shape[-2:]:
            return self.inputs * masks[:, None].to(self.inputs.dtype)
        changed = self.inputs.repeat(len(masks), 1, 1, 1)
        changed[:, :, self.rows, self.columns] *= masks[:, None].to(self.inputs.dtype)
        return changed

    def spread(self, maps: Tensor) -> Tensor:
        """Maps (N, h, w) of the image as maps (N, H, W) of the input, the border's values carried on."""
        height, width = self.inputs.shape[-2:]
        around = (self.columns.start, width - self.columns.stop, self.rows.start, height - self.rows.stop)
        return F.pad(maps, around, mode="replicate") if any(around) else maps
