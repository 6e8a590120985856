"""Loading of models by name (torchvision, timm, segmentation-models-pytorch, ultralytics, transformers) or files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detcam.adapters import Adapter, adapt
from detcam.adapters.fastai import is_learner
from detcam.detections import NamesLike
from detcam.geometry import checked_size
from detcam.models.builders import (
    BUILDERS,
    BuiltModel,
    as_downloaded,
    build_torchvision,
    build_transformers,
    build_ultralytics,
    download_help,
    official_weights,
    torchvision_names,
)
from detcam.models.checkpoints import (
    StateDict,
    foreign_globals,
    infer_num_classes,
    load_weights,
    read_checkpoint,
    state_dict_of,
)
from detcam.models.files import LIBRARIES, RANDOM, SUFFIXES, ULTRALYTICS_NAME, with_home_after_library
from detcam.models.hub import reachable_hub
from detcam.utils.device import pick_device
from detcam.utils.files import with_home


def load_model(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "auto",
    trust_checkpoint: bool = False,
    names: NamesLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    **adapter_options: Any,
) -> Adapter:
    """Load a model by name or from a file and return its adapter; ``.model`` is the module.

    Args:
        name: a torchvision detector, segmentation network or classifier (``fasterrcnn_resnet50_fpn``); an ultralytics
            model (``yolo11n.pt``, ``yolo11n.yaml``); a timm classifier (``timm:tf_efficientnet_lite0``, without prefix
            if torchvision has no model of that name); ``smp:Unet?encoder=resnet34&classes=4``; a model of transformers
            as ``hf:FOLDER`` or ``hf:NAME`` on the Hugging Face hub; a detector in an ONNX file; or a file with a
            whole model, or the export of a fastai Learner (``.pkl``).
        weights: a file with the model's state dict (``.pth``, ``.safetensors``; half precision is converted to
            float32); None takes the published weights, ``"none"`` random weights.
        num_classes: number of classes; None infers it from the weights.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``, which is CUDA if available, else the CPU. An ONNX
            file runs on the CPU.
        trust_checkpoint: whether code in a file may run, which a whole model requires. Of transformers' models, weights
            in pickle files are then read as well; code beside the weights never runs.
        names: class index to name, or names in class order. Where class 0 of a detector is the background, the list may
            omit it.
        image_size: side of the network's input, or height and width (torchvision's detectors: the shorter side alone);
            None takes the model's.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `target_layers`.

    Returns:
        The adapter, with the model on the device and in evaluation mode.

    Raises:
        ValueError: the name is unknown, or a file is missing, damaged or does not match the model.
        ImportError: the model needs an optional package.
        OSError: the published weights are not in the cache and cannot be downloaded.

    Example:
        >>> from detcam.models.load import load_model
        >>> load_model("resnet18", weights="none", image_size=64)
        ClassificationAdapter(ResNet, target_layers=['layer4'])
    """
    name = with_home_after_library(str(name))
    target = pick_device(device)
    if Path(name).suffix.lower() == ".onnx":
        if weights is not None or num_classes is not None:
            raise ValueError(f"{name} holds its weights and classes; leave out weights= and num_classes=")
        if str(device) != "auto" and target.type != "cpu":
            raise ValueError(f"onnxruntime runs {name} on the CPU; leave out device= (--device)")
        return _onnx(name, names=names, image_size=image_size, **adapter_options)
    if names is not None and not isinstance(names, Mapping):
        names = list(names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = _load(name, weights, num_classes, trust_checkpoint)
    options: dict[str, Any] = {**built.options, **adapter_options}
    if names is not None:
        options["names"] = _names_for(names, built)
    if image_size is not None and not _resize_input(built.model, image_size):
        options["image_size"] = image_size
    network: nn.Module = built.model.model if is_learner(built.model) else built.model
    network.to(target).eval()
    return adapt(built.model, **options)


def _onnx(name: str, **options: Any) -> Adapter:
    return adapt(name, **{option: value for option, value in options.items() if value is not None})


def _load(name: str, weights: str | Path | None, num_classes: int | None, trust: bool) -> BuiltModel:
    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        if weights is not None:
            raise ValueError(f"{name} is a file already; pass weights= with the name of a model")
        return _whole_model(Path(name), trust)
    library, rest = _library(name)
    if library == "ultralytics":
        # A published .pt file contains weights; weights of another file need the architecture only.
        stem = rest if Path(rest).suffix else f"{rest}.pt"
        rest = stem if weights is None else str(Path(stem).with_suffix(".yaml"))
        if weights is None and Path(rest).is_file() and Path(rest).suffix in SUFFIXES:
            return _whole_model(Path(rest), trust)  # a file of the user
    random = str(weights) == RANDOM
    if weights is None or random:
        extra = {"trust": trust} if library == "hf" else {}
        return _named(library, rest, num_classes, pretrained=not random, **extra)
    path = with_home(weights)
    if library == "ultralytics" and path.is_file() and path.suffix != ".safetensors" and _is_ultralytics(path):
        return _whole_model(path, trust)  # the file contains architecture and class names
    state = state_dict_of(read_checkpoint(path, trust=trust), path)
    if library == "hf":  # transformers renames weights of earlier versions
        return build_transformers(rest, num_classes, True, state=state)
    return _from_state_dict(library, rest, path, state, num_classes)


def _library(name: str) -> tuple[str, str]:
    """The library of a model name, and the name in that library."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in LIBRARIES:
        return prefix, rest
    if name in torchvision_names():
        return "torchvision", name
    if (Path(name) / "config.json").is_file():
        raise ValueError(f"no model file at {name}, a folder; pass hf:{name} for a folder of transformers")
    if ULTRALYTICS_NAME.fullmatch(name):
        return "ultralytics", name
    if Path(name).suffix in SUFFIXES or "/" in name or "\\" in name:
        raise ValueError(f"no model file at {name}; check the path")
    from detcam.models import timm

    try:
        timm_names = timm.available()
    except ImportError:
        timm_names = []
    if name.partition(".")[0] in timm_names:
        return "timm", name
    raise ValueError(unknown_model(name, timm_names))


