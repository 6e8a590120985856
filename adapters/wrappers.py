"""Known networks inside wrappers: Lightning modules, `Sequential(network, ...)` and other modules around one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.stored_config import Wrapped, is_known_classifier, stored_config, stored_size, wrapped_networks
from detcam.layers import probe_image
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks

COMPONENTS_OF_WRAPPERS = frozenset({"module", "_orig_mod"})
"""Components that DataParallel and torch.compile add to the names of layers."""

_SIDE = 224
"""Side of the probe's noise image, for a network that stores no size."""


def find_wrapped(model: nn.Module, has_adapter: Callable[[object], bool]) -> Wrapped | None:
    """Return the one known network whose output a wrapper passes on; None if there is none.

    A wrapper has no parameters outside the network and runs it once, whole. A wrapper of a classifier returns the
    classifier's output, or the softmax or sigmoid of it; else it is a classifier of its own.

    Args:
        model: the module.
        has_adapter: whether a module is a detector or segmentation network with an adapter of its own.

    Raises:
        TypeError: it contains a known detector or segmentation network, and it is not certain that it passes on the
            output; the message names the network.
    """
    found = list(wrapped_networks(model, lambda module: has_adapter(module) or is_known_classifier(module)))
    special = [item for item in found if has_adapter(item.network)]
    if not special and len(found) != 1:
        return None
    item = (special or found)[0]
    own = {id(p) for p in model.parameters()} - {id(p) for p in item.network.parameters()}
    if len(found) == 1 and not own and _passes_on(model, item.network, exact=not special):
        return item
    if not special:
        return None
    choices = " or ".join(f"model.{other.name} ({type(other.network).__name__})" for other in special)
    reason = (
        f"contains {len(found)} known networks"
        if len(found) > 1
        else "has parameters besides those of the network inside it"
        if own
        else "does not run the network inside it as a whole when it is called with an image"
    )
    raise TypeError(
        f"{type(model).__name__} {reason}, so its output is not known to be that network's. Pass the inner network, "
        f"{choices}, or say how to read the output: detcam.adapters.detector(model, decode=...) or segmenter(model)"
    )


def _passes_on(wrapper: nn.Module, network: nn.Module, *, exact: bool) -> bool:
    """Whether a wrapper runs a network once and, if `exact`, returns the network's output or an activation of it."""
    size = stored_size(network, stored_config(network)) if exact else _SIDE
    size_hw = (size, size) if isinstance(size, int) else size
    first = next(network.parameters(), torch.zeros(()))
    dtype = first.dtype if first.is_floating_point() else torch.float32
    noise = probe_image(network, size_hw, first.device, dtype).detach()
    runs: list[Any] = []
    for inputs in (noise, [noise[0]]):
        runs.clear()
        with active_hooks([(network, lambda module, args, output: runs.append(output))]):
            try:
                with guarded(wrapper, gradients=False, quiet=True):
                    output = wrapper(inputs)
            except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError):
                continue
        if len(runs) == 1:
            return not exact or _is_same(output, runs[0])
    return False


def _is_same(output: Any, inner: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(inner, Tensor) or output.shape != inner.shape:
        return output is inner
    versions = (inner, inner.softmax(-1), inner.log_softmax(-1), inner.sigmoid())
    return any(torch.allclose(output, version, rtol=1e-4, atol=1e-6) for version in versions)


def without_wrappers(name: str, prefix: str = "") -> str:
    """Return a layer's name without the wrapper's prefix and the components that DataParallel and compile add."""
    if prefix and (name == prefix or name.startswith(f"{prefix}.")):
        name = name[len(prefix) + 1 :]
    return ".".join(part for part in name.split(".") if part not in COMPONENTS_OF_WRAPPERS)
