"""Recognition of models of transformers, their class names and their saved image processors, without an import."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from detcam.utils.optional import needs_extra
from detcam.utils.warnings import warn

PUBLISHED_PROCESSORS = {
    "clip_vision_model": "CLIPImageProcessor",
    "d_fine": "RTDetrImageProcessor",
    "dab_detr": "ConditionalDetrImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
}
"""Image processors of the published weights of families that transformers does not assign one."""


def pretrained_bases(model: object) -> list[str]:
    """Return the names of the classes that a model of transformers inherits from; empty for other models."""
    classes = type(model).__mro__
    is_pretrained = any(
        base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.") for base in classes
    )
    return [base.__name__ for base in classes] if is_pretrained else []


def has_head(model: object, *endings: str) -> bool:
    """Return whether a model of transformers has a head by the name of its class, such as ``ForObjectDetection``."""
    return any(name.endswith(endings) for name in pretrained_bases(model))


def model_type(model: Any) -> str:
    """Return the family of a model of transformers, with underscores, such as ``rt_detr``."""
    return str(model.config.model_type).replace("-", "_")


def stored_names(model: Any) -> Mapping[int, str]:
    """Return the class names in a model's configuration; empty where these are the placeholders ``LABEL_0``, ..."""
    names = {int(index): str(name) for index, name in (getattr(model.config, "id2label", None) or {}).items()}
    placeholders = all(name == f"LABEL_{index}" for index, name in names.items())
    return {} if placeholders else names


def find_processor(model: Any, given: Any = None) -> Any:
    """Return the image processor of a model.

    Args:
        model: a model of transformers.
        given: an image processor, a processor that contains one, or the path of a folder that holds one; None takes
            the processor saved beside the model's weights, else the defaults of its family, with a warning.

    Raises:
        ImportError: transformers is not installed.
        TypeError: `given` is no processor.
        ValueError: there is no processor for the model.
    """
    if isinstance(given, (str, Path)):
        return load_processor(str(given))
    if given is not None:
        processor = getattr(given, "image_processor", given)
        if not callable(processor) or not hasattr(processor, "image_mean"):
            raise TypeError(
                "expected an image processor of transformers, such as AutoImageProcessor.from_pretrained(folder), or a "
                f"folder that holds one; got {type(given).__name__}"
            )
        return processor
    return saved_processor(model) or default_processor(model)


def check_input(model: Any) -> None:
    """Check that a model takes images (B, C, H, W).

    Raises:
        TypeError: it does not; the message names the remedy.
    """
    if model_type(model) == "timm_wrapper":
        raise TypeError(
            f"{type(model).__name__} holds a model of timm; pass that one: detcam.adapt(model.timm_model), with names="
        )
    if accepts(getattr(model, "vision_model", model), "spatial_shapes") or accepts(model, "spatial_shapes"):
        raise TypeError(
            f"{type(model).__name__} takes patches of images of any shape (NaFlex), not images; use weights of a fixed "
            "resolution, which transformers loads as Siglip"
        )


def saved_processor(model: Any) -> Any:
    """Return the image processor saved beside a model's weights, or None."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        return None
    try:
        return load_processor(name)
    except (OSError, ValueError):
        return None


def has_processor(model: Any, given: Any = None) -> bool:
    """Return whether a model has an image processor of its own: a given one, or one saved beside its weights."""
    return given is not None or saved_processor(model) is not None


def find_tokenizer(model: Any, given: Any = None) -> Any:
    """Return the tokenizer of a model that reads text.

    Args:
        model: a model of transformers.
        given: a processor that contains a tokenizer, or the path of a folder that holds one; None takes the one saved
            beside the model's weights.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is no tokenizer.
    """
    tokenizer = getattr(given, "tokenizer", None)
    if tokenizer is not None:
        return tokenizer
    name = str(given if isinstance(given, (str, Path)) else getattr(model, "name_or_path", "") or "")
    try:
        return auto_class("AutoTokenizer").from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} reads text, and no tokenizer is saved beside it; pass processor=, a processor of "
            "transformers with image processor and tokenizer, such as AutoProcessor.from_pretrained(folder)"
        ) from error


def load_processor(name: str) -> Any:
    """Load the image processor in a folder or in the cache of the hub; nothing is downloaded and no code is run.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no processor.
    """
    return auto_class("AutoImageProcessor").from_pretrained(name, local_files_only=True, trust_remote_code=False)


def auto_class(name: str) -> Any:
    """Return a class of transformers by its name.

    Raises:
        ImportError: transformers is not installed.
    """
    with needs_extra("transformers"):
        import transformers
    return getattr(transformers, name)


def default_processor(model: Any) -> Any:
    """Return an image processor with the default settings of the model's family, and warn about it.

    Raises:
        ValueError: the family has no image processor.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    published = PUBLISHED_PROCESSORS.get(model_type(model))
    if published is not None:
        chosen = auto_class(published)
    else:
        try:
            chosen = _first_class(IMAGE_PROCESSOR_MAPPING[type(model.config)])
        except KeyError as error:
            raise ValueError(
                f"no image processor is known for {type(model).__name__}; pass processor=, an image processor or the "
                "folder that holds it"
            ) from error
    processor = chosen()
    warn(
        f"no image processor is saved beside {type(model).__name__}; images are prepared with the defaults of "
        f"{chosen.__name__}. Pass processor= if the model was trained with other settings",
        UserWarning,
    )
    return processor


def _first_class(entry: Any) -> Any:
    """Return the class of an entry of the library's table of image processors, the one with torchvision first."""
    if isinstance(entry, Mapping):
        return entry.get("torchvision") or entry.get("pil")
    if isinstance(entry, (tuple, list)):  # before version 5: slow, fast
        return entry[-1] or entry[0]
    return entry


def accepts(model: nn.Module, argument: str) -> bool:
    """Return whether a model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters
