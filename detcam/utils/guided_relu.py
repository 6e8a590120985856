"""The guided rule of guided backpropagation: rectifiers pass positive gradients only.

The rule is applied to the recorded autograd graph and not to the model: it covers every rectifier, whether it is a
module, a function, in place or scripted, and leaves the model unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

RECTIFIER = re.compile("relu|elu|silu|swish|mish|softplus|threshold", re.IGNORECASE)
"""Names of autograd's nodes: ReLU, LeakyReLU, PReLU, RReLU, ELU, CELU, SELU, GELU, SiLU, Hardswish, Mish, Softplus."""


_counts: ContextVar[list[int] | None] = ContextVar("rectifier_counts", default=None)


@contextmanager
def enable_guided_relu() -> Iterator[list[int]]:
    """Apply the rule to the backward passes in `guided_backward` blocks, which otherwise have no effect.

    Yields:
        A list to which each such pass appends its number of rectifiers.
    """
    counts: list[int] = []
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


@contextmanager
def guided_backward(scalar: Tensor) -> Iterator[None]:
    """Clamp gradients at rectifiers to at least 0 during a backward pass, inside `enable_guided_relu`.

    Args:
        scalar: the scalar that is differentiated.
    """
    counts = _counts.get()
    if counts is None:
        yield
        return
    nodes = list(rectifier_nodes(scalar))
    counts.append(len(nodes))
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.register_prehook(_clamp).remove)
        yield


def _clamp(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient.clamp(min=0) for gradient in gradients)


def rectifier_nodes(scalar: Tensor) -> Iterator[Any]:
    """Iterate over the rectifiers in the autograd graph of a scalar, each once."""
    stack, visited = [scalar.grad_fn], {scalar.grad_fn}
    while stack:
        node: Any = stack.pop()
        if node is None:
            continue
        if _is_rectifier(node):
            yield node
        unvisited = {parent for parent, _ in node.next_functions} - visited
        visited |= unvisited
        stack.extend(unvisited)


def _is_rectifier(node: Any) -> bool:
    name = node.name().rpartition("::")[2]
    if name.startswith("Hardtanh"):  # ReLU6 is a Hardtanh with minimum 0
        return bool(node._saved_min_val == 0)
    return RECTIFIER.search(name) is not None
