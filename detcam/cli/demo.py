"""``detcam demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detcam.cli.options import CommonOptions, Out

HELP = "Explain why a small detector reports boats that do not exist. Needs no network and no images."


@dataclass(frozen=True, kw_only=True)
class DemoOptions(CommonOptions):
    """Options of ``detcam demo``."""

    out: Out = Path("detcam-demo")


def demo_command(options: DemoOptions) -> int:
    """Run the demonstration; return the exit code."""
    from detcam.demo.run import run_demo

    run_demo(options.out)
    return 0
