"""The settings of an audit, which its report shows and an audit that resumes must share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from detcam.adapters import Adapter
from detcam.auditing.analysis import check_thresholds
from detcam.auditing.matching import IouType
from detcam.auditing.selection import EXPLAIN_ORDERS, ExplainOrder
from detcam.auditing.validation import annotations_digest
from detcam.auditing.verification.proposals import PORTFOLIO
from detcam.cam import BaseCAM
from detcam.data.annotations import Annotations
from detcam.explanation.explain import DEFAULT_SCORE_THRESHOLD
from detcam.utils.hashing import adapter_digest, weights_digest


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        score_threshold: minimum score of a relevant detection, in (0, 1): errors from this score on are explained, and
            an error ends when its score falls below it. Average precision counts all detections.
        explain: maximum number of false positives to explain.
        explain_missed: maximum number of missed objects to explain.
        explain_order: ``"score"``: the false positives with the highest scores and the largest missed objects are
            explained; ``"random"``: random samples of both are.
        sample_seed: seed of the random samples. A larger sample contains the smaller ones of the same seed.
        iou_threshold: minimum IoU of a true positive, in (0, 1].
        background_threshold: maximum IoU of a background error.
        iou_type: ``"bbox"``, or ``"segm"`` to match masks.
        labels: class indices whose errors are explained; None explains all classes.
        quantity: the quantity to explain of background errors, duplicates and missed objects.
    """

    score_threshold: float = DEFAULT_SCORE_THRESHOLD
    explain: int = 200
    explain_missed: int = 50
    iou_threshold: float = 0.5
    background_threshold: float = 0.1
    iou_type: IouType = "bbox"
    labels: tuple[int, ...] | None = None
    quantity: str = "score"
    explain_order: ExplainOrder = "score"
    sample_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.score_threshold < 1:
            raise ValueError(f"expected score_threshold between 0 and 1; got {self.score_threshold}")
        check_thresholds(self.iou_threshold, self.background_threshold, self.iou_type)
        if self.explain_order not in EXPLAIN_ORDERS:
            expected = " or ".join(map(repr, EXPLAIN_ORDERS))
            raise ValueError(f"expected explain_order to be {expected}; got {self.explain_order!r}")
        for name in ("explain", "explain_missed", "sample_seed"):
            number = getattr(self, name)
            if not isinstance(number, Integral) or number < 0:
                raise ValueError(f"expected {name} as an int of at least 0; got {number!r}")
            object.__setattr__(self, name, int(number))


def recorded_settings(
    settings: AuditSettings, adapter: Adapter, cam: BaseCAM | None, annotations: Annotations, model_name: str
) -> dict[str, Any]:
    """Return the settings that the report shows, and that an audit must share with the one it resumes.

    Args:
        settings: the user's settings.
        adapter: the detector.
        cam: the heatmap method; None is the portfolio.
        annotations: the objects of the images.
        model_name: name of the model in the report.
    """
    return {
        **asdict(settings),
        "method": PORTFOLIO if cam is None else cam.name,
        "layers": list(adapter.layer_names),
        "model": model_name,
        "annotations": annotations.path.name,
        "images": len(annotations),
        "annotations_digest": annotations_digest(annotations),
        "weights": weights_digest(adapter.model),
        "adapter_options": adapter_digest(adapter),
    }
