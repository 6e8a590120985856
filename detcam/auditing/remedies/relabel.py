"""Queues of possible missing annotations, doubtful boxes and doubtful classes as imports for annotation tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detcam.auditing.case import AuditCase, Box
from detcam.auditing.remedies.datasets import coco_annotation
from detcam.auditing.report.report_data import ReportData, ReportImage, ReportObject
from detcam.utils.batching import group_by
from detcam.utils.files import json_value, replace_file

COCO, CVAT, CVAT_LABELS = "coco.json", "cvat.xml", "cvat-labels.json"
LABEL_STUDIO, LABEL_STUDIO_CONFIG = "label-studio.json", "label-studio-config.xml"
FORBIDDEN_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
FROM_NAME, TO_NAME = "label", "image"
MISSING = "Possible missing annotations, highest gain first"
BOXES = "Boxes that differ from the annotations, highest gain first"
CLASSES = "Classes that differ from the annotations, highest gain first"


def relabel_order(cases: Sequence[AuditCase]) -> list[AuditCase]:
    """Sort cases by gain: delta AP of the false positive, in thousandths, then typicality times score."""
    return sorted(
        cases,
        key=lambda case: (-round(_number(case.delta_ap), 3), -_number(case.typicality) * case.score, -case.score),
    )


def write_relabel_queue(
    folder: Path, data: ReportData, cases: Sequence[AuditCase], description: str = MISSING
) -> list[str]:
    """Write the queue as COCO, CVAT and Label Studio files.

    Each image has its annotated objects and, as proposals, the detections in question.

    Args:
        folder: folder of the files.
        data: the report.
        cases: the detections, such as possible missing annotations.
        description: what the queue is, for the COCO file.

    Returns:
        Names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = relabel_order([case for case in cases if case.image_id in data.images])
    queue = [
        (data.images[image_id], members) for image_id, members in group_by(ordered, lambda case: case.image_id).items()
    ]
    contents = {
        COCO: _json(_coco(data, queue, description)),
        CVAT: _cvat(data, queue),
        CVAT_LABELS: _json(cvat_labels(data)),
        LABEL_STUDIO: _json([_label_studio_task(data, image, members) for image, members in queue]),
        LABEL_STUDIO_CONFIG: label_studio_config(data).encode(),
    }
    for name, content in contents.items():
        replace_file(folder / name, content)
    return list(contents)


Queue = Sequence[tuple[ReportImage, Sequence[AuditCase]]]


def _coco(data: ReportData, queue: Queue, description: str) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    entries = []
    rank = 0
    for number, (image, members) in enumerate(queue, 1):
        height, width = image.size_hw
        image_id = image.image_id if isinstance(image.image_id, int) else number
        entries.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        for item in image.objects:
            if item.name in data.categories:
                category = data.categories[item.name]
                more = {"attributes": {"proposal": False}}
                annotations.append(coco_annotation(len(annotations) + 1, image_id, category, item, **more))
        for case in members:
            rank += 1
            attributes = {"proposal": True, "case": case.id, "rank": rank, **json_value(_figures(case))}
            proposed = ReportObject(case.name, case.box_xyxy, False, "")
            category = data.categories[case.name]
            more = {"score": json_value(case.score), "attributes": attributes}
            annotations.append(coco_annotation(len(annotations) + 1, image_id, category, proposed, **more))
    return {
        "info": {"description": f"{description}; proposals have a score"},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": category, "name": name} for name, category in data.categories.items()],
    }


