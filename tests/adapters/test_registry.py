"""Selection, registration and checks of adapters."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam import adapt, explain
from detcam.adapters import ADAPTERS, Adapter, DetectorAdapter, detector, register_adapter
from detcam.adapters.classification import ClassificationAdapter
from detcam.adapters.contract import option_names
from detcam.adapters.ultralytics.classification import UltralyticsClassificationAdapter
from detcam.targets import BoxTarget
from detcam.utils.registry import Registry
from tests.helpers import TinyCNN

pytestmark = pytest.mark.usefixtures("registries_as_they_were")

IMAGE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))


class GridDetector(nn.Module):
    """One box per cell of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 8, stride=8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)))


class GridSegmenter(GridDetector):
    """The same network, read as a segmenter."""


def decode_grid(output: Tensor) -> tuple[Tensor, Tensor]:
    height, width = output.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = torch.stack([x, y], -1).reshape(1, -1, 2) * 8.0 + 4
    sizes = output[:, :2].flatten(2).transpose(1, 2).sigmoid() * 8 + 4
    return torch.cat([centers - sizes, centers + sizes], -1), output[:, 4:].flatten(2).transpose(1, 2).sigmoid()


class TestRegisterAdapter:
    def test_a_registered_class_precedes_the_classifier(self) -> None:
        assert type(adapt(TinyCNN(), image_size=32)) is ClassificationAdapter

        @register_adapter
        class TinyAdapter(ClassificationAdapter):
            family = "tiny networks"

            @classmethod
            def supports(cls, model: Any) -> bool:
                return isinstance(model, TinyCNN)

        assert type(adapt(TinyCNN(), image_size=32)) is TinyAdapter
        assert ADAPTERS["tiny-networks"] is TinyAdapter
        assert type(adapt(nn.Sequential(TinyCNN()), image_size=32)) is TinyAdapter, "a wrapper of one"
        assert type(adapt(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), target_layers="0")) is ClassificationAdapter

    def test_a_decode_function_for_a_model_class(self) -> None:
        decode = register_adapter(GridDetector, names=["boat", "buoy"], score_threshold=0.1)(decode_grid)
        assert decode is decode_grid
        model = GridDetector()
        adapter = adapt(model, target_layers="features")
        assert type(adapter) is decode_grid.adapter  # type: ignore[attr-defined]
        assert adapter.names == {0: "boat", 1: "buoy"}
        by_hand = detector(model, decode_grid, score_threshold=0.1, target_layers="features")
        (found,), (expected,) = adapter.predict(IMAGE), by_hand.predict(IMAGE)
        assert len(found) > 0
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)
        assert adapt(model, target_layers="features", names=["a", "b"]).names == {0: "a", 1: "b"}
        assert len(explain(model, IMAGE, target_layers="features", top_k=1)[0].heatmaps) == 1
        copied = pickle.loads(pickle.dumps(adapter))
        assert type(copied) is type(adapter)

    def test_a_decode_function_of_a_segmenter(self) -> None:
        register_adapter(GridSegmenter, task="segmentation", name="grid-segmenter", image_size=32)(lambda out: out)
        adapter = adapt(GridSegmenter())
        assert (adapter.task, adapter.family) == ("segmentation", "grid-segmenter")
        assert len(adapter.predict(IMAGE)[0]) >= 1

    def test_the_latest_registration_comes_first(self) -> None:
        register_adapter(GridDetector, name="first")(decode_grid)
        register_adapter(GridDetector, name="second")(decode_grid)
        assert adapt(GridDetector(), target_layers="features").family == "second"

    @pytest.mark.parametrize("decorated", [False, True], ids=["a class", "a decorated decode function"])
    def test_an_entry_point_precedes_the_classifier(self, decorated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        class EntryPointAdapter(ClassificationAdapter):
            family = "entry-point"

            @classmethod
            def supports(cls, model: Any) -> bool:
                return isinstance(model, GridDetector)

        class Point:
            name, value = "plugin", "plugin:EntryPointAdapter"

            def load(self) -> Any:
                return (
                    register_adapter(GridDetector, name="entry-point")(decode_grid) if decorated else EntryPointAdapter
                )

        fresh = Registry("adapter", "detcam.adapters", {name: ADAPTERS[name] for name in ADAPTERS})
        points = {"detcam.adapters": [Point()]}
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.get(group, []))
        monkeypatch.setattr("detcam.adapters.registry.ADAPTERS", fresh)
        found = adapt(GridDetector(), target_layers="features")
        assert found.family == "entry-point" and found.task == ("detection" if decorated else "classification")

    def test_invalid_registrations_raise(self) -> None:
        with pytest.raises(TypeError, match="expected a subclass of Adapter, or the model class"):
            register_adapter(decode_grid)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="has no option 'nmaes'. Did you mean 'names'"):
            register_adapter(GridDetector, nmaes=["boat"])(decode_grid)
        with pytest.raises(ValueError, match="named 'ultralytics' exists"):
            register_adapter(GridDetector, name="ultralytics")(decode_grid)


