"""``detcam doctor``: versions, devices and optional packages, and a self-test."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from rich.console import Console

from detcam.cli.options import CommonOptions
from detcam.utils.console import make_console, make_table, plural
from detcam.utils.optional import PACKAGES
from detcam.utils.version import __version__

HELP = """Show versions, devices and optional packages, and explain a small model as a self-test.

The exit code is 1 if a part does not work. Add the output to reports of problems."""

REQUIRED = ("torch", "torchvision", "numpy", "cv2", "PIL", "matplotlib", "scipy", "sklearn", "skimage", "pycocotools")
"""Modules that detcam always needs."""

MODULES = {"segmentation-models-pytorch": "segmentation_models_pytorch", "pillow-heif": "pillow_heif"}
"""Modules of packages whose names differ from them."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Options of ``detcam doctor``."""


def doctor_command(options: DoctorOptions) -> int:
    """Print what is installed and test it; return the exit code."""
    console = make_console()
    console.print(f"detcam {__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    problems = [*_check_required(console), *_check_extras(console), *_check_registries(console)]
    if not problems:
        console.print(f"devices: {', '.join(_devices())}")
        problems += _self_test(console, options.debug)
    for problem in problems:
        console.print(f"problem: {problem}")
    console.print(f"{plural(len(problems), 'problem')} found" if problems else "no problems found")
    return 1 if problems else 0


def _check_required(console: Console) -> Iterator[str]:
    table = make_table("package", "version")
    failures = []
    for module in REQUIRED:
        version, failure = _imported(module)
        table.add_row(module, version)
        failures += [failure] if failure else []
    console.print(table)
    yield from failures


def _check_extras(console: Console) -> Iterator[str]:
    table = make_table("extra", "package", "version")
    failures = []
    for extra, package in {**PACKAGES, "heic": "pillow-heif"}.items():
        module = MODULES.get(package, package)
        if importlib.util.find_spec(module) is None:
            table.add_row(extra, package, f"not installed: pip install 'detcam[{extra}]'")
            continue
        version, failure = _imported(module)
        table.add_row(extra, package, version)
        failures += [failure] if failure else []
    console.print(table)
    yield from failures


def _imported(module: str) -> tuple[str, str]:
    """The version of a module, and what is wrong with it; nothing for one that can be imported."""
    try:
        found = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything, which is what is reported
        return "broken", f"{module} cannot be imported ({type(error).__name__}: {error}); install it again"
    return str(getattr(found, "__version__", None) or _distribution_version(module)), ""


def _distribution_version(module: str) -> str:
    for name in metadata.packages_distributions().get(module, []):
        return metadata.version(name)
    return "unknown"


def _check_registries(console: Console) -> Iterator[str]:
    """Count what is registered; entry points of other packages are loaded."""
    from detcam.adapters import ADAPTERS
    from detcam.methods import METHODS
    from detcam.metrics import METRICS

    counts = []
    for kind, registry in (("adapter", ADAPTERS), ("method", METHODS), ("metric", METRICS)):
        names = list(registry)
        counts.append(plural(len(names), kind))
        for name in names:
            try:
                registry[name]
            except Exception as error:  # noqa: BLE001 - a registered class of another package may raise anything
                yield f"{kind} {name} cannot be loaded ({type(error).__name__}: {error})"
    console.print(f"{', '.join(counts)}: 'detcam methods' and 'detcam metrics' list them")


def _devices() -> list[str]:
    import torch

    names = [f"cpu ({plural(torch.get_num_threads(), 'thread')})"]
    names += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def _self_test(console: Console, debug: bool) -> Iterator[str]:
    """Explain a small detector on each kind of device, and compare the heatmaps with those of the CPU."""
    import warnings

    import torch

    from detcam.explanation.explain import explain
    from detcam.testing import tiny_detector

    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    expected = None
    for device in devices:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the reach of a network of two layers
                (found,) = explain(tiny_detector(), image, "hirescam", top_k=2, score_threshold=0.0, device=device)
            heatmaps = torch.from_numpy(found.heatmaps)
        except Exception as error:  # noqa: BLE001 - whatever fails is reported
            if debug:
                traceback.print_exc()
            yield f"the self-test failed on {device} ({type(error).__name__}: {error}); --debug shows the traceback"
            continue
        expected = heatmaps if expected is None else expected
        if heatmaps.shape != (2, 96, 96) or not float(heatmaps.max()) > 0:
            yield f"the self-test gave empty heatmaps on {device}"
        elif not torch.allclose(heatmaps, expected, atol=1e-2):
            yield f"the self-test gave other heatmaps on {device} than on the CPU"
        else:
            console.print(f"self-test on {device}: {plural(len(found), 'box', 'boxes')} explained")
