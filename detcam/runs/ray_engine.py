"""The engine that runs on Ray: on the cores or GPUs of this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import torch

from detcam.runs.engines import Engine, LocalEngine
from detcam.utils.device import on_device
from detcam.utils.opencv import cv2
from detcam.utils.optional import needs_extra
from detcam.utils.precision import autocast_precision, autocast_to
from detcam.utils.user_modules import import_modules

if TYPE_CHECKING:
    from detcam.runs.directory import Stage
    from detcam.runs.engines import Work
    from detcam.runs.overlap import StagedWork

EngineLike: TypeAlias = str | Engine
"""An engine, or its name: ``"local"`` or ``"ray"``."""

MAX_BLOCKS = 2000
"""Maximum number of blocks into which Ray Data divides the shards of a stage."""


@dataclass(frozen=True)
class RayEngine:
    """Runs the work on actors of Ray Data, each with a replica of the model.

    Ray schedules the shards, restarts workers that end and repeats their shards. Workers write results into the folder
    of the run, which all machines of a cluster must see under the same path; this process only gets the numbers of the
    shards. Needs ``pip install 'detcam[ray]'``.

    Args:
        workers: number of actors; None takes one for each GPU, or as many as `threads` of each fit on the cores.
        threads: cores of a worker.
        gpus: GPUs of a worker; None takes one if the model is on a GPU, else none.
        address: address of a cluster, ``"auto"`` for one that runs on this machine; None starts one on this machine,
            and stops it at the end.
        imports: modules or files that workers import, because the work refers to what they register.

    Raises:
        ValueError: a number is not positive.
    """

    workers: int | None = None
    threads: int = 1
    gpus: float | None = None
    address: str | None = None
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threads < 1 or (self.workers is not None and self.workers < 1):
            raise ValueError(f"expected workers and threads of at least 1; got {self.workers} and {self.threads}")

    @contextmanager
    def started(self) -> Iterator[object]:
        """Connect to the cluster, or start one, unless this process is connected."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else restarts of workers are announced on stderr
        with needs_extra("ray"):
            import ray
        if ray.is_initialized():
            yield ray
            return
        local = {} if self.address else {"include_dashboard": False, "num_cpus": self._local_cores()}
        ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        try:
            yield ray
        finally:
            ray.shutdown()

    def run(
        self, work: Work | StagedWork, stage: Stage, shards: Iterable[tuple[int, Any]], count: int
    ) -> Iterator[int]:
        """Compute the shards on all workers at once.

        Raises:
            RuntimeError: Ray fails, or the work does, with an exception that is no ValueError or TypeError.
        """
        if not count:
            return
        import ray
        import ray.data
        from ray.exceptions import RayError

        device = next((tensor.device for tensor in chain(work.model.parameters(), work.model.buffers())), None)
        gpus = self.gpus if self.gpus is not None else float(device is not None and device.type == "cuda")
        with on_device(work.model, "cpu") if gpus else nullcontext():
            packed = ray.cloudpickle.dumps((work, stage))
        workers = self.workers
        if workers is None:
            resources = ray.cluster_resources()
            free = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1) / self.threads
            workers = max(int(free), 1)
        _silence(ray.data.DataContext.get_current())
        rows = [{"shard": number, "payload": ray.cloudpickle.dumps(payload)} for number, payload in shards]
        data = ray.data.from_items(rows, override_num_blocks=min(count, MAX_BLOCKS)).map(
            _Replica,
            fn_constructor_args=(packed, self.threads, gpus, self.imports, autocast_precision()),
            compute=ray.data.ActorPoolStrategy(size=min(workers, count)),
            num_cpus=self.threads,
            num_gpus=gpus,
        )
        try:
            for row in data.iter_rows():
                for category, message in pickle.loads(row["warnings"]):
                    warnings.warn(message, category, stacklevel=2)
                yield int(row["shard"])
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, (TypeError, ValueError, RuntimeError, OSError)):
                raise cause from error
            raise RuntimeError(f"Ray failed: {error}") from error

    def _local_cores(self) -> int:
        return max(os.cpu_count() or 1, (self.workers or 1) * self.threads)


def make_engine(engine: EngineLike) -> Engine:
    """Return an engine by name.

    Args:
        engine: ``"local"``, ``"ray"`` with its default settings, or an engine.

    Raises:
        ValueError: there is no engine of that name.
    """
    if not isinstance(engine, str):
        return engine
    if engine not in ("local", "ray"):
        raise ValueError(f'expected engine "local" or "ray", or an engine of detcam.runs; got {engine!r}')
    return LocalEngine() if engine == "local" else RayEngine()


class _Replica:
    """An actor's copy of the work."""

    def __init__(self, packed: bytes, threads: int, gpus: float, imports: Sequence[str], precision: str) -> None:
        import_modules(imports)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        pa.set_cpu_count(threads)  # else each worker has as many threads as the machine has cores
        self.precision = precision
        self.work, self.stage = pickle.loads(packed)
        if gpus:
            self.work.model.to("cuda")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught, autocast_to(self.precision):
            warnings.simplefilter("always")
            self.stage.compute(self.work, int(row["shard"]), pickle.loads(row["payload"]))
        found = {(each.category, str(each.message)) for each in caught if issubclass(each.category, UserWarning)}
        return {"shard": row["shard"], "warnings": pickle.dumps(sorted(found, key=lambda each: each[1]))}


def _silence(context: Any) -> None:
    """Keep the progress reports of Ray Data from the terminal."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
