"""Segmentation networks of any architecture: a decode function finds the logits in the raw output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from detcam.adapters.base import Batch
from detcam.adapters.contract import plain_module
from detcam.adapters.normalization import Normalization
from detcam.adapters.output_heads import (
    OutputHead,
    OutputKind,
    check_output_kind,
    describe_output,
    find_head,
    recorded_modules,
    select_output,
    suggest_reading,
)
from detcam.adapters.probed_normalization import probed_normalization
from detcam.adapters.segmentation import SegmentationAdapter
from detcam.geometry import Geometry
from detcam.layers import all_paths_pass, infer_reshape, probe_image, probe_sizes
from detcam.trace import guarded
from detcam.utils.hooks import active_hooks
from detcam.utils.memory import check_probe_memory

SegmenterDecode: TypeAlias = Callable[[Any], Tensor]
"""From the model's raw output for a batch to (B, C, h, w): logits, or probabilities where the network ends in them."""


class CustomSegmentationAdapter(SegmentationAdapter):
    """Explains any segmentation network by one function that finds its logits; also named `segmenter`.

    Args:
        model: from a normalized (B, 3, H, W) input to anything that `decode` understands.
        decode: from the raw output of a batch to logits (B, C, h, w), of any resolution, over the whole input; None
            accepts a tensor, ``.logits``, or a mapping with ``"out"`` or ``"logits"``. One channel is the logit of the
            foreground. Where the network ends in a sigmoid or softmax, found with one pass on noise, the maps are its
            probabilities and the logits before it are explained.
        output: what the maps are: ``"logits"`` of exclusive classes, ``"probabilities"``, or ``"multilabel"``,
            independent classes (logits or probabilities); None finds it.
        output_key: position, key or attribute of the maps, where the network returns several outputs, instead of
            `decode`.
        multiple: the input is padded below and on the right to a multiple of this many pixels.
        **options: further arguments of `SegmentationAdapter`, such as `image_size` and `background`. By default, the
            target layer is the one that the last layer reads.

    Raises:
        TypeError: `model` is not a module, or its output has no logits.
        ValueError: `decode` returns a tensor of another shape.

    Example:
        >>> import torch
        >>> from detcam.adapters import segmenter
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 1))
        >>> adapter = segmenter(model, lambda output: output, names=["background", "boat"])
        >>> (detections,) = adapter.predict(torch.rand(3, 48, 64))
    """

    family = "custom segmentation"

    def __init__(
        self,
        model: nn.Module,
        decode: SegmenterDecode | None = None,
        *,
        multiple: int = 1,
        output: OutputKind | None = None,
        output_key: int | str | None = None,
        **options: Any,
    ) -> None:
        model = plain_module(model)
        check_output_kind(output)
        if decode is not None and output_key is not None:
            raise TypeError("expected either decode= or output_key=; got both")
        if decode is not None and not callable(decode):
            raise TypeError(f"expected decode to be a function of the model's output; got {type(decode).__name__}")
        if not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"expected multiple to be a number of pixels, at least 1; got {multiple!r}")
        self.decode = decode or (read_logits if output_key is None else partial(select_output, key=output_key))
        self.multiple = multiple
        super().__init__(model, **options)
        self.output_head = OutputHead() if output == "logits" else self._find_head(output)
        if options.get("multilabel") is None:
            self.multilabel = self.output_head.multilabel
        else:
            self.output_head = replace(self.output_head, multilabel=self.multilabel)

    def _find_head(self, output: OutputKind | None) -> OutputHead:
        """Determine the activation at the network's end, and whether it takes one image at a time."""
        for size, count in product(dict.fromkeys(map(self.canvas, probe_sizes((224, 224)))), (2, 1)):
            noise = probe_image(self.model, size, self.device, self.dtype, count=count)
            batch = Batch(noise, (Geometry.identity(size),) * count)
            try:
                with guarded(self.model, gradients=True, quiet=True), recorded_modules(self.model) as seen:
                    maps = self.logits(self.forward(batch))
            except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
                check_probe_memory(error, count, size)
                continue  # an export of fixed batch size, or several inputs
            if len(maps) == count:
                if count == 1 and self.max_batch_size is None:
                    self.max_batch_size = 1
                return find_head(maps, seen, output)
        return find_head(None, [], output)

    def default_normalization(self) -> Normalization:
        return probed_normalization(self.model, self.canvas((224, 224)), super().default_normalization())

    @classmethod
    def supports(cls, model: object) -> bool:
        return False  # the output of an unknown network needs a decode function

    def logits(self, raw: object) -> Tensor:
        logits = self.decode(raw)
        if not isinstance(logits, Tensor):
            raise TypeError(f"expected decode to return a tensor of logits (B, C, h, w); got {type(logits).__name__}")
        if logits.ndim != 4 or 0 in logits.shape:
            raise ValueError(f"expected decode to return logits of shape (B, C, h, w); got {tuple(logits.shape)}")
        if not logits.is_floating_point():
            raise TypeError(f"expected decode to return float logits, not labels; got {logits.dtype}")
        return logits

    def default_target_layers(self) -> Sequence[nn.Module]:
        """Return the features that the last layer with weights reads: in a U-Net, the decoder's last features.

        All paths to the logits must pass through them. Where no layer in the network's second half has this property,
        the last features that the logits depend on are taken.
        """
        size = self.canvas((224, 224))
        noise = probe_image(self.model, size, self.device, self.dtype)
        seen: list[tuple[nn.Module, Any]] = []
        hooks = active_hooks(
            (module, lambda module, _, output: seen.append((module, output))) for module in self.model.modules()
        )
        with guarded(self.model, gradients=True), hooks:
            logits = self._probe(Batch(noise, (Geometry.identity(size),)))
            total = logits.float().square().sum()
            reshape = infer_reshape(self.model, size)
            used = _with_gradient(total, seen)
        last = max((index for index, module, _ in used if module._parameters), default=0)
        maps = [item for item in used if item[0] < last and reshape.fits(item[2])]
        # A second classifier, whose logits are added to the last one's, is no feature map.
        maps = [item for item in maps if reshape.to_map(item[2]).shape[1] != logits.shape[1]] or maps
        if not maps:
            raise RuntimeError(
                f"no layer of {type(self.model).__name__} before its last one returns a (B, C, h, w) map that the "
                "logits depend on; pass target_layers="
            )
        passed = [item for item in maps if item[0] >= last / 2 and all_paths_pass(total.grad_fn, item[2].grad_fn)]
        return [(passed or maps)[-1][1]]

    def _probe(self, batch: Batch) -> Tensor:
        """The logits of a noise image.

        Raises:
            RuntimeError: the network does not run on one image.
        """
        try:
            raw = self.forward(batch)
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError) as error:
            raise RuntimeError(
                f"cannot probe {type(self.model).__name__} with one {tuple(batch.inputs.shape)} image ({error}); pass "
                "target_layers=, image_size= if the size is wrong, or input_key= as well if it takes several inputs"
            ) from error
        return self.logits(raw)


