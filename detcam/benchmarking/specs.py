"""What a benchmark compares: methods and metrics named in text, checked before anything runs."""

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
from detcam.explanation.explain import Method, make_cam
from detcam.methods import METHODS
from detcam.methods.spec import method_with, split_settings
from detcam.metrics import METRICS, Metric
from detcam.metrics.base import Explainer

CALL_OPTIONS = ("aug_smooth", "eigen_smooth")
KINDS = {"detection": "box", "segmentation": "mask", "classification": "class", "embedding": "embedding"}
"""What kind of target each task explains, as metrics name it."""


CONTROLS = tuple(name for name in ("randomcam", "sobel") if name in METHODS)
"""Methods that are controls: they are rows of every table where they apply."""

Kind = Literal["method", "control"]


@dataclass(frozen=True)
class MethodSpec:
    """One row to be.

    Attributes:
        name: as shown, and as results are kept under.
        kind: ``method``, or ``control`` for a map that knows nothing of the network.
        explain: from adapter, images and targets to heatmaps.
        made_by: what makes them, so that results of another method of the same name are not taken for its own.
    """

    name: str
    kind: Kind
    explain: Explainer
    made_by: str = ""


@dataclass(frozen=True)
class MetricSpec:
    """One column to be: a metric with its settings, and its name as shown."""

    name: str
    metric: Metric

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.metric.higher_is_better else -1


def read_methods(
    methods: Iterable[str | Method] | Mapping[str, Method], adapter: Adapter, *, alone: bool = True
) -> list[MethodSpec]:
    """Methods as entries.

    Args:
        methods: names with options (``"drise:passes=1000"``), classes, or a mapping from a name of your own to a name,
            a class or a function from an adapter to a method.
        adapter: what they are to explain.
        alone: whether one of them at least must be no control.

    Raises:
        TypeError, ValueError: not a method, one that does not explain this kind of model, or a name given twice.
    """
    if isinstance(methods, str):
        methods = [methods]
    named = list(methods.items()) if isinstance(methods, Mapping) else [(_name(method), method) for method in methods]
    method_specs = []
    for name, method in named:
        make, options = read_method(method) if isinstance(method, str) else (method, {})
        tasks = getattr(getattr(make, "func", make), "tasks", None)
        if tasks is not None and adapter.task not in tasks:
            raise ValueError(
                f"{name} explains {', '.join(sorted(tasks))}; this model does {adapter.task}: leave it out"
            )
        kind: Kind = "control" if _base(name) in CONTROLS else "method"
        method_specs.append(MethodSpec(name, kind, _explainer(make, options, adapter), described(make)))
    if any(method_spec.name == "image" for method_spec in method_specs):
        raise ValueError("'image' is the name of what is kept of an image; give your method another one")
    _check_names([method_spec.name for method_spec in method_specs], "methods")
    if alone and not any(method_spec.kind == "method" for method_spec in method_specs):
        raise ValueError("expected at least one method that is no control; got none")
    return method_specs


def read_method(text: str) -> tuple[Callable[..., BaseCAM], dict[str, Any]]:
    """A method from ``name`` or ``name:setting=value,...``: what makes it, and options of its call.

    Beside the method's own settings there are ``aug_smooth`` and ``eigen_smooth``.

    Raises:
        ValueError: no such method or setting.
    """
    name, options = split_settings(text)
    call = {key: options.pop(key) for key in CALL_OPTIONS if key in options}
    return method_with(name, options), call


