"""What is installed, where it lands, and what it may import."""

import ast
import configparser
import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.tree import FOLDERS, REPOSITORY, modules, parsed

OPTIONAL = (
    *(
        "fiftyone",
        "onnxruntime",
        "pandas",
        "pillow_heif",
        "pytorch_lightning",
        "segmentation_models_pytorch",
        "supervision",
    ),
    *("timm", "transformers", "ultralytics", "wandb"),
)
ONE_USER = {
    "cv2": "detcam/utils/opencv.py",
    "segmentation_models_pytorch": "adapters/smp.py",
    "timm": "detcam/models/timm.py",
    "ultralytics": "adapters/ultralytics/detector.py",
}

EXTRAS = (
    *("ultralytics", "smp", "timm", "transformers", "onnx", "heic", "ray", "supervision", "pandas", "lightning"),
    *("fiftyone", "wandb"),
)
DISTRIBUTIONS = {
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "yaml": "pyyaml",
    "cv2": "opencv-python-headless",
    "huggingface_hub": "huggingface-hub",
    "pytorch_lightning": "pytorch-lightning",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions",
    "ultralytics": "ultralytics-opencv-headless",
}


def installed_modules() -> dict[str, Path]:
    """Every module's name as it is installed, and its file in the repository."""
    return {name: file for name, file in modules().items() if not name.endswith("__main__")}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, outside the repository."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY.anchor,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_folders_at_the_top_are_mapped_into_the_package() -> None:
    pairs = setup_cfg()["options"]["package_dir"].strip().splitlines()
    assert {name.strip(): folder.strip() for name, folder in (pair.split("=") for pair in pairs)} == FOLDERS


def test_setup_cfg_lists_every_package() -> None:
    packages = {name for name, file in installed_modules().items() if file.name == "__init__.py"}
    assert set(setup_cfg()["options"]["packages"].split()) == packages


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {file.parent for file in installed_modules().values()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_suite_tests_this_checkout() -> None:
    for package, folder in FOLDERS.items():
        module = importlib.import_module(package)
        assert Path(module.__file__ or "").parent == REPOSITORY / folder, "pip install -e . from this checkout"


def test_the_version_is_the_metadata_version() -> None:
    import detcam

    assert detcam.__version__ == importlib.metadata.version("detcam") == setup_cfg()["metadata"]["version"]


def test_the_command_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="detcam")
    assert {script.value for script in scripts} == {"detcam.cli.main:main"}
    assert all(callable(script.load()) for script in scripts)


def test_all_is_the_sum_of_the_adapters_extras() -> None:
    extras = setup_cfg()["options.extras_require"]
    assert extras["all"].strip() == "detcam[ultralytics,smp,timm,transformers,onnx]"
    assert all(extras[extra].strip() for extra in EXTRAS)
    assert "opencv-python>" not in Path(REPOSITORY / "setup.cfg").read_text(encoding="utf-8")


def test_every_module_imports_without_optional_libraries() -> None:
    code = f"""
import importlib, sys
import torchvision  # looks up onnxruntime, but does not need it
imported = []
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            imported.append(name)
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Absent())
for name in {sorted(installed_modules())!r}:
    importlib.import_module(name)
print(*imported)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], "import it inside the function that needs it"


def imported_names(file: Path) -> Iterator[str]:
    """The top-level name of everything a file imports, by statement or by a call with a constant name."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"}:
                yield str(node.args[0].value).partition(".")[0]


def test_imports_of_every_form_are_detected(tmp_path: Path) -> None:
    file = tmp_path / "imports.py"
    file.write_text(
        "import a.x\nfrom b.y import c\nfrom . import no\ndef f():\n    import d\n"
        "import importlib as i\ni.import_module('e.z')\n__import__('f')\n"
    )
    assert set(imported_names(file)) == {"a", "b", "d", "importlib", "e", "f"}


