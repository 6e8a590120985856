"""An audit that compares masks, from the detector to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import detcam
from detcam import adapt
from detcam.adapters import Adapter
from detcam.benchmarking.planted.detectors import PlantedBackbone
from detcam.synthetic.harbor import draw_scene
from tests.helpers import Snapshot


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """A Mask R-CNN that finds something everywhere."""
    torch.manual_seed(0)
    model = MaskRCNN(
        PlantedBackbone(),
        num_classes=3,
        min_size=192,
        max_size=256,
        rpn_anchor_generator=AnchorGenerator(((20,), (32,)), ((0.5, 1.0), (0.5, 1.0))),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 14, 2),
        box_score_thresh=0.05,
        box_detections_per_img=8,
        rpn_post_nms_top_n_test=60,
    )
    return adapt(model.eval(), names={0: "background", 1: "boat", 2: "buoy"})


def test_errors_by_mask_iou(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = draw_scene(1_000_000).image
    Image.fromarray(image).save(tmp_path / "images" / "scene.png")
    found = adapter.predict(image)[0]
    assert found.masks is not None
    masks = found.masks.numpy()
    annotated = [row for row in range(len(found)) if masks[row].sum() > 20][:4]
    annotations = []
    for number, row in enumerate(annotated):
        code = coco_mask.encode(np.asfortranarray(masks[row].astype(np.uint8)))
        entry: dict[str, Any] = {"id": number + 1, "image_id": 1, "category_id": int(found.labels[row]), "iscrowd": 0}
        # The mask is the detector's own; the box beside it is somewhere else, and must not matter.
        entry |= {"segmentation": {**code, "counts": code["counts"].decode()}, "area": float(masks[row].sum())}
        annotations.append(entry | {"bbox": [0.0, 0.0, 3.0, 3.0]})
    path = tmp_path / "instances.json"
    categories = [{"id": 1, "name": "boat"}, {"id": 2, "name": "buoy"}]
    images = [{"id": 1, "file_name": "scene.png", "height": image.shape[0], "width": image.shape[1]}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    before = Snapshot(adapter.model)
    options: dict[str, Any] = {"score_threshold": 0.05, "explain": 2, "explain_missed": 0}
    audit = detcam.audit(adapter, tmp_path / "images", path, out=tmp_path / "report", iou_type="segm", **options)
    before.check()
    wrong = {error.detection_index for error in audit.analysis.errors if error.is_false_positive}
    assert wrong == set(range(len(found))) - set(annotated) and wrong
    assert not any(case.type == "missed" for case in audit.cases)
    boxes = detcam.audit(adapter, tmp_path / "images", path, **{**options, "explain": 0})
    assert sum(case.type == "missed" for case in boxes.cases) == len(annotated)
    assert audit.analysis.average_precision > 0.2 > boxes.analysis.average_precision
    assert len(audit.explained) == min(2, len(wrong)) and all(case.trials for case in audit.explained)
    assert (tmp_path / "report" / "index.html").is_file()
    assert repr(audit).startswith(f"Audit({len(audit.cases)} errors, {len(audit.explained)} explained, ")
