"""Conclusions from the rows of a benchmark, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detcam.benchmarking.statistics import (
    MIN_IMAGES,
    Difference,
    MethodResult,
    Row,
    best_method,
    comparable_methods,
    paired_difference,
)
from detcam.utils.console import plural


def make_notes(
    method_results: Sequence[MethodResult],
    rows: Sequence[Row],
    signs: Mapping[str, int],
    references: Sequence[str],
    *,
    unannotated: Mapping[str, int],
    resamples: int,
    seed: int,
) -> list[str]:
    """Describe the best method by each metric, the methods tied with it, and those that fail to beat a control.

    Args:
        method_results: measurements of all methods and controls.
        rows: the rows made from them.
        signs: mapping from metric to 1 if higher is better, else -1.
        references: names of the reference controls.
        unannotated: mapping from metric to the number of targets without an annotated object.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    notes: list[str] = []
    for metric, sign in signs.items():
        ranking, is_decided = _describe_best(
            method_results, rows, metric, sign, references, resamples=resamples, seed=seed
        )
        notes += ranking
        for reference in references if is_decided else ():
            notes += _compare_with_control(method_results, metric, sign, reference, resamples=resamples, seed=seed)
    return notes + _describe_missing_values(rows, unannotated)


def _describe_best(
    method_results: Sequence[MethodResult],
    rows: Sequence[Row],
    metric: str,
    sign: int,
    references: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> tuple[list[str], bool]:
    """Describe the best method by a metric; also whether there are enough images to compare methods."""
    scores = {row.name: row.scores for row in rows}
    best = best_method(method_results, scores, metric, sign, resamples=resamples, seed=seed)
    if best is None:
        return [f"{metric}: no method has a value."], False
    notes = []
    compared = [result.name for result in comparable_methods(method_results, scores, metric)]
    valued = [row.name for row in rows if row.kind == "method" and row.scores[metric].targets]
    sparse = [name for name in valued if name not in compared]
    if sparse:
        verb = "has" if len(sparse) == 1 else "have"
        notes.append(f"{metric}: {join_names(sparse)} {verb} values for too few predictions to be compared.")
    tied = [row.name for row in rows if metric in row.tied and row.name != best.name]
    reached = scores[best.name][metric]
    lead = sign * reached.mean
    better = {name: scores[name][metric].mean for name in references if name in scores}
    better = {name: mean for name, mean in better.items() if sign * mean > lead}
    control = max(better, key=lambda name: sign * better[name], default=None)
    beaten = "" if control is None else f", but the {control} is better with {better[control]:.3g}"
    kind = "best" if control is None else "the best method"
    sentence = f"{metric}: {best.name} is {kind} with {reached.mean:.3g}{beaten}"
    if reached.images < MIN_IMAGES:
        notes.append(
            f"{sentence}, on {plural(reached.images, 'image')}: too few to distinguish methods, "
            f"which takes at least {MIN_IMAGES}."
        )
        return notes, False
    if len(compared) == 1:
        notes.append(
            f"{metric}: {best.name} reaches {reached.mean:.3g}{beaten}; there is no other method to compare with."
        )
    elif tied:
        notes.append(f"{sentence}; the difference to {join_names(tied)} is not significant.")
    else:
        notes.append(f"{sentence}, significantly better than every other method.")
    return notes, True


def _compare_with_control(
    method_results: Sequence[MethodResult], metric: str, sign: int, reference: str, *, resamples: int, seed: int
) -> list[str]:
    control = next((result for result in method_results if result.name == reference), None)
    if control is None:
        return []
    notes, worse, tied = [], [], []
    for result in method_results:
        if result.kind != "method":
            continue
        lead = paired_difference(result.values[metric], control.values[metric], resamples=resamples, seed=seed)
        if not np.isfinite(lead.mean) or not np.isfinite(lead.low):
            continue
        if lead.significant and sign * lead.mean < 0:
            worse.append(f"{result.name} {_interval(lead)}")
        elif not lead.significant:
            tied.append(result.name)
    if worse:
        verb = "loses" if len(worse) == 1 else "lose"
        notes.append(f"{metric}: {join_names(worse)} {verb} to the {reference} (difference, 95 % interval).")
    if tied:
        verb = "does" if len(tied) == 1 else "do"
        notes.append(f"{metric}: {join_names(tied)} {verb} not differ significantly from the {reference}.")
    return notes


def _describe_missing_values(rows: Sequence[Row], unannotated: Mapping[str, int]) -> list[str]:
    notes = []
    if any(unannotated.values()):
        count = max(unannotated.values())
        verb = "has" if count == 1 else "have"
        metrics = join_names(list(unannotated))
        notes.append(f"{plural(count, 'prediction')} {verb} no annotated object; {metrics} exclude them.")
    for row in rows:
        if row.kind == "method":
            missing = {
                metric: score.undefined
                for metric, score in row.scores.items()
                if score.targets and score.undefined > unannotated.get(metric, 0)
            }
            if missing:
                counts = join_names([f"{count} by {metric}" for metric, count in missing.items()])
                notes.append(f"{row.name}: heatmaps without a value are excluded from its means: {counts}.")
            undefined = [metric for metric, score in row.scores.items() if score.undefined and not score.targets]
            if undefined:
                notes.append(f"{row.name}: no heatmap has a value by {join_names(undefined)}.")
        if row.failed:
            notes.append(f"{row.name}: failed on {plural(row.failed, 'image')}.")
    return notes


def recommend(rows: Sequence[Row], metric: str, sign: int, reference: str) -> tuple[Row, str]:
    """Recommend the cheapest of the methods that are as good as the best one by a metric.

    A method is as good as the best one if the difference is not significant and its mean lies in the best one's
    interval. The second condition matters for few images, where no difference is significant.

    Args:
        rows: the rows of a benchmark.
        metric: the metric that decides.
        sign: 1 if higher is better, else -1.
        reference: name of a control to compare with.

    Returns:
        The row of the method, and the reason as a sentence.

    Raises:
        ValueError: no method has a value.
    """
    tied = [row for row in rows if metric in row.tied]
    if not tied:
        raise ValueError(f"no method has a value by {metric}, so none can be recommended")
    best = max(tied, key=lambda row: sign * row.scores[metric].mean)
    low, high = best.scores[metric].low, best.scores[metric].high
    candidates = [row for row in tied if row is best or low <= row.scores[metric].mean <= high]
    cheapest = min(candidates, key=lambda row: row.seconds)
    score = cheapest.scores[metric]
    reason = (
        f"{cheapest.name}: {metric} {score.mean:.3g} [{score.low:.3g}, {score.high:.3g}] at {cheapest.seconds:.2g} s "
        "per image"
    )
    others = [row for row in candidates if row is not cheapest]
    if others:
        ratio = max(row.seconds for row in others) / max(cheapest.seconds, 1e-9)
        verb = "take up to" if len(others) > 1 else "takes"
        names = join_names([row.name for row in others])
        reason += f"; no significant difference to {names}, which {verb} {ratio:.2g} times as long"
    else:
        reason += "; the best, and no other method is as good"
    control = next((row for row in rows if row.name == reference), None)
    if control is not None:
        mean = control.scores[metric].mean
        reason += f". The {reference} {'is better with' if sign * (mean - score.mean) > 0 else 'reaches'} {mean:.3g}"
    images = max(row.scores[metric].images for row in candidates)
    if images < MIN_IMAGES:
        reason += f". {plural(images, 'image')} cannot distinguish methods; use at least {MIN_IMAGES}"
    return cheapest, f"{reason}."


def join_names(names: Sequence[str]) -> str:
    """Join names with commas and a final "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _interval(difference: Difference) -> str:
    return f"({difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"
