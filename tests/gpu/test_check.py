"""The check of a GPU runs, on the CPU and with small networks."""

from __future__ import annotations

import pytest

from tests.gpu import check


@pytest.mark.slow
def test_the_check_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "0 failed" in out and "FAIL" not in out
    for name in (*check.TEN_METHODS, "two-stage", "YOLO", "RT-DETR", "grad-cam", "bfloat16"):
        assert name in out


def test_maps_that_differ_fail() -> None:
    ramp = [[[0.0, 1.0], [2.0, 3.0]]]
    assert check.correlation(ramp, [[[0.0, 2.0], [4.0, 6.0]]]) == pytest.approx(1)
    assert check.correlation(ramp, [[[3.0, 2.0], [1.0, 0.0]]]) < check.MIN_HALF_CORRELATION
    assert check.correlation(ramp, [[[1.0, 1.0], [1.0, 1.0]]]) == 0
