"""Any image, target and option: a heatmap of the stated shape and range, or an error of a documented type."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

import detcam
from detcam import GradCAM, adapt
from detcam.detections import Detections, Source
from detcam.targets import BoxTarget, ClassifierOutputTarget
from tests import zoo
from tests.fuzz.counts import check, counts
from tests.helpers import Snapshot, TinyCNN

DOCUMENTED = (TypeError, ValueError, RuntimeError)
METHODS = ("gradcam", "hirescam", "layercam", "eigencam", "occlusion:grid=2,window=1", "rise:passes=4")

sides = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 63, 64, 65, 257, 1024, 4096]))
seeds = st.integers(0, 2**16)


@st.composite
def sizes(draw: Any) -> tuple[int, int]:
    """Height and width from 1 to 4096, of at most 2**15 pixels."""
    height = draw(sides)
    return height, min(draw(sides), max(2**15 // height, 1))


@st.composite
def images(draw: Any) -> Any:
    """An image of any type, layout, dtype and size; some are none."""
    height, width = draw(sizes())
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["uint8", "uint16", "float", "bool", "int64", "half", "nan", "pil", "tensor", "odd"]))
    channels = draw(st.sampled_from([3, 3, 3, 3, 1, 4, 0, 2]))
    values = rng.random((height, width, channels))
    if kind == "pil":
        mode = draw(st.sampled_from(["RGB", "L", "1", "P", "RGBA", "CMYK", "LA", "I;16", "I", "F", "HSV", "YCbCr"]))
        image = Image.fromarray((rng.random((height, width, 3)) * 255).astype(np.uint8))
        return image.convert("L").convert(mode) if mode in ("I;16", "I", "F", "1", "LA") else image.convert(mode)
    if kind == "odd":
        return draw(st.sampled_from([None, 5, "", "no such file.png", b"", [], {}, np.zeros(3), torch.zeros(0, 3, 4)]))
    if kind == "tensor":
        tensor = torch.from_numpy(values.transpose(2, 0, 1).copy()).float()
        return tensor.to(draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])))
    if kind == "nan" and values.size:
        values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from([math.nan, math.inf, -1.0, 300.0]))
    dtype = {"float": np.float32, "nan": np.float64, "half": np.float16}.get(kind)
    array = values.astype(dtype) if dtype else (values * 255).astype(kind)
    return draw(
        st.sampled_from([array, array[:, ::-1], array[..., 0] if channels else array, np.asfortranarray(array)])
    )


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of an image that was accepted."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return tuple(image.shape[-2:]) if isinstance(image, torch.Tensor) else image.shape[:2]


def check_maps(maps: Any, size_hw: tuple[int, int], count: int | None = None) -> None:
    assert isinstance(maps, np.ndarray) and maps.dtype == np.float32 and maps.shape[1:] == size_hw
    assert count is None or len(maps) == count
    assert np.isfinite(maps).all() and (maps >= 0).all() and (maps <= 1).all()


def documented(error: Exception) -> None:
    assert isinstance(error, DOCUMENTED) and len(str(error)) > 10, repr(error)


def quietly(run: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


@counts(80, 2500)
def test_images_of_any_kind_alone_and_together(count: int) -> None:
    model = TinyCNN()
    adapter, before = adapt(model, image_size=32), Snapshot(model)

    def explained(batch: list[Any], method: str, alone: bool) -> None:
        given = batch[0] if alone else batch
        try:
            found = quietly(lambda: detcam.explain(adapter, given, method))
        except Exception as error:  # noqa: BLE001 - the types are checked
            documented(error)
        else:
            for image, explanation in zip(batch[:1] if alone else batch, found, strict=True):
                check_maps(np.asarray(explanation.heatmaps), size_of(image), 1)
        before.check()

    check(
        count,
        explained,
        batch=st.lists(images(), min_size=1, max_size=3),
        method=st.sampled_from(METHODS),
        alone=st.booleans(),
    )


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(-5, 100), st.integers(-(2**70), 2**70), st.just(10**400)
)
boxes = st.one_of(
    st.tuples(numbers, numbers, numbers, numbers),
    st.builds(lambda x, y, w, h: (x, y, x + w, y + h), *[st.floats(0, 90)] * 2, *[st.floats(0.01, 60)] * 2),
)
labels = st.one_of(st.integers(-3, 5), st.sampled_from(["class 0", "none", "", 1.5, None, 2**70, True]))


@st.composite
def targets(draw: Any) -> Any:
    """Something that may stand for the targets of one image."""
    kind = draw(st.sampled_from(["box", "box", "box", "class", "detections", "function", "odd", "empty", "none"]))
    if kind == "box":
        return [BoxTarget(draw(boxes), draw(labels)) for _ in range(draw(st.integers(1, 3)))]
    if kind == "class":
        return [ClassifierOutputTarget(draw(labels))]
    if kind == "detections":
        rows = draw(st.lists(boxes, min_size=0, max_size=3))
        kept = torch.tensor([[float(min(v, 1e30)) for v in row] for row in rows]).reshape(-1, 4)
        count = len(rows)
        return Detections(
            kept, torch.zeros(count, dtype=torch.int64), torch.full((count,), 0.5), (96, 96), (Source("query"),) * count
        )
    if kind == "function":
        return [draw(st.sampled_from([lambda output: output.scores.sum(), lambda output: output, lambda output: 5]))]
    return {"odd": draw(st.sampled_from([5, "cat", [None], {}, torch.zeros(3)])), "empty": [], "none": None}[kind]


@counts(60, 2500)
def test_targets_of_any_kind(count: int) -> None:
    example = zoo.example("own_detector")
    cams = {name: zoo.quick(name, example.adapter) for name in ("odam", "gradcam", "drise", "probecam")}
    before, image = Snapshot(example.model), torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))

    def explained(make: Any, method: str, wrapped: bool) -> None:
        try:
            chosen = make
            maps = quietly(lambda: cams[method]([image], [chosen] if wrapped else chosen))
        except Exception as error:  # noqa: BLE001 - the types are checked
            documented(error)
        else:
            check_maps(maps[0], (96, 96), len(make) if wrapped and make is not None else None)
        before.check()

    def make_targets(data: Any, method: str, wrapped: bool) -> None:
        try:
            made = data.draw(targets())
        except DOCUMENTED as error:  # a target that is refused when it is made
            documented(error)
        else:
            explained(made, method, wrapped)

    check(
        count,
        make_targets,
        data=st.data(),
        method=st.sampled_from(["odam", "odam", "gradcam", "drise", "probecam"]),
        wrapped=st.booleans(),
    )


@counts(50, 1000)
def test_options_of_any_value(count: int) -> None:
    example = zoo.example("own_detector")
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1))
    before = Snapshot(example.model)

    def explained(**options: Any) -> None:
        given = {name: value for name, value in options.items() if value != "default"}
        try:
            found = quietly(lambda: detcam.explain(example.adapter, image, "odam", **given))
        except Exception as error:  # noqa: BLE001 - the types are checked
            documented(error)
        else:
            check_maps(np.asarray(found[0].heatmaps), (40, 50))
            assert given.get("top_k") is None or len(found[0]) <= given["top_k"]
        before.check()

    default = st.just("default")
    check(
        count,
        explained,
        score_threshold=st.one_of(default, st.floats(allow_nan=True), st.floats(0, 1), st.just("high")),
        top_k=st.one_of(default, st.integers(-2, 5), st.sampled_from([1.5, "all", None, 10**30])),
        labels=st.one_of(default, labels, st.lists(labels, max_size=2)),
        batch_size=st.one_of(default, st.integers(-1, 3)),
        quantity=st.one_of(default, st.sampled_from(["score", "logit", "objectness", "x1", "", "no such"])),
        against=st.one_of(default, labels),
    )


@counts(60, 1000)
def test_network_inputs_of_any_shape(count: int) -> None:
    model = TinyCNN()
    cam, before = GradCAM(adapt(model, image_size=32)), Snapshot(model)

    def explained(shape: list[int], dtype: torch.dtype, target: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        tensor = torch.rand(shape, generator=generator).to(dtype) if 0 not in shape else torch.zeros(shape, dtype=dtype)
        try:
            chosen = None if target == "top" else [ClassifierOutputTarget(target)]
            maps = quietly(lambda: cam(tensor, chosen))
        except Exception as error:  # noqa: BLE001 - the types are checked
            documented(error)
        else:
            for one in maps if isinstance(maps, list) else [maps]:
                check_maps(one, tuple(shape[-2:]))
        before.check()

    dimension = st.integers(0, 40)
    check(
        count,
        explained,
        shape=st.one_of(
            st.tuples(st.integers(1, 3), st.sampled_from([3, 3, 3, 1]), dimension, dimension).map(list),
            st.lists(st.integers(0, 9), min_size=0, max_size=6),
        ),
        dtype=st.sampled_from(
            [torch.float32, torch.float32, torch.float64, torch.float16, torch.uint8, torch.complex64]
        ),
        target=st.one_of(st.just("top"), labels),
    )
