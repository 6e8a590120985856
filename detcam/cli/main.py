"""The console script, in a module of its own so that Ctrl-C is caught while the modules of the command load."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the ``detcam`` command."""
    # Arrow reads it when it is imported. Its other pools reserve 1 GiB at once, which --max-memory would count as used.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        from detcam.cli.app import app

        app(prog_name="detcam")
    except KeyboardInterrupt:
        print("detcam: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
