"""What the ``detcam`` command does and prints: runs over images, and plain tables."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from detcam.adapters import Adapter
from detcam.adapters.base import Target
from detcam.cli.common import printable, shorten
from detcam.cli.layers import map_layers
from detcam.detections import label_index
from detcam.explanation.batch import explain_files, find_images
from detcam.explanation.explain import SCORE_THRESHOLD, Explanation, asked, make_cam
from detcam.explanation.writer import ExplanationWriter
from detcam.targets import QUANTITIES, BoxTarget, MaskTarget
from detcam.visualize.convert import colormap_code

WIDEST_NAME = 32
FINDING = 34  # characters


@dataclass(frozen=True)
class Job:
    """What the user asked for; arguments of ``detcam explain`` with the same names."""

    photos: Sequence[str]
    out: Path
    colormap: str = "inferno"
    method: str = "auto"
    boxes: Sequence[str] = ()
    box_labels: Sequence[str] = ()
    classes: Sequence[str] | None = None
    score_threshold: float | None = None
    top_k: int | None = None
    quantity: str = "score"
    against: str | None = None
    aug_smooth: bool = False
    eigen_smooth: bool = False
    batch_size: int = 4


def run(job: Job, load: Callable[[], Adapter], model_name: str) -> int:
    """Explain images and print a table as they are done.

    Args:
        job: what to do.
        load: makes the adapter; called once everything else has been checked.
        model_name: what the results call the model.

    Returns:
        The exit code: 0, 1 where some images failed, 2 where nothing could be explained.
    """
    colormap_code(job.colormap)
    boxes = [parse_box(text) for text in job.boxes]
    _check_choices(job)
    paths = find_images(job.photos)
    adapter = load()
    method = make_cam(adapter, job.method).name
    print(_headline(adapter, method), file=sys.stderr)
    choices: dict[str, Any] = {"aug_smooth": job.aug_smooth, "eigen_smooth": job.eigen_smooth}
    against = None if job.against is None else find_label(adapter, job.against)
    if boxes:
        labels = [find_label(adapter, text) for text in job.box_labels]
        pairs = list(zip(boxes, labels * len(boxes) if len(labels) == 1 else labels, strict=True))
        choices["targets_for"] = lambda image: box_targets(adapter, image, pairs, job.quantity, against)
    else:
        choices.update(score_threshold=job.score_threshold, top_k=job.top_k, quantity=job.quantity, against=against)
        choices["labels"] = None if job.classes is None else [find_label(adapter, text) for text in job.classes]
    writer = ExplanationWriter(job.out, colormap=job.colormap, model_name=model_name)
    with Progress(paths, job.score_threshold, adapter) as progress, writer:
        explain_files(adapter, paths, writer, job.method, batch_size=job.batch_size, done=progress.done, **choices)
    return progress.conclude(writer)


@dataclass
class Progress:
    """A row per finding on stdout as images are done, a bar and complaints on stderr."""

    paths: Sequence[Path]
    score_threshold: float | None
    adapter: Adapter
    explained: int = 0
    findings: int = 0
    passes: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __enter__(self) -> Progress:
        # disable=None: no bar where stderr is no terminal
        self.bar = tqdm(total=len(self.paths), unit="image", disable=None, leave=False)
        self.width = min(max(7, *(len(path.name) for path in self.paths)), WIDEST_NAME)
        self._row("image", "finding", "value", "reach", "overlay")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.bar.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            print(f"detcam: interrupted; {self.explained} of {len(self.paths)} images are done", file=sys.stderr)

    def done(self, path: Path, result: Explanation | Exception, overlays: Sequence[Path]) -> None:
        """Tell of one image."""
        if isinstance(result, Explanation):
            self.explained += 1
            self.findings += len(result)
            if result.sampling is not None:
                self.passes.append(result.sampling.passes)
            self._rows(path, result, overlays)
        else:
            message = " ".join(str(result).split())
            self.failed.append(f"{path}: {message}" if str(path) not in message else message)
            tqdm.write(f"detcam: skipped {printable(self.failed[-1])}", file=sys.stderr)
        self.bar.update()

    def _rows(self, path: Path, result: Explanation, overlays: Sequence[Path]) -> None:
        if not len(result):
            at = ""
            if self.adapter.task == "detection":
                threshold = SCORE_THRESHOLD if self.score_threshold is None else self.score_threshold
                at = f" at or above {threshold:g}"
            self._row(path.name, f"nothing found{at}")
        for index, overlay in enumerate(overlays):
            words, _, value = result.captions[index].rpartition(" ")
            reach = f"{result.reach[index].fraction:.0%}" if result.reach else "-"
            self._row("" if index else path.name, words, value, reach, overlay.name)

    def _row(self, image: str, finding: str, value: str = "", reach: str = "", overlay: str = "") -> None:
        name, words = shorten(image, self.width), shorten(finding, FINDING)
        cells = f"{name:{self.width}}  {words:{FINDING}}  {value:>7}  {reach:>5}  {overlay}"
        tqdm.write(printable(cells.rstrip()), file=sys.stdout)

    def conclude(self, writer: ExplanationWriter) -> int:
        """Print the sum of it, and return the exit code."""
        if not self.explained:
            print(f"detcam: none of {len(self.paths)} images could be explained", file=sys.stderr)
            return 2
        print(f"\n{_count(self.explained, 'image')}, {_count(self.findings, 'finding')}: {writer.index}")
        if self.passes:
            low, high = min(self.passes), max(self.passes)
            print(f"{low if low == high else f'{low} to {high}'} passes an image")
        if not self.findings:
            print("Nothing was found. A lower --score-threshold shows weaker findings.", file=sys.stderr)
        if self.failed:
            print(f"detcam: {len(self.failed)} of {len(self.paths)} images were skipped", file=sys.stderr)
        return 1 if self.failed else 0


def parse_box(text: str) -> tuple[float, float, float, float]:
    """A box from ``x1,y1,x2,y2``.

    Raises:
        ValueError: not four numbers, or an empty box.
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"expected --box as four numbers x1,y1,x2,y2 in pixels; got {text!r}") from error
    return BoxTarget((x1, y1, x2, y2), 0).box_xyxy


