"""Overlaps reading, computing and writing: the next part is read, and the last one written, beside the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import pyarrow as pa
from torch import nn

from detcam.runs.crash_log import CrashLog

T = TypeVar("T")


@runtime_checkable
class StagedWork(Protocol):
    """Work on a shard that can be divided into reading, computing and writing of its parts.

    Reading and writing run in threads of their own; computing runs in the thread of the caller, which may interrupt it.

    Attributes:
        model: the network.
    """

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    def parts(self, payload: Any) -> list[Any]:
        """Divide a shard into parts that are in memory at the same time."""
        ...

    def read(self, part: Any, log: CrashLog) -> Any:
        """Return the input of a part."""
        ...

    def compute(self, part: Any, inputs: Any, log: CrashLog) -> Any:
        """Run the network on a part."""
        ...

    def write(self, part: Any, computed: Any) -> pa.Table:
        """Write the results of a part to the disk, and return its rows."""
        ...


@dataclass(frozen=True)
class ShardPart:
    """A part of a shard.

    Attributes:
        shard: number of the shard.
        part: what the work gets.
        is_last: whether it is the last one of its shard.
        logs: the logs of reading and of computing, which run at the same time for different parts.
    """

    shard: int
    part: Any
    is_last: bool
    logs: tuple[CrashLog, CrashLog]

    @property
    def has_crashed(self) -> bool:
        """Whether a process ended in the shard: then nothing runs beside it, so that the log tells what ends it."""
        return any(log.has_crashes for log in self.logs)


def run_overlapped(work: StagedWork, parts: Iterable[ShardPart]) -> Iterator[tuple[ShardPart, pa.Table]]:
    """Run work on parts, in order.

    A shard is written before the network runs on the next one, so that an end of the process repeats one shard at most.
    At most three parts are in memory. If a part fails or the user interrupts it, the one before is still finished.

    Args:
        work: the work.
        parts: the parts of one or many shards.

    Yields:
        Each part with its rows.
    """
    remaining = iter(parts)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def start() -> tuple[ShardPart, Future[Any]] | None:
            part = next(remaining, None)
            return None if part is None else (part, reader.submit(work.read, part.part, part.logs[0]))

        last: tuple[ShardPart, Future[pa.Table]] | None = None
        current = start()
        while current is not None:
            part, inputs = current
            following = None
            try:
                read = inputs.result()
                if not part.has_crashed:
                    following = start()
                    if following is not None and following[0].has_crashed:
                        following[1].result()
                if last is not None and last[0].is_last:
                    table = last[1].result()
                    finished, last = last[0], None
                    yield finished, table
                computed = work.compute(part.part, read, part.logs[1])
            except BaseException:
                if last is not None:
                    yield last[0], last[1].result()
                raise
            if last is not None:
                yield last[0], last[1].result()
            last = part, writer.submit(work.write, part.part, computed)
            del read, computed
            current = following or start()
        if last is not None:
            yield last[0], last[1].result()


def divided(work: StagedWork, shard: int, payload: Any, logs: tuple[CrashLog, CrashLog]) -> Iterator[ShardPart]:
    """Yield the parts of a shard."""
    pieces = work.parts(payload)
    for position, piece in enumerate(pieces, 1):
        yield ShardPart(shard, piece, position == len(pieces), logs)
