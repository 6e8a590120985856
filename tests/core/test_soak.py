"""Two thousand explanations in one process leave nothing behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

import detcam
from tests import zoo
from tests.helpers import Snapshot

FIRST, COUNT = 200, 2000
MAX_GROWTH = 0.01


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_memory_hooks_and_handles_do_not_grow() -> None:
    example = zoo.example("own_detector")
    before, rng = Snapshot(example.model), np.random.default_rng(0)
    for number in range(COUNT):
        if number == FIRST:
            first, handles = resident_bytes(), len(os.listdir("/proc/self/fd"))
        image = rng.integers(0, 256, (60 + number % 40, 80, 3), dtype=np.uint8)
        method = ("odam", "gradcam", "ablationcam", "probecam")[number % 4]
        assert len(detcam.explain(example.adapter, image, method, score_threshold=0)[0])
    before.check()
    assert len(os.listdir("/proc/self/fd")) == handles
    growth = resident_bytes() / first - 1
    assert growth < MAX_GROWTH, f"memory grew by {growth:.1%}"
