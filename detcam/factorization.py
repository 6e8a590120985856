"""Deep Feature Factorization: the concepts that a layer's features are made of, and where each of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, Batch
from detcam.adapters.classification import ClassificationAdapter, class_scores
from detcam.geometry import Geometry, normalize
from detcam.inputs import Images, Request, read_request
from detcam.outputs import work_dtype
from detcam.perturbation.base import select_image
from detcam.results import levels_of
from detcam.smoothing import View
from detcam.trace import ReshapeTransform, Trace, guarded, map_tensors
from detcam.visualize.concepts import create_labels_legend, show_factorization_on_image
from detcam.visualize.convert import ImageArray, PixelsLike
from detcam.visualize.overlay import grid

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Factorization:
    """Features as sums of concepts: `offset[c] + sum_k basis[c, k] * strengths[k]` at every place.

    Attributes:
        basis: (C, K) float, 0 and more: how much of each channel a concept has.
        offset: (C,) float, each channel's least value, which was taken off to make all features 0 and more.
        strengths: per image and level, (K, h, w) float, 0 and more, over the network's input; 0 on padding.
        geometries: per image, how it lies on that input.
        error: how much of the features is left over: the norm of what is not explained over the norm of all, in [0, 1].
    """

    basis: Floats
    offset: Floats
    strengths: tuple[tuple[Floats, ...], ...]
    geometries: tuple[Geometry, ...]
    error: float

    @property
    def concepts(self) -> Floats:
        """(C, K) the concepts as features of the layer, each at strength 1."""
        return self.basis + self.offset[:, None]

    @property
    def typical(self) -> Floats:
        """(C, K) the features at each concept's strongest place, if they were of that concept alone."""
        return self.basis * self._strongest + self.offset[:, None]

    @property
    def _strongest(self) -> Floats:
        """(K,) each concept's greatest strength in any image."""
        peaks = [level.reshape(len(level), -1).max(1) for image in self.strengths for level in image]
        strongest: Floats = np.max(peaks, axis=0)
        return strongest

    def maps(self, image: int, *, shared: bool = False) -> Floats:
        """Where each concept is in an image: (K, H, W) float32 in [0, 1], image pixels.

        Args:
            image: its number.
            shared: whether 1 is the concept's greatest strength in any image, so that a concept that is not in this
                one stays dark; else each map is scaled by its own range, as by `pytorch_grad_cam`.
        """
        geometry = self.geometries[image]
        levels = [torch.from_numpy(np.ascontiguousarray(level)) for level in self.strengths[image]]
        if shared:
            strongest = torch.from_numpy(self._strongest)[:, None, None].clamp(min=1e-30)
            scaled = torch.stack([geometry.to_image(level / strongest) for level in levels]).mean(0)
        elif len(levels) == 1:  # scaled before it is resized
            rows, columns = geometry.valid_cells((levels[0].shape[-2], levels[0].shape[-1]))
            inside = levels[0][:, rows, columns]
            low, high = inside.amin((1, 2), keepdim=True), inside.amax((1, 2), keepdim=True)
            scaled = geometry.to_image(torch.where(high > low, (levels[0] - low) / (high - low).clamp(min=1e-30), 0))
        else:
            scaled = normalize(torch.stack([geometry.to_image(level) for level in levels]).mean(0))
        found: Floats = scaled.clamp(0, 1).float().numpy()
        return found


def factorize(
    features: Sequence[Sequence[Tensor]],
    geometries: Sequence[Geometry],
    n_components: int,
    *,
    seed: int = 0,
    max_iter: int = 200,
) -> Factorization:
    """Non-negative matrix factorization of feature maps, shared by all images and levels.

    Args:
        features: per image, per level (C, h, w); the same channels everywhere.
        geometries: per image; cells on padding are left out.
        n_components: how many concepts.
        seed: of the start.
        max_iter: iterations at most.
    """
    from sklearn.decomposition import NMF  # here, because it takes as long to import as all the rest

    windows = [
        [geometry.valid_cells((level.shape[-2], level.shape[-1])) for level in levels]
        for levels, geometry in zip(features, geometries, strict=True)
    ]
    places = [
        level[:, rows, columns].flatten(1)
        for levels, own in zip(features, windows, strict=True)
        for level, (rows, columns) in zip(levels, own, strict=True)
    ]
    values = torch.cat(places, 1).cpu().numpy()
    offset = values.min(axis=-1)
    values = values - offset[:, None]
    model = NMF(n_components=n_components, init="random", random_state=seed, max_iter=max_iter)
    basis = model.fit_transform(values)
    rest = iter(np.split(model.components_, np.cumsum([place.shape[1] for place in places])[:-1], axis=1))
    strengths = []
    for levels, own in zip(features, windows, strict=True):
        maps = []
        for level, (rows, columns) in zip(levels, own, strict=True):
            whole = np.zeros((n_components, *level.shape[-2:]), values.dtype)
            part = whole[:, rows, columns]
            part[:] = next(rest).reshape(part.shape)
            maps.append(whole)
        strengths.append(tuple(maps))
    norm = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values - basis @ model.components_)) / norm if norm else 0.0
    return Factorization(basis, offset, tuple(strengths), tuple(geometries), error)


