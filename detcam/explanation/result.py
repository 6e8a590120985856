"""The result of `detcam.explain`: drawing, display in notebooks, and saving."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detcam.adapters.base import Target
from detcam.adapters.transformers.prompts import WordHeat
from detcam.detections import Detections
from detcam.explanation.reduction import draw_overlay, drawn_image
from detcam.rendering import DeferredHeatmaps, HeatmapArray
from detcam.results import Reach, Sampling
from detcam.targets import DetectionTarget, InstanceMaskTarget, MaskTarget
from detcam.visualize.convert import ImageArray, to_png_bytes
from detcam.visualize.overlay import DEFAULT_COLORMAP, grid, render

MAX_NOTEBOOK_IMAGES = 8


@dataclass(frozen=True, eq=False)
class Explanation:
    """The explanation of one image: a heatmap for each of N targets.

    An index or a slice selects targets, and iteration yields an `Explanation` per target.

    Attributes:
        image: (H, W, 3) uint8 RGB, after the rotation that its file asks for.
        name: file name, or ``image-1``, ``image-2``, ... for images without a file.
        path: the image's file, or None.
        targets: the N targets.
        captions: description and value of each target.
        maps: (N, H, W) heatmaps, float32 in [0, 1], pixels of the image: an array, or `DeferredHeatmaps` where they are
            large; see `heatmaps`.
        saliency: per target layer and level, (N, h, w) raw signed saliency over the network's input.
        scores: (N,) float32, the value of each target.
        reach: per target, the part of the image that the gradient covers; None for methods without gradients.
        sampling: number of samples and their agreement for methods that sample, else None.
        detections: the N predictions that the targets stand for, or None if the user gave targets.
        names: class index to name.
        method: name of the method.
        layers: names of the target layers.
        smoothing: ``"aug_smooth"`` and ``"eigen_smooth"``, if they were used.
        model: class name of the model.
        family: family of the adapter.
        words: per target, what each word of its prompt contributes to the score of its box; empty for models that read
            no text, and for targets that are no predictions.

    Example:
        >>> import detcam, numpy as np
        >>> from torchvision.models import mobilenet_v3_small
        >>> image = np.zeros((48, 64, 3), np.uint8)
        >>> explanation = detcam.explain(mobilenet_v3_small().eval(), image, labels=[3, 7], image_size=64)[0]
        >>> explanation.heatmaps.shape
        (2, 48, 64)
        >>> [one.heatmaps.shape for one in explanation]
        [(1, 48, 64), (1, 48, 64)]
    """

    image: ImageArray
    name: str
    path: Path | None
    targets: tuple[Target, ...]
    captions: tuple[str, ...]
    maps: HeatmapArray | DeferredHeatmaps
    saliency: tuple[Tensor, ...]
    scores: Tensor
    reach: tuple[Reach, ...] | None
    sampling: Sampling | None
    detections: Detections | None
    names: Mapping[int, str]
    method: str
    layers: tuple[str, ...]
    smoothing: tuple[str, ...]
    model: str
    family: str
    words: tuple[WordHeat, ...] = ()

    @property
    def heatmaps(self) -> HeatmapArray:
        """The heatmaps as one array (N, H, W) in [0, 1].

        Of a large image with many targets it is computed at each access; `heatmap` computes one of them alone.
        """
        return np.asarray(self.maps)

    def heatmap(self, index: int = 0) -> HeatmapArray:
        """Return the heatmap (H, W), of a volume (D, H, W), of one target in [0, 1].

        Raises:
            IndexError: there are fewer heatmaps.
        """
        self._check_index(index)
        return np.asarray(self.maps[index])

    def _check_index(self, index: int) -> None:
        count = len(self)
        if not -count <= index < count:
            heatmaps = "1 heatmap" if count == 1 else f"{count} heatmaps"
            raise IndexError(f"index {index} is out of range: the explanation of {self.name} has {heatmaps}")

    @property
    def size(self) -> dict[str, int]:
        """Width and height of the heatmaps, and of volumes their depth, in pixels."""
        return {"width": self.image.shape[1], "height": self.image.shape[0]}

    def rendered(self, index: int) -> Explanation:
        """Return the explanation of one target, with its heatmap computed once for all uses."""
        return replace(self[index], maps=self.heatmap(index)[None])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int | slice) -> Explanation:
        if not isinstance(index, slice):
            self._check_index(index)
        positions = range(len(self))[index]
        rows = [positions] if isinstance(positions, int) else list(positions)
        return replace(
            self,
            targets=tuple(self.targets[row] for row in rows),
            captions=tuple(self.captions[row] for row in rows),
            maps=self.maps[rows],
            saliency=tuple(level[rows] for level in self.saliency),
            scores=self.scores[rows],
            reach=None if self.reach is None else tuple(self.reach[row] for row in rows),
            sampling=self._sampling_of(rows),
            detections=None if self.detections is None else self.detections[rows],
            words=tuple(self.words[row] for row in rows) if self.words else (),
        )

    def _sampling_of(self, rows: list[int]) -> Sampling | None:
        if self.sampling is None or self.sampling.agreement is None:
            return self.sampling
        return replace(self.sampling, agreement=tuple(self.sampling.agreement[row] for row in rows))

    def __iter__(self) -> Iterator[Explanation]:
        return (self[index] for index in range(len(self)))

    def box_xyxy(self, index: int) -> tuple[float, float, float, float] | None:
        """Return a target's box in pixels of the image, or None for a class or region."""
        self._check_index(index)
        target = self.targets[index]
        return target.box_xyxy if isinstance(target, DetectionTarget) else None

    def mask(self, index: int) -> Tensor | None:
        """Return a mask target's region (H, W) bool, or None for a box or class."""
        self._check_index(index)
        target = self.targets[index]
        if isinstance(target, MaskTarget) and target.mask is not None:
            return target.mask
        is_mask = isinstance(target, (MaskTarget, InstanceMaskTarget))
        if is_mask and self.detections is not None and self.detections.masks is not None:
            return self.detections.masks[index]
        return None

    @property
    def magnitudes(self) -> HeatmapArray:
        """(N,) float32, the largest positive saliency of each target, which its heatmap shows as 1."""
        levels = [level.flatten(1).amax(1).clamp(min=0) for level in self.saliency if level.numel()]
        return torch.stack(levels).amax(0).float().numpy() if levels else np.zeros(len(self), np.float32)

    def overlay(
        self,
        index: int = 0,
        *,
        colormap: str | int = DEFAULT_COLORMAP,
        caption: bool = True,
        shared_scale: bool = False,
    ) -> ImageArray:
        """Draw one target's heatmap over the image.

        Args:
            index: index of the target.
            colormap: name or OpenCV number.
            caption: whether to draw the caption below, and below it the words of an open-vocabulary prompt with what
                each contributes.
            shared_scale: whether all targets of the image share one scale, that of the largest of `magnitudes`, so that
                overlays can be compared. Otherwise each heatmap has a maximum of 1, however small its saliency is.

        Returns:
            HxWx3 uint8, with the target's outline and a color bar.

        Raises:
            IndexError: there are fewer heatmaps.
        """
        mask = self.mask(index)
        return render(
            self.image,
            self.heatmap(index) * self._scale(index) if shared_scale else self.heatmap(index),
            box_xyxy=self.box_xyxy(index) if mask is None else None,
            mask=mask,
            caption=self.full_caption(index) if caption else "",
            colormap=colormap,
        )

    def full_caption(self, index: int) -> str:
        """Return a target's caption, and below it the words of its prompt."""
        words = self.words[index].describe() if self.words else ""
        return f"{self.captions[index]}\n{words}" if words else self.captions[index]

    def _scale(self, index: int) -> np.float32:
        magnitudes = self.magnitudes
        return magnitudes[index] / (magnitudes.max() or np.float32(1))

    def grid(
        self, *, columns: int | None = None, colormap: str | int = DEFAULT_COLORMAP, shared_scale: bool = False
    ) -> ImageArray:
        """Draw the image and the overlays of all targets in one figure (HxWx3 uint8); arguments as in `overlay`."""
        if not len(self):
            return grid([self.image], titles=["no targets"])
        image = drawn_image(self.image)

        def panel(index: int) -> ImageArray:
            if image is self.image:
                return self.overlay(index, colormap=colormap, caption=False, shared_scale=shared_scale)
            scale = self._scale(index) if shared_scale else 1.0
            return draw_overlay(self, index, image, caption="", colormap=colormap, scale=float(scale))

        panels = [panel(index) for index in range(len(self))]
        return grid(panels, columns=columns, titles=self.captions, original=image)

    def plot(
        self, *, columns: int | None = None, colormap: str | int = DEFAULT_COLORMAP, shared_scale: bool = False
    ) -> Image.Image:
        """Return the figure of `grid` as a PIL image."""
        return Image.fromarray(self.grid(columns=columns, colormap=colormap, shared_scale=shared_scale))

    def save(self, folder: str | Path, *, colormap: str | int = DEFAULT_COLORMAP) -> Path:
        """Save this explanation as `Explanations.save` does; return the path of ``explanations.json``."""
        return Explanations([self]).save(folder, colormap=colormap)

    def __repr__(self) -> str:
        return f"Explanation({self.name}, {self.method} at {', '.join(self.layers)}: {list(self.captions)})"

    def _repr_png_(self) -> bytes:
        return to_png_bytes(self.grid())

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        title = html.escape(f"{self.name}: {self.method} at {', '.join(self.layers)}")
        return (
            f'<figure style="margin:0"><figcaption>{title}</figcaption>'
            f'<img alt="{title}" style="max-width:100%" src="data:image/png;base64,{data}"></figure>'
        )


