"""A full disk at any write, and a folder that is removed, are errors that say so; afterwards a run continues."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import detcam
from detcam import adapt
from detcam.demo.model import load_demo_detector
from detcam.explanation.batch import explain_files
from detcam.explanation.image_files import find_images
from detcam.synthetic.harbor import DEMO_NAMES
from tests.auditing.scenes import write_scenes
from tests.runs.small_work import content, make_work, run

Command = Callable[[Path, bool], object]


@contextmanager
def at_write(number: int, event: Callable[[], None]) -> Iterator[list[int]]:
    """Call a function at the end of a write, given by its number; yield a list with an entry for each write."""
    flush, calls = os.fsync, list[int]()

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == number:
            event()
        flush(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield calls


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_continues_after_a_full_disk_at_any_write(tmp_path: Path) -> None:
    with at_write(0, full) as writes:
        run(tmp_path / "whole", make_work())
    assert len(writes) > 16
    for number in {*range(1, len(writes) + 1, 3), len(writes)}:
        out = tmp_path / str(number)
        with at_write(number, full), pytest.raises(OSError, match=r"(?i)no space (is )?left"):
            run(out, make_work())
        run(out, make_work(), resume=True)
        assert content(out) == content(tmp_path / "whole") and not list(out.rglob("*.tmp"))
        shutil.rmtree(out)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), range(1_000_000, 1_000_003))


def commands(scenes: Path) -> dict[str, Command]:
    adapter, images = adapt(load_demo_detector(), names=DEMO_NAMES), scenes.parent / "images"
    return {
        "audit": lambda out, resume: detcam.audit(
            adapter, images, scenes, out=out, explain=2, explain_missed=0, batch_size=1, resume=resume
        ),
        "explain": lambda out, resume: explain_files(
            adapter, find_images([str(images)]), out, "odam", on_progress=lambda *_: None, batch_size=1, resume=resume
        ),
        "benchmark": lambda out, resume: detcam.benchmark(
            adapter, images, ["odam"], ["sparseness"], limit=2, controls=False, resamples=20, out=out
        ),
    }


def names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.suffix != ".js"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["audit", "explain", "benchmark"])
def test_commands_continue_after_a_full_disk(name: str, scenes: Path, tmp_path: Path) -> None:
    command = commands(scenes)[name]
    with at_write(0, full) as writes:
        command(tmp_path / "whole", False)
    for number in {*range(1, len(writes) + 1, 5), len(writes)}:
        out = tmp_path / str(number)
        with at_write(number, full), pytest.raises(OSError, match=r"(?i)no space (is )?left"):
            command(out, False)
        command(out, True)
        assert names(out) == names(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["audit", "explain", "benchmark"])
def test_a_folder_that_is_removed_is_an_error(name: str, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with at_write(4, lambda: shutil.rmtree(out)), pytest.raises(RuntimeError, match=f"{out}.* was removed while"):
        commands(scenes)[name](out, False)
    assert not (out / ".lock").exists()
