"""Explanations of image files: finds the files, explains and writes them shard by shard, and skips those that fail."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor, nn

from detcam.adapters import Adapter
from detcam.adapters.base import Target
from detcam.explanation.explain import Explanation, MethodLike, explain, make_cam
from detcam.explanation.image_files import STAGE
from detcam.explanation.writer import ExplanationIndex, write_explanation
from detcam.methods.spec import parse_method
from detcam.runs import (
    CrashLog,
    EngineLike,
    LocalEngine,
    Run,
    Stage,
    lock_folder,
    make_engine,
    plan_shards,
)
from detcam.targets import BoxTarget, MaskTarget, with_quantity
from detcam.utils.batching import batches, run_each
from detcam.utils.console import describe_error
from detcam.utils.files import utf8_bytes
from detcam.utils.hashing import adapter_digest, weights_digest
from detcam.visualize.overlay import DEFAULT_COLORMAP

DEFAULT_IMAGES_IN_MEMORY = 4
"""Images that are read, explained and written together by default: their heatmaps are in memory at the same time."""

MAX_GROUP_BATCHES = 2
"""Maximum number of batches of a group, the smallest shard: one is written while the network runs on the next."""
MIN_SHARDS = 8
"""Number of shards from which on they have more than one batch."""
MAX_LOCAL_GROUP_BATCHES, MIN_LOCAL_SHARDS = 4, 2
"""The same for methods that write much of the time, in this process, which needs no shards for others. The network
waits until the last batch of a shard is written."""

TargetsFor: TypeAlias = Callable[[Tensor], "list[Target]"]
"""A function from an image (3, H, W) to its targets."""
OnImage: TypeAlias = Callable[[Path, "dict[str, Any] | None", str], None]
"""A callback for each image: its path, its entry in ``explanations.json``, or None and the error message."""
EXPLANATION_SCHEMA = pa.schema({"entry": pa.string(), "error": pa.string()})


@dataclass(frozen=True)
class ExplanationWork:
    """Explains the image files of a shard, `batch_size` at a time, and writes their overlays and heatmaps.

    Attributes:
        adapter: the model.
        folder: folder of the files.
        method: as in `explain`.
        targets_for: function from an image to its targets; None explains the model's predictions.
        colormap: colormap of the overlays.
        model_name: name of the model in the index; None takes its class name.
        batch_size: images that are read, explained and written together.
        options: further arguments of `explain`.
    """

    adapter: Adapter
    folder: Path
    method: MethodLike
    targets_for: TargetsFor | None
    colormap: str | int
    model_name: str | None
    batch_size: int
    options: Mapping[str, Any]

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.adapter.model

    def parts(self, payload: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
        """Divide a shard, path and stem of each image, into batches."""
        return batches(payload, self.batch_size)

    def read(self, part: Sequence[tuple[str, str]], log: CrashLog) -> list[Tensor | Exception]:
        """Return each image, or why it cannot be read."""
        found: list[Tensor | Exception] = []
        read = partial(self.adapter.reader.read, keep_bytes=self.adapter.takes_bytes)
        for path, _ in part:
            try:
                found.append(log.call(f"reading {ascii(path)}", read, Path(path)))
            except (TypeError, ValueError) as error:
                found.append(ValueError(str(error)))
        return found

    def compute(
        self, part: Sequence[tuple[str, str]], inputs: list[Tensor | Exception], log: CrashLog
    ) -> list[Explanation | Exception]:
        """Return the explanation of each image, or why there is none."""
        results: dict[str, Explanation | Exception] = {}
        images: list[tuple[str, Tensor]] = []
        for (path, _), image in zip(part, inputs, strict=True):
            if isinstance(image, Exception):
                results[path] = image
            else:
                images.append((path, image))
        found = run_each(images, partial(self._explain, log))
        results.update(zip((path for path, _ in images), found, strict=True))
        return [results[path] for path, _ in part]

    def write(self, part: Sequence[tuple[str, str]], computed: list[Explanation | Exception]) -> pa.Table:
        """Write the files of each image, and return its entry, or a message."""
        rows = []
        for (path, stem), result in zip(part, computed, strict=True):
            if isinstance(result, Exception):
                rows.append({"error": utf8_bytes(describe_error(result)).decode()})
                continue
            result = replace(result, path=Path(path), name=Path(path).name)
            entry = write_explanation(self.folder, result, stem, colormap=self.colormap, model_name=self.model_name)
            rows.append({"entry": json.dumps(entry)})
        return pa.Table.from_pylist(rows, EXPLANATION_SCHEMA)

    def _explain(self, log: CrashLog, images: Sequence[tuple[str, Tensor]]) -> Sequence[Explanation]:
        pixels = [image for _, image in images]
        targets = None if self.targets_for is None else [self.targets_for(image) for image in pixels]
        call = partial(explain, self.adapter, pixels, self.method, targets, **self.options)
        return log.call(f"explaining {' '.join(ascii(path) for path, _ in images)}", call)


def explain_files(
    adapter: Adapter,
    paths: Sequence[Path],
    out: str | Path,
    method: MethodLike,
    *,
    on_progress: OnImage,
    targets_for: TargetsFor | None = None,
    batch_size: int | None = None,
    colormap: str | int = DEFAULT_COLORMAP,
    model_name: str | None = None,
    engine: EngineLike = "local",
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Explain image files and write each explanation as soon as it is computed, so that memory holds one batch.

    Args:
        adapter: the model.
        paths: image files.
        out: folder for the files; it is created if it does not exist.
        method: as in `explain`.
        on_progress: called after each image, also after one that failed, and for those of an earlier run.
        targets_for: function from an image to its targets; None explains the model's predictions.
        batch_size: images that are read, explained and written together; None takes `DEFAULT_IMAGES_IN_MEMORY` and
            keeps the method's own number of images per forward pass.
        colormap: colormap of the overlays.
        model_name: name of the model in the index; None takes its class name.
        engine: where the work runs, as in `detcam.audit`.
        resume: whether to continue an interrupted run in the folder.
        settings: everything else that the results depend on, as JSON values, which a run that continues must share.
        **options: as in `explain`.

    Returns:
        The path of ``explanations.json``.

    Raises:
        ValueError: the folder has an unfinished run and `resume` is False, or one with other settings.
        RuntimeError: another process works in the folder.
    """
    engine = make_engine(engine)
    images_together = DEFAULT_IMAGES_IN_MEMORY if batch_size is None else batch_size
    cam = make_cam(adapter, method)
    identity = {
        "model": model_name or type(adapter.model).__name__,
        "method": cam.name,
        "target_layers": list(adapter.layer_names),
        "smoothing": [name for name in ("aug_smooth", "eigen_smooth") if options.get(name)],
    }
    absolute = [str(path.absolute()) for path in paths]
    recorded = {
        **identity,
        **(settings or {}),
        "batch_size": batch_size,
        "images": hashlib.sha256(ascii(absolute).encode()).hexdigest()[:16],
        "weights": weights_digest(adapter.model),
        "adapter_options": adapter_digest(adapter),
    }
    with lock_folder(out) as folder, engine.started():
        run, index = Run(folder, "explain", recorded, resume=resume), ExplanationIndex(folder)

        def plan() -> Iterator[list[Any]]:
            is_fast = isinstance(engine, LocalEngine) and not cam.compares_scores
            shards = MIN_LOCAL_SHARDS if is_fast else MIN_SHARDS
            largest = MAX_LOCAL_GROUP_BATCHES if is_fast else MAX_GROUP_BATCHES
            batches_each = max(min(len(paths) // (shards * images_together), largest), 1)
            for shard in plan_shards(len(paths), images_together * batches_each):
                described = [{"path": absolute[number], "name": paths[number].name, **identity} for number in shard]
                yield [(str(paths[number]), index.choose_stem(e)) for number, e in zip(shard, described, strict=True)]

        stage = run.stage(STAGE, plan)
        stage.forget_out_of_memory("error")
        work = ExplanationWork(
            adapter,
            folder.absolute(),
            parse_method(method) if isinstance(method, str) and method != "auto" else method,
            targets_for,
            colormap,
            model_name,
            images_together,
            {**options, "batch_size": batch_size},
        )
        try:
            for number in stage.process(engine, work):
                for (path, _), row in zip(stage.shards[number], stage.table(number).to_pylist(), strict=True):
                    on_progress(Path(path), json.loads(row["entry"]) if row["entry"] else None, row["error"] or "")
        finally:
            done = [number for number in range(len(stage.shards)) if stage.is_done(number)]
            index.write(lambda: _entries(stage, done))
        run.remove()
    return index.path


def _entries(stage: Stage, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Read the entries of some shards, in the order of the images."""
    for number in sorted(shards):
        yield from (json.loads(text) for text in stage.table(number, ["entry"])["entry"].to_pylist() if text)


def box_targets(
    adapter: Adapter,
    image: Tensor,
    *,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    quantity: str = "score",
    against: int | None = None,
) -> list[Target]:
    """Return targets for boxes that the user gives: boxes of a detector, or regions of a segmentation network.

    Args:
        adapter: a detector or segmentation network.
        image: (3, H, W).
        boxes: xyxy in pixels of the image.
        labels: one class index per box.
        quantity: as in `explain`.
        against: class index to compare with, or None.

    Raises:
        ValueError: a box lies outside the image.
    """
    height, width = image.shape[-2:]
    targets: list[Target] = []
    for box, label in zip(boxes, labels, strict=True):
        x1, y1, x2, y2 = (round(value) for value in box)
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(f"the box {box} lies outside the image, which is {width} x {height} pixels")
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            message = f"the box {box} is partly outside the image, which is {width} x {height} pixels"
            warnings.warn(message, UserWarning, stacklevel=2)
        if adapter.task == "detection":
            targets.append(with_quantity(BoxTarget(box, label), quantity, against))
        else:
            region = torch.zeros(height, width, dtype=torch.bool)
            region[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)] = True
            targets.append(with_quantity(MaskTarget(label, region), quantity, against))
    return targets
