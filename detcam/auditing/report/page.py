"""The page: template, style, script and data put into one file that needs nothing else but the report's images."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from detcam.utils.opencv import cv2
from detcam.visualize.convert import colormap_code
from detcam.visualize.overlay import DEFAULT_COLORMAP, OVERLAY_ALPHA

TEMPLATE = "page.html"
STYLE = "page.css"
SCRIPTS = ("dom.js", "overview.js", "list.js", "stage.js", "case.js", "main.js")
EMPTY_WHERE_UNEXPLAINED = ("question", "method", "trials", "reason", "failure_stage", "evidence_comparison", "sentence")
COLORS = 33  # of the heatmaps' colours, between which the page interpolates


def page(audit: Mapping[str, Any], outlines: Mapping[str, Mapping[str, str]]) -> bytes:
    """The report's page.

    Nothing from outside is executed: names stand in the data alone, where all that could end a script is escaped, and
    the page forbids itself every script and style but its own.

    Args:
        audit: what ``audit.json`` holds.
        outlines: by case id, SVG paths around ``evidence`` and ``control`` in the image's pixels.
    """
    cases = [_slim(case | {"outlines": outlines.get(case["id"])}) for case in audit["cases"]]
    data = {**audit, "cases": cases, "heat": {"colors": heat_colors(), "opacity": OVERLAY_ALPHA}}
    script = "\n".join(["(() => {", '"use strict";', *(_read(name) for name in SCRIPTS), "})();"])
    parts = {
        "title": escape(f"Audit of {audit['model']}"),
        "style": _read(STYLE),
        "script": script,
        "style-hash": _digest(_read(STYLE)),
        "script-hash": _digest(script),
        "data": script_json(data),
    }
    filled = re.sub(r"\{\{([a-z-]+)\}\}", lambda found: parts[found[1]], _read(TEMPLATE))
    return filled.encode("utf-8", "backslashreplace")


def script_json(data: Any) -> str:
    """JSON that can stand within a script element: no ``<``, ``>`` or ``&``, whatever the texts hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def heat_colors() -> list[list[int]]:
    """(33, 3) RGB, 0 to 255: the colours of heat 0, 1/32, ..., 1, as overlays have them."""
    levels = np.rint(np.linspace(0, 255, COLORS)).astype(np.uint8)
    table = cv2.applyColorMap(levels[:, None], colormap_code(DEFAULT_COLORMAP))[:, 0, ::-1]
    colors: list[list[int]] = table.tolist()
    return colors


def _slim(case: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty, which most cases are not explained for: the page takes what is absent for null."""
    return {
        key: value
        for key, value in case.items()
        if value is not None and not (key in EMPTY_WHERE_UNEXPLAINED and len(value) == 0)
    }


def _read(name: str) -> str:
    return resources.files("detcam.auditing.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
