"""Whether the audit tells objects that nobody labelled: a share of the labels is hidden, and looked for.

    python tests/peers/measure_unlabelled.py [--detector demo|fasterrcnn|yolo] [--split train|val|test] [--share 0.2]
        [--seeds 3] [--threads 1]

Each row: of the background errors that are detections of a hidden object, and of all others, which share reaches a
typicality. A hidden object is exchangeable with those that are left, so the first share should be one less the
threshold. On blood cells most of the others are cells too, which the annotators left out; on the demonstration's scenes
none is an object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detcam.adapters import Adapter
from detcam.auditing import AuditCase, analyze_errors
from detcam.auditing.background_type import MIN_TYPICALITY, BackgroundClassifier
from detcam.auditing.case import EVIDENCE_LOCATIONS
from detcam.data.annotations import Annotations
from detcam.detections import Detections
from tests.peers.measure_audit import DATA, subject

THRESHOLD = 0.3
LEVELS = (0.05, 0.1, MIN_TYPICALITY, 0.2, 0.3)


def typicalities(
    adapter: Adapter, whole: Annotations, found: list[Detections], share: float, seed: int
) -> tuple[list[float], list[float]]:
    """The typicality of background errors, of hidden objects and others, as if all evidence were in the box."""
    rng = np.random.default_rng(seed)
    kept = [torch.from_numpy(rng.random(len(image)) >= share) for image in whole]
    truth = replace(whole, images=tuple(image[keep] for image, keep in zip(whole, kept, strict=True)))
    labels = whole.labels
    right = [match.true_positive for match in analyze_errors(found, whole, labels=labels).matches]
    analysis = analyze_errors(found, truth, labels=labels)
    cases, hidden = {}, {}
    for at, error in enumerate(analysis):
        if error.type != "background" or not error.is_false_positive or (error.score or 0) < THRESHOLD:
            continue
        shares = {place: float(place == "predicted box") for place in EVIDENCE_LOCATIONS}
        cases[at] = AuditCase(
            f"{at}", error.image_id, "", (1, 1), "background", error.label, "", 0.0, (0, 0, 1, 1), True, None, 0.0,
            evidence_shares=shares, evidence_location="predicted box",
        )  # fmt: skip
        hidden[at] = bool(right[error.image_index][error.detection_index])
    told = BackgroundClassifier(adapter, analysis, found, truth, THRESHOLD, 4).classify(cases)
    return [told[at][1] for at in cases if hidden[at]], [told[at][1] for at in cases if not hidden[at]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("demo", "fasterrcnn", "yolo"), default="demo")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--share", type=float, default=0.2, help="of the labels that are hidden")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, truth = subject(arguments.detector, Path(folder))
        if arguments.detector != "demo":
            truth = Annotations.load(DATA / "bccd" / f"{arguments.split}.json", DATA / "bccd" / "images")
        truth = truth.for_classes(adapter.names)
        found = adapter.predict(truth.paths)
        sides: tuple[list[float], list[float]] = ([], [])
        for seed in range(arguments.seeds):
            for side, values in zip(sides, typicalities(adapter, truth, found, arguments.share, seed), strict=True):
                side += values
    hidden, others = (np.array(side) for side in sides)
    print(
        f"{len(hidden)} detections of hidden objects, {len(others)} others, {int(np.isnan(others).sum())} not compared"
    )
    for level in LEVELS:
        print(
            f"typicality >= {level:.2f}: hidden {(hidden >= level).mean():.2f}, others {(others >= level).mean():.2f}"
        )


if __name__ == "__main__":
    main()
