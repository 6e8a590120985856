"""Learners of fastai, with the class names, input size and normalization of their data loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.custom_segmenter import CustomSegmentationAdapter
from detcam.layers import input_channels


def is_learner(model: object) -> bool:
    """Return whether an object is a Learner of fastai. Does not import fastai."""
    return any(kind.__module__ == "fastai.learner" and kind.__name__ == "Learner" for kind in type(model).__mro__)


def takes_images(learner: Any) -> bool:
    """Return whether the network of a Learner has a convolution of images or volumes, unlike one of text or tables."""
    network = getattr(learner, "model", None)
    layers = network.modules() if isinstance(network, nn.Module) else ()
    return any(isinstance(layer, (nn.Conv2d, nn.Conv3d)) for layer in layers)


class FastaiClassificationAdapter(ClassificationAdapter):
    """Explains the classifier of a fastai Learner.

    Names, input size, mean and standard deviation are those of the learner's data loaders. The whole image is resized
    to the input size, where fastai takes a center crop by default. Classes are independent if the learner's loss is a
    binary cross-entropy.

    Args:
        learner: the Learner, as `load_learner` or `vision_learner` returns it.
        **options: as in `ClassificationAdapter`.
    """

    family = "fastai classification"

    def __init__(self, learner: Any, **options: Any) -> None:
        stored = stored_options(learner)
        if type(learner.loss_func).__name__.startswith("BCE") and len(stored.get("names", ())) > 1:
            stored["output"] = "multilabel"
        super().__init__(learner.model, **{**stored, **options})

    @classmethod
    def supports(cls, model: object) -> bool:
        return is_learner(model) and takes_images(model)


class FastaiSegmentationAdapter(CustomSegmentationAdapter):
    """Explains the `DynamicUnet` of a fastai Learner whose data loaders name its classes.

    Names, mean and standard deviation are those of the data loaders, and images are stretched to their size.

    Args:
        learner: the Learner, as `unet_learner` returns it.
        **options: as in `CustomSegmentationAdapter`.
    """

    family = "fastai segmentation"

    def __init__(self, learner: Any, **options: Any) -> None:
        super().__init__(learner.model, **{**stored_options(learner), **options})

    @classmethod
    def supports(cls, model: object) -> bool:
        if not is_learner(model):
            return False
        network: Any = getattr(model, "model", None)
        is_unet = any(kind.__name__ == "DynamicUnet" for kind in type(network).__mro__)
        return is_unet and "names" in stored_options(model)  # a network for regression has no names


def stored_options(learner: Any) -> dict[str, Any]:
    """Return the options of an adapter that a learner's data loaders store: `names`, `image_size`, `mean`, `std`."""
    loaders = getattr(learner, "dls", None)
    if loaders is None or not isinstance(learner.model, nn.Module):
        return {}
    vocabularies = (getattr(part, "vocab", None) for part in (loaders, *_transforms(loaders.after_item)))
    names = next((names for names in vocabularies if names is not None and len(names)), None)  # may be an array
    options: dict[str, Any] = {} if names is None else {"names": [str(name) for name in names]}
    size = _image_size(loaders)
    if size is not None:
        options["image_size"] = size
    normalize = next((t for t in _transforms(loaders.after_batch) if type(t).__name__ == "Normalize"), None)
    channels = input_channels(learner.model)
    for name, neutral in (("mean", 0.0), ("std", 1.0)):  # without this transform, pixels in [0, 1] stay as they are
        values = getattr(normalize, name).flatten().tolist() if normalize is not None else [neutral] * channels
        options[name] = tuple(values)
    return options


def _transforms(pipeline: Any) -> Iterator[Any]:
    return iter(getattr(pipeline, "fs", ()))


def _image_size(loaders: Any) -> tuple[int, int] | None:
    """Height and width of the images in a batch, or None if no transform sets them."""
    of_batch = [size for t in _transforms(loaders.after_batch) if (size := getattr(t, "size", None)) is not None]
    if of_batch:
        return (of_batch[-1],) * 2 if isinstance(of_batch[-1], int) else (of_batch[-1][0], of_batch[-1][1])
    of_item = [size for t in _transforms(loaders.after_item) if (size := getattr(t, "size", None)) is not None]
    return (of_item[-1][1], of_item[-1][0]) if of_item else None  # transforms of an item store width first
