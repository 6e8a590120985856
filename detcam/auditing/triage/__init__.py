"""Audits without annotations: detections ranked by how little trust they deserve."""

from detcam.auditing.triage.trust import SIGNALS, TrustEstimator, least_trusted_first
from detcam.auditing.triage.unlabeled import unlabeled_images

__all__ = ["SIGNALS", "TrustEstimator", "least_trusted_first", "unlabeled_images"]
