"""The report page: template, styles and scripts in one HTML file, which loads the report's data files and images."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from detcam.auditing.report.images import heat_colors
from detcam.auditing.report.page_data import clip, script_json
from detcam.auditing.report.summary import ReportSummary
from detcam.visualize.overlay import OVERLAY_ALPHA

TEMPLATE = "page.html"
STYLE = "page.css"
SCRIPTS = (
    *("elements.js", "loader.js", "dom.js", "rows.js", "canvas.js", "cards.js", "decision.js"),
    *("curves.js", "overview.js", "causes.js", "list.js", "viewer.js", "case.js", "main.js"),
)


def render_page(summary: ReportSummary, data: Mapping[str, Any]) -> bytes:
    """Render the page of a report.

    Names from the data set cannot become markup or code: they occur only in data, in which all characters that could
    end a script are escaped. The content security policy allows the page's own style and script, and the data files
    that this script loads.

    Args:
        summary: the results of the audit.
        data: what the page must know to load its data files: see `PageData.write`.

    Returns:
        The HTML file, UTF-8.
    """
    start = {
        **data,
        "model": summary.model,
        "annotations": summary.annotations,
        "headline": summary.headline(),
        "score_threshold": summary.score_threshold,
        "heat": {"colors": heat_colors().tolist(), "opacity": OVERLAY_ALPHA},
    }
    scripts = [read_part(name) for name in SCRIPTS]
    title = clip(f"Audit of {summary.model}")
    return assemble_page(read_part(TEMPLATE), title, read_part(STYLE), scripts, clip(start))


def assemble_page(template: str, title: str, style: str, scripts: Sequence[str], data: object) -> bytes:
    """Put a page together; its content security policy allows this style and this script.

    Args:
        template: HTML with the placeholders title, style, script, data, and the hashes of style and script.
        title: the title of the page, which is escaped.
        style: the style sheet.
        scripts: parts of the script, which share one scope.
        data: what the script reads from the element ``data``; nothing in it can end the element.

    Returns:
        The HTML file, UTF-8.
    """
    body = "\n".join(scripts)
    script = f'(async () => {{\n"use strict";\n{body}\n}})();'
    parts = {
        "title": escape(title),
        "style": style,
        "script": script,
        "style-hash": _digest(style),
        "script-hash": _digest(script),
        "data": script_json(data),
    }
    html = re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], template)
    return html.encode("utf-8", "backslashreplace")


def read_part(name: str) -> str:
    """Read a template, style or script of the report."""
    return resources.files("detcam.auditing.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
