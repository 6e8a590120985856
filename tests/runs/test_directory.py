"""Folders of runs: killed at any moment they continue and end equal, and nobody else writes into them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcam.runs import CrashLog, Run, lock_folder, plan_shards
from detcam.runs.crash_log import MAX_CRASHES
from tests.runs.small_work import SHARDS, Squares, content, make_work, run


def start(out: Path, seconds: float = 0.02) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.runs.small_work", str(out), str(seconds)])


def test_a_run_is_one_parquet_file_per_shard(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")  # a name that is not UTF-8
    assert run(out, make_work()) == list(range(len(SHARDS)))
    stage = Run(out, "squares", {}, resume=True).stage("squares", lambda: [])
    assert stage.shards == SHARDS, "the manifest, not the plan, says what a shard is"
    assert [table["square"].to_pylist() for table in stage.tables()] == [[a * a, b * b] for a, b in SHARDS]
    assert not list((out / "run").rglob("*.tmp")) and not list((out / "run").rglob("*.log"))
    assert json.loads((out / "run" / "manifest.json").read_text())["kind"] == "squares"


def test_killed_at_any_moment_it_continues_and_ends_equal(tmp_path: Path) -> None:
    run(tmp_path / "whole", make_work())
    out, moments = tmp_path / "killed", sorted(random.Random(0).sample(range(1, len(SHARDS)), 2))
    for done in moments:
        process = start(out)
        while process.poll() is None and len(content(out)) < done:
            time.sleep(0.002)
        process.kill()
        assert process.wait() != 0
        kept = {name: (out / "run" / "squares" / name).stat().st_mtime_ns for name in content(out)}
        assert done <= len(kept) < len(SHARDS)
    run(out, make_work(), resume=True)
    assert content(out) == content(tmp_path / "whole")
    assert all((out / "run" / "squares" / name).stat().st_mtime_ns == at for name, at in kept.items()), "none is redone"


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    run(tmp_path, make_work())
    whole = content(tmp_path)
    folder = tmp_path / "run" / "squares"
    (folder / "000003.parquet").write_bytes(whole["000003.parquet"][:40])
    (folder / "000004.parquet").write_bytes(b"")
    (folder / "000005.parquet").write_bytes(whole["000002.parquet"])  # another shard's
    pq.write_table(pa.table({"other": [1]}), folder / "000006.parquet")
    (tmp_path / "run" / "squares" / f".{'0' * 32}.tmp").write_bytes(b"half")
    run(tmp_path, make_work(), resume=True)
    assert content(tmp_path) == whole and not list((tmp_path / "run" / "squares").glob(".*"))


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run(tmp_path, make_work())
    file = tmp_path / "run" / "squares" / "000003.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[4:60] = bytes(56)  # the end of the file, which describes it, is whole
    file.write_bytes(damaged)
    with lock_folder(tmp_path) as folder:
        stage = Run(folder, "squares", {}, resume=True).stage("squares", list)
        with pytest.raises(ValueError, match=f"{file} is damaged; delete it and resume the run"):
            stage.table(3)


def test_what_failed_for_lack_of_memory_is_tried_again(tmp_path: Path) -> None:
    class Short(Squares):
        def square(self, value: float) -> float:
            if value in (3.0, 5.0):
                raise ValueError("out of memory" if value == 3.0 else "bad image")
            return super().square(value)

    run(tmp_path, Short(make_work().model))
    stage = Run(tmp_path, "squares", {}, resume=True).stage("squares", lambda: [])
    stage.forget_out_of_memory("error")
    assert [number for number in range(len(SHARDS)) if not stage.is_done(number)] == [3], "the bad image stays failed"


def test_results_are_read_without_new_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where memory does not suffice for a thread, pyarrow would wait for it without end."""
    run(tmp_path, make_work())
    stage = Run(tmp_path, "squares", {}, resume=True).stage("squares", lambda: [])
    read, threads = pq.ParquetFile.read, []
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: (threads.append(k["use_threads"]), read(*a, **k))[1])
    assert stage.table(0, ["square"]).column_names == ["square"] and threads == [False]