def find_label(adapter: Adapter, text: str) -> int:
    """The class index of a name or index.

    Raises:
        ValueError: no such class; the message has the nearest names.
    """
    try:
        return label_index(adapter.names, text)
    except ValueError as error:
        if not adapter.names:
            raise ValueError(f"the model has no class names; give {text!r} as an index, or pass --names") from error
        known = {name.casefold(): name for name in adapter.names.values()}
        near = [known[match] for match in difflib.get_close_matches(text.casefold(), known, n=4, cutoff=0.5)]
        meant = f"did you mean {', '.join(near)}?" if near else f"it knows {', '.join(list(known.values())[:8])}, ..."
        raise ValueError(f"the model has no class named {text!r}; {meant}") from error


def box_targets(
    adapter: Adapter,
    image: Tensor,
    pairs: Sequence[tuple[tuple[float, float, float, float], int]],
    quantity: str,
    against: int | None,
) -> list[Target]:
    """Targets for boxes drawn by hand: a box of a detector, the region inside it of a segmentation network.

    Raises:
        ValueError: the model has neither, or a box lies outside the image.
    """
    height, width = image.shape[-2:]
    targets: list[Target] = []
    for box, label in pairs:
        x1, y1, x2, y2 = (round(value) for value in box)
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(f"the box {box} lies outside the image, which is {width} x {height} pixels")
        if adapter.task == "detection":
            targets.append(asked(BoxTarget(box, label), quantity, against))
        elif adapter.task == "segmentation":
            region = torch.zeros(height, width, dtype=torch.bool)
            region[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)] = True
            targets.append(asked(MaskTarget(label, region), quantity, against))
        else:
            raise ValueError(f"--box is for detectors and segmentation networks; this model does {adapter.task}")
    return targets


def layers_table(adapter: Adapter, depth: int) -> str:
    """The layers that can be target layers, the default ones marked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = map_layers(adapter)
    rows = []
    for layer in layers:
        if layer.is_default or layer.name.count(".") < depth:
            sizes = ", ".join(f"{c} x {h} x {w}" for c, h, w in layer.sizes[:6]) + (
                ", ..." if len(layer.sizes) > 6 else ""
            )
            rows.append(("*" if layer.is_default else "", layer.name, layer.kind, layer.stride, sizes))
    deeper = sum(1 for layer in layers if layer.name.count(".") >= depth and not layer.is_default)
    notes = "* looked at unless --target-layer says otherwise; sizes: channels x height x width for a 480 x 640 image"
    if deeper:
        notes += f"; {deeper} deeper layers: --depth {depth + 1}"
    return table(("", "layer", "module", "stride", "sizes"), rows) + f"\n\n{notes}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces apart."""
    everything = [header, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in everything]
    return "\n".join(printable(line.rstrip()) for line in lines)


def _check_choices(job: Job) -> None:
    if job.quantity not in (*QUANTITIES, "mask"):
        raise ValueError(f"expected --quantity to be one of {', '.join(QUANTITIES)}, mask; got {job.quantity!r}")
    if bool(job.boxes) != bool(job.box_labels):
        raise ValueError("--box and --label go together: a box x1,y1,x2,y2 and the class to explain in it")
    if job.boxes and len(job.box_labels) not in (1, len(job.boxes)):
        raise ValueError(f"expected one --label, or one for each of {len(job.boxes)} boxes; got {len(job.box_labels)}")
    if job.boxes and (job.classes or job.top_k is not None or job.score_threshold is not None):
        raise ValueError("--class, --top-k and --score-threshold choose among findings; with --box there is no choice")


def _headline(adapter: Adapter, method: str) -> str:
    layers = ", ".join(adapter.layer_names)
    return f"{type(adapter.model).__name__} ({adapter.family}) on {adapter.device}, {method} at {layers}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
