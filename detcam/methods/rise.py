"""RISE."""

from __future__ import annotations

from torch import Tensor

from detcam.adapters.base import ModelLike
from detcam.layers import LayersLike
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM, ReadOutput
from detcam.perturbation.random_masks import Passes, RandomMasks, check_passes, estimate_saliency
from detcam.trace import ReshapeTransform
from detcam.utils.precision import work_dtype


class RISE(InputCAM):
    r"""Mean of random masks, each weighted by the score of the masked image.

    .. math:: L(\lambda) = \frac{1}{N p} \sum_{i=1}^N y(X \odot M_i)\, M_i(\lambda)

    with X the image, :math:`M_i` the i-th of N masks, and y the target's score: an estimate of the mean score over
    masks that show pixel :math:`\lambda`. The contribution of the overall mean is computed exactly
    (`detcam.perturbation.random_masks.estimate_saliency`), which reduces the noise and keeps the expectation. A mask is
    a grid of zeros and ones (one with probability p), enlarged bilinearly and shifted at random by up to a cell. Masked
    pixels become 0 in the network's input: the mean color if the input is normalized, else black.

    Petsiuk et al., *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    Use it for any model that returns scores. A box target is scored at its source in every masked image; `DRISE`
    matches boxes by overlap instead. All targets of an image share the passes, whose number is in
    `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted for interchangeability; the map does not depend on it.
        reshape_transform: likewise.
        passes: number of masks. ``"auto"`` samples at least 200, until the maps of even and of odd masks agree for
            every target (rank correlation of their peaks of at least 0.8), and at most `max_passes`.
        grid: number of cells of a mask per side; None takes `default_grid`.
        probability: probability that a cell is visible.
        seed: seed of the masks.
    """

    name = "rise"
    paper = "Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421"
    cost = "tens to thousands of forwards for all targets"
    use = "any black box that returns scores; smooth maps"
    rectified = False
    max_passes = 4000
    """Maximum number of masks for ``passes="auto"``: the paper's number for VGG-16."""
    default_grid = 7
    """The paper's number of cells per side."""

    def __init__(
        self,
        model: ModelLike,
        target_layers: LayersLike = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        passes: Passes = "auto",
        grid: int | None = None,
        probability: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.passes = check_passes(passes)
        self.grid = self.default_grid if grid is None else grid
        if self.grid < 1 or not 0 < probability < 1:
            raise ValueError(
                f"expected grid of at least 1 and probability between 0 and 1; got {self.grid}, {probability}"
            )
        self.probability, self.seed = probability, seed

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        area = ImageArea(scorer)
        inputs = scorer.batch.inputs
        masks = RandomMasks(area.size_hw, self.grid, self.probability, self.seed, inputs.device, work_dtype(inputs))
        read_weights = self.weight_reader(scorer)
        maps, scorer.sampling = estimate_saliency(
            masks,
            len(scorer.targets),
            lambda rendered: scorer.score(area.apply_masks(rendered), read_weights),
            passes=self.passes,
            max_passes=self.max_passes,
            batch_size=scorer.images_per_pass,
            seed=self.seed,
        )
        return [area.pad_maps(maps)]  # in float64: differences between pixels are small beside the mean score

    def weight_reader(self, scorer: ImageScorer) -> ReadOutput | None:
        """From the model's raw output to the masks' weights (K, N); None takes the targets' scores."""
        return None
