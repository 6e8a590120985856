"""Work whose reading and writing run beside the network: order, memory, interruptions and crashes."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from detcam.runs import CrashLog, LocalEngine, Run, Stage, lock_folder
from detcam.runs.crash_log import MAX_CRASHES
from detcam.runs.overlap import ShardPart, run_overlapped

SHARDS = [[0, 1, 2], [3], [4, 5]]


@dataclass
class Doubles:
    """Doubles numbers; records in which order and thread its stages run."""

    model: nn.Module = field(default_factory=nn.Identity)
    stop_at: int | None = None
    poison: int | None = None
    events: list[str] = field(default_factory=list)
    threads: dict[str, set[int]] = field(default_factory=dict)

    def _note(self, stage: str, part: int) -> None:
        self.events.append(f"{stage} {part}")
        self.threads.setdefault(stage, set()).add(threading.get_ident())

    def parts(self, payload: list[int]) -> list[int]:
        return payload

    def read(self, part: int, log: CrashLog) -> int:
        self._note("read", part)
        try:
            return log.call(f"reading {part}", lambda: os._exit(9) if part == self.poison else part)
        except ValueError:
            return -1

    def compute(self, part: int, inputs: int, log: CrashLog) -> int:
        self._note("compute", part)
        if part == self.stop_at:
            raise KeyboardInterrupt
        if part == 0:  # the next part is read meanwhile
            for _ in range(500):
                if "read 1" in self.events:
                    break
                threading.Event().wait(0.01)
        return log.call(f"doubling {part}", lambda: 2 * inputs)

    def write(self, part: int, computed: int) -> pa.Table:
        self._note("write", part)
        return pa.table({"part": [part], "double": [computed]})


def run(out: Path, work: Doubles, *, resume: bool = False) -> tuple[list[int], Stage]:
    with lock_folder(out) as folder:
        stage = Run(folder, "doubles", {}, resume=resume).stage("doubles", lambda: SHARDS)
        done = []
        try:
            for number in stage.process(LocalEngine(), work):
                done.append(number)
        except KeyboardInterrupt:
            done.append(-1)
        return done, stage


def test_parts_are_read_ahead_and_shards_end_in_order(tmp_path: Path) -> None:
    work = Doubles()
    done, stage = run(tmp_path, work)
    assert done == [0, 1, 2]
    assert [table.to_pydict() for table in stage.tables()] == [
        {"part": shard, "double": [2 * part for part in shard]} for shard in SHARDS
    ]
    assert work.events.index("read 1") < work.events.index("write 0"), "the next part is read during the computation"
    for part in range(4):  # no more than three parts in memory
        assert work.events.index(f"write {part}") < work.events.index(f"compute {part + 2}")
        assert work.events.index(f"compute {part}") < work.events.index(f"read {part + 2}")
    assert work.threads["compute"] == {threading.get_ident()}
    assert not work.threads["compute"] & (work.threads["read"] | work.threads["write"])
    assert not list(stage.folder.glob("*.log"))


def test_an_end_of_the_process_repeats_one_shard_at_most(tmp_path: Path) -> None:
    kept: dict[int, int] = {}

    class Counted(Doubles):
        def compute(self, part: int, inputs: int, log: CrashLog) -> int:
            kept[part] = len(list(tmp_path.glob("run/doubles/*.parquet")))
            return super().compute(part, inputs, log)

    run(tmp_path, Counted())
    assert kept == {0: 0, 1: 0, 2: 0, 3: 1, 4: 2, 5: 2}


def test_an_interrupted_run_keeps_what_was_computed_and_continues(tmp_path: Path) -> None:
    done, _ = run(tmp_path, Doubles(stop_at=4))
    assert done == [0, 1, -1]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast was 'float32' and is now 'b"):
        run(tmp_path, Doubles(), resume=True)
    work = Doubles()
    done, stage = run(tmp_path, work, resume=True)
    assert done == [0, 1, 2] and [event for event in work.events if "compute" in event] == ["compute 4", "compute 5"]
    assert [table.to_pydict()["double"] for table in stage.tables()] == [[0, 2, 4], [6], [8, 10]]


def test_an_interrupt_while_a_shard_is_kept_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len([each for each in calls if str(each).endswith(".parquet")]) == 1:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    done, stage = run(tmp_path, Doubles())
    assert done == [-1] and stage.is_done(0) and not stage.is_done(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked there")
def test_a_part_that_ends_the_process_costs_itself_alone(tmp_path: Path) -> None:
    """ShardPart 3 ends the process while it is read, at first beside the computation of part 2, which is not blamed."""
    for _ in range(MAX_CRASHES):
        child = os.fork()
        if not child:
            run(tmp_path, Doubles(poison=3), resume=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    done, stage = run(tmp_path, Doubles(poison=3), resume=True)
    assert done == [0, 1, 2]
    assert [table.to_pydict()["double"] for table in stage.tables()] == [[0, 2, 4], [-2], [8, 10]]


def test_an_error_of_the_writer_is_raised(tmp_path: Path) -> None:
    class Full(Doubles):
        def write(self, part: int, computed: int) -> pa.Table:
            raise OSError("no space left")

    def parts() -> Any:
        for part in range(3):
            yield ShardPart(0, part, part == 2, (CrashLog(tmp_path / "a"), CrashLog(tmp_path / "b")))

    work = Full()
    with pytest.raises(OSError, match="no space left"):
        list(run_overlapped(work, parts()))
    assert "compute 2" not in work.events
