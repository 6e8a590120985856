"""Every method on every family of detectors and segmentation networks, beyond those of the contract zoo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detcam import adapt
from detcam.adapters import Adapter
from detcam.methods.common.attention_base import NoAttentionError
from detcam.targets import MaskTarget
from detcam.testing.methods import check_heatmaps
from tests.adapters.transformers.detectors import DETECTORS
from tests.adapters.transformers.segmenters import MASK_QUERIES, SEMANTIC
from tests.adapters.transformers.text import OPEN_VOCABULARY
from tests.zoo import METHODS, quick

pytest.importorskip("transformers", reason="transformers is not installed")

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
OWN_PROCESSORS = ("oneformer", "eomt")  # test_segmentation.py builds them
FAMILIES = [*DETECTORS, *SEMANTIC, *(name for name in MASK_QUERIES if name not in OWN_PROCESSORS), *OPEN_VOCABULARY]

EMPTY: dict[str, str] = {
    "conditional_detr": (
        "ablationcam finercam gradcam guidedgradcam hirescam odam scorecam seggradcam seghirescam segxrescam "
        "sess shapleycam ssgradcam xgradcam"
    ),
    "table_transformer": "fem occlusion scorecam ssgradcamplusplus",
    "dab_detr": "fem scorecam",
    "rt_detr": "finercam",
    "pp_doclayout_v2": (
        "gradcam gradcamplusplus guidedgradcam refinecam scorecam seggradcam ssgradcamplusplus xgradcam"
    ),
    "upernet": "finercam sess",
    "dpt": "finercam",
    "beit": "ablationcam",
    "data2vec": "ablationcam occlusion",
    "mobilevit": (
        "ablationcam fem gcame gradcam gradcamelementwise gradcamplusplus guidedbackprop guidedgradcam "
        "hirescam layercam occlusion odam phasewin probecam refinecam rise seggradcam seghirescam segxrescam "
        "sess shapleycam ssgradcam ssgradcamplusplus vps xgradcam"
    ),
    "mobilenet_v2": (
        "ablationcam fem finercam gcame gradcam guidedgradcam hirescam odam seggradcam seghirescam segxrescam "
        "sess shapleycam ssgradcam xgradcam"
    ),
    "mask2former": "gradcamplusplus refinecam",
    "maskformer": "finercam gradcam gradcamplusplus guidedgradcam refinecam seggradcam shapleycam",
    "detr_panoptic": "gradcamplusplus refinecam",
    "mm_grounding_dino": "drise",
    "owlv2": "fem gradcamplusplus refinecam",
}
"""Methods whose maps of a family's random weights have no positive evidence anywhere, as measured."""


def adapter_of(name: str) -> Adapter:
    if name in OPEN_VOCABULARY:
        model, processor = OPEN_VOCABULARY[name]()
        return adapt(model, processor=processor, prompts=["a red boat", "buoys"], score_threshold=0.0)
    return adapt({**DETECTORS, **SEMANTIC, **MASK_QUERIES}[name](), image_size=64)


def outcome(cam: Any, target: Any) -> str:
    """What a method does with a model: ``"explained"``, ``"empty"`` (no positive evidence), or ``"refused"``."""
    try:
        check_heatmaps(cam, [IMAGE], [target])
    except NoAttentionError:
        return "refused"
    except AssertionError as error:
        if "all heatmaps are empty" not in str(error):
            raise
        return "empty"
    return "explained"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_explains_the_family(name: str) -> None:
    adapter = adapter_of(name)
    if adapter.task == "detection":
        target: Any = adapter.predict(IMAGE, score_threshold=0.0, top_k=1)[0]
    else:
        target = [MaskTarget(1)]
    methods = [method for method, kind in METHODS.items() if adapter.task in kind.tasks]
    found = {method: outcome(quick(method, adapter), target) for method in methods}
    refused, empty = ({method for method in methods if found[method] == kind} for kind in ("refused", "empty"))
    assert len(methods) > 30 and refused <= {"legrad", "chefercam"}
    assert empty <= set(EMPTY.get(name, "").split())
