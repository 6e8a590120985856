"""Known networks inside wrappers: Lightning modules, `Sequential(network, ...)` and other modules around one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.inner_normalization import UnknownChangeError, noise_for, normalization_between
from detcam.adapters.stored_config import Wrapped, is_known_classifier, stored_config, stored_size, wrapped_networks
from detcam.trace import flatten_tensors, guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.warnings import warn

COMPONENTS_OF_WRAPPERS = frozenset({"module", "_orig_mod"})
"""Components that DataParallel and torch.compile add to the names of layers."""

INDEPENDENT_LOSSES = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
"""Losses of independent classes, of which a network with several logits is `multilabel`."""

_SIDE = 224
"""Side of the probe's noise image, for a network that stores no size."""


class MissingForwardError(Exception):
    """A module has no forward function, as a LightningModule may that is only trained."""


def find_wrapped(model: nn.Module, has_adapter: Callable[[object], bool]) -> Wrapped | None:
    """Return the one known network whose output a wrapper passes on; None if there is none.

    A wrapper has no parameters outside the network and runs it once, whole. A wrapper of a classifier returns the
    classifier's output, or the softmax or sigmoid of it; else it is a classifier of its own. Where it normalizes the
    image first, the result has this mean and standard deviation.

    Args:
        model: the module.
        has_adapter: whether a module is a detector or segmentation network with an adapter of its own.

    Raises:
        TypeError: it contains a known detector or segmentation network, and it is not certain that it passes on the
            output, or it changes the image first by more than a normalization; the message names the network.
    """
    found = list(wrapped_networks(model, lambda module: has_adapter(module) or is_known_classifier(module)))
    special = [item for item in found if has_adapter(item.network)]
    if not special and len(found) != 1:
        return None
    item = (special or found)[0]
    own = {id(p) for p in model.parameters()} - {id(p) for p in item.network.parameters()}
    changes = no_forward = False
    if len(found) == 1 and not own:
        try:
            passed = _passed_input(model, item.network, exact=not special)
            if passed is not None:
                return replace(item, normalization=normalization_between(*passed))
        except UnknownChangeError:
            changes = True
        except MissingForwardError:
            no_forward = True
    if not special and not no_forward:
        return None
    choices = " or ".join(f"model.{other.name} ({type(other.network).__name__})" for other in special or found)
    reason = (
        f"contains {len(found)} known networks"
        if len(found) > 1
        else "has parameters besides those of the network inside it"
        if own
        else "has no forward function"
        if no_forward
        else "changes the image before the network inside it"
        if changes
        else "does not run the network inside it as a whole when it is called with an image"
    )
    raise TypeError(
        f"{type(model).__name__} {reason}, so its output is not known to be that network's. Pass the inner network, "
        f"{choices}, or say how to read the output: detcam.adapters.detector(model, decode=...) or segmenter(model)"
    )


def _passed_input(wrapper: nn.Module, network: nn.Module, *, exact: bool) -> tuple[Any, Any] | None:
    """The input of a wrapper, and that of the network, which it runs once.

    None if it does not or, if `exact`, returns neither the network's output nor an activation of it.
    """
    size = stored_size(network, stored_config(network)) if exact else _SIDE
    size_hw = (size, size) if isinstance(size, int) else size
    noise = noise_for(network, size_hw)
    runs: list[tuple[list[Any], Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        images = [value for value in (*args, *kwargs.values()) if is_image_like(value)]
        runs.append((images, output))

    for inputs in (noise, [noise[0]]):
        runs.clear()
        with active_hooks(with_kwargs=[(network, record)]):
            try:
                with guarded(wrapper, gradients=False, quiet=True):
                    output = wrapper(inputs)
            except NotImplementedError:
                raise MissingForwardError from None
            except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError):
                continue
        if len(runs) == 1:
            images, inner = runs[0]
            return (inputs, images[0]) if images and (not exact or _is_same(output, inner)) else None
    return None


def is_image_like(value: object) -> bool:
    """Return whether an argument of a network is a batch of images, or a list of images."""
    tensors = flatten_tensors(value)
    return bool(tensors) and tensors[0].ndim >= (4 if isinstance(value, Tensor) else 3)


def _is_same(output: Any, inner: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(inner, Tensor) or output.shape != inner.shape:
        return output is inner
    versions = (inner, inner.softmax(-1), inner.log_softmax(-1), inner.sigmoid())
    return any(torch.allclose(output, version, rtol=1e-4, atol=1e-6) for version in versions)


def warn_of_independent_classes(module: nn.Module) -> None:
    """Warn if a module of several classes holds a loss of independent ones: its logits do not tell."""
    losses = [type(m).__name__ for m in module.modules() if isinstance(m, INDEPENDENT_LOSSES)]
    counts = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
    if losses and counts and counts[-1] > 1:
        warn(
            f"{type(module).__name__} has a {losses[0]}, as networks of independent classes do; its logits are "
            "explained as exclusive classes. Pass output='multilabel', or output='logits' if they are exclusive",
            UserWarning,
        )


def without_wrappers(name: str, prefix: str = "") -> str:
    """Return a layer's name without the wrapper's prefix and the components that DataParallel and compile add."""
    if prefix and (name == prefix or name.startswith(f"{prefix}.")):
        name = name[len(prefix) + 1 :]
    return ".".join(part for part in name.split(".") if part not in COMPONENTS_OF_WRAPPERS)
