"""What every torchvision detector must do, against the model's own forward pass. A new family's test is two lines.

Models and images are float64: random networks amplify rounding, and near-ties in non-maximum suppression would
tip over with the composition of a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.resnet import Bottleneck, ResNet

from detcam import GradCAM, adapt
from detcam.adapters.detection import DetectorAdapter
from detcam.detections import Detections
from detcam.targets import BoxTarget
from detcam.targets.box import Quantity
from detcam.trace import Trace, guarded
from tests.helpers import Snapshot

CLASSES = 5


def make_images() -> list[Tensor]:
    """Smooth noise in three sizes, none square, two of them equal."""
    generator = torch.Generator().manual_seed(3)
    coarse = [torch.rand(1, 3, 12, 16, generator=generator) for _ in range(3)]
    sizes = [(96, 128), (128, 100), (96, 128)]
    return [
        nn.functional.interpolate(image, size, mode="bicubic")[0].clamp(0, 1).double()
        for image, size in zip(coarse, sizes, strict=True)
    ]


def shallow_resnet(**options: Any) -> ResNet:
    """ResNet with one block per stage in place of ResNet-50. Adapters read the pyramid, not the blocks below it."""
    return ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=options.get("norm_layer"))


def reference(name: str, **options: Any) -> nn.Module:
    """A detector as torchvision's own function builds it, with random weights and `CLASSES` classes."""
    function = getattr(detection, name)
    module = sys.modules[function.__module__]
    with mock.patch.object(module, "resnet50", shallow_resnet, create="resnet50" not in name):
        return function(weights=None, weights_backbone=None, num_classes=CLASSES, **options)


def spread(model: nn.Module, layers: Sequence[nn.Module], deviation: float, mean: float = 0.0) -> None:
    """Scale random output layers so that each channel varies over positions around a mean."""

    done = set()

    def scale(layer: Any, inputs: Any, output: Tensor) -> Tensor:
        axes = (0,) if output.ndim == 2 else (0, 2, 3)
        if layer not in done and output.shape[-1] > 1:  # the finest level, where a head runs on several
            done.add(layer)
            factor = deviation / output.std(axes)
            layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias.data = mean + (layer.bias.data - output.mean(axes)) * factor
        return output

    handles = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        model([make_images()[0].to(layers[0].weight.dtype)])
    for handle in handles:
        handle.remove()


