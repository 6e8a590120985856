"""Selection of the adapter of a model, and registration of further adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, Literal, TypeVar, overload

from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.adapters.contract import check_options, option_names, unwrap
from detcam.adapters.stored_config import Wrapped, is_known_classifier
from detcam.adapters.target_layers import without_prefix
from detcam.adapters.ultralytics.network import is_wrapper
from detcam.adapters.wrappers import find_wrapped, warn_of_independent_classes
from detcam.detections import NamesLike
from detcam.layers import LayersLike
from detcam.trace import ReshapeTransform
from detcam.utils.registry import Registry

logger = logging.getLogger("detcam")

A = TypeVar("A", bound=type[Adapter])
F = TypeVar("F", bound=Callable[[Any], "Tensor | tuple[Tensor, ...]"])

_BUILTIN = {
    "torchvision-two-stage": "detcam.adapters.torchvision.two_stage:TwoStageAdapter",
    "torchvision-RetinaNet": "detcam.adapters.torchvision.one_stage:RetinaNetAdapter",
    "torchvision-FCOS": "detcam.adapters.torchvision.one_stage:FCOSAdapter",
    "torchvision-SSD": "detcam.adapters.torchvision.ssd:SSDAdapter",
    "ultralytics": "detcam.adapters.ultralytics.detector:UltralyticsAdapter",
    "ultralytics-open-vocabulary": "detcam.adapters.ultralytics.vocabulary:UltralyticsVocabularyAdapter",
    "ultralytics-semantic-segmentation": "detcam.adapters.ultralytics.maps:UltralyticsSegmentationAdapter",
    "ultralytics-depth": "detcam.adapters.ultralytics.maps:UltralyticsDepthAdapter",
    "ultralytics-rt-detr": "detcam.adapters.ultralytics.rtdetr:UltralyticsQueryAdapter",
    "ultralytics-classification": "detcam.adapters.ultralytics.classification:UltralyticsClassificationAdapter",
    "torchvision-segmentation": "detcam.adapters.segmentation:TorchvisionSegmentationAdapter",
    "segmentation-models-pytorch": "detcam.adapters.smp:SmpAdapter",
    "transformers-open-vocabulary": "detcam.adapters.transformers.open_vocabulary:TransformersOpenVocabulary",
    "transformers-masks": "detcam.adapters.transformers.masks:TransformersMaskQueries",
    "transformers-segmentation": "detcam.adapters.transformers.segmentation:TransformersSegmenter",
    "transformers-detection": "detcam.adapters.transformers.detector:TransformersDetector",
    "transformers-classification": "detcam.adapters.transformers.classification:TransformersClassifier",
    "transformers-image-text": "detcam.adapters.transformers.classification:TransformersImageText",
    "fastai-segmentation": "detcam.adapters.fastai:FastaiSegmentationAdapter",
    "fastai-classification": "detcam.adapters.fastai:FastaiClassificationAdapter",
    "onnx": "detcam.adapters.onnx.detector:OnnxDetectorAdapter",
    "function": "detcam.adapters.function:FunctionDetectorAdapter",
    "classification": "detcam.adapters.classification:ClassificationAdapter",
}

ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "detcam.adapters", _BUILTIN)
"""Adapter classes by family, spaces written as ``-``.

