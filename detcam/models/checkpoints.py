"""Checkpoint files: read without running code, and fitted to a model, with short messages where they do not fit."""

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

StateDict = Mapping[str, Tensor]

SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar"})
NESTED = (
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
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """What a checkpoint file holds, on the CPU: tensors, or with `trust` any object.

    Args:
        path: a ``.safetensors`` file, or one that `torch.save` wrote.
        trust: whether code from the file may run.

    Raises:
        ValueError: no such file, not a checkpoint, or one that holds more than tensors and is not trusted.
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
        if trust:
            raise ValueError(f"cannot read {path} as a checkpoint ({_first_line(error)})") from error
        raise ValueError(
            f"{path} holds more than tensors{_foreign(path, error)}, and reading it runs code from the file. "
            "If you trust its source, pass --trust-checkpoint (trust_checkpoint=True in Python)"
        ) from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise ValueError(
            f"{path} needs code that is not here ({error}); save its state_dict() where it was made"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"cannot read {path} as a checkpoint ({_first_line(error)}); is the file complete?") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as safetensors ({error}); is the file complete?") from error
    return state


def _is_pickle(path: Path) -> bool:
    """Whether a file looks like one that `torch.save` writes: a zip archive, or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _foreign(path: Path, error: Exception) -> str:
    """The classes and functions in a file that would run, in brackets."""
    found = foreign_globals(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    return f" ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})" if found else ""


def foreign_globals(path: Path) -> list[str]:
    """Names of the classes and functions, beyond tensors, that a `torch.save` file refers to; nothing of it is run."""
    look = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        return sorted(look(path), key=lambda name: (name.startswith("torch."), name)) if look else []
    except (
        ValueError,
        RuntimeError,
        pickle.UnpicklingError,
    ):  # not a zip archive: an old file, read by torch.load alone
        return []


def state_dict_of(content: Any, path: Path) -> StateDict:
    """The weights in a checkpoint: the whole of it, or what training scripts usually call them.

    Raises:
        ValueError: it holds none.
    """
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        for key in NESTED:
            if isinstance(content.get(key), (Mapping, nn.Module)):
                return state_dict_of(content[key], path)
    held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"expected weights (a state dict) in {path}; it holds {held or 'nothing'}")


def without_prefix(state: StateDict, keys: Mapping[str, Any]) -> StateDict:
    """Weights without what a wrapper (DataParallel, torch.compile, a training module) put before all their names."""
    for prefix in PREFIXES:
        if state and not any(key in keys for key in state) and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def infer_num_classes(state: StateDict, build: Callable[[int], nn.Module]) -> int | None:
    """The number of classes for which a model was trained, from the shapes of its weights.

    The model is built for one class more than another time: sizes that differ grow with the number of classes,
    ``size = a * classes + b``, and the checkpoint's sizes are solved for it.

    Args:
        state: the weights.
        build: a model for a number of classes; only its shapes are looked at.

    Returns:
        The number that most weights agree on, or None where they say nothing.
    """
    low, high = (shapes(build(count)) for count in (2, 3))
    state = without_prefix(state, low)
    votes: dict[int, int] = {}
    for key, small in low.items():
        given = tuple(state[key].shape) if key in state else ()
        for few, more, size in zip(small, high.get(key, ()), given, strict=False):
            count, rest = divmod(size - few, more - few) if more != few else (0, 1)
            if rest == 0 and count + 2 > 0:
                votes[count + 2] = votes.get(count + 2, 0) + 1
    return max(votes, key=lambda count: votes[count]) if votes else None


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def load_weights(model: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Copy weights into a model, in the model's own dtype.

    Raises:
        ValueError: names or shapes do not fit; the message has the first ones.
    """
    own = shapes(model)
    state = without_prefix(state, own)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    other = [
        f"{key} {tuple(state[key].shape)} for {own[key]}"
        for key in own
        if key in state and tuple(state[key].shape) != own[key]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    if any(keys for _, keys in kinds):
        words = "; ".join(f"{len(keys)} weights {kind} ({_some(keys)})" for kind, keys in kinds if keys)
        raise ValueError(
            f"{path} does not fit {name}: {words}. Was it trained with another model or number of classes?"
        )
    model.load_state_dict(state, strict=False)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
