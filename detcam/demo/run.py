"""The demonstration of ``detcam demo``: false positives, their heatmaps, and a proof of their cause."""

from __future__ import annotations

import shutil
import warnings
from functools import partial
from pathlib import Path

from rich.console import Console

from detcam.adapters import adapt
from detcam.auditing import audit
from detcam.demo.evidence import DemoFalsePositive, analyze_scene
from detcam.demo.figures import scene_figure
from detcam.demo.labels import write_coco
from detcam.demo.messages import REPORT, SCENES, DemoMessages
from detcam.demo.model import load_demo_detector
from detcam.demo.train import SCORE_THRESHOLD
from detcam.diagnostics import ConvergenceWarning, ReachWarning
from detcam.explanation.explain import explain
from detcam.methods import ReachCAM
from detcam.runs import RUN_FOLDER
from detcam.synthetic.harbor import DEMO_NAMES, DEMO_SEEDS, draw_scene
from detcam.utils.files import is_audit, with_home
from detcam.visualize.overlay import save_image

METHOD = partial(ReachCAM, steps=20)
"""Method for the context: it chooses early layers, whose gradients reach far beyond the box."""
LAST_LAYER_METHOD = "odam"
"""Method at the last layer, for comparison."""


def run_demo(out: str | Path, *, console: Console | None = None) -> tuple[DemoFalsePositive, ...]:
    """Run the demonstration: detect, explain the false positives, certify their cause, and audit the detector.

    Args:
        out: folder for scenes, figures, overlays, ``explanations.json`` and the audit report. It is created if needed.
        console: where to print the text; None prints to stdout.

    Returns:
        The false positives beside wakes, in the order of the scenes.
    """
    out = with_home(out)
    messages = DemoMessages(console)
    messages.introduction()
    detector = load_demo_detector()
    adapter = adapt(detector, names=DEMO_NAMES)
    scenes = [draw_scene(seed) for seed in DEMO_SEEDS]
    annotations = write_coco(out, scenes, images=SCENES)
    files = [out / SCENES / f"scene-{scene.seed}.png" for scene in scenes]
    predictions = adapter.predict(files, score_threshold=SCORE_THRESHOLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReachWarning)  # the text states the reach of each map
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a true boat; the maps of the false ones are verified
        early = explain(adapter, files, METHOD, predictions)
        last = explain(adapter, files, LAST_LAYER_METHOD, predictions)
    rows = zip(scenes, predictions, early, last, strict=True)
    results = [analyze_scene(detector, *row) for row in rows]
    messages.detections(results)
    messages.causes(results)
    messages.layers(results)
    early.save(out)
    for result in results:
        if result.false_positives:
            save_image(out / f"scene-{result.scene.seed}.png", scene_figure(adapter, result))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_audit(out / REPORT) or (out / REPORT / RUN_FOLDER).exists():
            shutil.rmtree(out / REPORT)  # of an earlier demonstration
        report = audit(
            adapter, out / SCENES, annotations, out=out / REPORT, score_threshold=SCORE_THRESHOLD,
            model_name="the demo detector",
        )  # fmt: skip
    messages.audit(report)
    messages.files(out)
    return tuple(item for result in results for item in result.false_positives)
