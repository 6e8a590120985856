"""An audit that is killed at any moment goes on, and ends with the same report to the last byte."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.auditing.scenes import write_scenes

PROGRAM = """
import sys
import torch
import detcam
from detcam import adapt
from detcam.demo.model import load_demo_detector
from detcam.synthetic.harbor import DEMO_NAMES

torch.set_num_threads(1)
images, annotations, out, resume = sys.argv[1:]
print("ready", flush=True)
detcam.audit(
    adapt(load_demo_detector(), names=DEMO_NAMES), images, annotations, out=out, score_threshold=0.5, batch_size=2,
    resume=bool(resume),
)
"""


def start(scenes: Path, out: Path, resume: bool) -> subprocess.Popen[str]:
    """The audit in a process of its own, once its modules are loaded."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, scenes.parent / "images", scenes, out, "yes" if resume else ""],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def content(out: Path) -> dict[str, bytes]:
    """Every file of the report, without the working files and what differs from run to run: times and their digest."""
    found = {}
    (digest,) = {path.stem[-10:] for path in out.glob("data/summary-*.js")} or {"none"}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith("run/"):
            text = path.read_bytes().replace(digest.encode(), b"digest")
            found[name.replace(digest, "digest")] = re.sub(rb'(seconds\\?": ?)[\d.e-]+', rb"\1", text)
    return found


def kill_at(process: subprocess.Popen[str], out: Path, files: int) -> bool:
    """Kill a process as soon as a folder has so many files; whether it was still running then."""
    while process.poll() is None and sum(path.is_file() for path in out.rglob("*")) < files:
        time.sleep(0.002)
    process.kill()
    return process.wait() != 0


@pytest.mark.slow
def test_a_killed_audit_resumes_and_writes_the_same_report(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path, range(1_000_000, 1_000_006))
    assert start(scenes, tmp_path / "whole", resume=False).wait() == 0
    whole = content(tmp_path / "whole")
    assert {"audit.json", "index.html", "false_positives.csv"} <= whole.keys()
    moments = random.Random(0)
    killed = 0
    for number in range(3):
        out = tmp_path / f"killed-{number}"
        for files in sorted(moments.sample(range(1, len(whole) + 2), 2)):
            process = start(scenes, out, resume=True)
            killed += kill_at(process, out, files)
        assert start(scenes, out, resume=True).wait() == 0
        again = content(out)
        assert again.keys() == whole.keys()
        assert [name for name in whole if whole[name] != again[name]] == []
    assert killed >= 4
