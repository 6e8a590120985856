"""Remedies for the errors of an audit: recommended actions, relabel queues and training sets."""

from detcam.auditing.grouping.actions import ACTIONS, Action
from detcam.auditing.remedies.remedies import GroupRemedy, Repair, repair

__all__ = ["ACTIONS", "Action", "GroupRemedy", "Repair", "repair"]
