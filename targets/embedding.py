"""Embedding targets: similarity of an image's feature vector to a concept."""

from __future__ import annotations

import numpy.typing as npt
import torch
from torch import Tensor

from detcam.outputs import BaseTarget


class SimilarityToConceptTarget(BaseTarget):
    """Cosine similarity of the image's embedding to a concept.

    cos(f(x), c); for several concept vectors, the mean over them.

    Args:
        features: one vector (D,) or several (M, D), e.g. from `detcam.adapters.embed`; a tensor or an array.
    """

    def __init__(self, features: npt.ArrayLike) -> None:
        concept = torch.as_tensor(features).detach().float()
        if concept.ndim not in (1, 2) or concept.numel() == 0:
            raise ValueError(f"expected concept features of shape (D,) or (M, D); got {tuple(concept.shape)}")
        if not torch.isfinite(concept).all():
            raise ValueError("expected finite concept features; got NaN or infinity")
        if not concept.any(-1).all():
            raise ValueError("expected concept features with a direction; got a vector of zeros")
        self.features = concept.reshape(-1, concept.shape[-1])

    def __call__(self, model_output: Tensor) -> Tensor:
        vector = model_output.flatten()
        if len(vector) != self.features.shape[1]:
            raise ValueError(
                f"the concept has {self.features.shape[1]} features and the image {len(vector)}; "
                "take both from the same model"
            )
        return torch.cosine_similarity(vector[None], self.features.to(vector), dim=1).mean()


class DifferenceFromConceptTarget(SimilarityToConceptTarget):
    """One minus the cosine similarity to a concept: positive saliency marks pixels that make the image less similar."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return 1 - super().__call__(model_output)
