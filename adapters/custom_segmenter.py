"""A segmentation network of your own: say where its logits are, and it is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detcam.adapters.base import Batch
from detcam.adapters.segmentation import SegmentationAdapter
from detcam.geometry import Geometry
from detcam.layers import all_paths_pass, infer_reshape, probe_image
from detcam.trace import ReshapeTransform, guarded

Decode = Callable[[Any], Tensor]
"""From the model's raw output for a batch to (B, C, h, w) logits, before any sigmoid or softmax."""


class CustomSegmentationAdapter(SegmentationAdapter):
    """Explains any module whose output a function turns into class maps; see `segmenter`."""

    family = "custom segmentation"

    def __init__(self, model: nn.Module, decode: Decode | None = None, *, multiple: int = 1, **options: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module; got {type(model).__name__}")
        if decode is not None and not callable(decode):
            raise TypeError(f"expected decode to be a function of the model's output; got {type(decode).__name__}")
        if not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"expected multiple to be a number of pixels, at least 1; got {multiple!r}")
        self.decode = decode or read_logits
        self.multiple = multiple
        super().__init__(model, **options)

    @classmethod
    def supports(cls, model: Any) -> bool:
        return False  # what an unknown network's output means is for its user to say

    def logits(self, raw: Any) -> Tensor:
        logits = self.decode(raw)
        if not isinstance(logits, Tensor):
            raise TypeError(f"expected decode to return a tensor of logits (B, C, h, w); got {type(logits).__name__}")
        if logits.ndim != 4 or 0 in logits.shape:
            raise ValueError(f"expected decode to return logits of shape (B, C, h, w); got {tuple(logits.shape)}")
        if not logits.is_floating_point():
            raise TypeError(f"expected decode to return float logits, not labels; got {logits.dtype}")
        return logits

    def default_target_layers(self) -> Sequence[nn.Module]:
        """The features that the last layer with weights reads: as with U-Nets, the last of the decoder.

        Everything must pass through them; where nothing in the network's second half is passed by everything, the
        last features that the logits depend on at all.
        """
        size = self.canvas((224, 224))
        noise = probe_image(self.model, size, self.device, self.dtype)
        seen: list[tuple[nn.Module, Any]] = []
        with guarded(self.model, gradients=True), ExitStack() as hooks:
            for module in self.model.modules():
                handle = module.register_forward_hook(lambda module, _, output: seen.append((module, output)))
                hooks.callback(handle.remove)
            logits = self.logits(self.forward(Batch(noise, (Geometry.identity(size),))))
            total = logits.float().square().sum()
            reshape = infer_reshape(self.model, size)
            used = _with_gradient(total, seen)
        last = max((index for index, module, _ in used if module._parameters), default=0)
        maps = [item for item in used if item[0] < last and reshape.fits(item[2])]
        # A second classifier, whose logits are added to the last one's, is no feature map either.
        maps = [item for item in maps if reshape.one(item[2]).shape[1] != logits.shape[1]] or maps
        if not maps:
            raise RuntimeError(
                f"no layer of {type(self.model).__name__} before its last one puts out a (B, C, h, w) map that the "
                "logits depend on; pass target_layers="
            )
        passed = [item for item in maps if item[0] >= last / 2 and all_paths_pass(total.grad_fn, item[2].grad_fn)]
        return [(passed or maps)[-1][1]]


def _with_gradient(total: Tensor, seen: Sequence[tuple[nn.Module, Any]]) -> list[tuple[int, nn.Module, Tensor]]:
    """Position, module and output of those that put out one tensor that a scalar depends on."""
    found = [
        (index, module, output)
        for index, (module, output) in enumerate(seen)
        if isinstance(output, Tensor) and output.requires_grad
    ]
    gradients = torch.autograd.grad(total, [output for _, _, output in found], retain_graph=True, allow_unused=True)
    return [item for item, gradient in zip(found, gradients, strict=True) if gradient is not None and gradient.any()]


def read_logits(raw: Any) -> Tensor:
    """The logits in a tensor, an object with ``.logits``, or a mapping with ``"out"`` or ``"logits"``.

    Raises:
        TypeError: it is none of these.
    """
    found = getattr(raw, "logits", raw)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("out", "logits") if key in found), None)
    if not isinstance(found, Tensor):
        keys = f" with {sorted(map(str, raw))}" if isinstance(raw, Mapping) else ""
        raise TypeError(
            f"expected the model to return logits as a tensor, as .logits or under 'out'; got {type(raw).__name__}"
            f"{keys}. Say where they are: segmenter(model, decode=lambda output: ...)"
        )
    return found


def segmenter(
    model: nn.Module,
    decode: Decode | None = None,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    multiple: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    multilabel: bool = False,
    background: int | Literal["auto"] | None = "auto",
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    reshape_transform: ReshapeTransform | None = None,
) -> CustomSegmentationAdapter:
    """Make any segmentation network explainable with one function that finds its logits.

    Args:
        model: from a normalised (B, 3, H, W) input to anything that `decode` understands.
        decode: from the raw output of a batch to logits (B, C, h, w), of any resolution, over the whole input; None
            takes a tensor, ``.logits``, or a mapping's ``"out"`` or ``"logits"``. One channel is a foreground's logit.
        names: class index to name; a list in class order, or a single name for the foreground of one channel.
        image_size: (height, width) that every image is stretched to, or one number for both; None keeps its size.
        multiple: pad the input below and on the right to a multiple of so many pixels.
        mean: per channel, of pixels in [0, 1]; None takes ImageNet's. (0, 0, 0) with std (1, 1, 1) leaves pixels be.
        std: likewise.
        multilabel: classes are independent of one another (sigmoid) rather than exclusive (argmax).
        background: the class that is not reported; ``"auto"`` takes the class named background, if there is one;
            None reports every class.
        target_layers: modules or dotted names; None takes the features that the last layer reads.
        reshape_transform: from a layer's output to (B, C, h, w); None infers it.

    Returns:
        An adapter, ready for `GradCAM(adapter)`, `explain(adapter, images)` and `adapter.predict(images)`.

    Raises:
        TypeError: `model` is not a module, or no logits are found in its output.
        ValueError: `decode` returns a tensor of another shape.
    """
    return CustomSegmentationAdapter(
        model,
        decode,
        names=names,
        image_size=image_size,
        multiple=multiple,
        mean=mean,
        std=std,
        multilabel=multilabel,
        background=background,
        target_layers=target_layers,
        reshape_transform=reshape_transform,
    )
