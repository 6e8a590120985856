"""Audits of detectors: errors on annotated images, their explanations, and the verification of the explanations."""

from detcam.auditing.analysis import ClassSummary as ClassSummary
from detcam.auditing.analysis import ErrorAnalysis as ErrorAnalysis
from detcam.auditing.analysis import analyze_errors as analyze_errors
from detcam.auditing.average_precision import Ranking as Ranking
from detcam.auditing.average_precision import average_precision as average_precision
from detcam.auditing.case import AuditCase as AuditCase
from detcam.auditing.case import CaseMaps as CaseMaps
from detcam.auditing.case import ErrorGroup as ErrorGroup
from detcam.auditing.case import GroundTruthObject as GroundTruthObject
from detcam.auditing.case import Trial as Trial
from detcam.auditing.errors import ERROR_TYPES as ERROR_TYPES
from detcam.auditing.errors import DetectionError as DetectionError
from detcam.auditing.errors import ErrorType as ErrorType
from detcam.auditing.matching import Match as Match
from detcam.auditing.matching import match as match
from detcam.auditing.matching import overlaps as overlaps
from detcam.auditing.oracle import DeltaAP as DeltaAP
from detcam.auditing.pipeline import Audit as Audit
from detcam.auditing.pipeline import AuditSettings as AuditSettings
from detcam.auditing.pipeline import audit as audit
