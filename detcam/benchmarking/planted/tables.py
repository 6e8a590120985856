"""The tables of the planted benchmark in the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from detcam.benchmarking.planted.cases import SeedSet
from detcam.benchmarking.planted.hit_metrics import HitSummary, summarize_hits
from detcam.benchmarking.planted.results import AuditRow, DetectorRow, MethodRow, PlantedResults
from detcam.benchmarking.planted.run import CONTROLS
from detcam.utils.batching import group_by
from detcam.utils.console import make_table
from detcam.utils.markdown import markdown_table, plain_line
from detcam.utils.proportions import wilson_interval

if TYPE_CHECKING:
    from rich.table import Table

Cells = tuple[str, ...]
NO_HITS = summarize_hits([], 0.0)
TEXT_COLUMNS = ("method", "family", "scenario", "seeds")
"""Columns that are aligned to the left."""
TABLE_COLUMNS: dict[str, Cells] = {
    "methods": (
        "method",
        "family",
        "scenario",
        "cases",
        "peak",
        "energy",
        "rank",
        "parts",
        "passes",
        "hold-out cases",
        "hold-out peak",
        "hold-out energy",
    ),
    "audits": (
        "family",
        "scenario",
        "seeds",
        "cases",
        "peak",
        "energy",
        "parts",
        "combination",
        "location",
        "confirmed",
        "correct",
        "false causes confirmed",
        "passes",
    ),
    "detectors": ("family", "scenario", "fired", "certified", "twin fired", "energy", "twin energy", "similarity"),
}
LEGENDS = {
    "methods": "peak: share of the cases whose maximum lies on the certified cause, with its 95 % interval; energy: "
    "share of the heatmap's sum on the cause; rank: rank of the first of the ten greatest local maxima on the cause, "
    "11 if there is none; parts: share of the cases with one of the first maxima on each part of the cause; passes: "
    "computing work per case, forward and backward, in units of one prediction; hold-out: the same in scenes on which "
    "no constant was chosen.",
    "audits": "parts: share of the cases with one of the first maxima on each part of the cause; combination: the "
    "audit shows both of two cues, and says that either suffices (or) or that both are needed (and), with its 95 % "
    "interval; location: the audit reports the location of most of the cause; confirmed: the audit confirms its "
    "evidence as the cause; correct: and the evidence overlaps the cause; false causes confirmed: unrelated objects "
    "and random regions that are verified in the same way, and confirmed strongly, with evidence that comes from them "
    "and has more of their pixels than of the cause's; passes: images that the network processes per case.",
    "detectors": "fired: false positives at the objects that a cue accompanies; certified: those that vanish without "
    "the cue and persist without an unrelated object; energy: share on the cause of ReachCAM's heatmaps, of the "
    "detector and of its twin for the same boxes; similarity: correlation of the two heatmaps.",
}


def table_rows(results: PlantedResults, kind: str) -> list[Cells]:
    """Format the rows of a table: ``methods`` (totals first), ``audits`` (total last) or ``detectors``."""
    if kind == "methods":
        rows = (*_method_totals(results.methods), *results.methods)
        by_key = group_by(rows, lambda row: (row.method, row.family, row.scenario))
        return [_method_cells(key, {row.seeds: row.summary for row in group}) for key, group in by_key.items()]
    if kind == "audits":
        groups = group_by(results.audits, lambda row: row.seeds)
        totals = [_audit_total(seeds, rows) for seeds, rows in groups.items() if len(rows) > 1]
        return [_audit_cells(row) for row in (*results.audits, *totals)]
    return [_detector_cells(row) for row in results.detectors]


def _number_columns(kind: str) -> list[str]:
    return [column for column in TABLE_COLUMNS[kind] if column not in TEXT_COLUMNS]


def rich_tables(results: PlantedResults) -> list[Table]:
    """Make the tables for a terminal."""
    tables = []
    for kind, columns in TABLE_COLUMNS.items():
        if not table_rows(results, kind):
            continue
        table = make_table(*columns, title=kind, right=_number_columns(kind))
        table.caption, table.caption_justify = LEGENDS[kind], "left"
        for column in table.columns:
            column.no_wrap = column.justify == "left"
        for row in table_rows(results, kind):
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown_tables(results: PlantedResults) -> str:
    """Format the tables in Markdown."""
    sections = []
    for kind, columns in TABLE_COLUMNS.items():
        rows = [[plain_line(cell) for cell in row] for row in table_rows(results, kind)]
        table = markdown_table(columns, rows, right=_number_columns(kind))
        sections.append(f"## {kind}\n\n{table}\n\n{LEGENDS[kind]}\n")
    return "\n".join(sections)


def _method_totals(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Average each method over all cases, methods with the highest share of peaks first, controls last."""
    totals = []
    for (name, seeds), group in group_by(rows, lambda row: (row.method, row.seeds)).items():
        summaries = [row.summary for row in group if row.summary.cases]
        if summaries:
            weights = [summary.cases for summary in summaries]
            means = {
                field: _weighted_mean([getattr(summary, field) for summary in summaries], weights)
                for field in ("peak", "energy", "rank", "parts", "passes")
            }
            totals.append(MethodRow("all", "all", seeds, name, HitSummary(sum(weights), **means)))
    return sorted(totals, key=lambda row: (row.method in CONTROLS, -row.summary.peak, -row.summary.energy, row.method))


