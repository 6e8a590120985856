"""The folder of a run: a manifest, and for each stage of the work a list of shards and their results.

Its files::

    .lock                   held by the process that works in the folder: see `detcam.runs.lock`
    run/manifest.json       kind of the run, settings and versions: a run continues only where all of them are equal
    run/STAGE/shards.json   the shards of a stage: a list with the items of each, and its digest
    run/STAGE/000012.parquet  the results of a shard, with the digest; its existence says that the shard is done
    run/STAGE/000012.log    what a process did when it ended in the middle of the shard, 000012.read.log: what it read

Every file is written under a temporary name, flushed to the disk and renamed. What a shard holds is written down before
the work begins and never changes, so results depend neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from detcam.runs.crash_log import CrashLog
from detcam.runs.overlap import StagedWork, divided, run_overlapped
from detcam.utils.batching import batches
from detcam.utils.files import check_same_settings, read_json, remove_temporary_files, replace_file
from detcam.utils.hooks import complete
from detcam.utils.memory import is_out_of_memory
from detcam.utils.precision import autocast_precision
from detcam.utils.text import first_line
from detcam.utils.version import __version__

if TYPE_CHECKING:
    from detcam.runs.engines import Engine, Work

RUN_FOLDER, MANIFEST, SHARDS = "run", "manifest.json", "shards.json"
RUN_SCHEMA, RUN_VERSION = "detcam/run", 3
"""The version rises when the files of a run change, or the numbers in them: a run continues under its version only."""
MANY_SHARDS = 250
"""Number of shards from which on shards are made larger rather than more numerous."""
MAX_GROUPS = 64
"""Maximum number of groups of a shard, which an interruption repeats."""
SHARD_KEY = b"detcam.shard"
"""Metadata of a shard's results: the digest of the stage's shards, and the number of the shard."""


def plan_shards(count: int, group_size: int) -> list[list[int]]:
    """Divide the range from 0 to `count` into shards of whole groups; the last group may be smaller.

    Args:
        count: number of items.
        group_size: items of the smallest shard, a batch or several.

    Returns:
        The items of each shard: one group, from `MANY_SHARDS` shards on more, at most `MAX_GROUPS`.
    """
    groups_per_shard = min(max(count // (group_size * MANY_SHARDS), 1), MAX_GROUPS)
    return batches(range(count), groups_per_shard * group_size)


@dataclass(frozen=True)
class Stage:
    """A part of a run: shards of equal kind.

    Attributes:
        folder: folder of the results.
        shards: the items of each shard, as JSON holds them.
    """

    folder: Path
    shards: list[list[Any]]

    def is_done(self, number: int) -> bool:
        """Return whether a shard has results; a damaged file, or that of another shard, counts as none."""
        try:
            with self._file(number).open("rb") as file:
                metadata = pq.read_metadata(file).metadata or {}
        except (OSError, pa.ArrowInvalid):
            return False
        return bool(metadata.get(SHARD_KEY) == self._key(number))

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Read the results of a shard, or some columns of them.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._file(number)
        with path.open("rb") as file:  # pyarrow takes no path that is not UTF-8
            try:
                # Without threads: where memory does not suffice for a new one, pyarrow waits for it without end.
                return pq.ParquetFile(file).read(columns=columns, use_threads=False)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is damaged; delete it and resume the run ({first_line(error)})") from error

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Read the results of all shards, one at a time."""
        return (self.table(number, columns) for number in range(len(self.shards)))

    def process(
        self, engine: Engine, work: Work | StagedWork, payload: Callable[[list[Any]], object] = lambda items: items
    ) -> Iterator[int]:
        """Do what is left of the work.

        Args:
            engine: runs it.
            work: what to do with a shard.
            payload: function from the items of a shard to what the work gets.

        Yields:
            The number of each shard that is done: first those that were done before.
        """
        done = [number for number in range(len(self.shards)) if self.is_done(number)]
        yield from done
        left = sorted(set(range(len(self.shards))) - set(done))
        yield from engine.run(work, self, ((number, payload(self.shards[number])) for number in left), len(left))

    def compute(self, work: Work | StagedWork, number: int, payload: object) -> None:
        """Compute and write the results of a shard, unless it has some.

        Raises:
            RuntimeError: the folder is gone.
        """
        if self.is_done(number):
            return
        if isinstance(work, StagedWork):
            list(self.compute_overlapped(work, [(number, payload)]))
            return
        with self.checked_folder():
            self.keep(number, work(payload, self.logs(number)[1]))

    def compute_overlapped(self, work: StagedWork, shards: Iterable[tuple[int, Any]]) -> Iterator[int]:
        """Compute and write the results of shards; the next one is read, and the last one written, meanwhile.

        Yields:
            The number of each shard when its results are written.

        Raises:
            RuntimeError: the folder is gone.
        """
        parts = (part for number, payload in shards for part in divided(work, number, payload, self.logs(number)))
        tables: list[pa.Table] = []
        with self.checked_folder():
            for part, table in run_overlapped(work, parts):
                tables.append(table)
                if part.is_last:
                    complete(partial(self.keep, part.shard, pa.concat_tables(tables)))
                    tables = []
                    yield part.shard

    def logs(self, number: int) -> tuple[CrashLog, CrashLog]:
        """Return the logs of reading and of computing a shard."""
        return CrashLog(self.folder / f"{number:06d}.read.log"), CrashLog(self.folder / f"{number:06d}.log")

    @contextmanager
    def checked_folder(self) -> Iterator[None]:
        """Say so if the folder was removed while a block used it."""
        try:
            yield
        except OSError as error:
            if self.folder.is_dir():
                raise
            raise RuntimeError(f"{self.folder} was removed while the run was working in it; run it again") from error

    def keep(self, number: int, table: pa.Table) -> None:
        """Write the results of a shard, which is done then."""
        sink = pa.BufferOutputStream()
        metadata = {**(table.schema.metadata or {}), SHARD_KEY: self._key(number)}
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        replace_file(self._file(number), sink.getvalue().to_pybytes(), flush_folder=True)
        for log in self.logs(number):
            log.path.unlink(missing_ok=True)

    def forget_out_of_memory(self, *columns: str) -> None:
        """Remove the results of shards in which memory did not suffice for an item, so that it is tried again.

        Args:
            *columns: columns of error messages.
        """
        for number in filter(self.is_done, range(len(self.shards))):
            messages = chain.from_iterable(self.table(number, [name])[name].to_pylist() for name in columns)
            if any(is_out_of_memory(RuntimeError(text)) for text in messages if text):
                self._file(number).unlink()

    def clear(self) -> None:
        """Remove all results."""
        for file in self.folder.glob("*.parquet"):
            file.unlink()

    @cached_property
    def _digest(self) -> str:
        return _digest(self.shards)

    def _key(self, number: int) -> bytes:
        return f"{self._digest} {number}".encode()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _digest(shards: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def _write_shards(file: Path, shards: list[list[Any]]) -> None:
    content = {"digest": _digest(shards), "shards": shards}
    replace_file(file, json.dumps(content).encode(), flush_folder=True)


def read_shards(file: Path) -> list[list[Any]]:
    """Read the items of the shards of a stage.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
        shards: list[list[Any]] = content["shards"]
        is_whole = content["digest"] == _digest(shards)
    except (ValueError, RecursionError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{file} is damaged; delete {file.parent.parent} and run it again")
    return shards


def is_unfinished(out: Path) -> bool:
    """Return whether a folder has a run with results, but without its end."""
    return (out / RUN_FOLDER / MANIFEST).exists() and any((out / RUN_FOLDER).glob("*/*.parquet"))


def _has_content(file: Path, content: object) -> bool:
    """Return whether a JSON file has this content."""
    try:
        return bool(json.loads(file.read_bytes()) == content)
    except (OSError, ValueError):
        return False


class Run:
    """A run in a folder whose lock is held.

    Args:
        out: the folder.
        kind: the command: ``audit``, ``explain`` or ``benchmark``.
        settings: everything that the results depend on, as JSON values.
        resume: whether to continue an unfinished run.

    Attributes:
        folder: folder of the run's own files, inside `out`.

    Raises:
        ValueError: the folder has an unfinished run and `resume` is False, or it has other settings.
    """

    def __init__(self, out: Path, kind: str, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = out / RUN_FOLDER
        remove_temporary_files(out)  # of a run that was killed
        manifest = self.folder / MANIFEST
        versions = {"detcam": __version__, "torch": torch.__version__, "numpy": np.__version__}
        versions["autocast"] = autocast_precision()
        current = {"schema": RUN_SCHEMA, "version": RUN_VERSION, "kind": kind, **versions, **settings}
        current = json.loads(json.dumps(current))
        if is_unfinished(out):
            if not resume:
                raise ValueError(
                    f"{out} contains an unfinished {kind}; resume it (resume=True, --resume), or choose a new folder"
                )
            check_same_settings(out, read_json(manifest, RUN_SCHEMA, RUN_VERSION), current)
            for folder in (self.folder, *self.folder.iterdir()):
                remove_temporary_files(folder)
        elif not _has_content(manifest, current):  # nothing was computed yet, so nothing can be mixed
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            replace_file(manifest, json.dumps(current, indent=1).encode(), flush_folder=True)

    def stage(self, name: str, plan: Callable[[], Iterable[list[Any]]]) -> Stage:
        """Return a stage of the run.

        Args:
            name: its name.
            plan: makes the list of shards, each a list of JSON values; not called if the run has that list already.

        Raises:
            ValueError: the list that the run has is damaged.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        file = folder / SHARDS
        if not file.exists():
            _write_shards(file, list(plan()))
        return Stage(folder, read_shards(file))

    def has_stage(self, name: str) -> bool:
        """Return whether a stage was begun."""
        return (self.folder / name / SHARDS).exists()

    def remove(self) -> None:
        """Remove the files of a finished run, the manifest first: without it there is no run to continue."""
        (self.folder / MANIFEST).unlink()
        shutil.rmtree(self.folder)
