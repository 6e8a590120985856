"""The names of `detcam` and `detcam.methods`: lazy, complete, and the same for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import detcam
import detcam.data
import detcam.methods
import detcam.models
import detcam.perturbation
import detcam.visualize

PACKAGES = [detcam, detcam.data, detcam.methods, detcam.models, detcam.perturbation, detcam.visualize]


def checked_names(package: ModuleType) -> dict[str, str]:
    """The names in a package's `TYPE_CHECKING` block, each with the module that it comes from."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert len(blocks) == 1 and ast.unparse(blocks[0].test) == "TYPE_CHECKING"
    imports = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom)]
    aliases = [(node, alias) for node in imports for alias in node.names]
    assert [alias.name for _, alias in aliases if alias.asname != alias.name] in ([], ["BaseCAM"])  # not re-exported
    return {alias.name: str(node.module) for node, alias in aliases}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_type_checking_block_names_the_same_objects(package: ModuleType) -> None:
    for name, module in checked_names(package).items():
        value = getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
        assert name == "BaseCAM" and package is detcam.methods or getattr(package, name) is value


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_all_is_complete_and_every_name_resolves(package: ModuleType) -> None:
    registry = {"METHODS", "get_method", "register_method"} if "METHODS" in package.__all__ else set()
    defined = registry - checked_names(package).keys()
    expected = set(checked_names(package)) | defined
    assert set(package.__all__) == expected - ({"BaseCAM"} if package is detcam.methods else set())
    assert len(package.__all__) == len(set(package.__all__))
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("name", ["adapters", "auditing", "benchmarking", "methods", "metrics", "targets", "testing"])
def test_a_star_import_gives_the_public_names_of_detcam_alone(name: str) -> None:
    found: dict[str, object] = {}
    exec(f"from detcam.{name} import *", found)
    del found["__builtins__"]
    assert len(found) > 4
    defined = {key: value.__module__ for key, value in found.items() if isinstance(value, (type, FunctionType))}
    foreign = {key for key, module in defined.items() if not module.startswith("detcam.")}
    modules = {key for key, value in found.items() if isinstance(value, ModuleType)}
    assert (foreign, modules, {"Registry", "TypeVar", "annotations"} & found.keys()) == (set(), set(), set())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'detcam' has no attribute 'nothing'"):
        detcam.nothing  # noqa: B018
    assert not hasattr(detcam, "explane")


def test_the_calls_are_functions_and_the_packages_importable() -> None:
    import detcam.auditing.matching
    import detcam.benchmarking.compare
    import detcam.explanation.explain

    assert detcam.explain is detcam.explanation.explain.explain
    assert detcam.audit is detcam.auditing.pipeline.audit
    assert detcam.benchmark is detcam.benchmarking.compare.benchmark
    assert callable(detcam.explain) and callable(detcam.audit) and callable(detcam.benchmark)


def test_import_detcam_loads_no_torch_and_one_method_no_other() -> None:
    code = """
import sys
import detcam
dir(detcam), list(detcam.METHODS), detcam.__version__
heavy = {"torch", "torchvision", "numpy", "ultralytics", "timm", "segmentation_models_pytorch"} & set(sys.modules)
assert not heavy, heavy
detcam.get_method("gradcam")
loaded = {name for name in sys.modules if name.startswith("detcam.methods.")}
assert loaded == {"detcam.methods.grad_cam"}, loaded
detcam.adapters.adapt, detcam.metrics.__name__, detcam.auditing.matching
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
