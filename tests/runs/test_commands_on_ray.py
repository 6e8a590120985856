"""Audits, benchmarks and explanations on a local Ray: the same results as in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import detcam
from detcam import adapt
from detcam.adapters import Adapter
from detcam.demo.model import load_demo_detector
from detcam.explanation.batch import explain_files
from detcam.explanation.image_files import find_images
from detcam.runs import RayEngine
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.scenes import write_scenes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray", reason="Ray is not installed")

SEEDS = range(1_000_000, 1_000_009)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    chosen = RayEngine(workers=2)
    with chosen.started():
        yield chosen


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), SEEDS)


@pytest.fixture
def adapter() -> Adapter:
    return adapt(load_demo_detector(), names=DEMO_NAMES)


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def test_audits_are_equal(engine: RayEngine, scenes: Path, adapter: Adapter, tmp_path: Path) -> None:
    audits = [
        detcam.audit(
            adapter, scenes.parent / "images", scenes, out=tmp_path / name, explain=6, batch_size=2, engine=each
        )
        for name, each in (("local", "local"), ("ray", engine))
    ]
    one, other = audits
    assert [case.to_json() for case in one.cases] == [case.to_json() for case in other.cases] and one.explained
    data = [json.loads((tmp_path / name / "audit.json").read_text()) for name in ("local", "ray")]
    for each in data:
        each.pop("seconds")
    assert data[0] == data[1]
    drawn = [
        {path: content for path, content in files(tmp_path / name).items() if path.endswith((".png", ".jpg"))}
        for name in ("local", "ray")
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) > 6


def test_explanations_are_equal(engine: RayEngine, scenes: Path, adapter: Adapter, tmp_path: Path) -> None:
    paths = find_images([str(scenes.parent / "images")])
    for name, each in (("local", "local"), ("ray", engine)):
        seen: list[str] = []

        def on_progress(path: Path, entry: Any, message: str, seen: list[str] = seen) -> None:
            seen.append(path.name)

        explain_files(adapter, paths, tmp_path / name, "odam", on_progress=on_progress, engine=each)
        assert sorted(seen) == sorted(path.name for path in paths)
    assert files(tmp_path / "local") == files(tmp_path / "ray")


def test_benchmarks_are_equal(engine: RayEngine, scenes: Path, adapter: Adapter) -> None:
    images = scenes.parent / "images"
    one, other = (
        detcam.benchmark(adapter, images, ["odam"], ["sparseness"], limit=4, controls=False, resamples=20, engine=each)
        for each in ("local", engine)
    )
    assert one.row("odam").scores == other.row("odam").scores
    assert one.row("odam").passes == other.row("odam").passes
