"""Engines: they run the work of a stage, shard by shard, here or on other processes and machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from detcam.runs.overlap import StagedWork

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from detcam.runs.crash_log import CrashLog
    from detcam.runs.directory import Stage


class Work(Protocol):
    """What to do with a shard; an engine may pickle it and send it to other processes.

    Attributes:
        model: the network, which an engine may move to another device.
    """

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    def __call__(self, payload: Any, log: CrashLog) -> pa.Table:
        """Return the results of a shard, which depend on nothing but the work and the payload."""
        ...


class Engine(Protocol):
    """Runs the work of a stage. `detcam.audit` and the other functions enter `started` for their whole duration."""

    def started(self) -> AbstractContextManager[object]:
        """Return a context in which the engine can run work."""
        ...

    def run(
        self, work: Work | StagedWork, stage: Stage, shards: Iterable[tuple[int, Any]], count: int
    ) -> Iterator[int]:
        """Compute shards, in any order.

        Args:
            work: what to do with a shard.
            stage: computes and keeps the results.
            shards: number and payload of each shard.
            count: number of shards.

        Yields:
            The number of each shard when it is done.
        """
        ...


class LocalEngine:
    """Runs the work in this process."""

    def started(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return nullcontext()

    def run(
        self, work: Work | StagedWork, stage: Stage, shards: Iterable[tuple[int, Any]], count: int
    ) -> Iterator[int]:
        """Compute the shards one after the other, with reading and writing beside the network where it allows that."""
        if isinstance(work, StagedWork):
            yield from stage.compute_overlapped(work, shards)
            return
        for number, payload in shards:
            stage.compute(work, number, payload)
            yield number