class Explanations(Sequence[Explanation]):
    """The explanations of several images, in the order of the images.

    A notebook shows the first eight.
    """

    def __init__(self, explanations: Iterable[Explanation]) -> None:
        self._items = tuple(explanations)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanations: ...
    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        return Explanations(self._items[index]) if isinstance(index, slice) else self._items[index]

    def plot(self, *, colormap: str | int = DEFAULT_COLORMAP) -> Image.Image:
        """Return a PIL image with the figures of all images below each other, titled by their names.

        Raises:
            ValueError: there are no explanations.
        """
        if not self._items:
            raise ValueError("there is nothing to plot: no image was explained")
        figures = [item.grid(colormap=colormap) for item in self._items]
        return Image.fromarray(grid(figures, columns=1, titles=[item.name for item in self._items]))

    def save(self, folder: str | Path, *, colormap: str | int = DEFAULT_COLORMAP) -> Path:
        """Save an overlay and a heatmap per target, and ``explanations.json``.

        `detcam.explanation.writer` describes the format. Other files in the folder are kept. An explanation of the same
        image by the same model, method, layers and smoothing is replaced.

        Args:
            folder: folder for the files; it is created if it does not exist.
            colormap: colormap of the overlays.

        Returns:
            The path of ``explanations.json``.

        Raises:
            ValueError: the folder has an ``explanations.json`` that detcam did not write.
        """
        from detcam.explanation.writer import save_explanations

        return save_explanations(folder, self._items, colormap=colormap)

    def __repr__(self) -> str:
        return f"Explanations({list(self._items)})"

    def _repr_html_(self) -> str:
        shown = "".join(item._repr_html_() for item in self._items[:MAX_NOTEBOOK_IMAGES])
        hidden = len(self._items) - MAX_NOTEBOOK_IMAGES
        return shown + (f"<p>and {hidden} more images</p>" if hidden > 0 else "")