def read_metrics(metrics: Iterable[str | Metric], task: str, *, truth: bool) -> list[MetricSpec]:
    """Metrics as rulers.

    Args:
        metrics: names with options (``"insertion:steps=16"``), or metrics.
        task: of the adapter.
        truth: whether there are annotations.

    Raises:
        TypeError, ValueError: not a metric, one that does not fit the task or needs annotations, or one given twice.
    """
    metric_specs = []
    for item in [metrics] if isinstance(metrics, (str, Metric)) else metrics:
        if isinstance(item, str):
            metric_specs.append(MetricSpec(item, read_metric(item)))
        elif isinstance(item, Metric):
            metric_specs.append(MetricSpec(item.name, item))
        else:
            raise TypeError(f"expected metrics as names or Metric objects; got {type(item).__name__}")
        metric = metric_specs[-1].metric
        if KINDS[task] not in metric.tasks:
            raise ValueError(f"{metric.name} judges {', '.join(metric.tasks)}; this model does {task}: leave it out")
        if "truth" in metric.needs and not truth:
            raise ValueError(f"{metric.name} compares with annotations: give them (COCO JSON), or leave it out")
    _check_names([metric_spec.name for metric_spec in metric_specs], "metrics")
    if not metric_specs:
        raise ValueError(f"expected at least one metric, of {', '.join(METRICS)}; got none")
    return metric_specs


def read_metric(text: str) -> Metric:
    """A metric from ``name`` or ``name:option=value,option=value``.

    Raises:
        ValueError: no such metric, option or value.
    """
    name, options = split_settings(text)
    wanted = name.lower().replace("-", "_")
    known = {key.replace("_", ""): metric for key, metric in METRICS.items()}
    if wanted.replace("_", "") not in known:
        raise ValueError(f"expected one of the metrics {', '.join(METRICS)}; got {name!r}")
    maker: Any = known[wanted.replace("_", "")]
    _check_options(maker, options)
    try:
        made: Metric = maker(**options)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from error
    return made


def split_list(text: str) -> list[str]:
    """Names with options from one text: ``gradcam,drise:passes=1000,seed=1,odam`` are three."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and ":" not in part and found:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _check_options(maker: Any, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(maker).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # the constructor says itself what is wrong
    wrong = [name for name in options if name not in parameters]
    if wrong:
        has = f"it has {', '.join(parameters)}" if parameters else "it has none"
        raise ValueError(f"{maker.name} has no setting {wrong[0]!r}; {has}")


def described(value: Any) -> str:
    """A thing with its settings, the same in every run: no addresses, and objects by what they hold."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"array {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, functools.partial):
        return f"{described(value.func)}{described(value.args)}{described(value.keywords)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [described(item) for item in value]
        return f"({', '.join(sorted(parts) if isinstance(value, (set, frozenset)) else parts)})"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if inspect.isroutine(value):
        code = getattr(value, "__code__", None)  # a function is what it does, wherever it was written
        held = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        plain = [
            getattr(item, "__qualname__", "") if inspect.isroutine(item) else item
            for item in held
            if inspect.isroutine(item) or isinstance(item, (int, float, str, bool, type))
        ]
        if code is None:
            return str(getattr(value, "__qualname__", type(value).__qualname__))
        body = hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()[:16]
        constants = [item for item in code.co_consts if not inspect.iscode(item)]
        return f"function {body} {constants!r} {described(plain)}"
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return f"{described(type(value))}{described(vars(value))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _base(name: str) -> str:
    return name.partition(":")[0].strip().lower().replace("-", "").replace("_", "")


def _name(method: str | Method) -> str:
    if isinstance(method, str):
        return method
    if isinstance(method, type) and issubclass(method, BaseCAM):
        return method.name
    raise TypeError(
        f"expected methods as names ({', '.join(list(METHODS)[:4])}, ...) or classes; got {method!r:.60}. Anything "
        'else needs a name: methods={"mine": lambda adapter: MyCAM(adapter)}'
    )


def _check_names(names: Sequence[str], what: str) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{what}: {', '.join(sorted(twice))} is given twice; name each once")


def _explainer(make: Method, options: Mapping[str, Any], adapter: Adapter) -> Explainer:
    """The method made at once, so that what is wrong shows before anything runs and making it takes no one's time."""
    cam = make_cam(adapter, make)

    def explain(asked: Adapter, images: Any, targets: list[list[Target]]) -> list[Tensor]:
        own = cam if asked is adapter else make_cam(asked, make)
        return [result.heatmaps for result in own.explain(images, targets, **options)]

    return explain
