"""RISE."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from detcam.adapters.base import Adapter
from detcam.outputs import work_dtype
from detcam.perturbation.base import ImageArea, ImageScorer, InputCAM
from detcam.perturbation.random_masks import Passes, RandomMasks, check_passes, estimate_saliency
from detcam.trace import ReshapeTransform


class RISE(InputCAM):
    r"""Mean of random masks, each weighted by the score of the image seen through it.

    .. math:: L(\lambda) = \frac{1}{N p} \sum_{i=1}^N y(X \odot M_i)\, M_i(\lambda)

    an estimate of the score's mean over masks that show pixel :math:`\lambda`; here with the mean score's known part
    put in as known (`detcam.perturbation.random_masks.estimate_saliency`), which changes the noise and not what is
    estimated. A mask is a grid of zeros and ones (one with probability p), enlarged bilinearly and shifted at random
    by up to a cell. What is masked becomes 0 in the network's input: the mean colour where the input is normalised,
    else black.

    Petsiuk et al., *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018,
    https://arxiv.org/abs/1806.07421.

    A box target is asked at its source in every masked image; `DRISE` matches boxes anew instead. All targets of an
    image share the passes. How many there were is in `ImageHeatmaps.sampling`.

    Args:
        model: as in `BaseCAM`.
        target_layers: accepted so that methods can be swapped; the map does not depend on it.
        reshape_transform: likewise.
        passes: how many masks; ``"auto"`` stops, after 200 at least, once every target's maps of even and of odd masks
            agree where they are strong (rank correlation of at least 0.8), and at the paper's number.
        grid: cells a side.
        probability: of a cell to be seen.
        seed: of the masks.
    """

    name = "rise"
    paper = "Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421"
    cost = "tens to thousands of forwards for all targets"
    use = "any black box that gives scores; smooth maps"
    rectified = False
    max_passes = 4000
    """How many masks at most if ``passes="auto"``: the paper's number for VGG-16."""

    def __init__(
        self,
        model: Adapter | nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        passes: Passes = "auto",
        grid: int = 7,
        probability: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.passes = check_passes(passes)
        if grid < 1 or not 0 < probability < 1:
            raise ValueError(f"expected grid of at least 1 and probability between 0 and 1; got {grid}, {probability}")
        self.grid, self.probability, self.seed = grid, probability, seed

    def maps(self, scorer: ImageScorer) -> list[Tensor]:
        canvas = ImageArea(scorer)
        score = self.scorer(scorer)
        inputs = scorer.batch.inputs
        masks = RandomMasks(canvas.size_hw, self.grid, self.probability, self.seed, inputs.device, work_dtype(inputs))
        found, scorer.sampling = estimate_saliency(
            masks,
            len(scorer.targets),
            lambda painted: score(canvas.apply_masks(painted)),
            passes=self.passes,
            max_passes=self.max_passes,
            batch_size=scorer.images_per_pass,
            seed=self.seed,
        )
        return [canvas.pad_maps(found)]  # in float64: what tells places apart is small beside the mean score

    def scorer(self, scorer: ImageScorer) -> Callable[[Tensor], Tensor]:
        """From network inputs (K, C, H, W) to the weights (K, N) of their masks for each target."""
        return scorer.score
