"""Detectors in ONNX files, which onnxruntime executes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from detcam.adapters.base import AdapterOptions
from detcam.adapters.black_box import count_classes
from detcam.adapters.custom_detector import CustomDetectorAdapter, DetectorDecode
from detcam.adapters.onnx.formats import OnnxFormat, recognize, stored_activation, unknown_format
from detcam.adapters.onnx.model import CONFIG, PROCESSOR, OnnxModel
from detcam.detections import as_names
from detcam.geometry import checked_size
from detcam.utils.warnings import warn

DEFAULT_PROBE_HW = (320, 320)
"""Size of the image on which outputs are looked at, if the file takes any size."""


class OnnxDetectorAdapter(CustomDetectorAdapter):
    """Explains a detector in an ONNX file, by methods that change the image.

    The boxes of ultralytics' exports, (B, 4 + C, N) or end to end (B, N, 6), of torchvision's (boxes, labels, scores)
    and of transformers' (logits, pred_boxes) are recognized by the names and shapes of the outputs; `decode` reads
    others.

    Args:
        path: the file; it has one input, images (B, C, H, W).
        decode: as in `detcam.adapters.detector`, from the output (or the outputs by name, if there are several); None
            recognizes the format.
        activation: ``"sigmoid"`` or ``"softmax"``: how a detector of transformers computes scores; None takes the
            family's, from ``config.json`` beside the file.
        image_size: height and width of the input, or one number for both; None takes the file's. A file that leaves it
            open takes images in their own size.
        letterbox: as in `detector`; None takes the format's: ultralytics pads, the others stretch.
        preprocess: as in `detector`; None takes the format's: pixels in [0, 1], for transformers normalized as
            ``preprocessor_config.json`` beside the file says.
        score_threshold: minimum score of a detection, in [0, 1]; None takes 0.25, and the file's for torchvision.
        iou_threshold: overlap above which the weaker of two boxes of a class is suppressed; None takes 0.7 for grids of
            ultralytics, 0.5 with `decode`, and no suppression where the network has done it.
        **options: as in `detector`.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file cannot be read, or has other inputs.
        TypeError: the outputs have no known format; the message lists them and shows the `decode` to write.
    """

    family = "onnx"
    fixed_options = frozenset({"max_batch_size"})

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        decode: DetectorDecode | None = None,
        activation: Literal["sigmoid", "softmax"] | None = None,
        image_size: int | tuple[int, int] | None = None,
        letterbox: bool | Literal["top-left"] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int = 300,
        **options: Unpack[AdapterOptions],
    ) -> None:
        model = OnnxModel(path)
        size = _input_size(model, image_size)
        if options.get("names") is None:
            options["names"] = _stored_names(model)
        found: OnnxFormat | None = None
        if decode is None:
            found = _recognized(model, size, count_classes(as_names(options["names"] or {})), activation)
        is_query = found is not None and found.name.startswith("transformers")
        if is_query and size is None:
            raise ValueError(f"{model.path} takes images of any size; pass image_size=, that of its training")
        self.format = "decode" if found is None else found.name
        super().__init__(
            model,
            decode or found.decode,  # type: ignore[union-attr]
            image_size=size,
            letterbox=(found is not None and found.letterbox and size is not None) if letterbox is None else letterbox,
            preprocess=_stored_normalization(model) if preprocess is None and is_query else preprocess,
            score_threshold=_or(score_threshold, 0.05 if self.format == "torchvision" else 0.25),
            iou_threshold=_or(iou_threshold, 0.5 if found is None else 0.7 if found.suppresses else 1.0),
            max_detections=max_detections,
            **options,
        )
        self.rows_are_sources = found is not None and found.rows_are_sources

    @classmethod
    def supports(cls, model: object) -> bool:
        return isinstance(model, (str, PathLike)) and Path(model).suffix.lower() == ".onnx"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.path.name!r}, format={self.format!r})"  # type: ignore[union-attr]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _input_size(model: OnnxModel, given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """The size of the network's input: the file's, the user's, or the one that its metadata or processor tells."""
    given, fixed = checked_size(given), model.input_size_hw
    processor = model.beside(PROCESSOR).get("size")
    if given is None:
        given = model.metadata.get("imgsz")
    if given is None and isinstance(processor, Mapping) and {"height", "width"} <= processor.keys():
        given = (processor["height"], processor["width"])
    size = (given, given) if isinstance(given, int) else None if given is None else (int(given[0]), int(given[1]))
    if fixed is not None and size not in (None, fixed):
        raise ValueError(f"{model.path} takes images of {fixed[0]} x {fixed[1]}; got image_size {size}. Leave it out")
    return fixed or size


def _stored_names(model: OnnxModel) -> dict[int, str]:
    """The class names in ultralytics' metadata or in transformers' configuration; empty without these."""
    names: Any = model.metadata.get("names") or model.beside(CONFIG).get("id2label")
    return {int(index): str(name) for index, name in names.items()} if isinstance(names, Mapping) else {}


def _stored_normalization(model: OnnxModel) -> Callable[[Tensor], Tensor] | None:
    """The normalization of an image processor; None if it has none."""
    config = model.beside(PROCESSOR)
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config:
        warn(
            f"there is no {PROCESSOR} beside {model.path}: pixels in [0, 1] go in as they are. Pass preprocess= if the "
            "model was trained otherwise",
            UserWarning,
        )
    if not config.get("do_normalize", True) or mean is None or std is None:
        return None
    return lambda image: (image - _channels(mean, image)) / _channels(std, image)


def _channels(values: Sequence[float], image: Tensor) -> Tensor:
    return image.new_tensor(values)[:, None, None]


def _recognized(model: OnnxModel, size: tuple[int, int] | None, classes: int, activation: str | None) -> OnnxFormat:
    size = size or DEFAULT_PROBE_HW
    noise = torch.rand((1, model.in_channels, *size), generator=torch.Generator().manual_seed(0))
    raw = model(noise)
    outputs = {model.output_names[0]: raw} if isinstance(raw, Tensor) else raw
    known = activation or stored_activation(model.beside(CONFIG))
    found = recognize(outputs, size, classes, model.metadata, known)
    if found is None:
        raise TypeError(unknown_format(model.path, outputs, size))
    return found
