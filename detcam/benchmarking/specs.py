"""Specifications of the methods and metrics of a benchmark, validated before anything runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, Target
from detcam.cam import BaseCAM
from detcam.explanation.explain import MethodLike, make_cam
from detcam.methods import METHODS
from detcam.methods.spec import configure_method, parse_settings
from detcam.metrics import METRICS, Metric
from detcam.metrics.metric_input import Explainer
from detcam.utils.registry import normalized

SMOOTHING_OPTIONS = ("aug_smooth", "eigen_smooth")
TASK_TARGET_KINDS = {"detection": "box", "segmentation": "mask", "classification": "class", "embedding": "embedding"}
"""The kind of target that metrics evaluate, by the adapter's task."""
CONTROL_METHODS = ("randomcam", "sobel")
"""Registered methods that serve as controls: they are rows of every table of their tasks."""
RESERVED_NAME = "image"
"""The name of an image's own record in the result store."""

Kind = Literal["method", "control"]


@dataclass(frozen=True)
class MethodSpec:
    """A method or control, as one row of the benchmark.

    Attributes:
        name: name in tables and in the result store.
        kind: ``method``, or ``control`` for maps that do not depend on the network.
        explain: function from adapter, images and targets to heatmaps.
        definition: text that identifies the method's code and settings; results under the same name with another
            definition are recomputed.
    """

    name: str
    kind: Kind
    explain: Explainer
    definition: str = ""


@dataclass(frozen=True)
class MetricSpec:
    """A metric with its settings, as one column of the benchmark.

    Attributes:
        name: name in tables.
        metric: the metric.
    """

    name: str
    metric: Metric

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.metric.higher_is_better else -1

    @property
    def definition(self) -> str:
        """Text that identifies the metric's code and settings."""
        return f"{self.name} {describe_settings(self.metric)}"


def make_method_specs(
    methods: Iterable[MethodLike] | Mapping[str, MethodLike],
    adapter: Adapter,
    *,
    batch_size: int | None = None,
    require_method: bool = True,
) -> list[MethodSpec]:
    """Make the specifications of methods.

    Args:
        methods: names with settings (``"drise:passes=1000"``), classes, or a mapping from a custom name to a name, a
            class or a function from an adapter to a method.
        adapter: adapter of the model to explain.
        batch_size: images per forward pass; None keeps each method's own.
        require_method: whether to refuse a list of controls only.

    Raises:
        TypeError: an entry is not a method.
        ValueError: a method does not support the adapter's task, or a name occurs twice.
    """
    if isinstance(methods, str):
        methods = [methods]
    named = list(methods.items()) if isinstance(methods, Mapping) else [(_name_of(item), item) for item in methods]
    specs = []
    for name, method in named:
        maker, options = parse_method_spec(method) if isinstance(method, str) else (method, {})
        tasks = getattr(getattr(maker, "func", maker), "tasks", None)
        if tasks is not None and adapter.task not in tasks:
            raise ValueError(
                f"{name} explains {', '.join(sorted(tasks))}; this model does {adapter.task}: leave it out"
            )
        definition = describe_settings(maker) + ("" if batch_size is None else f" batch_size={batch_size}")
        explain = _make_explainer(maker, options, adapter, batch_size)
        kind: Kind = "control" if normalized(name.partition(":")[0]) in CONTROL_METHODS else "method"
        specs.append(MethodSpec(name, kind, explain, definition))
    names = [spec.name for spec in specs]
    if RESERVED_NAME in names:
        raise ValueError(f"{RESERVED_NAME!r} is a reserved name; give your method another one")
    _check_unique(names, "methods")
    if require_method and not any(spec.kind == "method" for spec in specs):
        raise ValueError("expected at least one method that is no control; got none")
    return specs


def parse_method_spec(text: str) -> tuple[Callable[..., BaseCAM], dict[str, Any]]:
    """Parse a method from ``name`` or ``name:setting=value,...``.

    Besides the method's own settings, ``aug_smooth`` and ``eigen_smooth`` are accepted.

    Returns:
        A function from a model to the method, and the options of the method's call.

    Raises:
        ValueError: the method or a setting does not exist.
    """
    name, settings = parse_settings(text)
    options = {key: settings.pop(key) for key in SMOOTHING_OPTIONS if key in settings}
    return configure_method(name, settings), options


