"""Detection of missing annotations by the audit, measured with hidden annotations.

    python tests/peers/measure_unlabeled.py [--detector demo|fasterrcnn|yolo] [--split train|val|test] [--fraction 0.2]
        [--seeds 3] [--threads 1]

Each row gives the fraction of background errors that reach a typicality: among detections of hidden objects, and among
all others. A hidden object is exchangeable with an annotated one, so the first fraction should be 1 minus the
typicality. In the blood-cell images, most of the others are cells without an annotation; in the demo scenes, none is an
object.
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
from tests.peers.measure_audit import DATA, detector_and_annotations

SCORE_THRESHOLD = 0.3
TYPICALITIES = (0.05, 0.1, MIN_TYPICALITY, 0.2, 0.3)


def typicalities(
    adapter: Adapter, annotations: Annotations, detections: list[Detections], fraction: float, seed: int
) -> tuple[list[float], list[float]]:
    """Return the typicality of background errors on hidden objects and of the others, with all evidence in the box."""
    rng = np.random.default_rng(seed)
    visible = [torch.from_numpy(rng.random(len(image)) >= fraction) for image in annotations]
    reduced = replace(annotations, images=tuple(image[keep] for image, keep in zip(annotations, visible, strict=True)))
    labels = annotations.labels
    true_positive = [match.true_positive for match in analyze_errors(detections, annotations, labels=labels).matches]
    analysis = analyze_errors(detections, reduced, labels=labels)
    cases, hidden = {}, {}
    for index, error in enumerate(analysis):
        if error.type != "background" or not error.is_false_positive or (error.score or 0) < SCORE_THRESHOLD:
            continue
        shares = {location: float(location == "predicted box") for location in EVIDENCE_LOCATIONS}
        cases[index] = AuditCase(
            f"{index}", error.image_id, "", (1, 1), "background", error.label, "", 0.0, (0, 0, 1, 1), True, None, 0.0,
            evidence_shares=shares, evidence_location="predicted box",
        )  # fmt: skip
        hidden[index] = bool(true_positive[error.image_index][error.detection_index])
    result = BackgroundClassifier(adapter, analysis, detections, reduced, SCORE_THRESHOLD, 4).classify(cases)
    return [result[i][1] for i in cases if hidden[i]], [result[i][1] for i in cases if not hidden[i]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("demo", "fasterrcnn", "yolo"), default="demo")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--fraction", type=float, default=0.2, help="fraction of the annotations that is hidden")
    parser.add_argument("--seeds", type=int, default=3, help="number of random selections")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter, annotations = detector_and_annotations(arguments.detector, Path(folder))
        if arguments.detector != "demo":
            annotations = Annotations.load(DATA / "bccd" / f"{arguments.split}.json", DATA / "bccd" / "images")
        annotations = annotations.for_classes(adapter.names)
        detections = adapter.predict(annotations.paths)
        runs = [typicalities(adapter, annotations, detections, arguments.fraction, s) for s in range(arguments.seeds)]
    hidden, others = (np.concatenate(values) for values in zip(*runs, strict=True))
    undefined = int(np.isnan(others).sum())
    print(f"{len(hidden)} detections of hidden objects, {len(others)} others, {undefined} not compared")
    for level in TYPICALITIES:
        print(
            f"typicality >= {level:.2f}: hidden {(hidden >= level).mean():.2f}, others {(others >= level).mean():.2f}"
        )


if __name__ == "__main__":
    main()
