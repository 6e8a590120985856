"""What an explanation of an image holds, and how it draws, shows and saves itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from PIL import Image
from torch import Tensor

from detcam.adapters.base import Target
from detcam.detections import Detections
from detcam.results import Reach, Sampling
from detcam.targets import DetectionTarget, InstanceMaskTarget, MaskTarget
from detcam.visualize.convert import ImageArray, to_png_bytes
from detcam.visualize.overlay import DEFAULT_COLORMAP, grid, render

SHOWN_IN_NOTEBOOK = 8


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a model said what it said about one image.

    Attributes:
        image: (H, W, 3) uint8 RGB, the image upright.
        name: file name, or ``image-1`` and so on for images without a file.
        path: the image's file, or None.
        targets: the N targets that were explained.
        captions: what each target is and its value, in words.
        heatmaps: (N, H, W) float32 in [0, 1], pixels of the image, on the CPU.
        saliency: per target layer and level, (N, h, w) raw signed saliency over the whole network input.
        scores: (N,) float32, the value that each target had and that was explained.
        reach: per target, how much of the image could have shown; None for methods without gradients.
        sampling: how many changed versions of the image were scored, for methods that change it, else None.
        detections: the N findings that the targets stand for, or None where the user gave targets.
        names: class index to name.
        method: the method's name.
        layers: names of the target layers.
        smoothing: ``aug_smooth`` and ``eigen_smooth``, as far as they were asked for.
        model: the model's class.
        family: the adapter's family.
    """

    image: ImageArray
    name: str
    path: Path | None
    targets: tuple[Target, ...]
    captions: tuple[str, ...]
    heatmaps: Tensor
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

    def __len__(self) -> int:
        return len(self.targets)

    def box_xyxy(self, index: int) -> tuple[float, float, float, float] | None:
        """A target's box in pixels of the image, None for classes and regions."""
        target = self.targets[index]
        return target.box_xyxy if isinstance(target, DetectionTarget) else None

    def mask(self, index: int) -> Tensor | None:
        """A mask target's region (H, W) bool, None for boxes and classes."""
        target = self.targets[index]
        if isinstance(target, MaskTarget) and target.mask is not None:
            region: Tensor = target.mask
            return region
        is_mask = isinstance(target, (MaskTarget, InstanceMaskTarget))
        if is_mask and self.detections is not None and self.detections.masks is not None:
            return self.detections.masks[index]
        return None

    def overlay(self, index: int = 0, *, colormap: str | int = DEFAULT_COLORMAP, caption: bool = True) -> ImageArray:
        """One target's heatmap over the image, with its outline, as an HxWx3 uint8 array."""
        mask = self.mask(index)
        return render(
            self.image,
            self.heatmaps[index],
            box_xyxy=self.box_xyxy(index) if mask is None else None,
            mask=mask,
            caption=self.captions[index] if caption else "",
            colormap=colormap,
        )

    def grid(self, *, columns: int | None = None, colormap: str | int = DEFAULT_COLORMAP) -> ImageArray:
        """The image and every target's overlay in one figure."""
        if not len(self):
            return grid([self.image], titles=["nothing found"])
        panels = [self.overlay(index, colormap=colormap) for index in range(len(self))]
        return grid(panels, columns=columns, original=self.image)

    def plot(self, *, columns: int | None = None, colormap: str | int = DEFAULT_COLORMAP) -> Image.Image:
        """The figure as a PIL image, which a notebook shows and ``.show()`` opens."""
        return Image.fromarray(self.grid(columns=columns, colormap=colormap))

    def save(self, folder: str | Path, *, colormap: str | int = DEFAULT_COLORMAP) -> Path:
        """As `Explanations.save`, for this image alone."""
        return Explanations([self]).save(folder, colormap=colormap)

    def __repr__(self) -> str:
        return f"Explanation({self.name}, {self.method} at {', '.join(self.layers)}: {list(self.captions)})"

    def _repr_png_(self) -> bytes:
        return to_png_bytes(self.grid())

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        words = html.escape(f"{self.name}: {self.method} at {', '.join(self.layers)}")
        return (
            f'<figure style="margin:0"><figcaption>{words}</figcaption>'
            f'<img alt="{words}" style="max-width:100%" src="data:image/png;base64,{data}"></figure>'
        )


class Explanations(Sequence[Explanation]):
    """Explanations of several images, in the images' order. A notebook shows the first ones."""

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
        """One figure of all images: each image's own figure, titled with its name, under the last."""
        if not self._items:
            raise ValueError("there is nothing to plot: no image was explained")
        figures = [item.grid(colormap=colormap) for item in self._items]
        return Image.fromarray(grid(figures, columns=1, titles=[item.name for item in self._items]))

    def save(self, folder: str | Path, *, colormap: str | int = DEFAULT_COLORMAP) -> Path:
        """Write an overlay and a heatmap per target, and ``explanations.json``; format: `detcam.explanation.writer`.

        Other files in the folder stay. The same image explained again by the same model, method, layers and
        smoothing is replaced.

        Returns:
            The path of ``explanations.json``.

        Raises:
            ValueError: the folder holds an ``explanations.json`` of another kind.
        """
        from detcam.explanation.writer import ExplanationWriter

        with ExplanationWriter(folder, colormap=colormap) as writer:
            for item in self._items:
                writer.add(item)
        return writer.index

    def __repr__(self) -> str:
        return f"Explanations({list(self._items)})"

    def _repr_html_(self) -> str:
        shown = "".join(item._repr_html_() for item in self._items[:SHOWN_IN_NOTEBOOK])
        hidden = len(self._items) - SHOWN_IN_NOTEBOOK
        return shown + (f"<p>and {hidden} more images</p>" if hidden > 0 else "")
