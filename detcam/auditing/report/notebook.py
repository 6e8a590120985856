"""What a notebook shows of an audit: counts, the costliest causes, and where the report is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from detcam.auditing.analysis import ErrorAnalysis
from detcam.auditing.case import AuditCase
from detcam.auditing.case_table import explained_cases
from detcam.auditing.grouping.hierarchy import CauseNode
from detcam.auditing.report.causes import ACTION_TEXTS, TopCause, top_causes
from detcam.auditing.report.summary import headline, unlabeled_headline
from detcam.utils.console import plural


def notebook_html(
    analysis: ErrorAnalysis,
    cases: Sequence[AuditCase],
    causes: Sequence[CauseNode],
    score_threshold: float,
    report: Path | None,
    *,
    is_unlabeled: bool,
) -> str:
    """Render an audit as a short piece of HTML, in which names of data sets are escaped.

    Args:
        analysis: the errors found by matching.
        cases: the same errors, explained or not.
        causes: the hierarchy of causes.
        score_threshold: minimum score of the errors that count.
        report: path of the report's page; None if there is none.
        is_unlabeled: whether there were no annotations.
    """
    if is_unlabeled:
        first, *others = unlabeled_headline(cases, score_threshold)
    else:
        cost = analysis.delta_ap_of(analysis.indices(false_positives_only=True))
        first, *others = headline(cases, cost, score_threshold)
        precision = f"{analysis.average_precision:.3f}" if math.isfinite(analysis.average_precision) else "undefined"
        others = [f"{plural(analysis.counts()['missed'], 'missed object')}; average precision {precision}.", *others]
    explained = {case.id: case for case in explained_cases(cases).values() if case.method}
    found = top_causes(causes, explained, "detection" if is_unlabeled else "error")
    items = "".join(f"<li>{escape(_sentence(top))}<br>{escape(ACTION_TEXTS[top.action])}</li>" for top in found)
    parts = [
        f"<p><strong>{escape(first)}</strong> {escape(' '.join(others))}</p>",
        f"<ol>{items}</ol>" if items else "",
    ]
    parts.append(f"<p>Report: <code>{escape(str(report))}</code></p>" if report is not None else "")
    return f"<div>{''.join(parts)}</div>"


def _sentence(top: TopCause) -> str:
    cost = top.cause.delta_ap
    return f"{top.sentence}; delta AP {cost:.3f}" if math.isfinite(cost) else top.sentence
