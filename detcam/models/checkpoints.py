"""Checkpoint files: reading without code execution, and loading of their weights into a model."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detcam.utils.console import short_repr
from detcam.utils.text import first_line

StateDict = Mapping[str, Tensor]

STATE_DICT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "ema_state_dict",
    "model_ema",
    "ema",
)
MAX_DEPTH = 4
"""Maximum number of entries within one another in which weights are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Read a checkpoint file to the CPU: tensors, or with `trust` any object.

    Args:
        path: a ``.safetensors`` file, or one that `torch.save` wrote.
        trust: whether code in the file may run.

    Raises:
        ValueError: the file does not exist, is not a checkpoint, or contains more than tensors without `trust`.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint file at {path}; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not _is_pickle(path):
        raise ValueError(f"cannot read {path} as a checkpoint: it was not written by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        foreign = _foreign(path, error)
        if trust or not foreign:
            raise ValueError(f"cannot read {path} as a checkpoint ({_reason(error)}); is the file complete?") from error
        raise ValueError(
            f"{path} holds more than tensors{foreign}, and reading it runs code from the file. "
            "If you trust its source, pass --trust-checkpoint (trust_checkpoint=True in Python)"
        ) from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise ValueError(
            f"{path} needs a module that is not installed ({error}); save its state_dict() where it was made"
        ) from error
    except Exception as error:  # a damaged pickle raises UnicodeDecodeError, IndexError, struct.error and others
        raise ValueError(f"cannot read {path} as a checkpoint ({first_line(error)}); is the file complete?") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as safetensors ({error}); is the file complete?") from error
    return state


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like one written by `torch.save`: a zip archive or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _foreign(path: Path, error: Exception) -> str:
    """The classes and functions that reading a file would run, in parentheses."""
    names = foreign_globals(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def foreign_globals(path: Path) -> list[str]:
    """Return the names of the classes and functions, apart from tensors, in a `torch.save` file, without running it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # an old file without a zip archive
        names = []
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def state_dict_of(content: object, path: Path, depth: int = MAX_DEPTH) -> StateDict:
    """Return the weights in a checkpoint: its whole content, or an entry with one of the usual names.

    Args:
        content: the content of the file.
        path: the file, for messages.
        depth: maximum number of entries within one another.

    Raises:
        ValueError: the checkpoint has no weights.
    """
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            if not all(isinstance(key, str) for key in content):
                raise ValueError(f"expected names of weights as text in {path}; got {short_repr(next(iter(content)))}")
            return content
        for key in STATE_DICT_KEYS if depth else ():
            if isinstance(content.get(key), (Mapping, nn.Module)):
                return state_dict_of(content[key], path, depth - 1)
    entries = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"expected weights (a state dict) in {path}; it holds {entries or 'nothing'}")


def without_wrapper_prefix(state: StateDict, keys: Mapping[str, Any]) -> StateDict:
    """Remove the prefix of a wrapper (DataParallel, torch.compile, a training module) from all names of weights."""
    for prefix in PREFIXES:
        if state and not any(key in keys for key in state) and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def infer_num_classes(state: StateDict, build: Callable[[int], nn.Module]) -> int | None:
    """Infer the number of classes of a trained model from the shapes of its weights.

    The model is built with two and with three classes. Sizes that differ are ``size = a * classes + b``, which is
    solved for the sizes in the checkpoint.

    Args:
        state: the weights.
        build: returns a model with a given number of classes; only its shapes are used.

    Returns:
        The number on which most weights agree, or None if no size depends on it.
    """
    low, high = (shapes(build(count)) for count in (2, 3))
    state = without_wrapper_prefix(state, low)
    votes: dict[int, int] = {}
    for key, small in low.items():
        given = tuple(state[key].shape) if key in state else ()
        for two, three, size in zip(small, high.get(key, ()), given, strict=False):
            count, rest = divmod(size - two, three - two) if three != two else (0, 1)
            if rest == 0 and count + 2 > 0:
                votes[count + 2] = votes.get(count + 2, 0) + 1
    return max(votes, key=lambda count: votes[count]) if votes else None


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def load_weights(model: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Copy weights into a model and convert them to its dtype.

    Raises:
        ValueError: names or shapes do not match; the message lists the first ones.
    """
    expected = shapes(model)
    state = without_wrapper_prefix(state, expected)
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    other = [
        f"{key} {tuple(state[key].shape)} for {expected[key]}"
        for key in expected
        if key in state and tuple(state[key].shape) != expected[key]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    if any(keys for _, keys in kinds):
        words = "; ".join(f"{len(keys)} weights {kind} ({_first_keys(keys)})" for kind, keys in kinds if keys)
        hint = _channels_hint(state, expected, other) or "Was it trained with another model or number of classes?"
        raise ValueError(f"{path} does not fit {name}: {words}. {hint}")
    model.load_state_dict(state, strict=False)


def _channels_hint(state: StateDict, expected: Mapping[str, tuple[int, ...]], other: list[str]) -> str:
    """What to pass where weights differ in the channels of the first convolution alone; else nothing."""
    key = other[0].partition(" ")[0] if len(other) == 1 else ""
    if not key or state[key].ndim != 4 or len(expected[key]) != 4:
        return ""
    given, wanted = tuple(state[key].shape), expected[key]
    if (given[0], *given[2:]) != (wanted[0], *wanted[2:]):
        return ""
    return (
        f"It was trained on images of {given[1]} channels, not {wanted[1]}: for smp append &in_channels={given[1]} to "
        "the name; a network of another library goes in as a whole model, or in Python"
    )


def _first_keys(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")


def _reason(error: Exception) -> str:
    """The cause in an error of `torch.load`, without its advice to read the file as code."""
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return found[1].strip()[:200] if found else first_line(error)
