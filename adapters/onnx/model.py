"""ONNX files as modules that onnxruntime executes."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detcam.adapters.black_box import BlackBox
from detcam.utils.files import with_home
from detcam.utils.optional import needs_extra
from detcam.utils.text import first_line

INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Dtypes of an input that images can have."""
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
"""Files beside an export of a model of transformers."""


class OnnxModel(BlackBox):
    """An ONNX file with one image input, which onnxruntime executes on the CPU; it has neither layers nor gradients.

    Args:
        path: the file.
        providers: onnxruntime's execution providers; None takes the CPU's.

    Attributes:
        path: the file.
        in_channels: number of channels of the input, 3 if the file leaves it open.
        input_size_hw: height and width of the input, or None if the file leaves them open.
        max_batch_size: 1 where the file takes a single image, else None.
        output_names: names of the outputs.
        digest: (32,) uint8, the SHA-256 of the file, which identifies saved results.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: there is no such file, onnxruntime cannot read it, or it has other inputs than one image.

    Example:
        >>> from detcam.adapters import OnnxModel
        >>> try:
        ...     OnnxModel("absent.onnx")
        ... except ValueError as error:
        ...     print(error)
        no ONNX file at absent.onnx; check the path
    """

    obstacle = "runs in onnxruntime, without gradients and layers,"
    digest: Tensor

    def __init__(self, path: str | PathLike[str], *, providers: list[Any] | None = None) -> None:
        super().__init__()
        self.path = with_home(path)
        if not self.path.is_file():
            raise ValueError(f"no ONNX file at {self.path}; check the path")
        with needs_extra("onnx"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path), options, providers=providers or ["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's classes of errors derive from Exception alone
            raise ValueError(f"onnxruntime cannot read {self.path} ({first_line(error)})") from error
        self.register_buffer("digest", torch.frombuffer(bytearray(_sha256(self.path)), dtype=torch.uint8))
        self.output_names = [output.name for output in self._session.get_outputs()]
        self._read_input()

    def _read_input(self) -> None:
        inputs = self._session.get_inputs()
        (first, *rest) = inputs
        shape = [side if isinstance(side, int) and side > 0 else None for side in first.shape]
        self.has_batch_axis = len(shape) == 4
        if rest or len(shape) not in (3, 4) or first.type not in INPUT_TYPES:
            listed = ", ".join(f"{item.name} {tuple(item.shape)} {item.type}" for item in inputs)
            raise ValueError(
                f"expected {self.path} to have one input, images (B, C, H, W) of floats; got {listed}. Run it in a "
                'function from an image to (boxes, scores, labels): adapt(function, kind="detection")'
            )
        batch, channels, height, width = shape if self.has_batch_axis else [1, *shape]
        if (channels or 3) > 16 or (batch or 1) > 1:
            raise ValueError(
                f"expected {self.path} to take images (B, C, H, W), one or any number at once; its input is "
                f"{tuple(first.shape)}. Export it so, or run it in a function from an image to (boxes, scores, labels)"
            )
        self.input_name, self._dtype = first.name, INPUT_TYPES[first.type]
        self.in_channels = channels or 3
        self.input_size_hw = (height, width) if height and width else None
        self.max_batch_size = batch

    @property
    def remedy(self) -> str:
        return (
            f"explain the PyTorch model, or convert the file: network = onnx2torch.convert({str(self.path)!r}).eval() "
            "(pip install onnx2torch) and detcam.adapters.detector(network, decode=...)"
        )

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says about itself, such as ``names``, ``imgsz`` and ``task`` of ultralytics."""
        stored = self._session.get_modelmeta().custom_metadata_map
        return {key: _literal(value) for key, value in stored.items()}

    def beside(self, name: str) -> Mapping[str, Any]:
        """Return the content of a JSON file in the folder of the model; empty if there is none."""
        path = self.path.parent / name
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        return content if isinstance(content, dict) else {}

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the file on images (B, C, H, W).

        Returns:
            The output, or the outputs by name if there are several.

        Raises:
            RuntimeError: onnxruntime reports an error.
        """
        array = inputs.detach().cpu().numpy().astype(self._dtype)
        try:
            found = self._session.run(None, {self.input_name: array if self.has_batch_axis else array[0]})
        except Exception as error:  # as above
            raise RuntimeError(
                f"{self.path.name} fails on an input of shape {tuple(inputs.shape)} ({first_line(error)}); if it "
                "needs images of another size, pass image_size="
            ) from error
        outputs = {name: _tensor(value) for name, value in zip(self.output_names, found, strict=True)}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModel:
        return self  # a session cannot be copied, and nothing in it changes


def _tensor(value: Any) -> Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.float() if tensor.is_floating_point() else tensor


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def _literal(text: str) -> Any:
    """Return the Python value that a text of metadata writes, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
