"""The Ray engine on a local Ray: results equal to those of one process, and workers that end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from detcam.runs import RayEngine
from tests.runs.small_work import SHARDS, Squares, content, make_work, run

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """An engine whose cluster serves all tests of this module."""
    chosen = RayEngine(workers=2)
    with chosen.started():
        yield chosen


def test_results_are_equal_to_those_of_one_process(engine: RayEngine, tmp_path: Path) -> None:
    run(tmp_path / "one", make_work())
    assert sorted(run(tmp_path / "ray", make_work(), engine)) == list(range(len(SHARDS)))
    assert content(tmp_path / "ray") == content(tmp_path / "one")


def test_a_number_that_ends_the_worker_costs_itself_alone(engine: RayEngine, tmp_path: Path) -> None:
    run(tmp_path / "one", make_work())
    run(tmp_path / "ray", make_work(poison=3.5), engine)
    whole, found = content(tmp_path / "one"), content(tmp_path / "ray")
    assert [name for name in whole if whole[name] != found[name]] == ["000003.parquet"]


def test_errors_of_the_work_are_raised_here(engine: RayEngine, tmp_path: Path) -> None:
    class Failing(Squares):
        def __call__(self, payload, log):  # type: ignore[no-untyped-def]
            raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        run(tmp_path, Failing(make_work().model), engine)
