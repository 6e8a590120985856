"""Deep Feature Factorization: the concepts in a layer's features, and a map of each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detcam.adapters import adapt
from detcam.adapters.base import Adapter, Batch
from detcam.adapters.classification import ClassificationAdapter, class_scores
from detcam.adapters.volumes import VolumeGeometry, is_volume
from detcam.geometry import Geometry, normalize
from detcam.inputs import Images, Request, read_request
from detcam.perturbation.base import select_image
from detcam.results import levels_of
from detcam.trace import ReshapeTransform, Trace, guarded, map_tensors
from detcam.utils.precision import work_dtype
from detcam.visualize.concepts import create_labels_legend, show_factorization_on_image
from detcam.visualize.convert import ImageArray, PixelsLike
from detcam.visualize.overlay import grid

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Factorization:
    """Features as sums of concepts: ``offset[c] + sum_k basis[c, k] * strengths[k]`` at every location.

    Attributes:
        basis: (C, K) float, not negative: the weight of each channel in a concept.
        offset: (C,) float, each channel's minimum, which is subtracted to make all features non-negative.
        strengths: per image and level, (K, h, w) float, not negative, over the network's input; 0 on padding. Of
            volumes, (K, d, h, w).
        geometries: per image, its position on that input.
        error: relative error of the factorization in [0, 1]: norm of the residual over norm of the features.
    """

    basis: Floats
    offset: Floats
    strengths: tuple[tuple[Floats, ...], ...]
    geometries: tuple[Geometry | VolumeGeometry, ...]
    error: float

    @property
    def concepts(self) -> Floats:
        """(C, K), the concepts as features of the layer, each at strength 1."""
        return self.basis + self.offset[:, None]

    @property
    def peak_features(self) -> Floats:
        """(C, K), the concepts as features of the layer, each at its maximum strength."""
        return self.basis * self._max_strengths + self.offset[:, None]

    @property
    def _max_strengths(self) -> Floats:
        """(K,), each concept's maximum strength in any image."""
        peaks = [level.reshape(len(level), -1).max(1) for image in self.strengths for level in image]
        strengths: Floats = np.max(peaks, axis=0)
        return strengths

    def maps(self, image: int, *, shared: bool = False) -> Floats:
        """Return the maps of the concepts in an image, (K, H, W) or (K, D, H, W) float32 in [0, 1], image pixels.

        Args:
            image: the image's index.
            shared: whether to scale a concept by its maximum strength in any image, so that a concept that is absent
                from this one stays dark; else each map is scaled by its range, as in `pytorch_grad_cam`.
        """
        geometry = self.geometries[image]
        levels = [torch.from_numpy(np.ascontiguousarray(level)) for level in self.strengths[image]]
        if shared:
            maximum = torch.from_numpy(self._max_strengths).reshape(-1, *[1] * (levels[0].ndim - 1)).clamp(min=1e-30)
            scaled = torch.stack([geometry.to_image(level / maximum) for level in levels]).mean(0)
        elif len(levels) == 1:  # scaled before it is resized
            inside = levels[0][_on_image(geometry, levels[0])]
            axes = tuple(range(1, inside.ndim))
            low, high = inside.amin(axes, keepdim=True), inside.amax(axes, keepdim=True)
            scaled = geometry.to_image(torch.where(high > low, (levels[0] - low) / (high - low).clamp(min=1e-30), 0))
        else:
            scaled = normalize(torch.stack([geometry.to_image(level) for level in levels]).mean(0))
        maps: Floats = scaled.clamp(0, 1).float().numpy()
        return maps


def factorize(
    features: Sequence[Sequence[Tensor]],
    geometries: Sequence[Geometry | VolumeGeometry],
    n_components: int,
    *,
    seed: int = 0,
    max_iter: int = 200,
) -> Factorization:
    """Factorize feature maps into non-negative concepts, shared by all images and levels.

    Args:
        features: per image, per level (C, h, w) with the same channels; of volumes, (C, d, h, w).
        geometries: per image, its position on the network's input; cells on padding are ignored.
        n_components: number of concepts.
        seed: seed of the initialization.
        max_iter: maximum number of iterations.
    """
    from sklearn.decomposition import NMF  # a slow import

    inside = [
        [_on_image(geometry, level) for level in levels] for levels, geometry in zip(features, geometries, strict=True)
    ]
    cells = [
        level[window].flatten(1)
        for levels, windows in zip(features, inside, strict=True)
        for level, window in zip(levels, windows, strict=True)
    ]
    values = torch.cat(cells, 1).cpu().numpy()
    offset = values.min(axis=-1)
    values = values - offset[:, None]
    model = NMF(n_components=n_components, init="random", random_state=seed, max_iter=max_iter)
    basis = model.fit_transform(values)
    parts = iter(np.split(model.components_, np.cumsum([level.shape[1] for level in cells])[:-1], axis=1))
    strengths = []
    for levels, windows in zip(features, inside, strict=True):
        maps = []
        for level, window in zip(levels, windows, strict=True):
            whole = np.zeros((n_components, *level.shape[1:]), values.dtype)
            whole[window] = next(parts).reshape(whole[window].shape)
            maps.append(whole)
        strengths.append(tuple(maps))
    norm = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values - basis @ model.components_)) / norm if norm else 0.0
    return Factorization(basis, offset, tuple(strengths), tuple(geometries), error)