def _with_gradient(total: Tensor, seen: Sequence[tuple[nn.Module, Any]]) -> list[tuple[int, nn.Module, Tensor]]:
    """Position, module and output of the modules whose single output tensor a scalar depends on."""
    candidates = [
        (index, module, output)
        for index, (module, output) in enumerate(seen)
        if isinstance(output, Tensor) and output.requires_grad
    ]
    gradients = torch.autograd.grad(
        total, [output for _, _, output in candidates], retain_graph=True, allow_unused=True
    )
    return [
        item for item, gradient in zip(candidates, gradients, strict=True) if gradient is not None and gradient.any()
    ]


def read_logits(raw: object) -> Tensor:
    """Return the logits in a model's raw output.

    Args:
        raw: a tensor, an object with ``.logits``, or a mapping with ``"out"`` or ``"logits"``.

    Raises:
        TypeError: none of these.
    """
    logits = getattr(raw, "logits", raw)
    if isinstance(logits, Mapping):
        logits = next((logits[key] for key in ("out", "logits") if key in logits), None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected the model to return logits as a tensor, as .logits or under 'out'; got "
            f"{describe_output(raw)}. Say where they are:\n{suggest_reading(raw)}"
        )
    return logits


segmenter = CustomSegmentationAdapter
"""Makes any segmentation network explainable with a decode function: ``segmenter(model, decode, ...)``."""
