"""Text and tables that the demonstration prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from detcam.auditing import Audit
from detcam.demo.evidence import HeatDistribution, SceneResult
from detcam.explanation.result import Explanation
from detcam.methods import METHODS
from detcam.synthetic.harbor import BOAT_LABEL
from detcam.utils.console import make_console, make_table, plural

SCENES, REPORT = "scenes", "report"
MAX_WIDTH = 88
MAX_GROUPS = 3
COMMANDS = (
    ("detcam explain --help", "explain a model on your own images"),
    ("detcam audit --help", "find all errors of a detector on annotated images, with their causes"),
    ("detcam methods", "list the methods and their papers"),
    ("detcam layers --help", "list the layers of a model"),
)


class DemoMessages:
    """Prints the results of the demonstration.

    Args:
        console: where to print; None prints to stdout.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()

    def introduction(self) -> None:
        """Print what the detector was trained on."""
        self._paragraph(
            "A small Faster R-CNN is trained to detect boats and buoys. Its labels come from transponders: boats under "
            "way are labeled, boats at anchor are not. These are its detections in new harbor scenes:"
        )

    def detections(self, results: Sequence[SceneResult]) -> None:
        """Print the number of correct and false detections of each scene."""
        headings = ("scene", "detections", "boats", "buoys", "false", "scores of false")
        table = make_table(*headings, right=headings)
        for result in results:
            pairs = list(zip(result.correct, result.detections.labels.tolist(), strict=True))
            boats = pairs.count((True, BOAT_LABEL))
            false = [
                f"{score:.2f}"
                for score, is_correct in zip(result.detections.scores.tolist(), result.correct, strict=True)
                if not is_correct
            ]
            counts = (result.scene.seed, len(pairs), boats, sum(result.correct) - boats, len(false))
            table.add_row(*map(str, counts), ", ".join(false))
        self._table(table)
        total, correct = sum(len(result.correct) for result in results), sum(sum(result.correct) for result in results)
        self._paragraph(
            f"{correct} of the {total} detections are correct. The other {total - correct} are boats where no "
            "boat exists. Why does the detector fire there?"
        )

    def causes(self, results: Sequence[SceneResult]) -> None:
        """Print where the evidence of each false positive lies, and whether its cause is certified."""
        items = [item for result in results for item in result.false_positives]
        self._paragraph(
            f"The table shows where {method_title(results[0].early_layer)} locates the evidence, and whether the "
            "detection remains if the scene is drawn without the wake beside the box, or, as a control, without a gull:"
        )
        headings = ("scene", "in box", "in wake", "rest", "peak", "no wake", "no gull")
        table = make_table(*headings, right=headings[:4])
        for item in items:
            heat, certification = item.early_layer, item.certification
            table.add_row(
                str(item.seed),
                *(f"{fraction:.0%}" for fraction in (heat.box, heat.wake, heat.elsewhere)),
                heat.peak,
                "gone" if certification.gone_without_wake else "stays",
                "stays" if certification.stays_without_gull else "gone",
            )
        self._table(table)
        certified = sum(item.certification.certified for item in items)
        outside = float(np.mean([item.certification.outside_fraction for item in items])) if items else 0.0
        self._paragraph(
            f"The wake beside the box causes {certified} of {len(items)} false boats: without it they are gone, "
            f"without a gull they stay. {outside:.0%} of the wakes' pixels lie outside the box. The detector has "
            "learned a shortcut from the labels: a wake indicates a boat."
        )
        others = sum(result.correct.count(False) for result in results) - len(items)
        if others:
            self._paragraph(f"{plural(others, 'other false detection')} without a wake nearby: the cause is unknown.")

    def layers(self, results: Sequence[SceneResult]) -> None:
        """Print the difference between maps at early layers and maps at the last layer."""
        items = [item for result in results for item in result.false_positives]
        if not items:
            return
        early, last = results[0].early_layer, results[0].last_layer
        self._paragraph(
            f"{method_title(early)} uses {', '.join(early.layers)}. A map at the detector's last layer "
            f"({', '.join(last.layers)}; {method_title(last)}) shows a different result:"
        )
        headings = ("method", "reach", "in box", "in wake", "peak in wake")
        table = make_table(*headings, right=headings[1:])
        table.add_row(*_layer_row(early, [item.early_layer for item in items]))
        table.add_row(*_layer_row(last, [item.last_layer for item in items]))
        self._table(table)
        self._paragraph(
            "Its heat lies in the box because the gradients of the last layer do not reach beyond the box, not because "
            "the cause is there. detcam measures the reach of a map, the fraction of the image that can influence it, "
            "and warns if it is too small."
        )

    def audit(self, report: Audit) -> None:
        """Print the results of the audit."""
        explained = [case for case in report.explained if case.is_false_positive]
        self._paragraph(
            "Your own images cannot be drawn again. Instead, detcam audit removes the evidence from the image, and "
            f"control regions of the same size. It confirms {len(report.confirmed)} of {len(explained)} causes, in "
            f"{report.seconds:.0f} s. The groups of its report:"
        )
        for group in report.groups[:MAX_GROUPS]:
            self._paragraph(f"{group.sentence}.")

    def files(self, out: Path) -> None:
        """Print the files of the demonstration and the next commands."""
        self.console.print(f"The results are in {out}{'/' * (str(out)[-1:] != '/')}\n", soft_wrap=True)
        self._list(
            (
                ("scene-*.png", "a figure per scene, one row per false boat"),
                ("scene-*.*.boat.png", "one heatmap per detection"),
                ("explanations.json", "all numbers"),
                (f"{SCENES}/", "the images, with their labels in annotations.json"),
                (f"{REPORT}/index.html", "the audit report, for a browser"),
            )
        )
        self._paragraph("Next steps:")
        self._list(COMMANDS)

    def _paragraph(self, text: str) -> None:
        self.console.print(f"{text}\n", width=min(MAX_WIDTH, self.console.width))

    def _table(self, table: Table) -> None:
        self.console.print(table)
        self.console.print()

    def _list(self, rows: Sequence[tuple[str, str]]) -> None:
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.console.print()


def _layer_row(explanation: Explanation, heats: Sequence[HeatDistribution]) -> list[str]:
    means = [float(np.mean([getattr(heat, name) for heat in heats])) for name in ("reach", "box", "wake")]
    peaks = sum(heat.peak == "wake" for heat in heats)
    return [method_title(explanation), *(f"{mean:.0%}" for mean in means), f"{peaks} of {len(heats)}"]


def method_title(explanation: Explanation) -> str:
    """Return the class name of the explanation's method."""
    return METHODS[explanation.method].__name__
