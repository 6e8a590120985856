"""Models by name or checkpoint: torchvision, timm, segmentation-models-pytorch, ultralytics, or a file."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detcam.adapters import Adapter, adapt
from detcam.models.builders import (
    BUILDERS,
    RANDOM,
    Built,
    as_downloaded,
    build_torchvision,
    build_ultralytics,
    download_help,
    official_weights,
    torchvision_names,
)
from detcam.models.checkpoints import (
    SUFFIXES,
    StateDict,
    foreign_globals,
    infer_num_classes,
    load_weights,
    read_checkpoint,
    state_dict_of,
)

ULTRALYTICS_NAME = re.compile(r"(yolo|rtdetr)[\w-]*(\.pt|\.yaml)?", re.IGNORECASE)
LIBRARIES = ("torchvision", "timm", "smp", "ultralytics")


def load_model(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    trust_checkpoint: bool = False,
    names: Mapping[int, str] | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    **adapter_options: Any,
) -> Adapter:
    """Load a model by name or file and put it in its adapter, ready to be explained; ``.model`` is the module.

    Args:
        name: a torchvision detector, segmentation network or classifier (``fasterrcnn_resnet50_fpn``); an ultralytics
            one (``yolo11n.pt``, ``yolo11n.yaml``); a timm classifier (``timm:tf_efficientnet_lite0``, or its bare name
            where torchvision has none of that name); ``smp:Unet?encoder=resnet34&classes=4``; or a file that holds a
            whole model.
        weights: None takes the published weights; a file holds the model's state dict (``.pth``, ``.safetensors``;
            half precision is widened); ``"none"`` leaves random weights.
        num_classes: None takes it from the weights.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes CUDA where there is any, else the CPU.
        trust_checkpoint: whether code from a file may run, which a whole model needs.
        names: class index to name, or a list in class order; where a detector's class 0 is the background, the list
            may leave it out.
        image_size: side of the network's input, or height and width (torchvision's detectors: the shorter side alone);
            None takes the model's.
        **adapter_options: further arguments of `detcam.adapters.adapt`, such as `target_layers`.

    Raises:
        ValueError: unknown name, or a file that is missing, damaged or does not fit.
        ImportError: the model needs an optional package.
        OSError: the published weights are not here and cannot be downloaded.
    """
    name = str(name)
    place = pick_device(device)
    if names is not None and not isinstance(names, Mapping):
        names = list(names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = _load(name, weights, num_classes, trust_checkpoint)
    options: dict[str, Any] = {**built.options, **adapter_options}
    if names is not None:
        options["names"] = _fitting_names(names, built)
    if image_size is not None and not _resize_input(built.model, image_size):
        options["image_size"] = image_size
    return adapt(built.model.to(place).eval(), **options)


def pick_device(device: str | torch.device) -> torch.device:
    """A device that is there; ``auto`` takes CUDA where there is any, else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected a device such as cpu, cuda, cuda:1, mps or auto; got {str(device)!r}") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        place.type, 0
    )
    if (place.index or 0) >= there:
        raise ValueError(f"there is no device {place} here (PyTorch {torch.__version__}); use device cpu or auto")
    return place


