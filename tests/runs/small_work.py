"""Work that is quick, and whose results show what it was given; a process of its own runs it."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from detcam.runs import CrashLog, LocalEngine, Run, lock_folder

SHARDS = [[float(number), number + 0.5] for number in range(8)]


@dataclass
class Squares:
    """Squares numbers by a network; can end the process when it sees a number."""

    model: nn.Module
    poison: float | None = None
    seconds: float = 0.0

    def __call__(self, payload: list[float], log: CrashLog) -> pa.Table:
        rows: list[dict[str, Any]] = []
        for value in payload:
            try:
                rows.append({"value": value, "square": log.call(str(value), self.square, value), "error": None})
            except ValueError as error:
                rows.append({"value": value, "square": None, "error": str(error)})
        schema = pa.schema([("value", pa.float64()), ("square", pa.float64()), ("error", pa.string())])
        return pa.Table.from_pylist(rows, schema)

    def square(self, value: float) -> float:
        time.sleep(self.seconds)
        if value == self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(self.model(torch.tensor([float(value)])) * value)


def make_work(**options: Any) -> Squares:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return Squares(model.requires_grad_(False), **options)


def run(out: Path, work: Squares, engine: Any = None, *, resume: bool = False, **settings: Any) -> list[int]:
    """Run all shards, and return their numbers in the order in which they were done."""
    engine = engine or LocalEngine()
    with lock_folder(out) as folder, engine.started():
        stage = Run(folder, "squares", settings, resume=resume).stage("squares", lambda: SHARDS)
        return list(stage.process(engine, work))


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "run" / "squares").glob("*.parquet"))}


if __name__ == "__main__":
    run(Path(sys.argv[1]), make_work(seconds=float(sys.argv[2])), resume=True)