class Literal:
    """The model's own forward pass on one image, differentiable from the backbone's output on."""

    def __init__(self, model: Any, image: Tensor, watch: Sequence[nn.Module] = ()) -> None:
        self.leaves: list[Tensor] = []
        self.seen: dict[nn.Module, Any] = {}
        handles = [model.backbone.register_forward_hook(self._cut)]
        handles += [module.register_forward_hook(self._keep) for module in watch]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.enable_grad():
            self.found: dict[str, Tensor] = model([image])[0]
        for handle in handles:
            handle.remove()

    def _cut(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        levels = {"0": output} if isinstance(output, Tensor) else dict(output)
        fresh = {name: level.detach().requires_grad_(True) for name, level in levels.items()}
        self.leaves = list(fresh.values())
        return fresh["0"] if isinstance(output, Tensor) else fresh

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.seen[module] = output

    def gradients(self, scalar: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(scalar, self.leaves, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(self.leaves, found, strict=True)
        ]


def ask(adapter: DetectorAdapter, image: Tensor, targets: Sequence[Any]) -> tuple[list[float], list[list[Tensor]]]:
    """Values of targets, and their gradients at the target layers, as the engine computes them."""
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare([image])
        trace = Trace(adapter.target_layers, adapter.layer_names, gradients=True)
        with trace:
            raw = adapter.forward(batch)
        (scalars,) = adapter.score(adapter.outputs(raw, batch), [targets])
        gradients = [
            [level for layer in trace.gradients(scalar, retain_graph=True) for level in layer] for scalar in scalars
        ]
    return [float(scalar.detach()) for scalar in scalars], gradients


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Greatest difference, relative to the greatest entry over all levels, which must not be 0."""
    scale = max(float(level.abs().max()) for level in wanted)
    assert scale > 0
    return max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) / scale


def check_detections(model: Any) -> None:
    """The model's own boxes, labels, scores and masks; pinned scores in another batch; the model unchanged."""
    images = make_images()
    adapter = adapt(model)
    before = Snapshot(model)
    found = adapter.predict(images)
    explained = GradCAM(adapter).explain(images[::-1], found[::-1])[::-1]
    alone = GradCAM(adapter).explain(images[0], found[0])[0]
    before.check()
    for image, detections, explanation in zip(images, found, explained, strict=True):
        with torch.no_grad():
            own = model([image])[0]
        assert len(detections) == len(own["scores"]) > 2
        assert float(own["scores"].std()) > 0.001  # equal scores would prove nothing
        torch.testing.assert_close(detections.boxes_xyxy, own["boxes"].float(), atol=1e-4, rtol=0)
        torch.testing.assert_close(detections.scores, own["scores"].float(), atol=1e-4, rtol=0)
        assert torch.equal(detections.labels, own["labels"])
        if "masks" in own:
            assert detections.masks is not None
            assert torch.equal(detections.masks, own["masks"][:, 0] > 0.5)
        torch.testing.assert_close(explanation.scores, detections.scores, atol=1e-4, rtol=0)
        assert explanation.heatmaps.shape == (len(detections), *image.shape[-2:])
    torch.testing.assert_close(alone.scores, found[0].scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        torch.as_tensor(alone.heatmaps), torch.as_tensor(explained[0].heatmaps), atol=1e-3, rtol=0
    )


def check_gradients(model: Any) -> None:
    """Gradients of scores and of a box's width equal those through the whole model."""
    image = make_images()[1]
    adapter = adapt(model)
    detections = adapter.predict(image)[0]
    picks = sorted({0, len(detections) // 2, len(detections) - 1})
    literal = Literal(model, image)
    targets = adapter.targets_of(detections)
    values, gradients = ask(adapter, image, [targets[k] for k in picks])
    for k, value, found in zip(picks, values, gradients, strict=True):
        assert abs(value - float(literal.found["scores"][k].detach())) < 1e-4
        assert relative_error(found, literal.gradients(literal.found["scores"][k])) < 1e-4
    k, side = free_side(detections)
    wanted = literal.found["boxes"][k, ("x1", "y1", "x2", "y2").index(side)]
    box, source = tuple(detections.boxes_xyxy[k]), detections.source[k]
    (value,), (found,) = ask(adapter, image, [BoxTarget(box, int(detections.labels[k]), source, side)])
    assert abs(value - float(wanted.detach())) < 1e-3
    assert relative_error(found, literal.gradients(wanted)) < 1e-4


def check_second_derivative(model: Any) -> None:
    """Hessian times activation of a pinned score, against finite differences of its gradient."""
    image = make_images()[0]
    adapter = adapt(model)
    target = adapter.targets_of(adapter.predict(image)[0])[0]
    step = 1e-4
    with guarded(model, gradients=True):
        batch = adapter.prepare([image])

        def run(factor: float, second: bool) -> list[Tensor]:
            """Gradients, or Hessian products, with every level's activation times a factor."""
            trace = Trace(adapter.target_layers, adapter.layer_names, gradients=True)
            handle = model.backbone.register_forward_hook(
                lambda module, inputs, output: {name: level * factor for name, level in output.items()}
            )
            with trace:
                raw = adapter.forward(batch)
            handle.remove()
            ((scalar,),) = adapter.score(adapter.outputs(raw, batch), [[target]])
            if not second:
                return [level for layer in trace.gradients(scalar, retain_graph=False) for level in layer]
            levels = trace.held()
            first = torch.autograd.grad(scalar, levels, create_graph=True, allow_unused=True)
            return [
                torch.zeros_like(level)
                if gradient is None
                else torch.autograd.grad(gradient, level, level.detach(), retain_graph=True)[0]
                for gradient, level in zip(first, levels, strict=True)
            ]

        products = run(1.0, True)
        above, below = run(1 + step, False), run(1 - step, False)
    wanted = [(up - down) / (2 * step) for up, down in zip(above, below, strict=True)]
    assert relative_error(products, wanted) < 1e-3


def free_side(detections: Detections) -> tuple[int, Quantity]:
    """A detection and a side of its box that the image's border does not clip."""
    height, width = detections.image_size_hw
    for k, box in enumerate(detections.boxes_xyxy.tolist()):
        for side, value, limit in zip(("x1", "y1", "x2", "y2"), box, (width, height) * 2, strict=True):
            if 0 < value < limit - 1e-3:
                return k, side  # type: ignore[return-value]
    raise AssertionError("every side of every box lies on the border")


def check_against(model: Any, table: Callable[[Tensor], Tensor]) -> None:
    """`against` is the difference of two scores of one candidate; `table` gives the (N, C) scores of all candidates."""
    image = make_images()[0]
    adapter = adapt(model)
    detections = adapter.predict(image)[0]
    with torch.no_grad():
        scores = table(image)
    for k in (0, len(detections) - 1):
        label = int(detections.labels[k])
        other = label % (CLASSES - 1) + 1
        row = int((scores[:, label] - detections.scores[k]).abs().argmin())
        target = BoxTarget(tuple(detections.boxes_xyxy[k]), label, detections.source[k], against=other)
        (value,), _ = ask(adapter, image, [target])
        assert abs(value - float(scores[row, label] - scores[row, other])) < 1e-4


def check_nothing_found(model: Any) -> None:
    """No detections, with an impossible score threshold: empty heatmaps of the right size, no error."""
    image = make_images()[1]
    with torch.no_grad():
        assert len(model([image])[0]["scores"]) == 0
    adapter = adapt(model)
    detections = adapter.predict(image)[0]
    assert len(detections) == 0
    assert detections.boxes_xyxy.shape == (0, 4)
    assert GradCAM(adapter)(image)[0].shape == (0, 128, 100)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Overlap of two boxes, by hand."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    tall = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(wide, 0) * max(tall, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared) if sum(areas) > shared else 0.0
