"""``detcam audit``: options, and a summary of the audit in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.options import (
    METHOD,
    TARGETS,
    BatchSize,
    BoxFormat,
    ClassMap,
    EngineOptions,
    FilterOptions,
    Out,
    Resume,
    TargetLayer,
    option,
    parse_class_map,
)
from detcam.utils.console import make_console, make_table, printable

if TYPE_CHECKING:
    from rich.table import Table

    from detcam.auditing.result import Audit

HELP = "Explain a detector's errors on annotated images, and verify each explanation by removing its evidence."
EPILOG = """
[bold]Results[/bold]

The folder gets index.html, which opens in any browser, audit.json, false_positives.csv, and the false positives as \
COCO annotations for a labeling tool. --resume continues an interrupted audit.

Several maps propose evidence, and the smallest region is kept that ends the error when it is removed from the image, \
whatever the fill. The verdict compares the score that it costs with the score that control regions of the same size \
cost: 'strong', 'weak' or 'not confirmed'. 'Confirmed' means strong or weak. A missed object has to appear when the \
region that prevents its detection is removed. Where average precision is undefined, \
errors are ranked by the score that confirmed evidence costs, and by score.

[bold]Examples[/bold]

detcam audit --model yolo11n.pt --images val2017/ --annotations instances_val2017.json --out report

detcam audit --model fasterrcnn_resnet50_fpn --weights cells.pth --images cells/ --annotations cells.json \
--class-map "red cell=RBC" --score-threshold 0.5

[bold]Exit codes[/bold]

0 done, 1 some images could not be read or explained, 2 invalid input, 130 interrupted.
"""
MAX_GROUPS = 8
MAX_CHILDREN = 5


@dataclass(frozen=True, kw_only=True)
class AuditOptions(FilterOptions, EngineOptions):
    """Options of ``detcam audit``."""

    images: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder that contains the annotations' files.")
    ]
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="COCO JSON with boxes, polygons or masks, or a data.yaml. Without it, the detections themselves are "
            "explained, verified and ranked, the least trusted first.",
        ),
    ] = None
    class_map: ClassMap = None
    box_format: BoxFormat = None
    explain: Annotated[int, option(TARGETS, "N", "Number of false positives to explain.", min=0)] = 200
    explain_missed: Annotated[int, option(TARGETS, "N", "Number of missed objects to explain.", min=0)] = 50
    explain_order: Annotated[
        str,
        option(
            TARGETS,
            "score|random",
            "Explain the highest scores and the largest missed objects, or random samples, which give the shares of "
            "the causes among all errors.",
        ),
    ] = "score"
    sample_seed: Annotated[int, option(TARGETS, "N", "Seed of the random samples.", min=0)] = 0
    iou_threshold: Annotated[float, option(TARGETS, "0..1", "Minimum IoU of a true positive.", min=0.01, max=1)] = 0.5
    background_threshold: Annotated[
        float, option(TARGETS, "0..1", "Maximum IoU of a background error.", min=0.001, max=1)
    ] = 0.1
    iou_type: Annotated[str, option(TARGETS, "bbox|segm", "Match boxes (bbox) or masks (segm).")] = "bbox"
    method: Annotated[
        str,
        option(
            METHOD,
            "NAME",
            "What proposes evidence: 'portfolio' takes several maps, and coarse-to-fine removal where these are not "
            "confirmed; the name of a method takes its heatmap alone.",
        ),
    ] = "portfolio"
    target_layer: TargetLayer = None
    batch_size: BatchSize = None
    out: Out = Path("report")
    resume: Resume = False

    def check_paths(self) -> None:
        """Check that images and annotations exist too; the base class has the errors."""
        super().check_paths()
        if not self.images.is_dir():
            raise ValueError(f"no folder of images at {self.images}; check the path")
        if self.annotations is not None and not self.annotations.is_file():
            raise ValueError(f"no annotation file at {self.annotations}; check the path")


# Options that `detcam.audit` takes under the same name.
SHARED = (
    "out",
    "labels",
    "score_threshold",
    "explain",
    "explain_missed",
    "explain_order",
    "sample_seed",
    "iou_threshold",
    "background_threshold",
    "iou_type",
    "quantity",
    "method",
    "batch_size",
    "resume",
)


def audit_command(options: AuditOptions) -> int:
    """Run an audit and print its summary; return the exit code, 1 if some images could not be read."""
    from detcam.auditing.pipeline import audit
    from detcam.auditing.stages import FAILED, UNEXPLAINED, UNREADABLE

    result = audit(
        options.load(target_layers=options.target_layer),
        options.images,
        options.annotations,
        class_map=parse_class_map(options.class_map or []),
        box_format=options.box_format,
        engine=options.engine_object(),
        progress=True,
        model_name=options.model_name,
        **{name: getattr(options, name) for name in SHARED},
    )
    print_summary(result, options.iou_threshold)
    return 1 if any(result.issues.of(kind) for kind in (UNREADABLE, FAILED, UNEXPLAINED)) else 0


def print_summary(audit: Audit, iou_threshold: float = 0.5) -> None:
    """Print an audit's error types, groups and data issues."""
    from detcam.auditing.errors import ERROR_TYPES
    from detcam.auditing.report.summary import headline, unlabeled_headline

    console = make_console()
    analysis, counts = audit.analysis, audit.analysis.counts()
    has_ap = not math.isnan(analysis.average_precision)
    columns = ("cases", *(["delta AP"] if has_ap else []), "explained", "strong", "weak", "not confirmed")
    table = make_table("error", *columns, right=columns)
    for error_type in ERROR_TYPES:
        cases = [case for case in audit.explained if case.type == error_type]
        grades = Counter(case.verdict for case in cases)
        tested = bool(cases) and grades["not tested"] < len(cases)
        delta_ap = [f"{analysis.delta_ap.by_type[error_type]:.3f}"] if has_ap else []
        verdicts = [str(grades[grade]) if tested else "-" for grade in ("strong", "weak", "not confirmed")]
        table.add_row(error_type, str(counts[error_type]), *delta_ap, str(len(cases)), *verdicts)
    if has_ap:
        console.print(f"average precision {analysis.average_precision:.3f} at an IoU of {iou_threshold:.2f}")
    cost = analysis.delta_ap_of(analysis.indices(false_positives_only=True))
    lines = headline(audit.cases, cost, audit.score_threshold)
    for line in unlabeled_headline(audit.cases, audit.score_threshold) if audit.is_unlabeled else lines:
        console.print(line, soft_wrap=True)
    console.print()
    console.print(table)
    proposals = Counter(case.proposal for case in audit.confirmed).most_common()
    if proposals:
        named = ", ".join(f"{name} ({count})" for name, count in proposals)
        console.print(f"confirmed evidence proposed by: {printable(named)}\n", soft_wrap=True)
    if audit.inventory:
        console.print("shares of all errors, from a random sample of explained ones, with 95 % intervals")
        for share in audit.inventory:
            if share.label is None:
                console.print(f"  {share.sentence}", soft_wrap=True)
        console.print()
    trusted = [f"{case.trust:.2f}  {case.file_name}: {case.sentence}" for case in audit.least_trusted]
    _print_lines("detections that deserve the least trust", trusted)
    if audit.causes:
        console.print(_causes_table(audit, has_ap))
    if audit.assignment is not None and len(audit.assignment.assigned):
        error, baseline = (
            f"{100 * value:.0f} %" for value in (audit.assignment.error, audit.assignment.baseline_error)
        )
        console.print(
            f"unexplained errors are assigned to the causes of explained ones that resemble them; {error} of those get "
            f"another kind than their own in cross-validation ({baseline} if all got the most frequent one)\n",
            soft_wrap=True,
        )
    order = "largest delta AP first" if has_ap else "most confirmed effect first, then highest score"
    _print_lines(f"groups of similar errors, {order}", [group.sentence for group in audit.groups])
    for line in audit.issues.summary().splitlines():
        console.print(f"note: {printable(line)}", soft_wrap=True)
    console.print(f"\n{audit.report}  ({audit.seconds:.0f} s)", soft_wrap=True)