@pytest.mark.parametrize("library", ONE_USER)
def test_only_one_module_imports_it(library: str) -> None:
    folders = (*FOLDERS.values(), "examples")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    users = {file.relative_to(REPOSITORY).as_posix() for file in files if library in imported_names(file)}
    assert users <= {ONE_USER[library]}


def test_every_library_imported_is_a_declared_dependency() -> None:
    config = setup_cfg()
    declared = config["options"]["install_requires"] + "".join(config["options.extras_require"][e] for e in EXTRAS)
    names = {re.split(r"[^\w-]", line.strip())[0].lower() for line in declared.splitlines()}
    imported = {name for file in installed_modules().values() for name in imported_names(file)}
    libraries = imported - set(sys.stdlib_module_names) - {"detcam"}
    assert {DISTRIBUTIONS.get(library, library) for library in libraries} - names == set()


def test_nothing_imports_the_folders_by_their_plain_names() -> None:
    folders = (*FOLDERS.values(), "examples", "tests")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    assert [str(file) for file in files if {"adapters", "targets"} & set(imported_names(file))] == []


def test_there_is_exactly_one_opencv() -> None:
    owners = {
        distribution.metadata["Name"]
        for distribution in importlib.metadata.distributions()
        if any(file.as_posix() == "cv2/__init__.py" for file in distribution.files or ())
    }
    assert owners == {"opencv-python-headless"}, (
        "several packages fill the folder cv2/; uninstall the others, then"
        " pip install --force-reinstall --no-deps opencv-python-headless"
    )
    code = """
import cv2, numpy
print(cv2.applyColorMap(numpy.full((1, 1), 255, numpy.uint8), cv2.COLORMAP_JET)[0, 0])
"""
    result = run_python(code, DISPLAY="", QT_QPA_PLATFORM="")
    assert (result.returncode, result.stdout.strip()) == (0, "[  0   0 128]"), result.stderr


def test_a_broken_opencv_names_the_remedy() -> None:
    code = """
import sys
class NoDisplay:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
sys.meta_path.insert(0, NoDisplay())
import detcam.utils.opencv
"""
    result = run_python(code)
    message = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert message.startswith("ImportError: OpenCV cannot be loaded: libGL.so.1")
    assert "pip install --force-reinstall --no-deps opencv-python-headless" in message


def test_the_wheel_contains_only_the_package(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="the wheel is built with the package build, of the extra test")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tree)
    for name in (*FOLDERS.values(), "examples", "tests"):
        if (REPOSITORY / name).exists():
            shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("detcam-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    version = setup_cfg()["metadata"]["version"]
    assert {file.partition("/")[0] for file in files} == {"detcam", f"detcam-{version}.dist-info"}
    wanted = set()
    for package, folder in FOLDERS.items():
        for file in (REPOSITORY / folder).rglob("*"):
            if file.suffix in {".py", ".pt", ".css", ".html", ".js", ".json", ".typed"}:
                wanted.add(f"{package.replace('.', '/')}/{file.relative_to(REPOSITORY / folder).as_posix()}")
    assert wanted == {file for file in files if file.startswith("detcam/")}
    assert f"detcam-{version}.dist-info/licenses/LICENSE" in files


def test_public_objects_are_documented() -> None:
    undocumented = []
    for name in installed_modules():
        module = importlib.import_module(name)
        things = {key: thing for key, thing in vars(module).items() if not key.startswith("_")}
        for key, thing in things.items():
            if getattr(thing, "__module__", None) != name or not callable(thing):
                continue
            if not inspect.getdoc(thing):
                undocumented.append(f"{name}.{key}")
            members = vars(thing).items() if inspect.isclass(thing) else ()
            undocumented += [
                f"{name}.{key}.{member}"
                for member, value in members
                if not member.startswith("_") and inspect.isroutine(value)
                if not inspect.getdoc(getattr(thing, member))
            ]
    assert undocumented == []
