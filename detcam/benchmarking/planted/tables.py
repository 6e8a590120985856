"""The planted benchmark's tables: for a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from detcam.benchmarking.planted.run import CONTROLS, AuditRow, DetectorRow, MethodRow, Planted

Cells = tuple[str, ...]
LEGENDS = {
    "methods": "peak: share of the cases whose hottest pixel lies on the certified cause; energy: share of the heat on "
    "it; rank: the first of the ten hottest places that lies on it, 11 where none does; passes: computing work for a "
    "case, forward and backward, in units of one plain pass.",
    "audits": "place: the evidence lies where most of the cause does; confirmed: the audit calls it the cause; right: "
    "and it touches the cause; wrong causes: unrelated things and random places held out to it, and how many it "
    "confirmed; passes: images that the network saw for a case.",
    "detectors": "fired: of the things that could deceive the detector; certified: gone without the cue, there without "
    "an unrelated thing; heat on the cause: of ReachCAM's maps, of the detector and of its twin asked for the same "
    "box; typicality: correlation of the two maps.",
}
HEADERS: dict[str, Cells] = {
    "methods": ("method", "family", "scenario", "cases", "peak", "energy", "rank", "passes"),
    "audits": (
        "family",
        "scenario",
        "cases",
        "peak",
        "energy",
        "place",
        "confirmed",
        "right",
        "wrong causes confirmed",
        "passes",
    ),
    "detectors": (
        "family",
        "scenario",
        "fired",
        "certified",
        "twin fired",
        "heat on the cause",
        "twin's heat",
        "typicality",
    ),
}


def cells(planted: Planted, kind: str) -> list[Cells]:
    """The rows of one of the tables, each as texts; methods with all their cases together first."""
    if kind == "methods":
        return [*_overall(planted.methods), *(_method(row) for row in planted.methods)]
    if kind == "audits":
        rows = list(planted.audits)
        return [*(_audit(row) for row in rows), *([_audits_overall(rows)] if len(rows) > 1 else [])]
    return [_detector(row) for row in planted.detectors]


def rich_tables(planted: Planted) -> list[Table]:
    """The tables for a terminal."""
    found = []
    for kind, header in HEADERS.items():
        table = Table(title=kind, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        texts = sum(name in ("method", "family", "scenario") for name in header)
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number < texts else "right", no_wrap=number < texts)
        for row in cells(planted, kind):
            table.add_row(*row)
        table.caption, table.caption_justify = LEGENDS[kind], "left"
        found.append(table)
    return found


def markdown(planted: Planted) -> str:
    """The tables in Markdown."""
    parts = []
    for kind, header in HEADERS.items():
        texts = sum(name in ("method", "family", "scenario") for name in header)
        rule = ["---"] * texts + ["---:"] * (len(header) - texts)
        lines = [_line(header), _line(rule), *(_line(row) for row in cells(planted, kind))]
        parts.append(f"## {kind}\n\n" + "\n".join(lines) + f"\n\n{LEGENDS[kind]}\n")
    return "\n".join(parts)


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _overall(rows: Sequence[MethodRow]) -> list[Cells]:
    """Each method over all cases, every case alike; methods with the best peaks first, controls last."""
    found = []
    for name in dict.fromkeys(row.method for row in rows):
        own = [row.summary for row in rows if row.method == name and row.summary.cases]
        count = sum(one.cases for one in own)
        if not count:
            continue
        means = [
            sum(value * one.cases for value, one in zip(values, own, strict=True)) / count
            for values in zip(*((one.peak, one.energy, one.rank, one.passes) for one in own), strict=True)
        ]
        found.append((name in CONTROLS, -means[0], -means[1], (name, "all", "all", str(count), *_figures(*means))))
    return [row for *_, row in sorted(found)]


def _method(row: MethodRow) -> Cells:
    own = row.summary
    figures = _figures(own.peak, own.energy, own.rank, own.passes)
    return (row.method, row.family, row.scenario, str(own.cases), *figures)


def _figures(peak: float, energy: float, rank: float, passes: float) -> Cells:
    return _share(peak), _number(energy), _number(rank, 1), _number(passes, 1) if passes else "-"


def _audit(row: AuditRow) -> Cells:
    return (
        row.family,
        row.scenario,
        str(row.cases),
        _share(row.peak),
        _number(row.energy),
        _share(row.place),
        _share(row.confirmed),
        _share(row.right),
        f"{row.wrong_confirmed} of {row.wrong}",
        _number(row.passes, 1),
    )


def _audits_overall(rows: Sequence[AuditRow]) -> Cells:
    some = [row for row in rows if row.cases]
    count = sum(row.cases for row in some)

    def mean(name: str) -> float:
        return sum(getattr(row, name) * row.cases for row in some) / count if count else float("nan")

    means = {name: mean(name) for name in ("peak", "energy", "place", "confirmed", "right", "passes")}
    wrong, confirmed = sum(row.wrong for row in some), sum(row.wrong_confirmed for row in some)
    return (
        "all",
        "all",
        str(count),
        _share(means["peak"]),
        _number(means["energy"]),
        _share(means["place"]),
        _share(means["confirmed"]),
        _share(means["right"]),
        f"{confirmed} of {wrong}",
        _number(means["passes"], 1),
    )


def _detector(row: DetectorRow) -> Cells:
    return (
        row.family,
        row.scenario,
        f"{row.fired} of {row.tempted}",
        str(row.certified),
        f"{row.twin_fired} of {row.twin_tempted}",
        _number(row.energy),
        _number(row.twin_energy),
        _number(row.typicality),
    )


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