`adapt` asks registered adapters first, the latest before the others, then the built-in ones in this order. The last of
these, the classifier, accepts any module.
"""


@overload
def register_adapter(adapter_or_model: A) -> A: ...


@overload
def register_adapter(
    adapter_or_model: type[nn.Module],
    *,
    task: Literal["detection", "segmentation"] = "detection",
    name: str | None = None,
    **options: Any,
) -> Callable[[F], F]: ...


def register_adapter(
    adapter_or_model: type,
    *,
    task: Literal["detection", "segmentation"] = "detection",
    name: str | None = None,
    **options: Any,
) -> Any:
    """Register an adapter, so that `adapt`, `explain`, `audit`, `benchmark` and the command line use it.

    There are two forms:

    * ``@register_adapter`` on a subclass of `Adapter` registers the class under its `family`;
    * ``@register_adapter(MyModel)`` on a decode function registers an adapter for instances of the model class
      `MyModel`. The function is the `decode` argument of `detcam.adapters.detector` or, with ``task="segmentation"``,
      of `detcam.adapters.segmenter`. The function itself stays as it is; its attribute ``adapter`` is the class.

    An installed package registers an adapter class without an import, by an entry point in the group
    ``detcam.adapters``. Registered adapters take precedence over the built-in ones.

    Args:
        adapter_or_model: an adapter class, or the model class whose output the decorated function decodes.
        task: what the decode function returns: boxes and scores of a detector, or logits of a segmenter.
        name: family of the adapter made from a decode function; None takes the function's name.
        **options: defaults of the adapter's arguments (see `detector` and `segmenter`), such as `names`.

    Returns:
        The class, or a decorator that returns the decode function.

    Raises:
        TypeError: neither an adapter nor a model class, or an unknown option.
        ValueError: another adapter has this name.

    Example:
        >>> import detcam, torch
        >>> from detcam.adapters import register_adapter
        >>> class MyDetector(torch.nn.Conv2d):
        ...     pass
        >>> @register_adapter(MyDetector, names=["boat"], image_size=64)
        ... def my_detector(output):
        ...     x, y, w, h, logit = output.flatten(2).unbind(1)
        ...     boxes = torch.stack([x - w, y - h, x + w, y + h], -1)
        ...     return boxes, logit.sigmoid()[..., None]
        >>> detcam.adapt(MyDetector(3, 5, 8, stride=8), target_layers="")
        MyDetectorAdapter(MyDetector, target_layers=['MyDetector'])
    """
    if isinstance(adapter_or_model, type) and issubclass(adapter_or_model, Adapter):
        if name is not None or options or task != "detection":
            raise TypeError("an adapter class takes no further arguments: its family is its name")
        ADAPTERS.register(adapter_or_model.family.replace(" ", "-"), adapter_or_model)
        return adapter_or_model
    if not isinstance(adapter_or_model, type):
        raise TypeError(
            "expected a subclass of Adapter, or the model class of a decode function: @register_adapter(MyModel); "
            f"got {adapter_or_model!r}"
        )

    def decorate(decode: F) -> F:
        adapter = _decode_adapter(adapter_or_model, decode, task, name or decode.__name__, options)
        register_adapter(adapter)
        decode.adapter = adapter  # type: ignore[attr-defined]
        return decode

    return decorate


def _decode_adapter(
    model_class: type, decode: Callable[..., Any], task: str, family: str, options: dict[str, Any]
) -> type[Adapter]:
    """Make the adapter class of a decode function."""
    from detcam.adapters.custom_detector import CustomDetectorAdapter
    from detcam.adapters.custom_segmenter import CustomSegmentationAdapter

    bases: dict[str, Any] = {"detection": CustomDetectorAdapter, "segmentation": CustomSegmentationAdapter}
    if task not in bases:
        raise ValueError(f"expected task as one of {', '.join(bases)}; got {task!r}")
    base = bases[task]
    check_options(base, options)

    def __init__(self: Any, model: nn.Module, **given: Any) -> None:
        base.__init__(self, model, decode, **{**options, **given})

    def supports(cls: type, model: Any) -> bool:
        return isinstance(model, model_class)

    return type(
        f"{model_class.__name__}Adapter",
        (base,),
        {
            "__module__": decode.__module__,
            "__qualname__": f"{decode.__qualname__}.adapter",  # so that instances can be pickled
            "__doc__": f"Explains `{model_class.__name__}` by the decode function `{decode.__name__}`.",
            "__init__": __init__,
            "family": family,
            "supports": classmethod(supports),
        },
    )


def adapt(
    model: object,
    *,
    target_layers: LayersLike = None,
    reshape_transform: ReshapeTransform | None = None,
    names: NamesLike | None = None,
    **options: Any,
) -> Adapter:
    """Return the adapter of a model. Its `repr` shows the adapter and the target layers.

    Args:
        model: a detector, segmentation network or classifier of a supported or registered family: a
            `torch.nn.Module`, or the wrapper object of its library. A module around one known network, such as a
            Lightning module, is explained as that network. The path of an ONNX file, which onnxruntime runs, or with
            ``kind="detection"`` a function from an image to boxes: these have no gradients. An adapter is returned as
            it is, or as a copy with other target layers where those are given.
        target_layers: modules or dotted names; None takes the family's default.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.
        names: class index to name, or names in class order; None takes the names that the model stores.
        **options: further arguments of the family's adapter, such as `image_size`.

    Returns:
        The adapter, ready for the methods, metrics and audits of the package.

    Raises:
        TypeError: not a module, a scripted one, an output that is not understood, or an option that the adapter does
            not have. Methods that need a gradient raise it for a quantized model.
        ValueError: a target layer is not in the model.

    Example:
        >>> import detcam
        >>> from torchvision.models import resnet18
        >>> detcam.adapt(resnet18().eval(), image_size=64)
        ClassificationAdapter(ResNet, target_layers=['layer4'])
    """
    if isinstance(model, Adapter):
        check_options(type(model), options)
        given = [*options, *(["names"] if names is not None else [])]
        if given:
            raise TypeError(
                f"the model is an adapter already; pass {', '.join(given)} where it is made: adapt(model, ...)"
            )
        return model.with_layers(target_layers, reshape_transform)
    explained = _explained(unwrap(model))
    for adapter in _candidates():
        if adapter.supports(explained.network):
            common: dict[str, Any] = {
                "target_layers": target_layers,
                "reshape_transform": reshape_transform,
                "names": names,
            }
            shared = {name: value for name, value in common.items() if value is not None}
            return _made(adapter.variant(options), model, explained, shared, options)
    plain = explained.network
    raise TypeError(
        f"expected a torch.nn.Module (detector, segmenter, classifier) or an adapter; got {type(plain).__name__}"
        f"{_remedy(plain)}"
    )


def _explained(plain: Any) -> Wrapped:
    """The known network inside a module that passes on its output, else the model itself, under no name."""
    if isinstance(plain, nn.Module) and not _is_special(plain) and not is_known_classifier(plain):
        inner = find_wrapped(plain, _is_special)
        if inner is not None:
            logger.info("%s passes on the output of %s, which is explained", type(plain).__name__, inner.name)
            return replace(inner, network=unwrap(inner.network))
    return Wrapped(plain, "")


def _made(
    adapter: type[Adapter], model: object, explained: Wrapped, shared: dict[str, Any], options: dict[str, Any]
) -> Adapter:
    """Make an adapter of the explained network in a model, from the arguments of every adapter and its own."""
    check_options(adapter, options)
    own, normalization = dict(options), explained.normalization
    if normalization is not None:
        _check_takes_normalization(adapter, model, explained.name)
        whole = normalization.after(options.get("mean"), options.get("std"))
        own |= {"mean": whole.mean, "std": whole.std}
    if "target_layers" in shared:
        shared = {**shared, "target_layers": without_prefix(shared["target_layers"], explained.name)}
    made = adapter(explained.network, **shared, **own)
    made.layer_prefix, made.wrapper_normalization = explained.name, normalization
    if "output" not in options and isinstance(model, nn.Module):
        warn_of_independent_classes(model, made)
    if "bgr" not in options and is_wrapper(explained.network):
        made.reader = replace(made.reader, bgr=None)  # such an object takes arrays as BGR
    return made


def _check_takes_normalization(adapter: type[Adapter], wrapper: object, name: str) -> None:
    if not {"mean", "std"} <= set(option_names(adapter)):
        raise TypeError(
            f"{type(wrapper).__name__} normalizes the image before model.{name}, and the {adapter.family} adapter "
            f"takes no mean= and std=. Pass the inner network, model.{name}, if it takes images as they are, or the "
            "whole module with detcam.adapters.detector(model, decode=...)"
        )


def _remedy(model: Any) -> str:
    """What to pass instead of something that is no model."""
    if type(model).__module__ == "fastai.learner":
        return " whose network has no convolution of images"
    if isinstance(getattr(model, "model", None), nn.Module):
        return "; pass its attribute .model"
    if isinstance(model, (str, PathLike)):
        return f" {str(model)!r}; load it first: detcam.models.load_model(name_or_file, weights=...)"
    if isinstance(model, Mapping) and model and all(isinstance(value, Tensor) for value in model.values()):
        return ", the weights of a model; load them into it first: model.load_state_dict(weights)"
    return ""


def _is_special(module: object) -> bool:
    """Whether an adapter other than that of any classifier explains a module."""
    return any(adapter.supports(module) for adapter in _candidates() if adapter is not ADAPTERS["classification"])


def _candidates() -> Iterator[type[Adapter]]:
    """Registered adapters, the latest first, then the built-in ones."""
    registered = [name for name in ADAPTERS if name not in _BUILTIN]
    for name in [*reversed(registered), *_BUILTIN]:
        adapter = ADAPTERS[name]
        adapter = getattr(adapter, "adapter", adapter)  # an entry point may name a decode function
        if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
            raise TypeError(f"expected the registered adapter {name!r} to be a subclass of Adapter; got {adapter!r}")
        yield adapter
