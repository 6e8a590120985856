"""How a run over image files is divided into shards: one is written while the network runs on the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detcam.explanation.batch import explain_files
from detcam.explanation.image_files import STAGE
from detcam.runs import RUN_FOLDER, SHARDS, Engine, LocalEngine, read_shards
from tests import zoo


class OtherMachines:
    """An engine with shards for several workers."""

    started, run = LocalEngine.started, LocalEngine.run


@pytest.mark.parametrize(
    ("count", "method", "engine", "sizes"),
    [
        (3, "gradcam", LocalEngine(), [1, 1, 1]),
        (4, "gradcam", LocalEngine(), [2, 2]),
        (5, "gradcam", LocalEngine(), [2, 2, 1]),
        (10, "gradcam", LocalEngine(), [4, 4, 2]),
        (4, "occlusion:grid=2", LocalEngine(), [1, 1, 1, 1]),
        (4, "gradcam", OtherMachines(), [1, 1, 1, 1]),
        (16, "gradcam", OtherMachines(), [2] * 8),
    ],
)
def test_shards_of_a_run(count: int, method: str, engine: Engine, sizes: list[int], tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.new("RGB", (24, 24), (90, 60, 30)).save(path)
    found: list[list[int]] = []

    def on_progress(path: Path, entry: dict[str, Any] | None, error: str) -> None:
        shards = read_shards(tmp_path / "out" / RUN_FOLDER / STAGE / SHARDS)
        found.append([len(shard) for shard in shards])

    adapter = zoo.shared("classifier").adapter
    explain_files(adapter, paths, tmp_path / "out", method, on_progress=on_progress, engine=engine, batch_size=1)
    assert found == [sizes] * count
