"""Box formats of exported detectors, recognized by the names and shapes of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torchvision.ops import box_convert

from detcam.adapters.black_box import class_vectors
from detcam.adapters.output_heads import describe_output
from detcam.adapters.transformers.detector import SIGMOID_FAMILIES, SOFTMAX_FAMILIES

STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32))
"""Strides of the grids of YOLO heads, which make up the N candidates of their exports."""
ROTATED = "obb"
"""Task of ultralytics whose boxes are rotated."""


@dataclass(frozen=True)
class OnnxFormat:
    """How an exported detector writes boxes.

    Attributes:
        name: for messages.
        decode: from the raw output of a batch to boxes (B, N, 4), input pixels, and class scores (B, N, C).
        suppresses: whether overlapping boxes have to be suppressed; else the network has done so.
        letterbox: whether images keep their aspect ratio on the input.
        rows_are_sources: whether row i of every image comes from the same part of the network.
    """

    name: str
    decode: Callable[[Any], tuple[Tensor, Tensor]]
    suppresses: bool = False
    letterbox: bool = False
    rows_are_sources: bool = False


def recognize(
    outputs: Mapping[str, Tensor],
    input_size_hw: tuple[int, int],
    classes: int,
    metadata: Mapping[str, Any],
    activation: str | None,
) -> OnnxFormat | None:
    """Return the box format of a detector's outputs on one image; None for an unknown one.

    Args:
        outputs: by name.
        input_size_hw: height and width of the network's input.
        classes: number of class indices, for formats that write labels only.
        metadata: what the file says about itself.
        activation: ``"sigmoid"`` or ``"softmax"``, the activation of transformers' logits; None if it is not known.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in outputs.items()}
    if {"logits", "pred_boxes"} <= outputs.keys():
        logits, boxes = shapes["logits"], shapes["pred_boxes"]
        if activation is not None and len(logits) == 3 and boxes == (*logits[:2], 4):
            return OnnxFormat(f"transformers ({activation})", partial(_queries, activation, input_size_hw))
        return None
    tensors = list(outputs.values())
    if _is_torchvision(tensors):
        roles = _torchvision_roles(outputs)
        return OnnxFormat("torchvision", partial(_listed, roles, classes))
    return _ultralytics(outputs, input_size_hw, classes, metadata)