class DeepFeatureFactorization:
    r"""Finds the concepts in a layer's features by non-negative matrix factorization.

    .. math:: \min_{W, H \ge 0} \lVert A - W H \rVert_F^2

    with A the features (channels by places of all images, each channel's least value taken off), the columns of W the
    concepts, and the rows of H where each of them is. No target is explained: it shows what the layer tells apart.

    Collins, Achanta and Süsstrunk, *Deep Feature Factorization for Concept Discovery*, ECCV 2018,
    https://arxiv.org/abs/1806.10206.

    Args:
        model: any supported model, or its adapter: a detector's and a segmentation network's features as well.
        target_layer: a module or its dotted name; None takes the last of the adapter's default layers. Levels of a
            pyramid are factorised together.
        reshape_transform: from the layer's output to (B, C, h, w); None infers it.
        computation_on_concepts: called with the concepts (K, C), such as a classifier's last layer.
        seed: of the factorization's start.
        max_iter: its iterations at most.

    Attributes:
        batch_size: images per forward pass.
        factorization: all about the last call; None before it.
    """

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layer: nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int = 0,
        max_iter: int = 200,
    ) -> None:
        layers = None if target_layer is None else [target_layer]
        adapter = adapt(model, target_layers=layers, reshape_transform=reshape_transform)
        self.adapter: Adapter = adapter.with_layers(adapter.target_layers[-1:], None)
        self.model = self.adapter.model
        self.computation_on_concepts = computation_on_concepts
        self.seed, self.max_iter = seed, max_iter
        self.batch_size = 32
        self.factorization: Factorization | None = None
        self._example: Batch | None = None

    def __call__(
        self, input_tensor: Images, n_components: int = 16, *, model_kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Floats, list[Floats]] | tuple[Floats, list[Floats], Floats]:
        """Factorise the features of one image or of several together.

        Args:
            input_tensor: one image or a list of them (see `detcam.data.images.ImageLike`), or an already normalised
                (B, C, H, W) tensor.
            n_components: how many concepts.
            model_kwargs: keyword arguments for the model.

        Returns:
            the concepts (C, K) as features of the layer; per image, where each of them is, (K, H, W) float32 in [0, 1],
            each map scaled by itself, pixels of the image; and, if there is one, what `computation_on_concepts` made
            of the concepts. A concept that is hardly in one of the images is scaled up there like any other;
            `factorization.maps(image, shared=True)` tells.

        Raises:
            TypeError, ValueError: the input or the number is not as expected, or the layer's levels have different
                channels.
            RuntimeError: the layer never ran, or put out NaN.
        """
        if isinstance(n_components, bool) or not isinstance(n_components, int):
            raise TypeError(f"expected n_components as a whole number; got {n_components!r}")
        if n_components < 1:
            raise ValueError(f"expected at least one component; got {n_components}")
        request = read_request(self.adapter, input_tensor, None, model_kwargs)
        features, geometries, example = self._features(request)
        channels = {len(level) for levels in features for level in levels}
        if len(channels) > 1:
            raise ValueError(
                f"{self.adapter.layer_names[0]} puts out maps of {sorted(channels)} channels, which have no concepts "
                "in common; choose a layer with maps of one kind"
            )
        found = factorize(features, geometries, n_components, seed=self.seed, max_iter=self.max_iter)
        self.factorization, self._example = found, example  # together: another thread may read them
        explanations = [found.maps(image) for image in range(len(features))]
        if self.computation_on_concepts is None:
            return found.concepts, explanations
        with guarded(self.model, gradients=False):
            vectors = torch.from_numpy(np.ascontiguousarray(found.concepts.T)).to(self.adapter.device)
            computed = self.computation_on_concepts(vectors.to(self.adapter.dtype))
        return found.concepts, explanations, computed.detach().cpu().float().numpy()

    def __enter__(self) -> DeepFeatureFactorization:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to release: hooks live only during a call."""

    def _features(self, request: Request) -> tuple[list[list[Tensor]], list[Geometry], Batch | None]:
        """Per image the layer's levels (C, h, w), and where the image lies; and the first image's input."""
        features: dict[int, list[Tensor]] = {}
        geometries: dict[int, Geometry] = {}
        example: Batch | None = None
        for group in request.groups(self.adapter, self.batch_size):
            with guarded(self.model, gradients=False):
                batch = request.batch(self.adapter, group, View())
                with self._trace(batch) as trace:
                    self.adapter.forward(batch)
                levels = levels_of(trace, len(group))
            for position, image in enumerate(group):
                features[image] = [level[position].to(work_dtype(level)) for level in levels]
                geometries[image] = batch.geometries[position]
            example = example or select_image(batch, 0)
        order = sorted(features)
        return [features[image] for image in order], [geometries[image] for image in order], example

    def _trace(self, batch: Batch, replace: Callable[[int, int, Any], Any] | None = None) -> Trace:
        reshape = self.adapter.reshape_for(batch)
        layers, names = self.adapter.target_layers, self.adapter.layer_names
        return Trace(layers, names, gradients=False, reshape_transform=reshape, replace=replace)

    def concept_scores(self) -> Tensor:
        """What a classifier makes of each concept of the last call: (K, classes) in [0, 1], on the CPU.

        The layer is made to put out nothing but the concept, at the strength of its strongest place, everywhere; what
        lies behind the layer is run on that. With global pooling and a linear layer behind, this is the linear layer's
        answer to the concept. What goes round the layer, if anything, comes from the first image.

        Raises:
            RuntimeError: nothing was factorised yet.
            TypeError: the model is no classifier.
            ValueError: the layer's output is neither a map nor tokens.
        """
        factorization, example = self.factorization, self._example
        if factorization is None or example is None:
            raise RuntimeError("there are no concepts yet: call with images first")
        if not isinstance(self.adapter, ClassificationAdapter):
            raise TypeError(
                f"expected a classifier; {type(self.model).__name__} is explained as {self.adapter.task}: give "
                "computation_on_concepts= what should be computed of the concepts"
            )
        vectors = torch.from_numpy(np.ascontiguousarray(factorization.typical.T))
        return torch.stack([self._scores_of(self.adapter, example, vector) for vector in vectors])

    def _scores_of(self, adapter: ClassificationAdapter, batch: Batch, vector: Tensor) -> Tensor:
        """The class scores (classes,) of one feature vector everywhere."""

        def fill(layer: int, run: int, output: Any) -> Any:
            return map_tensors(output, lambda tensor: _filled(tensor, vector) if tensor.is_floating_point() else tensor)

        with guarded(self.model, gradients=False):
            with self._trace(batch, fill):
                raw = adapter.forward(batch)
            return class_scores(adapter.outputs(raw, batch)[0])

    def label_concepts(self, top_k: int = 2) -> list[str]:
        """The classes that a classifier sees in each concept of the last call, a line for each: ``tiger cat 0.83``.

        Raises:
            As `concept_scores`.
        """
        return create_labels_legend(self.concept_scores(), self.adapter.names, top_k)


def run_dff_on_image(
    model: nn.Module,
    target_layer: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    img_pil: PixelsLike,
    img_tensor: Tensor,
    reshape_transform: ReshapeTransform | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> ImageArray:
    """One image beside its concepts, labelled by a classifier's last layer, as `pytorch_grad_cam` has it.

    Args:
        model: as in `DeepFeatureFactorization`; class names come from its ``config.id2label``, if it has one.
        target_layer: likewise.
        classifier: from concepts (K, C) to logits (K, classes).
        img_pil: the image.
        img_tensor: (C, H, W) the network's input, of the image's size.
        reshape_transform: as in `DeepFeatureFactorization`.
        n_components: how many concepts.
        top_k: classes for each.

    Returns:
        HxWx3 uint8.
    """
    dff = DeepFeatureFactorization(model, target_layer, reshape_transform)
    concepts, (maps,) = dff(img_tensor[None], n_components)[:2]
    with guarded(model, gradients=False):
        vectors = torch.from_numpy(np.ascontiguousarray(concepts.T)).to(dff.adapter.device, dff.adapter.dtype)
        scores = classifier(vectors).float().softmax(-1)
    names = getattr(getattr(model, "config", None), "id2label", None) or dff.adapter.names
    labels = create_labels_legend(scores, names, top_k)
    return grid([img_pil, show_factorization_on_image(img_pil, maps, image_weight=0.3, concept_labels=labels)])


def _filled(tensor: Tensor, vector: Tensor) -> Tensor:
    """A layer's output with one feature vector (C,) at every place: maps, tokens, or maps with channels last."""
    channels = len(vector)
    for axis in (1, tensor.ndim - 1):
        # Of tokens (B, N, C) the channels come last, whatever N is.
        if tensor.ndim in (3, 4) and tensor.shape[axis] == channels and not (tensor.ndim == 3 and axis == 1):
            shape = [1] * tensor.ndim
            shape[axis] = channels
            return vector.to(tensor).reshape(shape).expand_as(tensor).clone()
    raise ValueError(
        f"expected a layer that puts out maps (B, {channels}, h, w) or tokens (B, N, {channels}); got "
        f"{tuple(tensor.shape)}: choose another layer, or give computation_on_concepts="
    )
