"""Logs of a training monitor in TensorBoard, Weights & Biases, or a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detcam.utils.optional import needs_extra

if TYPE_CHECKING:
    from detcam.auditing.monitoring.monitor import MonitorEntry

PREFIX = "detcam"
"""Prefix of all names in a log."""


def log_to(logger: Any, entry: MonitorEntry) -> None:
    """Log an entry.

    Args:
        logger: a TensorBoard ``SummaryWriter`` (it has ``add_scalar`` and ``add_image``), a run of Weights & Biases (it
            has ``log``), a function of the entry, or None.
        entry: the entry.

    Raises:
        TypeError: the logger is none of these.
    """
    if logger is None:
        return
    if hasattr(logger, "add_scalar") and hasattr(logger, "add_image"):
        for name, value in entry.scalars.items():
            logger.add_scalar(f"{PREFIX}/{name}", value, entry.epoch)
        for name, overlay in entry.overlays.items():
            logger.add_image(f"{PREFIX}/{name}", overlay, entry.epoch, dataformats="HWC")
    elif hasattr(logger, "log") and not callable(logger):
        with needs_extra("wandb"):
            from wandb import Image
        sentences = {case.id: case.sentence for case in entry.cases}
        images = {name: Image(overlay, caption=sentences[name]) for name, overlay in entry.overlays.items()}
        content = {**entry.scalars, **images, "epoch": entry.epoch}
        logger.log({f"{PREFIX}/{name}": value for name, value in content.items()})
    elif callable(logger):
        logger(entry)
    else:
        kind = type(logger).__name__
        raise TypeError(f"expected a TensorBoard SummaryWriter, a run of Weights & Biases or a function; got {kind}")
