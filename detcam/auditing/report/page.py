"""The report page: template, styles, scripts and data in one HTML file, which refers to the report's images."""

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
SCRIPTS = ("dom.js", "overview.js", "list.js", "viewer.js", "case.js", "main.js")
OPTIONAL_FIELDS = (
    "proposal",
    "parts",
    "question",
    "method",
    "trials",
    "reason",
    "failure_stage",
    "evidence_comparison",
    "evidence_object",
    "evidence_form",
    "sentence",
)
COLORS = 33  # samples of the color map, between which the page interpolates


def render_page(audit: Mapping[str, Any], outlines: Mapping[str, Mapping[str, str]]) -> bytes:
    """Render the page of a report.

    Names from the data set cannot become markup or code: they occur only in the data, in which all characters that
    could end a script are escaped, and the content security policy allows only the page's own script and style.

    Args:
        audit: Content of ``audit.json``.
        outlines: By case id, SVG paths around ``evidence``, ``needed`` (the other parts) and ``control``, in pixels of
            the image.

    Returns:
        The HTML file, UTF-8.
    """
    cases = [_without_empty(case | {"outlines": outlines.get(case["id"])}) for case in audit["cases"]]
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
    html = re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], _read(TEMPLATE))
    return html.encode("utf-8", "backslashreplace")


def script_json(data: object) -> str:
    """Convert data to JSON for a script element: ASCII without ``<``, ``>`` and ``&``."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def heat_colors() -> list[list[int]]:
    """Return the colors of heat 0, 1/32, ..., 1 in overlays: 33 RGB triples, 0 to 255."""
    levels = np.rint(np.linspace(0, 255, COLORS)).astype(np.uint8)
    table = cv2.applyColorMap(levels[:, None], colormap_code(DEFAULT_COLORMAP))[:, 0, ::-1]
    return table.tolist()


def _without_empty(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the case without empty fields, which the page treats as null. Most cases are not explained."""
    return {
        key: value
        for key, value in case.items()
        if value is not None and not (key in OPTIONAL_FIELDS and len(value) == 0)
    }


def _read(name: str) -> str:
    return resources.files("detcam.auditing.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