def test_shards_of_many_images_hold_more_groups_up_to_a_limit() -> None:
    def sizes(count: int) -> set[int]:
        shards = plan_shards(count, 16)
        assert list(chain.from_iterable(shards)) == list(range(count))
        return {len(shard) for shard in shards[:-1]}

    assert sizes(7_999) == {16} and sizes(8_000) == {32} and sizes(300_000) == {1024}


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b'{"a": [1]}', b"[1, 2]", b'{"shards": [[0]]}'])
def test_a_damaged_list_of_shards_is_named(tmp_path: Path, text: bytes) -> None:
    run(tmp_path, make_work())
    file = tmp_path / "run" / "squares" / "shards.json"
    file.write_bytes(text or file.read_bytes().replace(b"2.5", b"3.5"))
    with pytest.raises(ValueError, match=f"{file} is damaged; delete {tmp_path / 'run'}"):
        run(tmp_path, make_work(), resume=True)


def test_a_damaged_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"reading 3\n\xff\xfe\n")
    assert CrashLog(tmp_path / "log").has_crashes


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    Run(tmp_path, "squares", {"seed": 0}, resume=False)
    run(tmp_path, make_work(), seed=1)  # nothing was computed yet
    with pytest.raises(ValueError, match="unfinished squares; resume it"):
        run(tmp_path, make_work(), seed=1)
    with pytest.raises(ValueError, match="other settings.*seed was 1 and is now 2"):
        run(tmp_path, make_work(), resume=True, seed=2)
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))  # before verdicts changed
    with pytest.raises(ValueError, match="expected detcam/run version 3, got detcam/run version 1; move it away"):
        run(tmp_path, make_work(), resume=True, seed=1)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not valid JSON"):
        run(tmp_path, make_work(), resume=True, seed=1)


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, seconds=30)
    while process.poll() is None and not (tmp_path / "run" / "squares").is_dir():
        time.sleep(0.01)
    try:
        with pytest.raises(RuntimeError, match="another run is working in"):
            run(tmp_path, make_work(), resume=True)
    finally:
        process.kill()
        process.wait()
    run(tmp_path, make_work(), resume=True)


def test_two_threads_do_not_share_a_folder(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with lock_folder(tmp_path):
                pass
        except RuntimeError as error:
            refused.append(str(error))

    with lock_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with lock_folder(tmp_path), lock_folder(None) as temporary:
        assert temporary.is_dir()
    assert not temporary.exists()


def test_a_folder_that_is_removed_is_an_error(tmp_path: Path) -> None:
    class Removing(Squares):
        def square(self, value: float) -> float:
            if value == 2:
                shutil.rmtree(tmp_path / "out")
            return super().square(value)

    with pytest.raises(RuntimeError, match="was removed while the run was working in it"):
        run(tmp_path / "out", Removing(make_work().model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked there")
def test_calls_that_end_the_process_are_skipped(tmp_path: Path) -> None:
    """A child ends in the middle of a call, again and again, until the log names the call."""
    path = tmp_path / "log"
    for crashes in range(MAX_CRASHES):
        assert CrashLog(path).call("good.png", len, "abc") == 3
        child = os.fork()
        if not child:
            CrashLog(path).call("bad.png", os._exit, 9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert path.read_text() == "bad.png\n" * (crashes + 1)
    with pytest.raises(ValueError, match="the process ended 3 times"):
        CrashLog(path).call("bad.png", len, "abc")
    assert CrashLog(path).call("good.png", len, "abc") == 3


def test_exceptions_and_interrupts_are_no_crashes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for error in (ValueError, KeyboardInterrupt):

        def fail(kind: type[BaseException] = error) -> None:
            raise kind

        for _ in range(MAX_CRASHES + 1):
            with pytest.raises(error):
                CrashLog(path).call("a", fail)
    assert path.read_text() == ""
