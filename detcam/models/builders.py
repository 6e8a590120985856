"""Models by name from the libraries that publish them: torchvision, timm, segmentation-models-pytorch, ultralytics."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

RANDOM = "none"
"""Given as `weights`: leave the weights random, e.g. to look at a model's layers."""


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


def torchvision_names() -> list[str]:
    """All of torchvision's classifiers, detectors and segmentation networks."""
    models = torchvision.models
    return [
        name for part in (models.detection, models.segmentation, models) for name in models.list_models(module=part)
    ]


def build_torchvision(
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


def build_timm(name: str, num_classes: int | None, pretrained: bool) -> Built:
    """A timm classifier; its adapter knows what timm says about it."""
    from detcam.models import timm

    model = timm.build(name, num_classes=num_classes, pretrained=pretrained)
    return Built(model, {}, getattr(model, "num_classes", None))


def build_smp(spec: str, num_classes: int | None, pretrained: bool) -> Built:
    """A segmentation network with random weights, from its description."""
    from detcam.adapters import smp

    if pretrained:
        raise ValueError(
            f"smp:{spec}: there are no published weights of whole segmentation networks; pass your own "
            "with --weights FILE"
        )
    return Built(smp.build(spec, num_classes=num_classes), {}, num_classes)


def build_ultralytics(name: str, num_classes: int | None, pretrained: bool, *, trust: bool = False) -> Built:
    """An ultralytics network, from an architecture, from published weights, or with `trust` from a file of weights."""
    from detcam.adapters import ultralytics

    if pretrained and not name.endswith(".pt"):
        raise ValueError(f"{name} is an architecture without weights; pass --weights FILE, or --weights {RANDOM}")
    if pretrained and not trust:
        name = str(_download_of(name))
    return Built(ultralytics.build(name, num_classes=num_classes, pretrained=pretrained))


def _download_of(name: str) -> Path:
    """Where published weights of ultralytics are, or go: beside torchvision's downloads, not in the current folder.

    Raises:
        ValueError: no name but a path, or a file there that ultralytics does not publish: reading it runs its code.
    """
    from detcam.adapters import ultralytics

    if Path(name).name != name:
        raise ValueError(f"no model file at {name}; check the path")
    place = Path(torch.hub.get_dir(), "checkpoints", name).absolute()
    if place.is_file() and not ultralytics.is_published(name):
        raise ValueError(
            f"expected published weights; ultralytics publishes no {name}, and reading {place} runs code from it. If "
            "you trust its source, pass its path as --model with --trust-checkpoint (trust_checkpoint=True in Python)"
        )
    return place


BUILDERS: dict[str, Callable[..., Built]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "smp": build_smp,
    "ultralytics": build_ultralytics,
}


def official_weights(name: str, path: Path) -> Any:
    """The entry in torchvision of a file of published weights, recognised by its name; None for any other file."""
    return next(
        (entry for entry in torchvision.models.get_model_weights(name) if entry.url.rsplit("/", 1)[-1] == path.name),
        None,
    )


@contextmanager
def as_downloaded(path: Path) -> Iterator[None]:
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


def download_help(library: str, name: str, error: OSError) -> str:
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
        from detcam.models import timm

        file = timm.published_file(timm.build(name))
        return f"{begin} On a connected machine download {file}, then pass --weights FILE; {random}"
    return (
        f"{begin} Download {name} from ultralytics' releases on a connected machine, then pass its path as --model "
        f"with --trust-checkpoint, or put it in hub/checkpoints below TORCH_HOME; {random}"
    )