def _causes_table(audit: Audit, has_ap: bool) -> Table:
    """Kinds of evidence and the classes below them, with numbers of errors and costs."""
    is_estimated = audit.assignment is not None
    columns = ("explained", "confirmed", *(["all errors"] if is_estimated else []), *(["delta AP"] if has_ap else []))
    table = make_table("cause", *columns, right=columns)
    for root in audit.causes:
        rows = [(depth, cause) for depth, cause in root.walk() if depth < 2]
        for depth, cause in rows[: MAX_CHILDREN + 1]:
            low, high = cause.estimated_interval
            number = f"{cause.estimated_count:.0f}"
            interval = "" if f"{low:.0f}" == f"{high:.0f}" == number else f" ({low:.0f} to {high:.0f})"
            estimate = [number + interval] if is_estimated else []
            cost = cause.estimated_delta_ap if is_estimated else cause.delta_ap
            counts = (str(len(cause)), str(cause.confirmed_count), *estimate, *([f"{cost:.3f}"] if has_ap else []))
            table.add_row("  " * depth + printable(cause.name), *counts)
        if len(rows) > MAX_CHILDREN + 1:
            table.add_row(f"  and {len(rows) - MAX_CHILDREN - 1} more in the report")
    return table


def _print_lines(title: str, lines: Sequence[str]) -> None:
    console = make_console()
    if lines:
        console.print(title)
    for line in lines[:MAX_GROUPS]:
        console.print(f"  {printable(line)}", soft_wrap=True)
    if len(lines) > MAX_GROUPS:
        console.print(f"  and {len(lines) - MAX_GROUPS} more in the report")
