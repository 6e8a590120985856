"""The registry of quantities: named targets for a detection, region or class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor

from detcam.outputs import BaseTarget, DetectionTarget, ModelOutput, Part, Target, as_target
from detcam.targets.box import QUANTITIES, BoxTarget
from detcam.targets.classes import ClassifierOutputTarget, FinerWeightedTarget
from detcam.targets.edges import EdgesTarget
from detcam.targets.mask import InstanceMaskTarget, MaskTarget
from detcam.utils.registry import Registry

TargetFunction: TypeAlias = Callable[[ModelOutput, Any], Tensor]
"""A function from one image's output and a plain target (`BoxTarget`, `MaskTarget` or `ClassTarget`) to a scalar."""

Function = TypeVar("Function", bound=TargetFunction)


@dataclass(frozen=True)
class BuiltinQuantity:
    """A quantity of the package: a target class, or a setting of one.

    Attributes:
        make: function from a plain target, and the class index to compare with or None, to the target.
    """

    make: Callable[[Target, int | None], Target]

    def __call__(self, output: ModelOutput, target: Target) -> Tensor:
        return self.make(target, None)(output)


@dataclass(frozen=True, eq=False)
class FunctionTarget(BaseTarget):
    """A registered function applied to a class or a region.

    Attributes:
        quantity: the function's name in the registry.
        function: function from one image's output and the plain target to a scalar.
        target: the plain target: the class or region that the function refers to.
    """

    quantity: str = field()
    function: TargetFunction = field()
    target: BaseTarget = field()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.target.label)
        object.__setattr__(self, "box_xyxy", self.target.box_xyxy)
        object.__setattr__(self, "has_position", self.target.has_position)

    def __call__(self, output: ModelOutput) -> Tensor:
        return self.function(output, self.target)

    def hflip(self, width: int) -> FunctionTarget:
        return replace(self, target=as_target(self.target.hflip(width)))

    def check(self, image_size_hw: tuple[int, int], names: Mapping[int, str], classes: int) -> None:
        self.target.check(image_size_hw, names, classes)

    def describe(self, names: Mapping[int, str]) -> str:
        return f"{self.quantity} of {self.target.describe(names)}"

    def pinned(self, output: ModelOutput) -> FunctionTarget:
        return replace(self, target=self.target.pinned(output))


@dataclass(frozen=True)
class BoxFunctionTarget(DetectionTarget):
    """A registered function applied to a detection.

    Attributes:
        quantity: the function's name in the registry.
        function: function from one image's `DetectorOutput` and a `BoxTarget` to a scalar.
    """

    part: ClassVar[Part] = "output"

    quantity: str = ""
    function: TargetFunction = field(kw_only=True)

    def __call__(self, output: ModelOutput) -> Tensor:
        return self.function(output, BoxTarget(self.box_xyxy, self.label, self.source))

    def describe(self, names: Mapping[int, str]) -> str:
        return f"{self.quantity} of {super().describe(names)}"


def with_quantity(target: Target, quantity: str = "score", against: int | None = None) -> Target:
    """Return a target for another quantity of the same detection, region or class.

    Args:
        target: the plain target, as `Adapter.targets_of` makes it.
        quantity: a name in `TARGETS`.
        against: a class index: the target is the difference to that class.

    Returns:
        The target of that quantity; of a detection, pinned to the same source.

    Raises:
        ValueError: no quantity has that name, the target has no such quantity, or `against` is the target's class.

    Example:
        >>> from detcam.targets import BoxTarget, with_quantity
        >>> with_quantity(BoxTarget((10, 10, 50, 40), label=1), "width").quantity
        'width'
    """
    function = TARGETS.find(quantity)
    if against is not None and against == as_target(target).label:
        raise ValueError(f"expected another class to compare with; got class {against} against itself")
    if isinstance(function, BuiltinQuantity):
        return function.make(target, against)
    if against is not None:
        raise ValueError(f"against= compares scores or logits of two classes; got quantity={quantity!r}")
    if isinstance(target, DetectionTarget):
        return BoxFunctionTarget(target.box_xyxy, target.label, target.source, quantity, function=function)
    return FunctionTarget(quantity, function, as_target(target))


def register_target(name: str) -> Callable[[Function], Function]:
    """Register a function as a quantity that can be explained; use as a decorator.

    The function gets one image's output (a `DetectorOutput`, a `SegmenterOutput`, or class scores of shape (C,)) and
    the plain target of a detection, region or class. It returns a tensor with one element. The name then works as
    ``quantity`` in `detcam.explain`, `detcam.audit` and `detcam.benchmark` and on the command line. A package
    registers a function by an entry point of the group ``detcam.targets`` instead.

    Args:
        name: the name of the quantity.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        TypeError: the name is not a str.
        ValueError: another quantity has that name.

    Example:
        >>> from detcam.targets import register_target
        >>> @register_target("box_area")
        ... def box_area(output, target):
        ...     x1, y1, x2, y2 = output.candidates([target]).boxes_xyxy[0]
        ...     return (x2 - x1) * (y2 - y1)
    """
    if not isinstance(name, str):
        raise TypeError(f'expected the name of the quantity: @register_target("name"); got {name!r}')

    def register(function: Function) -> Function:
        TARGETS.register(name, function)
        return function

    return register


def _box_quantity(quantity: str, target: Target, against: int | None) -> Target:
    """Return a target for a score, logit, objectness or coordinate; of a region or class only the logit, as 'score'."""
    if isinstance(target, BoxTarget):
        return replace(target, quantity=quantity, against=against)  # type: ignore[arg-type]
    if quantity == "score":
        if against is None:
            return target
        if isinstance(target, MaskTarget):
            return replace(target, against=against)
        if isinstance(target, ClassifierOutputTarget):
            return FinerWeightedTarget(target.category, [against], alpha=1.0)
    raise _boxes_only(quantity)


def _convert(kind: type[DetectionTarget], quantity: str, target: Target, against: int | None) -> DetectionTarget:
    """Return a target of type `kind` for the same box."""
    if not isinstance(target, BoxTarget):
        raise _boxes_only(quantity)
    if against is not None:
        raise ValueError(f"against= compares scores or logits of two classes; got quantity={quantity!r}")
    return kind(target.box_xyxy, target.label, target.source)


def _boxes_only(quantity: str) -> ValueError:
    return ValueError(f"quantity={quantity!r} is for boxes; expected quantity='score' for this model")


def _check(name: str, function: TargetFunction) -> None:
    """Raise TypeError if an entry of the registry is not a function."""
    if not callable(function):
        raise TypeError(f"expected a function (output, target) -> scalar as the target {name!r}; got {function!r:.60}")


TARGETS: Registry[TargetFunction] = Registry(
    "quantity",
    "detcam.targets",
    {
        **{name: BuiltinQuantity(partial(_box_quantity, name)) for name in QUANTITIES},
        "mask": BuiltinQuantity(partial(_convert, InstanceMaskTarget, "mask")),
        "edges": BuiltinQuantity(partial(_convert, EdgesTarget, "edges")),
    },
    check=_check,
)
"""The quantities by name; each is called with one image's output and a plain target."""
