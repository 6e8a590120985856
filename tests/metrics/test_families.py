"""Curves on one model per family: they start at the target's own score and end at that of the filled image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detcam.adapters import embed
from detcam.adapters.base import Batch
from detcam.metrics import CurveSettings, score_curves
from detcam.perturbation.base import pin_targets
from detcam.perturbation.fills import BlurFill
from detcam.targets import BoxTarget, InstanceMaskTarget, SimilarityToConceptTarget
from detcam.trace import guarded
from tests.helpers import Snapshot
from tests.zoo import Example, example


def targets_of(case: Example, family: str) -> list[list[Any]]:
    """Up to two targets per image; masks where the family has them; a box by hand besides."""
    if family == "embedding":
        return [[SimilarityToConceptTarget(embed(case.adapter, case.images)[0])] for _ in case.images]
    rows: list[list[Any]] = [list(case.adapter.targets_of(f))[:2] for f in case.adapter.predict(case.images)]
    if family == "mask_rcnn":
        rows = [[InstanceMaskTarget(t.box_xyxy, t.label, t.source) for t in row] for row in rows]
    if family == "retinanet":
        rows = [[*row, BoxTarget((10.0, 10.0, 60.0, 70.0), 1)] for row in rows]
    assert any(rows), "the example must find something"
    return rows


@pytest.mark.parametrize(
    "family", ["mask_rcnn", "retinanet", "ssdlite", "yolo_segment", "smp_unet", "embedding", "own_detr", "vit"]
)
def test_curves_start_and_end_at_scores_of_whole_images(family: str) -> None:
    case = example(family)
    adapter, targets = case.adapter, targets_of(case, family)
    heatmaps = [torch.rand(len(row), *image.shape[-2:]) for row, image in zip(targets, case.images, strict=True)]
    settings = CurveSettings(fill=BlurFill(3), steps=1, probability=False)
    snapshot = Snapshot(case.model)
    found = score_curves(adapter, case.images, targets, heatmaps, kind="deletion", settings=settings)
    snapshot.check()
    wanted = []
    for image, row in zip(case.images, targets, strict=True):
        with guarded(case.model, gradients=False):
            batch = adapter.prepare([image])
            output = adapter.outputs(adapter.forward(batch), batch)[0]
            rows, columns = batch.geometries[0].valid_cells(batch.geometries[0].input_size_hw)
            pixels, filled = batch.inputs[:, :, rows, columns], batch.inputs.clone()
            filled[:, :, rows, columns] = BlurFill(3)(pixels, torch.ones(1, *pixels.shape[-2:], dtype=torch.bool))
            blurred = Batch(filled, batch.geometries, batch.extra_inputs, batch.model_kwargs)
            after = adapter.outputs(adapter.forward(blurred), blurred)[0]
            fixed = pin_targets(output, row)
            ends = [adapter.score([one], [fixed])[0] for one in (output, after)]
        wanted += [[float(start), float(end)] for start, end in zip(*ends, strict=True)]
    scores = torch.stack([curve.scores for curve in found])
    torch.testing.assert_close(scores, torch.tensor(wanted, dtype=torch.float64), atol=2e-4, rtol=2e-3)
    assert (scores[:, 0] != scores[:, 1]).any()
