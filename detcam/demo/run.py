"""The story behind ``detcam demo``: boats that are not there, what made the detector see them, and the proof."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from detcam.adapters import Adapter, adapt
from detcam.auditing import Audit, audit
from detcam.auditing.run_state import FOLDER as UNFINISHED
from detcam.demo.evidence import Evidence, FalseAlarm, around
from detcam.demo.labels import write_coco
from detcam.demo.model import load_demo_detector
from detcam.demo.text import Echo, say, table
from detcam.demo.train import SCORE_THRESHOLD, certify_wake
from detcam.detections import Detections
from detcam.diagnostics import ReachWarning
from detcam.explanation.explain import Explanation, explain
from detcam.methods import METHODS, ReachCAM
from detcam.synthetic.harbour import BOAT_LABEL, DEMO_NAMES, DEMO_SEEDS, HarbourScene, draw_scene
from detcam.synthetic.sprites import FloatArray
from detcam.utils.opencv import cv2
from detcam.visualize.convert import ImageArray
from detcam.visualize.overlay import draw_boxes, grid, render, save_image

METHOD = partial(ReachCAM, steps=20)
"""What points at the context: it finds early layers by itself, from which gradients reach far beyond the box."""
LAST_LAYER_METHOD = "odam"
"""What is asked at the last layer, for contrast."""

SCENES, REPORT = "scenes", "report"
MOST_GROUPS = 3
MIN_IOU, MIN_GHOST_IOU = 0.5, 0.3
ZOOM = 2  # scenes are enlarged in figures, so that outlines and labels stay thin beside them
TRUE_COLOR, FALSE_COLOR = (120, 230, 140), (255, 150, 40)
NEXT = (
    ("detcam explain --help", "a model and images of your own"),
    ("detcam audit --help", "all mistakes of a detector on annotated images, each with its cause"),
    ("detcam methods", "what else can be asked, and who thought of it"),
    ("detcam layers --help", "where in a model to look"),
)


def run(out: str | Path, *, echo: Echo = print) -> tuple[FalseAlarm, ...]:
    """Find false alarms in the demo harbour, explain and certify them, and tell the story.

    Args:
        out: folder for scenes, figures, overlays, ``explanations.json`` and the audit's report; made where it is
            absent.
        echo: takes the story, line by line.

    Returns:
        The false alarms, in the order of the scenes.
    """
    out = Path(out)
    detector = load_demo_detector()
    adapter = adapt(detector, names=DEMO_NAMES)
    scenes = [draw_scene(seed) for seed in DEMO_SEEDS]
    annotations = write_coco(out, scenes, images=SCENES)
    files = [out / SCENES / f"scene-{scene.seed}.png" for scene in scenes]
    found = adapter.predict(files, score_threshold=SCORE_THRESHOLD)
    labelled = [is_labelled(detections, scene) for detections, scene in zip(found, scenes, strict=True)]
    _introduce(echo, scenes, found, labelled)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReachWarning)  # how far each map can see is told below
        maps = explain(adapter, files, METHOD, found)
        last = explain(adapter, files, LAST_LAYER_METHOD, found)
    alarms = [
        alarm
        for row in zip(scenes, found, labelled, maps, last, strict=True)
        for alarm in _false_alarms(detector, *row)
    ]
    _tell_causes(echo, alarms, maps[0], others=sum(known.count(False) for known in labelled) - len(alarms))
    _tell_last_layer(echo, alarms, maps[0], last[0])

    maps.save(out)
    for scene, detections, known, near, far in zip(scenes, found, labelled, maps, last, strict=True):
        own = [alarm for alarm in alarms if alarm.seed == scene.seed]
        if own:
            save_image(out / f"scene-{scene.seed}.png", _figure(adapter, scene, detections, known, own, near, far))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.rmtree(out / REPORT / UNFINISHED, ignore_errors=True)  # of an earlier demonstration
        found_out = audit(
            adapter, out / SCENES, annotations, out=out / REPORT, score_threshold=SCORE_THRESHOLD,
            model_name="the demonstration's detector",
        )  # fmt: skip
    _tell_audit(echo, found_out)
    _tell_files(echo, out)
    return tuple(alarms)


def is_labelled(found: Detections, scene: HarbourScene) -> list[bool]:
    """Per detection, best first, whether it is the first to fit a labelled object of its class at IoU 0.5."""
    overlap = box_iou(found.boxes_xyxy, torch.from_numpy(scene.boxes_xyxy))
    same = found.labels[:, None] == torch.from_numpy(scene.labels)[None]
    overlap = torch.where(same, overlap, torch.zeros(()))
    fits = []
    for row in overlap:
        best = int(row.argmax()) if len(row) else -1
        fits.append(best >= 0 and float(row[best]) >= MIN_IOU)
        if fits[-1]:
            overlap[:, best] = 0  # a second box on the same object is a false alarm
    return fits


def _ghost_at(box: Tensor, scene: HarbourScene) -> str | None:
    """The wake whose missing boat would stand at a box, or None."""

    def fit(name: str) -> float:
        ghost: FloatArray = scene.ghost_boxes_xyxy[name]
        return float(box_iou(box[None], torch.from_numpy(ghost)[None]))

    best = max(scene.ghost_boxes_xyxy, key=fit, default=None)
    return best if best is not None and fit(best) >= MIN_GHOST_IOU else None


def _false_alarms(
    detector: FasterRCNN,
    scene: HarbourScene,
    found: Detections,
    labelled: Sequence[bool],
    near: Explanation,
    far: Explanation,
) -> list[FalseAlarm]:
    alarms = []
    for index in (i for i, known in enumerate(labelled) if not known):
        box = found.boxes_xyxy[index]
        wake = _ghost_at(box, scene) if int(found.labels[index]) == BOAT_LABEL else None
        if wake is None:
            continue
        mask = scene.object(wake).mask
        alarms.append(
            FalseAlarm(
                seed=scene.seed,
                index=index,
                score=float(found.scores[index]),
                wake=wake,
                evidence=Evidence.of(near, index, mask),
                last_layer=Evidence.of(far, index, mask),
                verdict=certify_wake(detector, scene, wake),
            )
        )
    return alarms


def _introduce(
    echo: Echo, scenes: Sequence[HarbourScene], found: Sequence[Detections], labelled: Sequence[Sequence[bool]]
) -> None:
    total, true = sum(map(len, labelled)), sum(map(sum, labelled))
    say(
        echo,
        "A small Faster R-CNN learned to find boats and buoys. Its labels came from transponders: boats under way "
        "are listed, boats at anchor are not. Here it looks at harbour scenes that it has never seen.",
    )
    rows = []
    for scene, detections, known in zip(scenes, found, labelled, strict=True):
        boats = sum(k and int(label) == BOAT_LABEL for k, label in zip(known, detections.labels, strict=True))
        false = [f"{detections.scores[i]:.2f}" for i, k in enumerate(known) if not k]
        buoys = sum(known) - boats
        rows.append([f"{scene.seed}", f"{len(known)}", f"{boats}", f"{buoys}", f"{len(false)}", ", ".join(false)])
    table(echo, ["scene", "detections", "boats", "buoys", "false", "their scores"], rows)
    say(
        echo,
        f"{true} of the {total} detections are right. {total - true} are boats that are not there, on open water. "
        "Why did it fire there?",
    )


def _tell_causes(echo: Echo, alarms: Sequence[FalseAlarm], near: Explanation, others: int) -> None:
    say(
        echo,
        f"Where {title(near)} finds the evidence, and what the detector says when the scene is drawn again without "
        "the wake beside the box, and, to compare, without a gull:",
    )
    rows = []
    for alarm in alarms:
        heat = alarm.evidence
        rows.append(
            [
                f"{alarm.seed}",
                *(f"{share:.0%}" for share in (heat.box, heat.wake, heat.elsewhere)),
                heat.hottest,
                "gone" if alarm.verdict.gone_without_wake else "stays",
                "stays" if alarm.verdict.stays_without_gull else "gone",
            ]
        )
    table(echo, ["scene", "in box", "in wake", "rest", "hottest", "no wake", "no gull"], rows)
    certified = sum(alarm.verdict.certified for alarm in alarms)
    outside = float(np.mean([alarm.verdict.outside for alarm in alarms])) if alarms else 0.0
    say(
        echo,
        f"Verdict: {certified} of {len(alarms)} false boats are caused by the wake beside them: without it they are "
        f"gone, without a gull they stay. {outside:.0%} of the wakes' pixels lie outside the box. The labels taught "
        "a shortcut: a boat under way is what has a wake.",
    )
    if others:
        say(echo, f"{others} more false detections stand near no wake; what made them is open.")


def _tell_last_layer(echo: Echo, alarms: Sequence[FalseAlarm], near: Explanation, far: Explanation) -> None:
    def row(explanation: Explanation, maps: Sequence[Evidence]) -> list[str]:
        means = [float(np.mean([getattr(heat, part) for heat in maps])) for part in ("reach", "box", "wake")]
        hits = sum(heat.hottest == "wake" for heat in maps)
        return [title(explanation), *(f"{mean:.0%}" for mean in means), f"{hits} of {len(maps)}"]

    if not alarms:
        return
    say(
        echo,
        f"{title(near)} looks at {', '.join(near.layers)}. A map at the detector's last layer "
        f"({', '.join(far.layers)}; here {title(far)}) tells another story:",
    )
    rows = [
        row(near, [alarm.evidence for alarm in alarms]),
        row(far, [alarm.last_layer for alarm in alarms]),
    ]
    table(echo, ["", "sees", "in box", "in wake", "hottest in wake"], rows)
    say(
        echo,
        "Its heat lies in the box because it cannot see beyond the box, not because the cause is there. detcam "
        "measures how much of the image a map can see, and warns where that is too little.",
    )


def _tell_audit(echo: Echo, found: Audit) -> None:
    explained = [case for case in found.explained if case.is_false_positive]
    say(
        echo,
        f"On images of your own nobody can draw a scene again. detcam audit takes the evidence out of the image "
        f"instead, and other regions of the same size to compare. Here that confirms {len(found.confirmed)} of "
        f"{len(explained)} causes, in {found.seconds:.0f} s. What the report says of them:",
    )
    for group in found.groups[:MOST_GROUPS]:
        say(echo, f"{group.sentence}.")


def _tell_files(echo: Echo, out: Path) -> None:
    say(echo, f"Images are in {out}{'/' * (str(out)[-1:] != '/')}")
    table(
        echo,
        ["", ""],
        [
            ["scene-*.png", "the story of each scene, one row per false boat"],
            ["scene-*.*.boat.png", "one heatmap per detection"],
            ["explanations.json", "all of it as numbers"],
            ["scenes/", "the plain scenes, with their labels in annotations.json"],
            [f"{REPORT}/index.html", "the audit; open it in a browser"],
        ],
    )
    say(echo, "Next:")
    table(echo, ["", ""], NEXT)


def title(explanation: Explanation) -> str:
    """The method's name as people write it."""
    return METHODS[explanation.method].__name__