class TestClassCreation:
    def test_missing_members_are_named(self) -> None:
        with pytest.raises(TypeError, match="Incomplete is incomplete") as error:

            class Incomplete(Adapter):
                task = "detection"

        message = str(error.value)
        assert 'family = "..."' in message and "task =" not in message
        for line in (
            "@classmethod def supports(cls, model)",
            "def prepare(self, images)",
            "def outputs(self, raw, batch)",
        ):
            assert line in message
        assert "abstract=True" in message

    def test_a_detector_needs_less(self) -> None:
        with pytest.raises(TypeError) as error:

            class Unfinished(DetectorAdapter):
                family = "unfinished"

                def prepare(self, images: Any) -> Any: ...

        assert "def outputs" in str(error.value)
        assert "def prepare" not in str(error.value) and "def targets_of" not in str(error.value)

    def test_a_base_class_is_declared_as_such(self) -> None:
        class Base(Adapter, abstract=True):
            pass

        assert issubclass(Base, Adapter)


class TestOptions:
    def test_an_unknown_option_names_the_adapter_and_its_options(self) -> None:
        with pytest.raises(
            TypeError, match=r"the classification adapter \(ClassificationAdapter\) has no option"
        ) as error:
            adapt(TinyCNN(), imagesize=32)
        assert "Did you mean 'image_size'?" in str(error.value)
        assert "image_size, mean, std, target_layers, reshape_transform, names" in str(error.value)

    def test_options_of_an_adapter_that_exists(self) -> None:
        adapter = adapt(TinyCNN(), image_size=32)
        with pytest.raises(TypeError, match="is an adapter already; pass image_size, names where it is made"):
            adapt(adapter, image_size=64, names=["a"])

    def test_options_that_a_subclass_sets_itself(self) -> None:
        assert option_names(UltralyticsClassificationAdapter) == [
            "image_size",
            "target_layers",
            "reshape_transform",
            "names",
            "value_range",
            "bgr",
            "page",
            "show_bands",
            "input_key",
        ]


class TestPredict:
    @pytest.mark.parametrize("labels", ["Boat", 1, ["boat"], [1], torch.tensor([1]), ("boat", 1)])
    def test_labels_by_name_and_index(self, labels: Any) -> None:
        adapter = detector(
            GridDetector(), decode_grid, names=["buoy", "boat"], score_threshold=0.1, target_layers="features"
        )
        (found,) = adapter.predict(IMAGE, labels=labels)
        (every,) = adapter.predict(IMAGE)
        assert 0 < len(found) < len(every)
        assert set(found.labels.tolist()) == {1}

    def test_an_unknown_name_suggests_the_closest(self) -> None:
        adapter = detector(GridDetector(), decode_grid, names=["buoy", "boat"], target_layers="features")
        with pytest.raises(ValueError, match=r"no class named 'boatt'; did you mean boat\?"):
            adapter.predict(IMAGE, labels="boatt")

    def test_a_classifier_ranks_by_name(self) -> None:
        adapter = adapt(TinyCNN(classes=4), image_size=32, names=["a", "b", "c", "d"])
        (found,) = adapter.predict(IMAGE, labels="c")
        assert found.labels.tolist() == [2]
        (every,) = adapter.predict(IMAGE, score_threshold=0.0, top_k=10)
        assert len(every) == 4
        assert len(adapter.predict(IMAGE)[0]) == 1

    def test_progress_is_a_flag(self) -> None:
        adapter = adapt(TinyCNN(), image_size=32)
        assert len(adapter.predict([IMAGE, IMAGE], progress=True, batch_size=1)) == 2


def test_plain_functions_and_box_targets_mix() -> None:
    adapter = detector(GridDetector(), decode_grid, target_layers="features")
    batch = adapter.prepare([IMAGE])
    outputs = adapter.outputs(adapter.forward(batch), batch)
    box = BoxTarget((0.0, 0.0, 8.0, 8.0), 0)
    ((one, other),) = adapter.score(outputs, [[lambda output: output.scores.sum(), box]])
    assert float(one) == pytest.approx(float(outputs[0].scores.sum()))
    assert float(other) in outputs[0].scores.flatten().tolist()


def test_an_unknown_option_of_an_adapter_class_is_named() -> None:
    with pytest.raises(TypeError, match=r"has no option 'imagesize'. Did you mean 'image_size'\?"):
        detector(GridDetector(), decode_grid, target_layers="features", imagesize=3)  # type: ignore[call-arg]
