"""Explanations of a fixed set of images during training, so that a shortcut is seen while it is learned."""

from __future__ import annotations

import io
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from detcam.auditing.case import CONFIRMED, AuditCase
from detcam.auditing.grouping.hierarchy import Cause
from detcam.auditing.monitoring.sinks import log_to
from detcam.auditing.pipeline import audit
from detcam.auditing.report.layout import CASE_FILES, CASES, case_stem
from detcam.auditing.sentences import OUTSIDE_LOCATIONS
from detcam.data.annotations import Annotations
from detcam.utils.optional import needs_extra

DEFAULT_EXPLAIN = 8
"""Errors, or detections, that are explained each time."""


@dataclass(frozen=True, eq=False)
class MonitorEntry:
    """What a monitor found at the end of an epoch.

    Attributes:
        epoch: number of the epoch.
        scalars: average precision, number of explained and confirmed cases, the share of the evidence outside the box,
            and the number of confirmed cases by cause; by name.
        overlays: (H, W, 3) uint8 RGB images of boxes and heatmaps, by case.
        cases: the explained cases.
    """

    epoch: int
    scalars: dict[str, float]
    overlays: dict[str, np.ndarray]
    cases: tuple[AuditCase, ...]


class TrainingMonitor:
    """Explains a detector on a fixed set of images every few epochs, and logs what it rests on.

    Args:
        images: folder of images.
        annotations: COCO JSON file or annotations; None explains the detections themselves.
        every: number of epochs between explanations.
        logger: where results go: a TensorBoard ``SummaryWriter``, a run of Weights & Biases, or a function that gets
            the `MonitorEntry`. None only keeps them in `history`.
        explain: maximum number of errors, or of detections, that are explained.
        **options: further arguments of `detcam.audit`, such as `names` and `score_threshold`.

    Attributes:
        history: the entries so far.

    Raises:
        ValueError: `every` is below 1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from detcam.auditing.monitoring import TrainingMonitor
        >>> from detcam.demo.labels import write_coco
        >>> from detcam.demo.model import load_demo_detector
        >>> from detcam.synthetic.harbor import DEMO_NAMES, draw_scene
        >>> folder = Path(tempfile.mkdtemp())
        >>> labels = write_coco(folder, [draw_scene(1_000_000)])
        >>> monitor = TrainingMonitor(folder / "images", labels, every=5, explain=1, names=DEMO_NAMES)
        >>> model = load_demo_detector()
        >>> for epoch in range(3):  # train an epoch, then:
        ...     _ = monitor(model, epoch)
        >>> [entry.epoch for entry in monitor.history]
        [0]
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path | Annotations | None = None,
        *,
        every: int = 1,
        logger: Any = None,
        explain: int = DEFAULT_EXPLAIN,
        **options: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"expected every of at least 1 epoch; got {every}")
        self.images = images
        self.annotations = annotations
        self.every = every
        self.logger = logger
        self.options = {"explain": explain, "explain_missed": 0, **options}
        self.history: list[MonitorEntry] = []

    def __call__(self, model: nn.Module, epoch: int, logger: Any = None) -> MonitorEntry | None:
        """Explain the images if the epoch is a multiple of `every`.

        The model is explained in evaluation mode, and is as before afterwards.

        Args:
            model: the detector.
            epoch: number of the epoch, from 0.
            logger: where results go; None takes that of the monitor.

        Returns:
            The results; None in other epochs.
        """
        if epoch % self.every:
            return None
        flags = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = audit(model, self.images, self.annotations, out=folder, **self.options)
                read = {case.id: _overlay(Path(folder), case) for case in found.explained}
        finally:
            for module, flag in flags.items():
                module.training = flag
        overlays = {name: overlay for name, overlay in read.items() if overlay is not None}
        scalars = summarize_cases(found.explained)
        if np.isfinite(found.analysis.average_precision):
            scalars["average precision"] = found.analysis.average_precision
        entry = MonitorEntry(epoch, scalars, overlays, tuple(found.explained))
        self.history.append(entry)
        log_to(logger if logger is not None else self.logger, entry)
        return entry

    def ultralytics_callback(self) -> Callable[[Any], None]:
        """The function for ``YOLO(...).add_callback("on_train_epoch_end", ...)``; it takes the averaged weights.

        With ``"on_fit_epoch_end"`` it would run once more after the last epoch, for the final validation.
        """

        def on_train_epoch_end(trainer: Any) -> None:
            average = getattr(trainer, "ema", None)
            self(trainer.model if average is None else average.ema, int(trainer.epoch))

        return on_train_epoch_end

    def lightning_callback(self, attribute: str = "model") -> Any:
        """A callback for ``Trainer(callbacks=[...])`` of PyTorch Lightning, run after each training epoch.

        Results go to the logger of the monitor, or without one to the experiment of the trainer's logger.

        Args:
            attribute: attribute of the LightningModule that is the detector.

        Raises:
            ImportError: neither ``pytorch_lightning`` nor ``lightning`` is installed.
        """
        base = _lightning_callback_class()
        monitor = self

        class _MonitorCallback(base):  # type: ignore[misc, valid-type]
            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                experiment = getattr(trainer.logger, "experiment", None)
                chosen = monitor.logger if monitor.logger is not None else experiment
                monitor(getattr(module, attribute), int(trainer.current_epoch), chosen)

        return _MonitorCallback()


def _lightning_callback_class() -> Any:
    """The base class of callbacks, of the one of Lightning's two packages that is in use."""
    packages = ["pytorch_lightning", "lightning.pytorch"]
    imported = [name for name in packages if name in sys.modules]
    for name in [*imported, *packages]:
        if find_spec(name.split(".")[0]) is not None:
            return import_module(name).Callback
    with needs_extra("lightning"):
        return import_module(packages[0]).Callback


def summarize_cases(cases: Sequence[AuditCase]) -> dict[str, float]:
    """Summarize explained cases as numbers by name."""
    confirmed = [case for case in cases if case.verdict in CONFIRMED]
    scalars = {"explained": float(len(cases)), "confirmed": float(len(confirmed))}
    shares = [case.evidence_shares for case in confirmed if case.evidence_shares is not None]
    if shares:
        outside = [sum(each.get(location, 0.0) for location in OUTSIDE_LOCATIONS) for each in shares]
        scalars["evidence outside the box"] = float(np.mean(outside))
    causes = Counter(cause.name for case in confirmed if (cause := Cause.of(case)) is not None)
    return scalars | {f"causes/{name}": float(count) for name, count in causes.items()}


def _overlay(folder: Path, case: AuditCase) -> np.ndarray | None:
    path = folder / CASES / f"{case_stem(case.id)}{CASE_FILES['thumbnail']}"
    if not path.is_file():
        return None
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
