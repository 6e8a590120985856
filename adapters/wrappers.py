"""Known networks inside wrappers: Lightning modules, `Sequential(network, ...)` and other modules around one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.probed_normalization import (
    ImageTensors,
    UnknownChangeError,
    images_of,
    noise_images,
    normalization_between,
)
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
            passed = _passed_images(model, item.network, exact=not special)
            if passed is not None:
                return replace(item, normalization=normalization_between(passed))
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


def _passed_images(
    wrapper: nn.Module, network: nn.Module, *, exact: bool
) -> list[tuple[ImageTensors, ImageTensors]] | None:
    """The images of each probe that a wrapper gets, and those that its network gets, which it runs once.

    None if it does not or, if `exact`, returns neither the network's output nor an activation of it.
    """
    size = stored_size(network, stored_config(network)) if exact else _SIDE
    size_hw = (size, size) if isinstance(size, int) else size
    first, *others = noise_images(network, size_hw)
    for is_list in (False, True):
        run = _run(wrapper, network, first, is_list=is_list)
        if run is not None and len(run.inputs) == 1:
            if not run.inputs[0] or (exact and not _is_same(run.output, run.inner_output)):
                return None
            further = [_run(wrapper, network, noise, is_list=is_list, stops=True) for noise in others]
            inputs = [one.inputs[0] if one is not None and one.inputs else [] for one in (run, *further)]
            return list(zip(map(images_of, (first, *others)), inputs, strict=True))
    return None


@dataclass
class _Run:
    """A pass of a wrapper: the images of each call of its network, and the outputs of both."""

    inputs: list[ImageTensors] = field(default_factory=list)
    output: Any = None
    inner_output: Any = None


class _ReachedError(Exception):
    """The network inside was called."""


def _run(wrapper: nn.Module, network: nn.Module, noise: Tensor, *, is_list: bool, stops: bool = False) -> _Run | None:
    """Run a wrapper on copies of noise, which it may change in place; None if it does not take them."""
    run = _Run()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = [value for value in (*args, *kwargs.values()) if is_image_like(value)]
        run.inputs.append(images_of(images[0]) if images else [])
        if stops:
            raise _ReachedError

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run.inner_output = output

    hooks = active_hooks([(network, after)], before_with_kwargs=[(network, before)])
    try:
        with guarded(wrapper, gradients=False, quiet=True, float32=True), hooks:
            run.output = wrapper([noise[0].clone()] if is_list else noise.clone())
    except _ReachedError:
        pass
    except NotImplementedError as error:
        if str(error).startswith(f'Module [{type(wrapper).__name__}] is missing the required "forward" function'):
            raise MissingForwardError from None
        return None
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError):
        return None
    return run


def is_image_like(value: object) -> bool:
    """Return whether an argument of a network is a batch of images, or a list of images."""
    tensors = flatten_tensors(value)
    return bool(tensors) and tensors[0].ndim >= (4 if isinstance(value, Tensor) else 3)


def _is_same(output: Any, inner: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(inner, Tensor) or output.shape != inner.shape:
        return output is inner
    versions = (inner, inner.softmax(-1), inner.log_softmax(-1), inner.sigmoid())
    return any(torch.allclose(output, version, rtol=1e-4, atol=1e-6) for version in versions)


def warn_of_independent_classes(module: nn.Module, adapter: Any) -> None:
    """Warn if a module of several classes holds a loss of independent ones: its logits do not tell.

    Args:
        module: the module, which may hold the loss beside the network.
        adapter: the adapter that was made of it; without a warning if it is no classifier's or has independent classes.
    """
    losses = [type(m).__name__ for m in module.modules() if isinstance(m, INDEPENDENT_LOSSES)]
    count = getattr(adapter, "class_count", None)  # of classifiers alone
    if losses and count is not None and count > 1 and not adapter.output_head.multilabel:
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