def _cvat(data: ReportData, queue: Queue) -> bytes:
    """CVAT for images 1.1."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for label in cvat_labels(data):
        entry = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(entry, "name").text = _xml_text(label["name"])
        attributes = ElementTree.SubElement(entry, "attributes")
        for attribute in label["attributes"]:
            part = ElementTree.SubElement(attributes, "attribute")
            for key in ("name", "mutable", "input_type", "default_value"):
                ElementTree.SubElement(part, key).text = str(attribute[key])
            ElementTree.SubElement(part, "values").text = "\n".join(attribute["values"])
    for number, (image, members) in enumerate(queue):
        height, width = image.size_hw
        values = {"id": str(number), "name": _xml_text(image.file_name), "width": str(width), "height": str(height)}
        entry = ElementTree.SubElement(root, "image", values)
        for item in image.objects:
            if item.name in data.categories:
                _cvat_box(entry, item.name, item.box_xyxy, "file", "no", "")
        for case in members:
            _cvat_box(entry, case.name, case.box_xyxy, "auto", "yes", f"{case.score:.3f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _cvat_box(parent: ElementTree.Element, name: str, box: Box, source: str, proposal: str, score: str) -> None:
    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{value:.2f}" for value in box), strict=True))
    values = {"label": _xml_text(name), "source": source, "occluded": "0", **corners, "z_order": "0"}
    entry = ElementTree.SubElement(parent, "box", values)
    for key, text in (("proposal", proposal), ("score", score)):
        ElementTree.SubElement(entry, "attribute", {"name": key}).text = text


def cvat_labels(data: ReportData) -> list[dict[str, Any]]:
    """The labels of a CVAT task, for its raw editor."""
    return [
        {
            "name": name,
            "attributes": [
                {
                    "name": "proposal",
                    "mutable": False,
                    "input_type": "select",
                    "default_value": "no",
                    "values": ["no", "yes"],
                },
                {"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]},
            ],
        }
        for name in data.categories
    ]


def label_studio_config(data: ReportData) -> str:
    """The labeling configuration of a Label Studio project."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": TO_NAME, "value": f"${TO_NAME}"})
    labels = ElementTree.SubElement(view, "RectangleLabels", {"name": FROM_NAME, "toName": TO_NAME})
    for name in data.categories:
        ElementTree.SubElement(labels, "Label", {"value": _xml_text(name)})
    return ElementTree.tostring(view, encoding="unicode")


def _label_studio_task(data: ReportData, image: ReportImage, members: Sequence[AuditCase]) -> dict[str, Any]:
    """A task with the annotated objects and, in the same prediction, the proposals with their scores."""
    known = [item for item in image.objects if item.name in data.categories]
    results = [_label_studio_box(f"object-{n}", item.name, item.box_xyxy, image) for n, item in enumerate(known)]
    for case in members:
        results.append({**_label_studio_box(case.id, case.name, case.box_xyxy, image), "score": json_value(case.score)})
    prediction = {
        "model_version": str(data.content["model"]),
        "score": json_value(max(case.score for case in members)),
        "result": results,
    }
    figures = [{"case": case.id, **json_value(_figures(case))} for case in members]
    return {
        "data": {TO_NAME: f"/data/local-files/?d={image.file_name}", "file_name": image.file_name, "cases": figures},
        "predictions": [prediction],
    }


def _label_studio_box(identity: str, name: str, box: Box, image: ReportImage) -> dict[str, Any]:
    height, width = image.size_hw
    left, right = (min(max(value, 0.0), width) for value in box[::2])
    top, bottom = (min(max(value, 0.0), height) for value in box[1::2])
    return {
        "id": identity,
        "type": "rectanglelabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": json_value(100 * left / width),
            "y": json_value(100 * top / height),
            "width": json_value(100 * (right - left) / width),
            "height": json_value(100 * (bottom - top) / height),
            "rotation": 0,
            "rectanglelabels": [_xml_text(name)],  # as in the configuration
        },
    }


def _figures(case: AuditCase) -> dict[str, float]:
    return {"score": case.score, "delta_ap": case.delta_ap, "typicality": case.typicality}


def _number(value: float) -> float:
    return value if value == value else 0.0


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _xml_text(text: str) -> str:
    """The text with a question mark for each character that XML does not allow."""
    return FORBIDDEN_IN_XML.sub("?", text)