def make_metric_specs(metrics: Iterable[str | Metric], task: str, *, has_annotations: bool) -> list[MetricSpec]:
    """Make the specifications of metrics.

    Args:
        metrics: names with settings (``"insertion:steps=16"``), or metrics.
        task: task of the adapter.
        has_annotations: whether the images have annotations.

    Raises:
        TypeError: an entry is not a metric.
        ValueError: a metric does not support the task or needs annotations, or a name occurs twice.
    """
    specs = []
    for item in [metrics] if isinstance(metrics, (str, Metric)) else metrics:
        if isinstance(item, str):
            specs.append(MetricSpec(item, parse_metric(item)))
        elif isinstance(item, Metric):
            specs.append(MetricSpec(item.name, item))
        else:
            raise TypeError(f"expected metrics as names or Metric objects; got {type(item).__name__}")
        metric = specs[-1].metric
        if TASK_TARGET_KINDS[task] not in metric.tasks:
            raise ValueError(
                f"{metric.name} evaluates {', '.join(metric.tasks)} targets; this model does {task}: leave it out"
            )
        if "truth" in metric.needs and not has_annotations:
            raise ValueError(f"{metric.name} needs annotations: pass a COCO JSON file, or leave it out")
    _check_unique([spec.name for spec in specs], "metrics")
    if not specs:
        raise ValueError(f"expected at least one metric, of {', '.join(METRICS)}; got none")
    return specs


def parse_metric(text: str) -> Metric:
    """Make a metric from ``name`` or ``name:setting=value,setting=value``.

    Raises:
        ValueError: the metric or a setting does not exist, or a value is invalid.
    """
    name, settings = parse_settings(text)
    metric = METRICS.find(name)
    _check_settings(metric, settings)
    try:
        return metric(**settings)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from error


def split_list(text: str) -> list[str]:
    """Split a comma-separated list of names with settings: ``gradcam,drise:passes=1000,seed=1,odam`` has three."""
    items: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and ":" not in part and items:
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def _check_settings(metric_class: Any, settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(metric_class).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # the constructor raises its own error
    unknown = [name for name in settings if name not in parameters]
    if unknown:
        known = f"it has {', '.join(parameters)}" if parameters else "it has none"
        raise ValueError(f"{metric_class.name} has no setting {unknown[0]!r}; {known}")


def describe_settings(value: object) -> str:
    """Describe an object with its settings, identically in every run: without addresses, objects by their content.

    Args:
        value: any object: a method's class or function, a metric, or a setting of one.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"array {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, functools.partial):
        return f"{describe_settings(value.func)}{describe_settings(value.args)}{describe_settings(value.keywords)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe_settings(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [describe_settings(item) for item in value]
        return f"({', '.join(sorted(parts) if isinstance(value, (set, frozenset)) else parts)})"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if inspect.isroutine(value):
        code = getattr(value, "__code__", None)  # a function is described by its code
        closure = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        captured = [
            getattr(item, "__qualname__", "") if inspect.isroutine(item) else item
            for item in closure
            if inspect.isroutine(item) or isinstance(item, (int, float, str, bool, type))
        ]
        if code is None:
            return str(getattr(value, "__qualname__", type(value).__qualname__))
        body = hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()[:16]
        constants = [item for item in code.co_consts if not inspect.iscode(item)]
        return f"function {body} {constants!r} {describe_settings(captured)}"
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return f"{describe_settings(type(value))}{describe_settings(vars(value))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _name_of(method: MethodLike) -> str:
    if isinstance(method, str):
        return method
    if isinstance(method, type) and issubclass(method, BaseCAM):
        return method.name
    raise TypeError(
        f"expected methods as names ({', '.join(list(METHODS)[:4])}, ...) or classes; got {method!r:.60}. Anything "
        'else needs a name: methods={"mine": lambda adapter: MyCAM(adapter)}'
    )


def _check_unique(names: Sequence[str], argument: str) -> None:
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ValueError(f"{argument}: {', '.join(sorted(duplicates))} is given twice; name each once")


def _make_explainer(
    method: MethodLike, options: Mapping[str, Any], adapter: Adapter, batch_size: int | None
) -> Explainer:
    """Construct the method once, so that an error is raised before the run and construction is not timed."""

    def construct(model: Adapter) -> BaseCAM:
        cam = make_cam(model, method)
        if batch_size is not None:
            cam.batch_size = batch_size
        return cam

    cam = construct(adapter)

    def explain(model: Adapter, images: Any, targets: list[list[Target]]) -> list[Tensor]:
        results = (cam if model is adapter else construct(model)).explain(images, targets, **options)
        return [torch.as_tensor(result.heatmaps) for result in results]

    return explain