def _audit_total(seeds: SeedSet, rows: Sequence[AuditRow]) -> AuditRow:
    """Average over all cases."""
    measured = [row for row in rows if row.cases]
    weights = [row.cases for row in measured]
    means = {
        field: _weighted_mean([getattr(row, field) for row in measured], weights)
        for field in ("peak", "energy", "parts", "location", "confirmed", "correct", "passes")
    }
    return AuditRow(
        family="all",
        scenario="all",
        seeds=seeds,
        cases=sum(weights),
        false_causes=sum(row.false_causes for row in measured),
        false_causes_confirmed=sum(row.false_causes_confirmed for row in measured),
        **means,
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    if not weights:
        return float("nan")
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _method_cells(key: tuple[str, str, str], summaries: Mapping[SeedSet, HitSummary]) -> Cells:
    summary, held_out = summaries.get("development", NO_HITS), summaries.get("hold-out", NO_HITS)
    return (
        *key,
        str(summary.cases),
        _share(summary.peak, summary.cases),
        _number(summary.energy),
        _number(summary.rank, 1),
        _percent(summary.parts),
        _number(summary.passes, 1) if summary.passes else "-",
        str(held_out.cases),
        _share(held_out.peak, held_out.cases),
        _number(held_out.energy),
    )


def _audit_cells(row: AuditRow) -> Cells:
    return (
        row.family,
        row.scenario,
        row.seeds,
        str(row.cases),
        _percent(row.peak),
        _number(row.energy),
        _percent(row.parts),
        "-" if math.isnan(row.combination) else _share(row.combination, row.cases),
        _percent(row.location),
        _percent(row.confirmed),
        _percent(row.correct),
        f"{row.false_causes_confirmed} of {row.false_causes}",
        _number(row.passes, 1),
    )


def _detector_cells(row: DetectorRow) -> Cells:
    return (
        row.family,
        row.scenario,
        f"{row.fired} of {row.trials}",
        str(row.certified),
        f"{row.twin_fired} of {row.twin_trials}",
        _number(row.energy),
        _number(row.twin_energy),
        _number(row.similarity),
    )


def _share(value: float, count: int) -> str:
    """A share in percent with its interval, such as ``50 % (24-76)``."""
    if not count:
        return "-"
    low, high = wilson_interval(value, count)
    return f"{_percent(value)} ({100 * low:.0f}-{100 * high:.0f})"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _number(value: float, decimals: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"
