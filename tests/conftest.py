"""What all tests share: reference data beside the repository, quiet optional packages, few threads."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("YOLO_OFFLINE", "True")
os.environ.setdefault("YOLO_AUTOINSTALL", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch

gc.disable()  # until all test modules are imported: what they allocate stays, and each collection takes seconds

HAS_GPU = torch.cuda.is_available() or torch.backends.mps.is_available()
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave modules and collected tests out of every garbage collection; what tests allocate is collected."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not survive a power cut. Descriptors are still checked: a closed one is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True)
def _few_threads_and_a_seed() -> Iterator[None]:
    """Tests run side by side, so each takes one thread; unseeded weights would make failures unrepeatable."""
    torch.set_num_threads(1)
    if HAS_GPU:
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # torch.manual_seed also records its call stack, for GPUs
    yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with reference photographs and models; tests skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip("the reference data folder (../shared/data) is not here")
    return DATA


@pytest.fixture(scope="session")
def photos(data: Path) -> Path:
    """Real photographs."""
    return data / "photos"


@pytest.fixture(scope="session")
def reference(data: Path) -> ModuleType:
    """The module that builds the reference models: bccd_fasterrcnn, bccd_yolo, bccd_unet, efficientnet_lite0."""
    spec = importlib.util.spec_from_file_location("reference_models", data / "models" / "build.py")
    if spec is None or spec.loader is None:
        pytest.skip("the reference models cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("bccd_fasterrcnn", "bccd_yolo", "bccd_unet", "efficientnet_lite0"):
        setattr(module, name, skip_without_library(getattr(module, name)))
    return module


def skip_without_library(build: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that builds a model skip the test where the model's library is not installed."""

    @functools.wraps(build)
    def skipping(*args: Any, **options: Any) -> Any:
        try:
            return build(*args, **options)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")

    return skipping


@pytest.fixture
def registries_as_they_were() -> Iterator[None]:
    """Removes what a test registers."""
    from detcam.adapters import ADAPTERS
    from detcam.methods import METHODS
    from detcam.metrics import METRICS
    from detcam.targets.registry import TARGETS

    before = [(registry, set(registry)) for registry in (ADAPTERS, METHODS, METRICS, TARGETS)]
    yield
    for registry, names in before:
        for name in set(registry) - names:
            registry.unregister(name)
