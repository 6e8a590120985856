"""Literal formulas of the gradient methods, with loops over channels and positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from detcam import (
    ODAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from detcam.cam import BaseCAM

Map = list[list[float]]


Maps = list[Map]


def grad_cam(a: Maps, g: Maps) -> Map:
    return weighted(a, [sum(sum(row) for row in channel) / count(channel) for channel in g])


def hires_cam(a: Maps, g: Maps) -> Map:
    return place_by_place(a, g, lambda act, grad: grad * act)


def elementwise(a: Maps, g: Maps) -> Map:
    return place_by_place(a, g, lambda act, grad: max(grad * act, 0.0))


def layer_cam(a: Maps, g: Maps) -> Map:
    return place_by_place(a, g, lambda act, grad: max(grad, 0.0) * act)


def xgrad_cam(a: Maps, g: Maps) -> Map:
    weights = []
    for act, grad in zip(a, g, strict=True):
        total, weight = sum(sum(row) for row in act) + 1e-7, 0.0
        for ra, rg in zip(act, grad, strict=True):
            for x, y in zip(ra, rg, strict=True):
                weight += x / total * y
        weights.append(weight)
    return weighted(a, weights)


def grad_cam_plusplus(a: Maps, g: Maps) -> Map:
    weights = []
    for act, grad in zip(a, g, strict=True):
        total, weight = sum(sum(row) for row in act), 0.0
        for row in grad:
            for y in row:
                if y != 0:
                    weight += y**2 / (2 * y**2 + total * y**3 + 1e-6) * max(y, 0.0)
        weights.append(weight)
    return weighted(a, weights)


def eigen_cam(a: Maps, g: Maps) -> Map:
    return principal(a)


def eigen_grad_cam(a: Maps, g: Maps) -> Map:
    products = [
        [[x * y for x, y in zip(ra, rg, strict=True)] for ra, rg in zip(act, grad, strict=True)]
        for act, grad in zip(a, g, strict=True)
    ]
    return principal(products)


def count(channel: Map) -> int:
    return len(channel) * len(channel[0])


def weighted(a: Maps, weights: list[float]) -> Map:
    rows, columns = len(a[0]), len(a[0][0])
    return [[sum(weights[k] * a[k][i][j] for k in range(len(a))) for j in range(columns)] for i in range(rows)]


def place_by_place(a: Maps, g: Maps, formula: Callable[[float, float], float]) -> Map:
    rows, columns = len(a[0]), len(a[0][0])
    return [[sum(formula(a[k][i][j], g[k][i][j]) for k in range(len(a))) for j in range(columns)] for i in range(rows)]


def principal(maps: Maps) -> Map:
    """By NumPy's SVD of centered positions x channels; the sign agrees with the sum over channels."""
    rows, columns = len(maps[0]), len(maps[0][0])
    table = np.array([[maps[k][i][j] for k in range(len(maps))] for i in range(rows) for j in range(columns)])
    centered = table - table.mean(0)
    projected = centered @ np.linalg.svd(centered)[2][0]
    if (projected * centered.sum(1)).sum() < 0:
        projected = -projected
    result: Map = projected.reshape(rows, columns).tolist()
    return result


FORMULAS: dict[type[BaseCAM], Callable[[Maps, Maps], Map]] = {
    GradCAM: grad_cam,
    HiResCAM: hires_cam,
    GradCAMElementWise: elementwise,
    GradCAMPlusPlus: grad_cam_plusplus,
    XGradCAM: xgrad_cam,
    LayerCAM: layer_cam,
    EigenCAM: eigen_cam,
    EigenGradCAM: eigen_grad_cam,
    ODAM: hires_cam,
}


class TinyViT(nn.Module):
    """Patches, a class token that attends to them once, a head on it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))
        attention = (tokens[:, :1] @ self.mix(tokens).transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(attention @ tokens)[:, 0])


def patches_to_map(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 4))