def _on_image(geometry: Geometry | VolumeGeometry, level: Tensor) -> tuple[slice, ...]:
    """Return the index of the cells of a level (C, h, w) or (C, d, h, w) that lie at least partly on the image."""
    grid: Any = tuple(level.shape[1:])  # of two or three axes, as the geometry's
    return (slice(None), *geometry.valid_cells(grid))


class DeepFeatureFactorization:
    r"""Find the concepts in a layer's features by non-negative matrix factorization.

    .. math:: \min_{W, H \ge 0} \lVert A - W H \rVert_F^2

    with A the features (channels by locations of all images, each channel's minimum subtracted), the columns of W the
    concepts, and the rows of H their maps. There is no target: the result shows what the layer distinguishes.

    Collins, Achanta and Süsstrunk, *Deep Feature Factorization for Concept Discovery*, ECCV 2018,
    https://arxiv.org/abs/1806.10206.

    Args:
        model: a supported model (classifier, detector, segmentation network), or its adapter.
        target_layer: a module or its dotted name; None takes the last of the adapter's default layers. The levels of
            a pyramid are factorized together.
        reshape_transform: function from the layer's output to (B, C, h, w); None infers it.
        computation_on_concepts: a function of the concepts (K, C), such as a classifier's last layer; None computes
            nothing.
        seed: seed of the initialization.
        max_iter: maximum number of iterations.

    Attributes:
        batch_size: images per forward pass.
        factorization: the `Factorization` of the last call; None before the first.

    Example:
        >>> import torch
        >>> from detcam import DeepFeatureFactorization
        >>> from detcam.testing import tiny_classifier
        >>> concepts, maps = DeepFeatureFactorization(tiny_classifier())(torch.rand(2, 3, 32, 32), n_components=2)
        >>> concepts.shape[1], [image.shape for image in maps]
        (2, [(2, 32, 32), (2, 32, 32)])
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
        """Factorize the features of one image, or of several together.

        Args:
            input_tensor: one image or a list of them (see `detcam.data.images.ImageLike`), or an already normalized
                (B, C, H, W) tensor, or (B, C, D, H, W) of volumes.
            n_components: number of concepts.
            model_kwargs: keyword arguments for the model.

        Returns:
            The concepts (C, K) as features of the layer; per image, their maps (K, H, W) float32 in [0, 1], pixels of
            the image, of volumes (K, D, H, W); and, if `computation_on_concepts` is given, its result. Each map is
            scaled by its range, even where the concept is weak; `factorization.maps(image, shared=True)` scales all
            images of a concept alike.

        Raises:
            TypeError, ValueError: the input or the number is not as expected, or the layer's levels have different
                numbers of channels.
            RuntimeError: the layer never ran, or returned NaN.
        """
        if isinstance(n_components, bool) or not isinstance(n_components, Integral):
            raise TypeError(f"expected n_components as a whole number; got {n_components!r}")
        if n_components < 1:
            raise ValueError(f"expected at least one component; got {n_components}")
        request = read_request(self.adapter, input_tensor, None, model_kwargs)
        features, geometries, example = self._features(request)
        channels = {len(level) for levels in features for level in levels}
        if len(channels) > 1:
            raise ValueError(
                f"the maps of {self.adapter.layer_names[0]} have {sorted(channels)} channels and so no concepts "
                "in common; choose a layer whose maps have the same channels"
            )
        result = factorize(features, geometries, n_components, seed=self.seed, max_iter=self.max_iter)
        self.factorization, self._example = result, example  # at once, for concurrent readers
        maps = [result.maps(image) for image in range(len(features))]
        if self.computation_on_concepts is None:
            return result.concepts, maps
        with guarded(self.model, gradients=False):
            vectors = torch.from_numpy(np.ascontiguousarray(result.concepts.T)).to(self.adapter.device)
            computed = self.computation_on_concepts(vectors.to(self.adapter.dtype))
        return result.concepts, maps, computed.detach().cpu().float().numpy()

    def __enter__(self) -> DeepFeatureFactorization:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing: hooks exist only during a call."""

    def _features(self, request: Request) -> tuple[list[list[Tensor]], list[Geometry | VolumeGeometry], Batch | None]:
        """Return per image the layer's levels (C, h, w) and its geometry, and the first image's input."""
        features: dict[int, list[Tensor]] = {}
        geometries: dict[int, Geometry | VolumeGeometry] = {}
        example: Batch | None = None
        for group in request.groups(self.adapter, self.batch_size):
            with guarded(self.model, gradients=False):
                batch = request.batch(self.adapter, group)
                with self.adapter.trace(batch, gradients=False) as trace:
                    self.adapter.forward(batch)
                levels = levels_of(trace, len(group))
            if volumes := is_volume(batch.inputs):
                reshape: Any = trace.reshape_transform
                levels = [reshape.split(level) for level in levels]
            for position, image in enumerate(group):
                features[image] = [level[position].to(work_dtype(level)) for level in levels]
                geometry = batch.geometries[position]
                depth, height, width = batch.inputs.shape[-3:]
                geometries[image] = VolumeGeometry((depth, height, width)) if volumes else geometry
            example = example or select_image(batch, 0)
        order = sorted(features)
        return [features[image] for image in order], [geometries[image] for image in order], example

    def concept_scores(self) -> Tensor:
        """Return a classifier's scores for each concept of the last call, (K, classes) in [0, 1], on the CPU.

        The layer's output is replaced by the concept at its maximum strength in all cells, and the rest of the network
        runs on it. With global pooling and a linear layer, this is the linear layer's output for the concept.
        Connections that bypass the layer carry the features of the first image.

        Raises:
            RuntimeError: nothing is factorized yet.
            TypeError: the model is not a classifier.
            ValueError: the layer's output is neither a map nor tokens.
        """
        factorization, example = self.factorization, self._example
        if factorization is None or example is None:
            raise RuntimeError("there are no concepts yet: call with images first")
        if not isinstance(self.adapter, ClassificationAdapter):
            raise TypeError(
                f"expected a classifier; the task of {type(self.model).__name__} is {self.adapter.task}. Pass "
                "computation_on_concepts=, a function of the concepts"
            )
        vectors = torch.from_numpy(np.ascontiguousarray(factorization.peak_features.T))
        return torch.stack([self._scores_of(self.adapter, example, vector) for vector in vectors])

    def _scores_of(self, adapter: ClassificationAdapter, batch: Batch, vector: Tensor) -> Tensor:
        """Return the class scores (classes,) for one feature vector in all cells."""

        def fill(layer: int, run: int, output: Any) -> Any:
            return map_tensors(output, lambda tensor: _filled(tensor, vector) if tensor.is_floating_point() else tensor)

        with guarded(self.model, gradients=False):
            with Trace(adapter.target_layers, adapter.layer_names, gradients=False, replace=fill):
                raw = adapter.forward(batch)
            return class_scores(adapter.outputs(raw, batch)[0])

    def label_concepts(self, top_k: int = 2) -> list[str]:
        """Return the top classes of each concept of the last call, one text per concept: ``tiger cat 0.83``.

        Args:
            top_k: number of classes per concept.

        Raises:
            RuntimeError, TypeError, ValueError: as in `concept_scores`.
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
    """Draw an image beside its concepts, labeled by a classifier's last layer, as in `pytorch_grad_cam`.

    Args:
        model: as in `DeepFeatureFactorization`; class names come from its ``config.id2label``, if it has one.
        target_layer: as in `DeepFeatureFactorization`.
        classifier: function from concepts (K, C) to logits (K, classes).
        img_pil: the image.
        img_tensor: (C, H, W), the network's input, of the image's size.
        reshape_transform: as in `DeepFeatureFactorization`.
        n_components: number of concepts.
        top_k: number of classes per concept.

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
    """Fill a layer's output (maps, also of volumes, tokens, or channels-last maps) with one feature vector (C,)."""
    channels = len(vector)
    for axis in (1, tensor.ndim - 1):
        # The channels of tokens (B, N, C) come last, also if N equals C.
        if tensor.ndim in (3, 4, 5) and tensor.shape[axis] == channels and not (tensor.ndim == 3 and axis == 1):
            shape = [1] * tensor.ndim
            shape[axis] = channels
            return vector.to(tensor).reshape(shape).expand_as(tensor).clone()
    raise ValueError(
        f"expected a layer that returns maps (B, {channels}, h, w) or tokens (B, N, {channels}); got "
        f"{tuple(tensor.shape)}. Choose another layer, or pass computation_on_concepts="
    )
