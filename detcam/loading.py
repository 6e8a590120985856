"""Models by name or checkpoint: torchvision, timm, segmentation-models-pytorch, ultralytics, or a file."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detcam.adapters import Adapter, adapt
from detcam.checkpoints import (
    SUFFIXES,
    StateDict,
    foreign_globals,
    infer_num_classes,
    load_weights,
    read_checkpoint,
    state_dict_of,
)

RANDOM = "none"
"""Given as `weights`: leave the weights random, e.g. to look at a model's layers."""
ULTRALYTICS_NAME = re.compile(r"(yolo|rtdetr)[\w-]*(\.pt|\.yaml)?", re.IGNORECASE)
LIBRARIES = ("torchvision", "timm", "smp", "ultralytics")


@dataclass(frozen=True)
class Built:
    """A model, and what its library knows about it.

    Attributes:
        model: the module.
        options: arguments for its adapter: class names, input size, normalisation.
        classes: its number of classes, None where that was not asked.
    """

    model: nn.Module
    options: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None


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
    from detcam.adapters import timm

    try:
        others = timm.available()
    except ImportError:
        others = []
    if name.partition(".")[0] in others:
        return "timm", name
    raise ValueError(unknown_model(name, others))


def torchvision_names() -> list[str]:
    """All of torchvision's classifiers, detectors and segmentation networks."""
    models = torchvision.models
    return [
        name for part in (models.detection, models.segmentation, models) for name in models.list_models(module=part)
    ]


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
        raise OSError(_download_help(library, name, error)) from error


def _from_state_dict(library: str, name: str, path: Path, state: StateDict, num_classes: int | None) -> Built:
    official = _official_weights(name, path) if library == "torchvision" else None
    if official is not None and num_classes is None:
        with _as_downloaded(path):
            return _build_torchvision(name, None, True, weights=official)
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
        from detcam.adapters import timm

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
            return _build_ultralytics(str(path), None, True)
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


def _build_torchvision(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    *,
    weights: Any = None,
    keys: frozenset[str] = frozenset(),
) -> Built:
    """A torchvision model; `keys` are the names of weights that it is to take, which tell its optional parts."""
    builder = torchvision.models.get_model_builder(name)
    published = torchvision.models.get_model_weights(name).DEFAULT
    takes = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights": (weights or published) if pretrained else None}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None
    if num_classes is not None:
        options["num_classes"] = num_classes
    if "aux_loss" in takes and any(key.startswith("aux_classifier.") for key in keys):
        options["aux_loss"] = True
    if name in ("googlenet", "inception_v3") and not pretrained:
        options.update(init_weights=False, aux_logits=any("aux" in key.lower() for key in keys))
    model = builder(**options)
    classes = num_classes or len(published.meta["categories"])
    if name not in torchvision.models.list_models(module=torchvision.models):  # its adapter knows the rest
        return Built(model, {}, classes)
    preset = published.transforms()
    return Built(model, {"image_size": preset.crop_size[0], "mean": preset.mean, "std": preset.std}, classes)


def _build_timm(name: str, num_classes: int | None, pretrained: bool) -> Built:
    from detcam.adapters import timm

    model = timm.build(name, num_classes=num_classes, pretrained=pretrained)
    return Built(model, {}, getattr(model, "num_classes", None))


def _build_smp(spec: str, num_classes: int | None, pretrained: bool) -> Built:
    from detcam.adapters import smp

    if pretrained:
        raise ValueError(
            f"smp:{spec}: there are no published weights of whole segmentation networks; pass your own "
            "with --weights FILE"
        )
    return Built(smp.build(spec, num_classes=num_classes), {}, num_classes)


def _build_ultralytics(name: str, num_classes: int | None, pretrained: bool) -> Built:
    from detcam.adapters import ultralytics

    if pretrained and not name.endswith(".pt"):
        raise ValueError(f"{name} is an architecture without weights; pass --weights FILE, or --weights {RANDOM}")
    if pretrained and not Path(name).is_file():  # beside torchvision's downloads, not in the current folder
        name = str(Path(torch.hub.get_dir(), "checkpoints", name))
    return Built(ultralytics.build(name, num_classes=num_classes, pretrained=pretrained))


BUILDERS: dict[str, Callable[..., Built]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "smp": _build_smp,
    "ultralytics": _build_ultralytics,
}


def _official_weights(name: str, path: Path) -> Any:
    """The entry in torchvision of a file of published weights, recognised by its name; None for any other file."""
    return next(
        (entry for entry in torchvision.models.get_model_weights(name) if entry.url.rsplit("/", 1)[-1] == path.name),
        None,
    )


@contextmanager
def _as_downloaded(path: Path) -> Iterator[None]:
    """Let torch.hub find a file among its downloads, so that torchvision builds the model just as it was published."""
    before = torch.hub._hub_dir
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        place = Path(folder) / "checkpoints" / path.name
        try:
            place.symlink_to(path.absolute())
        except OSError:  # Windows reserves links for administrators
            shutil.copyfile(path, place)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub._hub_dir = before


def _download_help(library: str, name: str, error: OSError) -> str:
    """One line: what could not be had, and how to do without the network."""
    reason = " ".join(str(getattr(error, "reason", error)).split())
    begin = f"the published weights of {name} are not here and cannot be downloaded ({reason[:160]})."
    random = f"or --weights {RANDOM} for random ones"
    if library == "torchvision":
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return (
            f"{begin} On a connected machine download {url}, then pass --weights {url.rsplit('/', 1)[-1]}, or put it "
            f"in hub/checkpoints below TORCH_HOME; {random}"
        )
    if library == "timm":
        from detcam.adapters import timm

        file = timm.published_file(timm.build(name))
        return f"{begin} On a connected machine download {file}, then pass --weights FILE; {random}"
    return (
        f"{begin} Download {name} from ultralytics' releases on a connected machine, then pass its path as --model "
        f"with --trust-checkpoint, or put it in hub/checkpoints below TORCH_HOME; {random}"
    )


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