def read_names(text: str) -> dict[int, str] | list[str]:
    """Class names as the command line takes them: ``cat,dog``, or a file.

    Args:
        text: names with commas between them, or a file: JSON (a list, or an object from index to name), or one name a
            line.

    Raises:
        ValueError: the file is not as expected.
    """
    path = Path(text)
    if not path.is_file():
        if "," not in text and path.suffix in (".txt", ".json", ".names"):
            raise ValueError(f"no file of class names at {path}; check the path")
        return [name.strip() for name in text.split(",")]
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in content.splitlines() if line.strip()]
    try:
        names = json.loads(content)
        return (
            {int(key): str(value) for key, value in names.items()} if isinstance(names, dict) else list(map(str, names))
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a JSON list of names, or an object from index to name ({error})") from error


def _load(name: str, weights: str | Path | None, num_classes: int | None, trust: bool) -> Built:
    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        if weights is not None:
            raise ValueError(f"{name} is a file already; give weights= to a model's name")
        return _whole_model(Path(name), trust)
    library, rest = _library(name)
    if library == "ultralytics":
        # A published .pt has its weights in it; weights of another file need the bare architecture.
        stem = rest if Path(rest).suffix else f"{rest}.pt"
        rest = stem if weights is None else str(Path(stem).with_suffix(".yaml"))
        if weights is None and Path(rest).is_file() and Path(rest).suffix in SUFFIXES:
            return _whole_model(Path(rest), trust)  # the user's own, whatever it is called
    random = str(weights) == RANDOM
    if weights is None or random:
        return _named(library, rest, num_classes, pretrained=not random)
    path = Path(weights)
    if library == "ultralytics" and path.is_file() and path.suffix != ".safetensors" and _is_ultralytics(path):
        return _whole_model(path, trust)  # it has its own architecture and class names
    state = state_dict_of(read_checkpoint(path, trust=trust), path)
    return _from_state_dict(library, rest, path, state, num_classes)


def _library(name: str) -> tuple[str, str]:
    """Which library has a model of this name, and its name there."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in LIBRARIES:
        return prefix, rest
    if name in torchvision_names():
        return "torchvision", name
    if ULTRALYTICS_NAME.fullmatch(name):
        return "ultralytics", name
    if Path(name).suffix in SUFFIXES or "/" in name or "\\" in name:
        raise ValueError(f"no model file at {name}; check the path")
    from detcam.models import timm

    try:
        others = timm.available()
    except ImportError:
        others = []
    if name.partition(".")[0] in others:
        return "timm", name
    raise ValueError(unknown_model(name, others))


def unknown_model(name: str, others: Sequence[str]) -> str:
    """The message for a name that no library knows, with the nearest names."""
    near = []
    for known in (torchvision_names(), others):
        wanted = name.lower()
        longer = [other for other in known if other.startswith(wanted)]
        near += (longer or difflib.get_close_matches(wanted, known, n=3, cutoff=0.6))[:3]
    meant = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "e.g. fasterrcnn_resnet50_fpn, yolo11n.pt."
    also = "" if others else " timm's models need pip install 'detcam[timm]'."
    return (
        f"no model is called {name!r}; {meant}{also} Others: timm:NAME, smp:Unet?encoder=resnet34&classes=2, or the "
        "path of a whole model"
    )


def _named(library: str, name: str, num_classes: int | None, *, pretrained: bool) -> Built:
    """A model with published or random weights."""
    if pretrained and num_classes is not None:
        raise ValueError("num_classes goes with weights of your own; the published weights have their own number")
    try:
        return BUILDERS[library](name, num_classes, pretrained)
    except OSError as error:
        if not pretrained:
            raise
        raise OSError(download_help(library, name, error)) from error


def _from_state_dict(library: str, name: str, path: Path, state: StateDict, num_classes: int | None) -> Built:
    official = official_weights(name, path) if library == "torchvision" else None
    if official is not None and num_classes is None:
        with as_downloaded(path):
            return build_torchvision(name, None, True, weights=official)
    extra = {"keys": frozenset(state)} if library == "torchvision" else {}

    def build(classes: int | None) -> Built:
        return BUILDERS[library](name, classes, False, **extra)

    if num_classes is None and "classes=" not in name:
        num_classes = infer_num_classes(state, lambda classes: _only_shapes(library, lambda: build(classes)).model)
    built = build(num_classes)
    load_weights(built.model, state, path, name)
    return built


def _only_shapes(library: str, build: Callable[[], Built]) -> Built:
    """Build a model without memory for its weights, where its library can."""
    if library not in ("torchvision", "timm"):
        return build()
    if library == "timm":  # a library first imported below would keep such tensors for good
        from detcam.models import timm

        timm.available()
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):  # the constructor computes with its weights
        return build()


def _whole_model(path: Path, trust: bool) -> Built:
    """A file that holds a whole model, ultralytics' or any other."""
    content: Any = None
    if path.suffix != ".safetensors":
        if trust and _is_ultralytics(path):
            return build_ultralytics(str(path), None, True, trust=True)
        content = read_checkpoint(path, trust=trust)
    model = content.get("model") if isinstance(content, Mapping) else content
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{path} holds weights only; name the model they belong to with --model and pass --weights {path}"
        )
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return Built(model.float() if half else model)


def _is_ultralytics(path: Path) -> bool:
    return any(name.startswith("ultralytics.") for name in foreign_globals(path))


def _resize_input(model: nn.Module, image_size: int | tuple[int, int]) -> bool:
    """Set the input size of a torchvision detector, which keeps it inside; False for any other model."""
    transform: Any = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        return False
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"expected the shorter side of this detector's input, one number; got {image_size}")
    transform.max_size = round(transform.max_size * image_size / transform.min_size[-1])
    transform.min_size = (image_size,)
    if transform.fixed_size is not None:
        transform.fixed_size = (image_size, image_size)
    return True


def _has_background(model: nn.Module) -> bool:
    """Whether class 0 is the background, as in torchvision's detectors and segmentation networks."""
    return type(model).__module__.startswith(("torchvision.models.detection", "torchvision.models.segmentation"))


def _fitting_names(names: Mapping[int, str] | Sequence[str], built: Built) -> Mapping[int, str] | Sequence[str]:
    """Names as the adapter takes them; a list without the background's name begins at class 1."""
    if isinstance(names, Mapping) or built.classes in (None, len(names)):
        return names
    if built.classes == len(names) + 1 and _has_background(built.model):
        return dict(enumerate(names, 1))
    raise ValueError(f"expected names of {built.classes} classes; got {len(names)}: {', '.join(names[:5])}")
