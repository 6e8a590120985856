"""The base class: a metric is one function; what is missing or wrong is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from detcam import benchmark
from detcam.cli.app import app
from detcam.metrics import METRICS, Metric, MetricImage, MetricWarning, PerturbationConfidenceMetric, register_metric
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN

MAPS = torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(0))
TARGETS = [ClassifierOutputTarget(0), ClassifierOutputTarget(2)]


class MeanHeat(Metric):
    name, range, higher_is_better = "mean_heat", (0.0, 1.0), False

    def value(self, image: MetricImage) -> Tensor:
        return image.heatmaps.mean((1, 2))


class ScoreInHeat(Metric):
    """Score of the image times the heatmap."""

    name, range, higher_is_better, needs = "score_in_heat", (0.0, 1.0), True, frozenset({"model"})

    def value(self, image: MetricImage) -> Tensor:
        scored = image.scored()
        products = scored.image * scored.heatmaps[:, None]
        return scored.scores(range(len(products)), lambda part: products[part])


@pytest.fixture
def registered() -> Iterator[None]:
    """The registry with `MeanHeat`, which is removed afterwards."""
    register_metric(MeanHeat)
    yield
    METRICS.unregister(MeanHeat.name)


def test_a_metric_of_six_lines_reads_arrays_and_tensors() -> None:
    expected = pytest.approx(MAPS.mean((1, 2)).tolist())
    assert MeanHeat().measure(None, None, None, MAPS).tolist() == expected
    assert MeanHeat().measure(None, None, None, MAPS.numpy()).tolist() == expected
    assert MeanHeat().measure(TinyCNN(), torch.rand(2, 3, 16, 20), TARGETS, list(MAPS.numpy())).tolist() == expected
    broken = MAPS.clone()
    broken[0, 1, 1] = float("nan")
    with pytest.warns(MetricWarning, match="mean_heat: 1 of 2"):
        values = MeanHeat().measure(None, None, None, broken)
    assert values.isnan().tolist() == [True, False] and values[1] == MAPS[1].mean()


def test_a_metric_scores_changed_images() -> None:
    model, inputs = TinyCNN(), torch.rand(2, 3, 16, 20)
    values = ScoreInHeat().measure(model, inputs, TARGETS, MAPS)
    with torch.no_grad():
        expected = model(inputs * MAPS[:, None]).softmax(1)
    assert values.tolist() == pytest.approx([float(expected[0, 0]), float(expected[1, 2])], abs=1e-5)
    with pytest.raises(ValueError, match="score_in_heat needs a model and images"):
        ScoreInHeat().measure(None, None, None, MAPS)


def test_a_registered_metric_works_in_a_benchmark_by_name(registered: None, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    found = benchmark(
        TinyCNN(), [Image.fromarray(pixels)], methods=["gradcam"], metrics=["mean-heat", "deletion:steps=2"],
        target_layers=["conv2"], out=tmp_path,
    )  # fmt: skip
    assert 0 < found.row("gradcam").scores["mean-heat"].mean < 1


def test_a_registered_metric_is_listed_on_the_command_line(registered: None) -> None:
    listed = CliRunner().invoke(app, ["metrics", "--markdown"]).stdout
    assert "| `mean_heat` | mean_heat | 0 to 1 | lower | all | nothing |  |" in listed
    assert "mean_heat" in CliRunner().invoke(app, ["metrics"]).stdout


def test_names_are_unique_and_unknown_ones_get_suggestions(registered: None) -> None:
    assert METRICS.find("Mean-Heat") is MeanHeat
    with pytest.raises(ValueError, match="no metric is named 'mean_heet'; did you mean mean_heat"):
        METRICS.find("mean_heet")

    class Deletion(MeanHeat):
        name = "deletion"

    with pytest.raises(ValueError, match="'deletion' exists already"):
        register_metric(Deletion)
    with pytest.raises(TypeError, match="expected a subclass of Metric; got 'deletion'"):
        register_metric("deletion")  # type: ignore[type-var]


def value(self: Metric, image: MetricImage) -> Tensor:
    return image.heatmaps.mean((1, 2))


COMPLETE: dict[str, Any] = {"name": "mine", "range": (0, 1), "higher_is_better": True, "value": value}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, r'metric class Mine is incomplete; add to it:\s+name = "mine"'),
        ({"range": None}, r"add to it:\s+range = \(0.0, 1.0\)"),
        ({"higher_is_better": None}, r"add to it:\s+higher_is_better = True"),
        ({"value": None}, r"metric class Mine is incomplete; add to it:\s+def value\(self, image\)"),
        ({"name": ""}, "name as a non-empty str"),
        ({"range": (1, 0)}, "range as"),
        ({"higher_is_better": "yes"}, "higher_is_better as a bool"),
        ({"needs": frozenset({"masks"})}, "needs as a subset of .*truth"),
        ({"tasks": ("boxes",)}, "tasks as a subset of .*embedding"),
    ],
)
def test_missing_members_are_named_at_class_creation(changes: dict[str, Any], message: str) -> None:
    body = {key: entry for key, entry in {**COMPLETE, **changes}.items() if entry is not None}
    with pytest.raises(TypeError, match=message):
        type(Metric)("Mine", (Metric,), body)
    type(Metric)("Mine", (Metric,), COMPLETE)


def test_a_class_defines_its_name() -> None:
    with pytest.raises(TypeError, match='name = "mine"  # a name of its own'):
        type("Mine", (MeanHeat,), {})

    class MyPerturbation(PerturbationConfidenceMetric):
        def __init__(self) -> None:
            super().__init__(lambda image, cam: image * cam)

    assert MyPerturbation.name == "myperturbation"  # such classes of pytorch_grad_cam have none


def test_undeclared_needs_and_wrong_shapes_are_named() -> None:
    class Undeclared(MeanHeat):
        name = "undeclared"

        def value(self, image: MetricImage) -> Tensor:
            return image.truth.objects.double().mean((1, 2))

    truth = [torch.ones(1, 16, 20)] * 2
    with pytest.raises(ValueError, match="'truth' to the needs"):
        Undeclared().measure(None, None, None, MAPS, truth=truth)

    class WrongShape(MeanHeat):
        name = "wrong_shape"

        def value(self, image: MetricImage) -> Tensor:
            return image.heatmaps.mean()

    with pytest.raises(ValueError, match=r"expected values of shape \(1,\) for 1 heatmap; got \(\)"):
        WrongShape().measure(None, None, None, MAPS)
