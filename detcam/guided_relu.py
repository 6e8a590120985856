"""The guided rule: on the way back through a rectifier, only what raises the score passes.

The rule is laid on the recorded graph and not on the model: every rectifier is seen, be it a module, a function, in
place or scripted, and the model is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

RECTIFIER = re.compile("relu|elu|silu|swish|mish|softplus|threshold", re.IGNORECASE)
"""Names of autograd's nodes: ReLU, LeakyReLU, PReLU, RReLU, ELU, CELU, SELU, GELU, SiLU, Hardswish, Mish, Softplus."""


_met: ContextVar[list[int] | None] = ContextVar("met", default=None)


@contextmanager
def guiding() -> Iterator[list[int]]:
    """Inside, every backward pass that is wrapped in `guided` follows the rule; elsewhere `guided` does nothing.

    Yields:
        a list that gets, for each such pass, the number of rectifiers on the way.
    """
    met: list[int] = []
    token = _met.set(met)
    try:
        yield met
    finally:
        _met.reset(token)


@contextmanager
def guided(scalar: Tensor) -> Iterator[None]:
    """Around a backward pass of a scalar: inside `guiding`, what comes back to a rectifier is cut at 0."""
    met = _met.get()
    if met is None:
        yield
        return
    nodes = list(rectifiers(scalar))
    met.append(len(nodes))
    handles = [node.register_prehook(_cut) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient.clamp(min=0) for gradient in gradients)


def rectifiers(scalar: Tensor) -> Iterator[Any]:
    """The rectifiers in the graph that made a scalar, each once."""
    waiting, seen = [scalar.grad_fn], {scalar.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        if node is None:
            continue
        if _rectifies(node):
            yield node
        new = {follower for follower, _ in node.next_functions} - seen
        seen |= new
        waiting.extend(new)


def _rectifies(node: Any) -> bool:
    name = node.name().rpartition("::")[2]
    if name.startswith("Hardtanh"):  # ReLU6 is one that starts at 0
        return bool(node._saved_min_val == 0)
    return RECTIFIER.search(name) is not None
