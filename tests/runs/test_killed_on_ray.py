"""A driver, a worker or the node of a local Ray that is killed: the run continues, and ends equal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.small_work import SHARDS, content, make_work, run

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is not installed")
psutil = pytest.importorskip("psutil", reason="psutil is not installed")

WORKERS = 2
SECONDS = 0.4
"""Duration of a number; a shard has two."""


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runs.ray_driver", str(out), str(SECONDS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(out: Path, process: subprocess.Popen[str], count: int) -> None:
    """Wait until so many shards are done."""
    while process.poll() is None and len(content(out)) < count:
        time.sleep(0.02)
    assert process.poll() is None and len(content(out)) < len(SHARDS) - WORKERS


def processes(driver: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Processes of the driver's Ray with a name in their command line."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    run(out, make_work())
    return content(out)


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=180)
    return process.returncode


def written(out: Path) -> dict[str, int]:
    return {name: (out / "run" / "squares" / name).stat().st_mtime_ns for name in content(out)}


def test_a_killed_driver(tmp_path: Path, whole: dict[str, bytes]) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, process, 2)
    family = psutil.Process(process.pid).children(recursive=True)
    at_work = [*processes(process, "ray::MapWorker"), *processes(process, "raylet/raylet")]
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(at_work, timeout=60)
    for other in family:  # agents of Ray notice later that the node is gone
        with contextlib.suppress(psutil.Error):
            other.kill()
    assert at_work and not alive, "neither node nor workers outlive the driver"
    kept = written(tmp_path)
    again = start(tmp_path)
    assert ended(again) == 0
    assert content(tmp_path) == whole and kept.items() <= written(tmp_path).items(), "what is done is not done again"


def test_a_killed_worker(tmp_path: Path, whole: dict[str, bytes]) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, process, 2)
    kept = written(tmp_path)
    (worker, *_) = processes(process, "ray::MapWorker")
    worker.kill()
    assert ended(process) == 0, "Ray starts another one"
    assert content(tmp_path) == whole and kept.items() <= written(tmp_path).items()


def test_a_killed_node(tmp_path: Path, whole: dict[str, bytes]) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, process, 2)
    (raylet, *_) = processes(process, "raylet/raylet")
    raylet.kill()
    assert ended(process) != 0
    kept = written(tmp_path)
    again = start(tmp_path)
    assert ended(again) == 0
    assert content(tmp_path) == whole and kept.items() <= written(tmp_path).items()
