"""Builders of models by name: torchvision, timm, segmentation-models-pytorch, ultralytics and transformers."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from detcam.models.files import RANDOM


@dataclass(frozen=True)
class BuiltModel:
    """A model with the information of its library.

    Attributes:
        model: the module, or a Learner of fastai.
        options: arguments of its adapter: class names, input size, normalization.
        classes: number of classes, or None if it is unknown.
    """

    model: Any
    options: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers, detectors and segmentation networks."""
    models = torchvision.models
    return [
        name for part in (models.detection, models.segmentation, models) for name in models.list_models(module=part)
    ]


def build_torchvision(
    name: str, num_classes: int | None, pretrained: bool, *, weights: object = None, keys: frozenset[str] = frozenset()
) -> BuiltModel:
    """Build a torchvision model.

    Args:
        name: name of the model in torchvision.
        num_classes: number of classes; None takes that of the published weights.
        pretrained: whether to load published weights.
        weights: a member of the model's weights enum; None takes the default one.
        keys: names of the weights that will be loaded afterwards, which determine optional parts of the model.
    """
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
        return BuiltModel(model, {}, classes)
    preset = published.transforms()
    return BuiltModel(model, {"image_size": preset.crop_size[0], "mean": preset.mean, "std": preset.std}, classes)


def build_timm(name: str, num_classes: int | None, pretrained: bool) -> BuiltModel:
    """Build a timm classifier, whose adapter reads the configuration that timm stores in it."""
    from detcam.models import timm

    model = timm.create_timm_model(name, num_classes=num_classes, pretrained=pretrained)
    return BuiltModel(model, {}, getattr(model, "num_classes", None))


def build_smp(spec: str, num_classes: int | None, pretrained: bool) -> BuiltModel:
    """Build a segmentation network with random weights from its description."""
    from detcam.adapters import smp

    if pretrained:
        raise ValueError(
            f"smp:{spec}: there are no published weights of whole segmentation networks; pass your own "
            "with --weights FILE"
        )
    return BuiltModel(smp.create_smp_model(spec, num_classes=num_classes), {}, num_classes)


def build_ultralytics(name: str, num_classes: int | None, pretrained: bool, *, trust: bool = False) -> BuiltModel:
    """Build an ultralytics network from an architecture or published weights, or with `trust` from any weights file."""
    from detcam.adapters.ultralytics.detector import create_ultralytics_model

    if pretrained and not name.endswith(".pt"):
        raise ValueError(f"{name} is an architecture without weights; pass --weights FILE, or --weights {RANDOM}")
    if pretrained and not trust:
        name = str(_download_of(name))
    return BuiltModel(create_ultralytics_model(name, num_classes=num_classes, pretrained=pretrained))


def build_transformers(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    *,
    trust: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> BuiltModel:
    """Build a model of transformers from a folder or by its name on the hub; its processor is an option of its adapter.

    Args:
        name: the folder or the name.
        num_classes: number of classes; None takes that of the configuration.
        pretrained: whether to load the weights beside the configuration, or `state`.
        trust: whether weights in pickle files are read as well.
        state: weights that replace those beside the configuration.
    """
    from detcam.models import transformers

    model, processor = transformers.create_transformers_model(
        name, num_classes=num_classes, pretrained=pretrained, trust=trust, state=state
    )
    classes = getattr(model.config, "num_labels", None)
    return BuiltModel(model, {} if processor is None else {"processor": processor}, classes)


def _download_of(name: str) -> Path:
    """The path of published weights of ultralytics: in torchvision's download folder, not in the current folder.

    Raises:
        ValueError: `name` is a path, or the file exists but is not one that ultralytics publishes; reading a file runs
            code from it.
    """
    from detcam.adapters.ultralytics.detector import is_published, near_published

    if Path(name).name != name:
        raise ValueError(f"no model file at {name}; check the path")
    path = Path(torch.hub.get_dir(), "checkpoints", name).absolute()
    if not path.is_file() and (near := near_published(name)):
        raise ValueError(f"there is no file {name}, and ultralytics publishes none of that name{near}")
    if path.is_file() and not is_published(name):
        raise ValueError(
            f"expected published weights; ultralytics publishes no {name}, and reading {path} runs code from it. If "
            "you trust its source, pass its path as --model with --trust-checkpoint (trust_checkpoint=True in Python)"
        )
    return path


BUILDERS: dict[str, Callable[..., BuiltModel]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "smp": build_smp,
    "ultralytics": build_ultralytics,
    "hf": build_transformers,
}


def official_weights(name: str, path: Path) -> Any:
    """Return the member of torchvision's weights enum whose file has this name; None for other files."""
    return next(
        (entry for entry in torchvision.models.get_model_weights(name) if entry.url.rsplit("/", 1)[-1] == path.name),
        None,
    )


@contextmanager
def as_downloaded(path: Path) -> Iterator[None]:
    """Present a file to torch.hub as a download, so that torchvision builds the model as it was published."""
    before = torch.hub._hub_dir
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        link = Path(folder) / "checkpoints" / path.name
        try:
            link.symlink_to(path.absolute())
        except OSError:  # on Windows, links need administrator rights
            shutil.copyfile(path, link)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub._hub_dir = before


def download_help(library: str, name: str, error: OSError) -> str:
    """Return the message for weights that cannot be downloaded, with instructions for offline use."""
    words = " ".join(str(getattr(error, "reason", error)).split())
    reason = words.split(". ")[0].rstrip(".")
    begin = f"the published weights of {name} are not in the cache and cannot be downloaded ({reason[:160]})."
    random = f"or --weights {RANDOM} for random ones"
    if library == "torchvision":
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return (
            f"{begin} On a connected machine download {url}, then pass --weights {url.rsplit('/', 1)[-1]}, or put it "
            f"in hub/checkpoints below TORCH_HOME; {random}"
        )
    if library == "timm":
        from detcam.models import timm

        if ":" in name:  # hf-hub:OWNER/NAME, whose architecture is on the hub as well
            return f"{begin} On a connected machine run 'hf download {name.rpartition(':')[2]}'"
        file = timm.published_file(timm.create_timm_model(name))
        return f"{begin} On a connected machine download {file}, then pass --weights FILE; {random}"
    if library == "hf":
        return (
            f"{begin} On a connected machine run 'hf download {name}', or copy the repository's files into a folder "
            f"and pass hf:FOLDER; {random}"
        )
    return (
        f"{begin} Download {name} from ultralytics' releases on a connected machine, then pass its path as --model "
        f"with --trust-checkpoint, or put it in hub/checkpoints below TORCH_HOME; {random}"
    )
