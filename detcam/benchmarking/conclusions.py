"""What a benchmark's numbers say, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detcam.benchmarking.statistics import FEWEST, Difference, Outcome, Row, best_of, comparable, difference


def verdicts(
    outcomes: Sequence[Outcome],
    rows: Sequence[Row],
    signs: Mapping[str, int],
    references: Sequence[str],
    *,
    unannotated: Mapping[str, int],
    resamples: int,
    seed: int,
) -> list[str]:
    """The best method by each metric, what is not told apart from it, and what does not beat the reference controls."""
    by_name = {row.name: row for row in rows}
    scores = {row.name: row.scores for row in rows}
    found: list[str] = []
    for metric, sign in signs.items():
        best = best_of(outcomes, scores, metric, sign, resamples=resamples, seed=seed)
        if best is None:
            found.append(f"{metric}: no method has a value.")
            continue
        compared = [outcome.name for outcome in comparable(outcomes, scores, metric)]
        valued = [row.name for row in rows if row.kind == "method" and row.scores[metric].targets]
        few = [name for name in valued if name not in compared]
        if few:
            has = "has values" if len(few) == 1 else "have values"
            found.append(f"{metric}: {listed(few)} {has} of too few findings to be compared.")
        alike = [row.name for row in rows if metric in row.tied and row.name != best.name]
        count = by_name[best.name].scores[metric].images
        words = f"{metric}: {best.name} is best with {scores[best.name][metric].mean:.3g}"
        if count < FEWEST:
            images = "one image" if count == 1 else f"{count} images"
            found.append(f"{words}, on {images}: too few to tell methods apart, {FEWEST} at least are needed.")
            continue
        elif len(compared) == 1:
            reached = scores[best.name][metric].mean
            found.append(f"{metric}: {best.name} reaches {reached:.3g}; there is no other to compare with.")
        elif alike:
            found.append(f"{words}; the difference to {listed(alike)} is not significant.")
        else:
            found.append(f"{words}, significantly better than every other method.")
        for reference in references:
            found += _against(outcomes, metric, sign, reference, resamples=resamples, seed=seed)
    return found + _incomplete(rows, unannotated)


def _against(
    outcomes: Sequence[Outcome],
    metric: str,
    sign: int,
    reference: str,
    *,
    resamples: int,
    seed: int,
) -> list[str]:
    control = next((outcome for outcome in outcomes if outcome.name == reference), None)
    if control is None:
        return []
    found, lost, even = [], [], []
    for outcome in outcomes:
        if outcome.kind != "method":
            continue
        gap = difference(outcome.values[metric], control.values[metric], resamples=resamples, seed=seed)
        if not np.isfinite(gap.mean) or not np.isfinite(gap.low):
            continue
        if gap.significant and sign * gap.mean < 0:
            lost.append(f"{outcome.name} {_span(gap)}")
        elif not gap.significant:
            even.append(outcome.name)
    if lost:
        loses = "loses" if len(lost) == 1 else "lose"
        found.append(f"{metric}: {listed(lost)} {loses} to the {reference} (difference, 95 % interval).")
    if even:
        found.append(f"{metric}: {listed(even)} cannot be told from the {reference}.")
    return found


def _incomplete(rows: Sequence[Row], unannotated: Mapping[str, int]) -> list[str]:
    found = []
    if any(unannotated.values()):
        count = max(unannotated.values())
        words = "finding has" if count == 1 else "findings have"
        found.append(f"{count} {words} no annotated object; left out by {listed(list(unannotated))}.")
    for row in rows:
        missing = {m: e.undefined for m, e in row.scores.items() if e.undefined > unannotated.get(m, 0) and e.targets}
        if missing and row.kind == "method":
            parts = listed([f"{count} by {metric}" for metric, count in missing.items()])
            found.append(f"{row.name}: maps without a value are left out of its means: {parts}.")
        nothing = [metric for metric, e in row.scores.items() if not e.targets and e.undefined]
        if nothing and row.kind == "method":
            found.append(f"{row.name}: no map has a value by {listed(nothing)}.")
        if row.failed:
            found.append(f"{row.name}: failed on {row.failed} {'image' if row.failed == 1 else 'images'}.")
    return found


def recommend(rows: Sequence[Row], metric: str, sign: int, reference: str) -> tuple[Row, str]:
    """The method to take by one metric: the cheapest of those that are as good as the best.

    As good are those that are not told apart from the best and whose mean lies in its interval: few images alone,
    which tell nothing apart, do not make a method good.

    Args:
        rows: of the table.
        metric: what decides.
        sign: 1 where higher is better, else -1.
        reference: a control to compare with.

    Returns:
        its row, and the reason in words.

    Raises:
        ValueError: no method has a value.
    """
    tied = [row for row in rows if metric in row.tied]
    if not tied:
        raise ValueError(f"no method has a value by {metric}, so none can be recommended")
    best = max(tied, key=lambda row: sign * row.scores[metric].mean)
    low, high = best.scores[metric].low, best.scores[metric].high
    choice = [row for row in tied if row is best or low <= row.scores[metric].mean <= high]
    images = max(row.scores[metric].images for row in choice)
    pick = min(choice, key=lambda row: row.seconds)
    own = pick.scores[metric]
    reason = f"{pick.name}: {metric} {own.mean:.3g} [{own.low:.3g}, {own.high:.3g}] at {pick.seconds:.2g} s an image"
    others = [row for row in choice if row is not pick]
    if others:
        times = max(row.seconds for row in others) / max(pick.seconds, 1e-9)
        names = listed([row.name for row in others])
        longer = f", which {'take up to' if len(others) > 1 else 'takes'} {times:.2g} times as long"
        reason += f"; no significant difference to {names}{longer}"
    else:
        reason += "; the best, and no other comes near it"
    control = next((row for row in rows if row.name == reference), None)
    if control is not None:
        reason += f". The {reference} reaches {control.scores[metric].mean:.3g}"
    if images < FEWEST:
        reason += f". With {images} images nothing is certain; take {FEWEST} at least"
    return pick, f"{reason}."


def listed(names: Sequence[str]) -> str:
    """Names with commas, the last with "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _span(gap: Difference) -> str:
    return f"({gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}])"
