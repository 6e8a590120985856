"""A driver of Ray in a process of its own, which tests kill; prints the error that ends it in one line."""

from __future__ import annotations

import sys
from pathlib import Path

from detcam.runs import RayEngine
from tests.runs.small_work import make_work, run

if __name__ == "__main__":
    print("ready", flush=True)
    try:
        run(Path(sys.argv[1]), make_work(seconds=float(sys.argv[2])), RayEngine(workers=2), resume=True)
    except RuntimeError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