def _ultralytics(
    outputs: Mapping[str, Tensor], input_size_hw: tuple[int, int], classes: int, metadata: Mapping[str, Any]
) -> OnnxFormat | None:
    name, first = next(iter(outputs.items()))
    known = metadata.get("author") == "Ultralytics"
    if first.ndim != 3 or name != "output0" or metadata.get("task") == ROTATED or (len(outputs) > 1 and not known):
        return None
    _, rows, columns = first.shape
    named = len(metadata["names"]) if known and isinstance(metadata.get("names"), dict) else None
    is_query = metadata.get("head") == "RTDETRDecoder"
    height, width = input_size_hw
    counts = {sum((height // stride) * (width // stride) for stride in strides) for strides in STRIDES}
    if columns in counts and rows > 4 and not is_query:
        used = rows - 4 if named is None else named
        return OnnxFormat("ultralytics", partial(_grid, used), suppresses=True, letterbox=True, rows_are_sources=True)
    if is_query or (named is not None and columns == 4 + named != 6):
        return OnnxFormat("ultralytics RT-DETR", partial(_fractions, input_size_hw))
    if columns == 6 or (known and columns > 6):  # then mask coefficients or keypoints follow
        return OnnxFormat("ultralytics end-to-end", partial(_rows, classes), letterbox=True)
    return None


def _is_torchvision(tensors: list[Tensor]) -> bool:
    """Whether outputs are boxes (N, 4), labels (N,) of integers and scores (N,), with or without masks."""
    if not 3 <= len(tensors) <= 4:
        return False
    flat = [tensor for tensor in tensors if tensor.ndim == 1]
    boxes = [tensor for tensor in tensors if tensor.ndim == 2 and tensor.shape[1] == 4]
    integer = [tensor for tensor in flat if not tensor.is_floating_point()]
    return len(boxes) == 1 and len(flat) == 2 and len(integer) == 1 and len({len(t) for t in tensors}) == 1


def _torchvision_roles(outputs: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """The names of boxes, labels and scores."""
    boxes = next(name for name, tensor in outputs.items() if tensor.ndim == 2)
    labels = next(name for name, tensor in outputs.items() if tensor.ndim == 1 and not tensor.is_floating_point())
    scores = next(name for name, tensor in outputs.items() if tensor.ndim == 1 and tensor.is_floating_point())
    return boxes, labels, scores


def _queries(activation: str, input_size_hw: tuple[int, int], raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = raw["logits"]
    scores = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)[..., :-1]
    return _to_pixels(raw["pred_boxes"], input_size_hw), scores


def _listed(roles: tuple[str, str, str], classes: int, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    boxes, labels, scores = (raw[name] for name in roles)
    return boxes[None], class_vectors(labels, scores, classes)[None]


def _fractions(input_size_hw: tuple[int, int], raw: Any) -> tuple[Tensor, Tensor]:
    raw = _first(raw)
    return _to_pixels(raw[..., :4], input_size_hw), raw[..., 4:]


def _grid(classes: int, raw: Any) -> tuple[Tensor, Tensor]:
    raw = _first(raw).transpose(1, 2)
    return box_convert(raw[..., :4], "cxcywh", "xyxy"), raw[..., 4 : 4 + classes].clamp(0, 1)


def _rows(classes: int, raw: Any) -> tuple[Tensor, Tensor]:
    raw = _first(raw)
    return raw[..., :4], class_vectors(raw[..., 5], raw[..., 4].clamp(0, 1), classes)


def _first(raw: Any) -> Tensor:
    return raw if isinstance(raw, Tensor) else next(iter(raw.values()))


def _to_pixels(boxes: Tensor, input_size_hw: tuple[int, int]) -> Tensor:
    height, width = input_size_hw
    return box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])


def stored_activation(config: Mapping[str, Any]) -> str | None:
    """Return the activation of the logits of a family of transformers, from its configuration; None if unknown."""
    family = str(config.get("model_type", "")).replace("-", "_")
    if family in SOFTMAX_FAMILIES or (family in SIGMOID_FAMILIES and not config.get("use_focal_loss", True)):
        return "softmax"
    return "sigmoid" if family in SIGMOID_FAMILIES else None


def unknown_format(path: object, outputs: Mapping[str, Tensor], input_size_hw: tuple[int, int]) -> str:
    """Return the message for outputs of an unknown format: their names and shapes, and the decode function to write."""
    listed = "\n".join(f"    {name}: {describe_output(tensor)}" for name, tensor in outputs.items())
    if {"logits", "pred_boxes"} <= outputs.keys():
        return (
            f"the outputs of {path} are those of a detector of transformers, and nothing tells how its scores are "
            f"computed:\n{listed}\nKeep config.json beside the file, or pass activation='sigmoid' for independent "
            "classes or activation='softmax' for exclusive classes of which the last is 'no object'"
        )
    read = "output" if len(outputs) == 1 else f"output[{next(iter(outputs))!r}]"
    height, width = input_size_hw
    return (
        f"the outputs of {path} on an image of {height} x {width} have no known box format (ultralytics, torchvision, "
        f"transformers):\n{listed}\nSay how to read them, in detcam.adapt({str(path)!r}, decode=decode, names=[...]):\n"
        "    def decode(output):\n"
        f"        raw = {read}  # a tensor of a batch\n"
        "        boxes_xyxy = ...    # (B, N, 4) in pixels of the network's input\n"
        "        class_scores = ...  # (B, N, C) in [0, 1], after the sigmoid or softmax\n"
        "        return boxes_xyxy, class_scores\n"
        "A classifier or segmentation network: adapt(OnnxModel(path), ...) or segmenter(OnnxModel(path), ...), with "
        "OnnxModel of detcam.adapters"
    )
