"""The rows of a benchmark: the methods of a run, its controls, and the rows that the folder's table has already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from detcam.adapters import Adapter
from detcam.adapters.black_box import gradient_obstacle
from detcam.benchmarking.controls import make_controls
from detcam.benchmarking.result_store import ResultStore
from detcam.benchmarking.specs import CONTROL_METHODS, MethodSpec, make_method_specs
from detcam.cam import LayerlessCAM
from detcam.explanation.explain import MethodLike
from detcam.methods import METHODS
from detcam.utils.console import plural

MAX_NAMES = 8
"""Image names in one message."""
DEFAULT_METHODS = {
    "detection": ("odam", "gradcam", "layercam", "reachcam", "eigencam"),
    "segmentation": ("gradcam", "hirescam", "layercam", "seggradcam", "eigencam"),
    "classification": ("gradcam", "gradcamplusplus", "hirescam", "layercam", "eigencam"),
    "embedding": ("gradcam", "hirescam", "layercam", "eigencam"),
}
DEFAULT_GRADIENT_FREE_METHODS = ("rise:passes=500", "occlusion")
"""Default methods for models without gradients; D-RISE before them for boxes."""


def row_specs(
    adapter: Adapter,
    methods: Iterable[MethodLike] | Mapping[str, MethodLike] | None,
    controls: bool,
    batch_size: int | None,
    seed: int,
) -> list[MethodSpec]:
    """Make the specifications of a run's methods, and of the controls of the adapter's task.

    Args:
        adapter: the model.
        methods: as in `detcam.benchmark`.
        controls: whether to add controls.
        batch_size: images per forward pass; None keeps each method's own.
        seed: seed of the controls.

    Raises:
        ValueError: a method does not fit the model, or has the name of a control.
    """
    if methods is None and gradient_obstacle(adapter.model) is None:
        methods = DEFAULT_METHODS[adapter.task]
    elif methods is None:
        methods = (*(["drise:passes=500"] if adapter.task == "detection" else []), *DEFAULT_GRADIENT_FREE_METHODS)
    specs = make_method_specs(methods, adapter, batch_size=batch_size)
    if not controls:
        return specs
    names = {spec.name for spec in specs}
    given = {name.partition(":")[0] for name in names}
    missing = [name for name in CONTROL_METHODS if name not in given and adapter.task in METHODS[name].tasks]
    if not adapter.layer_names:  # no features to weight at random
        missing = [name for name in missing if issubclass(METHODS[name], LayerlessCAM)]
    drawn = make_controls(adapter.task, seed)
    clash = names & {spec.name for spec in drawn}
    if clash:
        raise ValueError(f"{', '.join(sorted(clash))} is the name of a control; give your method another one")
    control_methods = make_method_specs(missing, adapter, batch_size=batch_size, require_method=False)
    return [*specs, *control_methods, *drawn]


def earlier_rows(
    store: ResultStore,
    specs: Sequence[MethodSpec],
    images: Sequence[str],
    adapter: Adapter,
    batch_size: int | None,
    seed: int,
) -> list[MethodSpec]:
    """Make the specifications of the rows of the folder's table that a run does not name.

    Args:
        store: results of the folder.
        specs: methods and controls of the run.
        images: names of the run's images.
        adapter: the model.
        batch_size: as in `row_specs`.
        seed: as in `row_specs`.

    Raises:
        ValueError: the table would lose images, or a row that its name alone does not define.
    """
    rows, compared = store.read_table()
    lost = sorted(set(compared) - set(images))
    if lost:
        shown = ", ".join(lost[:MAX_NAMES]) + (", ..." if len(lost) > MAX_NAMES else "")
        raise ValueError(
            f"the table in {store.folder} compares {plural(len(compared), 'image')}, and this run lacks {len(lost)} "
            f"of them: {shown}. Give all of them, or choose another folder"
        )
    known = {spec.name: spec for spec in [*make_controls(adapter.task, seed), *specs]}
    earlier = []
    for name in rows:
        if name not in known:
            known[name] = _spec_of(name, adapter, batch_size)
        if known[name].definition != rows[name] and known[name] not in specs:
            raise ValueError(
                f"the table in {store.folder} has a row {name!r}, which this run does not name, and the name alone "
                "does not define the method and its batch size. Give that method as well, or choose another folder"
            )
        earlier += [known[name]] if known[name] not in specs else []
    return earlier


def _spec_of(name: str, adapter: Adapter, batch_size: int | None) -> MethodSpec:
    """The specification of a registered method; one without a definition for a name that is none."""
    try:
        (spec,) = make_method_specs([name], adapter, batch_size=batch_size, require_method=False)
    except (TypeError, ValueError):
        return MethodSpec(name, "method", lambda *_: [])
    return spec