def unknown_model(name: str, timm_names: Sequence[str]) -> str:
    """Return the message for an unknown model name, with the closest names."""
    near = []
    for known in (torchvision_names(), timm_names):
        lowered = name.lower()
        completions = [other for other in known if other.startswith(lowered)]
        near += (completions or difflib.get_close_matches(lowered, known, n=3, cutoff=0.6))[:3]
    meant = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "e.g. fasterrcnn_resnet50_fpn, yolo11n.pt."
    also = "" if timm_names else " timm's models need pip install 'detcam[timm]'."
    return (
        f"no model is called {name!r}; {meant}{also} Others: timm:NAME, smp:Unet?encoder=resnet34&classes=2, "
        "hf:FOLDER or hf:NAME of transformers, or the path of a whole model"
    )


def _named(library: str, name: str, num_classes: int | None, *, pretrained: bool, **extra: bool) -> BuiltModel:
    """A model with published or random weights."""
    if pretrained and num_classes is not None:
        raise ValueError("num_classes needs weights=; the published weights have a fixed number of classes")
    on_hub = pretrained and library in ("timm", "hf") and not Path(name).exists()
    try:
        with reachable_hub() if on_hub else nullcontext():
            return BUILDERS[library](name, num_classes, pretrained, **extra)
    except OSError as error:
        if not pretrained:
            raise
        raise OSError(download_help(library, name, error)) from error


def _from_state_dict(library: str, name: str, path: Path, state: StateDict, num_classes: int | None) -> BuiltModel:
    official = official_weights(name, path) if library == "torchvision" else None
    if official is not None and num_classes is None:
        with as_downloaded(path):
            return build_torchvision(name, None, True, weights=official)
    extra = {"keys": frozenset(state)} if library == "torchvision" else {}

    def build(classes: int | None) -> BuiltModel:
        return BUILDERS[library](name, classes, False, **extra)

    if num_classes is None and "classes=" not in name:
        num_classes = infer_num_classes(state, lambda classes: _only_shapes(library, lambda: build(classes)).model)
    built = build(num_classes)
    load_weights(built.model, state, path, name)
    return built


def _only_shapes(library: str, build: Callable[[], BuiltModel]) -> BuiltModel:
    """Build a model without memory for its weights, if its library supports this."""
    if library not in ("torchvision", "timm"):
        return build()
    if library == "timm":  # a library imported on the meta device would keep meta tensors
        from detcam.models import timm

        timm.available()
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):  # the constructor computes with its weights
        return build()


def _whole_model(path: Path, trust: bool) -> BuiltModel:
    """Load a file with a whole model, of ultralytics or any other."""
    content: Any = None
    if path.suffix != ".safetensors":
        if trust and _is_ultralytics(path):
            return build_ultralytics(str(path), None, True, trust=True)
        content = read_checkpoint(path, trust=trust)
    model = content.get("model") if isinstance(content, Mapping) else content
    if is_learner(model):
        return BuiltModel(model)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{path} holds weights only; name the model they belong to with --model and pass --weights {path}"
        )
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return BuiltModel(model.float() if half else model)


def _is_ultralytics(path: Path) -> bool:
    return any(name.startswith("ultralytics.") for name in foreign_globals(path))


def _resize_input(model: nn.Module, image_size: int | tuple[int, int]) -> bool:
    """Set the input size that a torchvision detector stores; return False for other models."""
    transform: Any = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        return False
    side = checked_size(image_size)
    if not isinstance(side, int):
        raise ValueError(f"expected the shorter side of this detector's input, one number; got {image_size}")
    transform.max_size = round(transform.max_size * side / transform.min_size[-1])
    transform.min_size = (side,)
    if transform.fixed_size is not None:
        transform.fixed_size = (side, side)
    return True


def _has_background(model: nn.Module) -> bool:
    """Whether class 0 is the background, as in torchvision's detectors and segmentation networks."""
    return type(model).__module__.startswith(("torchvision.models.detection", "torchvision.models.segmentation"))


def _names_for(names: NamesLike, built: BuiltModel) -> NamesLike:
    """Class names for the adapter; a list without the background starts at class 1."""
    if isinstance(names, Mapping) or built.classes in (None, len(names)):
        return names
    if built.classes == len(names) + 1 and _has_background(built.model):
        return dict(enumerate(names, 1))
    raise ValueError(f"expected names of {built.classes} classes; got {len(names)}: {', '.join(names[:5])}")
