"""The Hugging Face hub: asked only where it can be reached, since its library tries again for a long time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

CONNECTION_SECONDS = 5.0
"""Time in which the hub has to accept a connection."""


@contextmanager
def reachable_hub() -> Iterator[None]:
    """Use the files in the cache alone inside the block if the hub cannot be reached.

    Without this, every file is asked for six times, with pauses of half a minute.
    """
    try:
        from huggingface_hub import constants
    except ImportError:  # a model of another library, which says what it lacks
        yield
        return
    settings: Any = constants
    before = settings.HF_HUB_OFFLINE
    if not before and not can_connect(settings.ENDPOINT):
        settings.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before


def can_connect(url: str) -> bool:
    """Return whether a server accepts a connection; True where a proxy stands in between."""
    if getproxies():
        return True
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
        socket.create_connection(address, CONNECTION_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
