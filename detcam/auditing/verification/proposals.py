"""Proposals of evidence: maps of where the evidence for a target may lie, which verification then tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from detcam.adapters.base import Adapter, Batch, Target
from detcam.auditing.verification.region_probes import RegionProbes
from detcam.methods.common.layer_search import find_context_layers
from detcam.methods.reach_cam import contrast_targets
from detcam.outputs import DetectorOutput
from detcam.trace import Trace
from detcam.utils.precision import work_dtype

MAX_PROPOSALS = 4
"""Maximum number of maps that propose evidence; the earliest layers are left out first."""
PORTFOLIO = "portfolio"
"""Name of the default method of audits: several maps propose evidence, and verification decides."""


@dataclass(frozen=True)
class Proposal:
    """A map of where the evidence for a target may lie.

    Attributes:
        name: what proposed it.
        heatmap: (h, w) float32, >= 0, over the area of the network's input that the image covers.
    """

    name: str
    heatmap: Tensor


def proposal_layers(adapter: Adapter) -> Adapter:
    """The adapter at layers of several depths: those whose gradients cover the scene, and its default ones."""
    if adapter.layers_given or not adapter.layer_names:
        return adapter
    try:
        context = find_context_layers(adapter)
    except (RuntimeError, ValueError):
        context = []
    names = list(dict.fromkeys([*context, *adapter.layer_names]))
    return adapter.with_layers(names, None) if context else adapter


@dataclass(frozen=True)
class Proposals:
    """Proposals of the evidence for one question.

    Attributes:
        maps: the maps, the most promising first.
        probes: regions to remove one by one once the maps are searched; None without any.
    """

    maps: Sequence[Proposal]
    probes: RegionProbes | None = None

    def outside(self, region: Tensor) -> Proposals:
        """The proposals without a region (h, w) bool, and without maps that have nothing elsewhere."""
        maps = [Proposal(each.name, each.heatmap * ~region) for each in self.maps]
        probes = None if self.probes is None else self.probes.outside(region)
        return Proposals([each for each in maps if bool(each.heatmap.any())], probes)


def gradient_proposals(
    adapter: Adapter,
    own_layers: Sequence[str],
    trace: Trace,
    batch: Batch,
    output: DetectorOutput,
    targets: Sequence[Target],
    segments: Callable[[], Tensor] | None,
) -> Proposals | RuntimeError:
    """Propose evidence by gradients times activations at every target layer, by their product, and by segments.

    Layers of several depths fail in different ways: early ones are noisy, late ones move features. The evidence is
    most likely where they agree, so that their product comes first. Segments of the image give the evidence its shape.

    Args:
        adapter: adapter at the layers of the trace.
        own_layers: names of the adapter's default layers; regions are proposed at the others, which cover the scene.
        trace: the recorded pass of one image.
        batch: the image.
        output: its output.
        targets: the targets of one question; their maps are added.
        segments: makes the labels (h, w) int64 of segments of the image; None leaves out the proposals by segments, and
            the regions to remove one by one.

    Returns:
        The proposals; the error if no layer supports the targets.
    """
    if not trace.names:
        return RuntimeError("the model has no gradients")
    try:
        with torch.enable_grad():
            scalars = adapter.score([output], [contrast_targets(output, targets)])[0]
        maps, sensitivity = _layer_maps(trace, scalars, batch)
    except RuntimeError as error:
        return error
    scaled = {name: each / each.amax() for name, each in maps.items() if bool(each.amax() > 0)}
    if not scaled:
        return RuntimeError("it is zero everywhere, no pixel supports the target")
    covering = [name for name in scaled if name not in own_layers] or list(scaled)
    probes = None
    if segments is not None:
        sensitive = [sensitivity[name] / sensitivity[name].amax() for name in covering]
        probes = RegionProbes.propose([scaled[name] for name in covering], sensitive, segments())
    deepest_first = [Proposal(f"gradient at {name}", each) for name, each in reversed(scaled.items())]
    if len(scaled) == 1:
        return Proposals(deepest_first, probes)
    stacked = torch.stack(list(scaled.values()))
    mean, product = stacked.mean(0), stacked.prod(0)
    by_segments = [] if segments is None else [Proposal("segments", _pooled(mean, segments()))]
    found = [deepest_first[0], *by_segments, *deepest_first[1:]]
    if bool(product.amax() > 0):
        found.insert(0, Proposal("product of gradients", (product / product.amax()) ** (1 / len(scaled))))
    return Proposals(found[:MAX_PROPOSALS], probes)


def _pooled(heatmap: Tensor, segments: Tensor) -> Tensor:
    """The mean of a map (h, w) over each segment; within a segment, pixels keep their order."""
    flat = segments.flatten()
    sums = torch.zeros(int(flat.max()) + 1).index_add_(0, flat, heatmap.flatten())
    means = sums / torch.bincount(flat).clamp(min=1)
    return means[segments] + 1e-3 * heatmap * (heatmap > 0)


def _layer_maps(trace: Trace, scalars: Sequence[Tensor], batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Maps (h, w) by layer, summed over targets and levels.

    Returns:
        The positive part of gradients times activations; and the norm of the gradients times that of the differences
        of the activations from their means.
    """
    geometry = batch.geometries[0]
    rows, columns = geometry.valid_cells(geometry.input_size_hw)
    size = (batch.inputs.shape[-2], batch.inputs.shape[-1])
    activations = trace.activations()
    totals = {name: torch.zeros(size)[rows, columns] for name in trace.names}
    norms = {name: torch.zeros_like(each) for name, each in totals.items()}
    for scalar in scalars:
        gradients = trace.gradients(scalar, retain_graph=True)
        for name, levels, of_layer in zip(trace.names, activations, gradients, strict=True):
            layer, layer_norms = torch.zeros_like(totals[name]), torch.zeros_like(totals[name])
            for level, gradient in zip(levels, of_layer, strict=True):
                dtype = work_dtype(level)
                level, gradient = level.to(dtype), gradient.to(dtype)
                saliency = (level * gradient).sum(1, keepdim=True).clamp(min=0)
                difference = level - level.mean((-2, -1), keepdim=True)
                norm = difference.norm(dim=1, keepdim=True) * gradient.norm(dim=1, keepdim=True)
                if not bool(torch.isfinite(saliency).all()):
                    raise RuntimeError(f"the gradient at {name} is NaN or infinite; use float32")
                both = F.interpolate(torch.cat([saliency, norm], 1), size, mode="bilinear", align_corners=False)[0]
                resized = both[:, rows, columns].float().cpu()
                layer += resized[0]
                layer_norms += resized[1]
            totals[name] += layer / layer.amax().clamp(min=1e-30)
            norms[name] += layer_norms / layer_norms.amax().clamp(min=1e-30)
    return totals, norms
