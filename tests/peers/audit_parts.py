"""The parts of an audit that explain and verify errors, and the CPU time of each."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from detcam.adapters import Adapter
from detcam.auditing import explainer
from detcam.auditing.background_type import BackgroundClassifier
from detcam.auditing.report import ReportWriter
from detcam.auditing.stages import AuditStages
from detcam.auditing.verification.appearance import AppearanceCriterion
from detcam.auditing.verification.interventions import Interventions
from detcam.auditing.verification.persistence import PersistenceCriterion

REST = "reading, preparation, storing"
"""The part of an audit that belongs to no other part."""
BACKGROUND = "background types and features"
"""The features of detections and what is computed from them, with their forward passes."""


class PartTimer:
    """Measures the CPU time of the parts of an audit; a part's time excludes that of other parts inside it.

    Attributes:
        seconds: CPU time by part.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside the context to a part; parts inside `BACKGROUND` belong to it."""
        self._switch()
        self._stack.append(BACKGROUND if BACKGROUND in self._stack else name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time inside the context."""
        self._switch()
        yield
        self._since = time.process_time()

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            # Detection, before the explanations, belongs to no part.
            if not self._stack and name not in (REST, BACKGROUND):
                return function(*arguments, **options)
            with self.part(name):
                return function(*arguments, **options)

        return wrapped

    @contextmanager
    def active(self, adapter: Adapter) -> Iterator[None]:
        """Measure the audits inside the context."""
        detector = type(adapter)
        functions: list[tuple[Any, str, str]] = [
            (AuditStages, "explain", REST),
            (ReportWriter, "image", "images of the report"),
            (ReportWriter, "case", "images of the report"),
            (detector, "forward", "forward passes"),
            (detector, "outputs", "outputs and outcomes"),
            (PersistenceCriterion, "evaluate", "outputs and outcomes"),
            (PersistenceCriterion, "from_output", "outputs and outcomes"),
            (AppearanceCriterion, "evaluate", "outputs and outcomes"),
            (Interventions, "perturbed", "fills"),
            (explainer, "gradient_proposals", "proposals"),
            (explainer, "color_segments", "proposals"),
            (explainer, "verify_together", "search"),
            (explainer, "conclude", "conclusions"),
            (explainer, "describe_evidence", "conclusions"),
            (explainer, "object_under", "conclusions"),
            (BackgroundClassifier, "classify", BACKGROUND),
            (BackgroundClassifier, "box_features", BACKGROUND),
        ]
        with ExitStack() as stack:
            for owner, attribute, name in functions:
                timed = self._timed(getattr(owner, attribute), name)
                if isinstance(vars(owner).get(attribute), classmethod):
                    timed = staticmethod(timed)  # type: ignore[assignment]
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield
