"""Pins the process that imports it to a core of its own, with all of its threads.

`measure_runs.py workers` has the workers of Ray import it, so that a worker of one thread has one core, also for the
threads that read and write images.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


def pin() -> None:
    """Pin this process to the first core that no other process has locked."""
    for core in sorted(os.sched_getaffinity(0)):
        lock = os.open(Path(tempfile.gettempdir(), f"measured-core-{core}.lock"), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except OSError:
            os.close(lock)
            continue
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), {core})
        return
    raise RuntimeError("more workers than cores")


pin()
