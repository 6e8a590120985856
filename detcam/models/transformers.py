"""Models of transformers from a folder, or by their name on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detcam.utils.optional import needs_extra
from detcam.utils.text import first_line


def create_transformers_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
    trust: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, Any]:
    """Build the model that a configuration names, with its processor.

    Code that a folder or a repository contains is never run.

    Args:
        name: a folder with ``config.json``, weights and the configuration of the processor; or a name on the hub, read
            from the cache or downloaded.
        num_classes: number of classes; None takes that of the configuration.
        pretrained: whether to load the weights; otherwise they are random.
        trust: whether weights in pickle files are read; otherwise only safetensors are.
        state: weights to load instead of those beside the configuration.

    Returns:
        The model, and its processor or None.

    Raises:
        ImportError: transformers is not installed.
        OSError: the files are neither in the folder or the cache nor can they be downloaded.
        ValueError: there is no such folder, the model needs code of its own, or weights are missing.
    """
    with needs_extra("transformers"):
        import transformers
    if (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name) and not Path(name).is_dir():
        raise ValueError(f"no folder at {name}; check the path")
    config = _config(transformers, name)
    if num_classes is not None:
        config.num_labels = num_classes
    kind = _model_class(transformers, config, name)
    model = _pretrained(kind, name, config, trust, state) if pretrained else kind(config)
    return model, _processor(transformers, name)


def _config(transformers: Any, name: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(f"hf:{name}: transformers cannot read its configuration ({first_line(error)})") from error


def _model_class(transformers: Any, config: Any, name: str) -> Any:
    """Return the class that a configuration names.

    Raises:
        ValueError: it names none, or one that transformers does not have.
    """
    names = getattr(config, "architectures", None) or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise ValueError(
            f"hf:{name}: expected a config.json that names a model of transformers under 'architectures'; got "
            f"{names or 'none'}. Code beside the weights is not run; load such a model in Python and pass it to adapt()"
        )
    return kind


def _pretrained(kind: Any, name: str, config: Any, trust: bool, state: Mapping[str, Tensor] | None) -> nn.Module:
    safetensors = {} if trust or state is not None else {"use_safetensors": True}
    try:
        with _without_progress():
            model, report = kind.from_pretrained(
                name if state is None else None,
                config=config,
                state_dict=None if state is None else dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
                **safetensors,
            )
    except OSError as error:
        if not trust and Path(name).is_dir() and any(Path(name).glob("pytorch_model*.bin")):
            raise ValueError(
                f"hf:{name} has weights in pickle files only. If you trust their source, pass --trust-checkpoint "
                "(trust_checkpoint=True in Python), or convert them to safetensors"
            ) from error
        raise
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise ValueError(
            f"the weights for hf:{name} lack {len(lacking)} of {kind.__name__}, or have them in another shape "
            f"({', '.join(sorted(lacking)[:2])}{', ...' if len(lacking) > 2 else ''}). Were they saved by another "
            "model or with another number of classes?"
        )
    return model


@contextmanager
def _without_progress() -> Iterator[None]:
    """Switch off the library's progress bar, which it shows for files on the disk as well."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _processor(transformers: Any, name: str) -> Any:
    """Return the processor beside a model: with a tokenizer where there is one, else of images alone, else None."""
    for loader in (transformers.AutoProcessor, transformers.AutoImageProcessor):
        try:
            processor = loader.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError):
            continue
        if hasattr(getattr(processor, "image_processor", processor), "image_mean"):
            return processor
    return None