def _figure(
    adapter: Adapter,
    scene: HarbourScene,
    found: Detections,
    labelled: Sequence[bool],
    alarms: Sequence[FalseAlarm],
    near: Explanation,
    far: Explanation,
) -> ImageArray:
    """One row per false alarm: what was found, where the evidence is, what a last layer shows, the proof."""
    panels, titles = [], []
    for alarm in alarms:
        box = found.boxes_xyxy[alarm.index]
        wake = scene.object(alarm.wake).mask
        redrawn = scene.without([alarm.wake])
        again = adapter.predict(redrawn.image, score_threshold=SCORE_THRESHOLD)[0]
        panels += [
            _boxed(scene, found, labelled, alarm.index),
            _heated(scene, near.heatmaps[alarm.index], box, wake),
            _heated(scene, far.heatmaps[alarm.index], box, wake),
            _boxed(redrawn, again, is_labelled(again, scene), None),
        ]
        titles += [
            f"no boat there, score {alarm.score:.2f}",
            f"{title(near)}: {alarm.evidence.wake:.0%} of the heat in the wake",
            f"{title(far)} at the last layer: {alarm.last_layer.wake:.0%}",
            "without the wake: " + ("gone" if alarm.verdict.gone_without_wake else "still there"),
        ]
    return grid(panels, columns=4, titles=titles)


def _boxed(scene: HarbourScene, found: Detections, labelled: Sequence[bool], asked: int | None) -> ImageArray:
    """A scene with its detections: green where a label agrees, orange where none does."""
    colors = [TRUE_COLOR if known else FALSE_COLOR for known in labelled]
    captions = [("not there: " if i == asked else "") + found.caption(i) for i in range(len(found))]
    image = scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    return draw_boxes(image, found.boxes_xyxy * ZOOM, captions, colors=colors)


def _heated(scene: HarbourScene, heatmap: Tensor, box: Tensor, wake: np.ndarray) -> ImageArray:
    """A heatmap over the scene, with the box and the wake's outline."""
    height, width = (side * ZOOM for side in heatmap.shape)
    heat = np.clip(cv2.resize(heatmap.numpy(), (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    image = scene.image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    region = around(wake).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    marked = render(image, heat, mask=region, color_bar=False)
    return draw_boxes(marked, (box * ZOOM)[None], colors=FALSE_COLOR)
