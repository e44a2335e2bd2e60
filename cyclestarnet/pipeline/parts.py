"""What a calibrated model is made of, as data: all that fits, files and training need to know of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import astropy.units as u
import numpy as np

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError, LabelError, SpectrumError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.spectra import NORMALISED, Pixels, Spectrum, to_pixels

__all__ = ["FlagLimits", "ModelParts", "Population"]


@dataclass(frozen=True, eq=False)
class Population:
    """The stars of a training: what a model takes for usual.

    Parameters
    ----------
    prior : `~cyclestarnet.GaussianPrior`
        Of the labels of the synthetic spectra in training, in the order and units of the model's labels.
    shared_latents : `~cyclestarnet.networks.LatentCloud`
        Where the shared latents of observed training spectra lie; a star far from them is unfamiliar.
    split_latents : `~cyclestarnet.networks.SplitLatentCloud`, optional
        How the split latents of observed training spectra scatter: the prior of fits with
        ``split_latent="fitted"``. Default: not known.
    typical_split_latent : array, shape (split_filters, latent_length), optional
        Split latent to use where no observed spectrum gives one. None if the network has no split branch.
    label_range : array, shape (2, n_labels), optional
        Lowest and highest values of the labels that the training knew, with some margin: the fit of a star with a
        label beyond is an extrapolation. Default: not known.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> model = CalibratedModel.from_pretrained()
    >>> model.population.typical_split_latent.shape
    (1, 24)
    """

    prior: GaussianPrior
    shared_latents: LatentCloud
    split_latents: SplitLatentCloud | None = None
    typical_split_latent: np.ndarray | None = None
    label_range: np.ndarray | None = None


@dataclass(frozen=True)
class FlagLimits:
    """Limits beyond which a fit is flagged.

    Parameters
    ----------
    reduced_chi2_total : float, optional
        χ² per degree of freedom, with the model's scatter in the error budget, beyond which a fit is poor.
        Default: none.
    prior_distance : float, optional
        Root mean square of the labels' offsets from the training labels, in σ along their principal
        directions, beyond which labels lie outside of training. Default: none.
    local_misfit : float, optional
        Limit of `~cyclestarnet.pipeline.diagnostics.local_misfit`. The default is for models that
        have not learnt theirs from validation stars.
    continuum_misfit : float, optional
        Limit of `~cyclestarnet.pipeline.diagnostics.continuum_misfit`. The default is as above.

    Examples
    --------
    >>> from cyclestarnet.pipeline import FlagLimits
    >>> FlagLimits(reduced_chi2_total=2.0).local_misfit
    15.0
    """

    reduced_chi2_total: float = np.inf
    prior_distance: float = np.inf
    local_misfit: float = 15.0
    continuum_misfit: float = 0.45


@dataclass(frozen=True, eq=False, repr=False)
class ModelParts:
    """The parts of a calibrated model, which fit each other; `~cyclestarnet.CalibratedModel` has its methods.

    Parameters
    ----------
    name : str
        Name of the model, as results and tables have it.
    labels : `~cyclestarnet.LabelSet`
        Labels that the emulator takes, with their ranges.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the model.
    recipe : `~cyclestarnet.ContinuumRecipe`
        Normalises spectra; see ``normalises``.
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux.
    translator : `~cyclestarnet.networks.Translator`
        Synthetic flux → observed flux, and back.
    noise : `~cyclestarnet.NoiseModel`
        Which pixels count, and the errors of data, model and labels.
    population : `Population`
        The stars of the training.
    limits : `FlagLimits`, optional
        Beyond which fits are flagged.
    shortcuts : `~cyclestarnet.networks.Shortcuts`, optional
        First guesses and expected derivatives, which make fits quick. Default: none.
    provenance : mapping, optional
        What the model was made of, and its measured figures, by name.
    normalises : bool, optional
        Whether the training spectra went through ``recipe``, so that all others have to (default). False: they were
        normalised in a way that is not known here, and ``recipe`` only stands in for it, for flux with a unit.
    zero_points : array, shape (n_labels,), optional
        By how much the networks take the labels of observed stars for larger than they are: translated spectra are
        those of labels + zero_points. Default: by nothing.

    Raises
    ------
    GridError
        If the parts have different numbers of pixels.
    LabelError
        If the emulator takes another number of labels.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline import ModelParts
    >>> isinstance(CalibratedModel.from_pretrained(), ModelParts)
    True
    """

    name: str
    labels: LabelSet
    grid: WavelengthGrid
    recipe: ContinuumRecipe
    emulator: Emulator
    translator: Translator
    noise: NoiseModel
    population: Population
    limits: FlagLimits = FlagLimits()
    shortcuts: Shortcuts | None = None
    provenance: Mapping = field(default_factory=dict)
    normalises: bool = True
    zero_points: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = {
            "grid": self.grid.n_pixels,
            "emulator": self.emulator.n_pixels,
            "translation network": self.translator.network.settings.n_pixels,
            "continuum recipe": self.recipe.grid.n_pixels,
        } | {f"scatter ({space})": len(array) for space, array in self.noise.scatter.items()}
        if len(set(sizes.values())) > 1:
            raise GridError(f"the parts of a model must have the same number of pixels, but have {sizes}")
        if len(self.labels) != self.emulator.n_labels:
            raise LabelError(f"{len(self.labels)} labels, but the emulator takes {self.emulator.n_labels}")
        if self.zero_points is not None and np.shape(self.zero_points) != (len(self.labels),):
            raise LabelError(f"{len(self.labels)} labels, but zero points of the shape {np.shape(self.zero_points)}")

    @cached_property
    def translated_emulator(self) -> Emulator:
        """The emulator as the translation takes it: of labels that are counted from ``zero_points``."""
        return self.emulator if self.zero_points is None else self.emulator.shifted(self.zero_points)

    def pixels_of(
        self,
        spectrum: Spectrum,
        *,
        normalise: bool | None = None,
        ignore: np.ndarray | None = None,
        velocity: float = 0.0,
    ) -> Pixels:
        """Put a spectrum on the model's pixels, normalised as the training spectra were.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            As `~cyclestarnet.CalibratedModel.fit` takes it.
        normalise : bool, optional
            Whether ``recipe`` is applied, whatever the unit of the flux and whoever normalised it before. Default:
            as ``normalises`` says; a flux with a unit always is.
        ignore : array of bool, shape (n_pixels,), optional
            Pixels to ignore. Default: none.
        velocity : float, optional
            Radial velocity of the star in km/s: its continuum pixels have moved by as much. Default: 0.

        Returns
        -------
        `~cyclestarnet.spectra.Pixels`
            Its ``continuum`` is None if the flux was taken as normalised.

        Raises
        ------
        TypeError, GridError, SpectrumError
            As `~cyclestarnet.spectra.to_pixels`, and if a flux that is to be taken as normalised cannot be so: its
            median is below 0.1 or above 10.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> pixels = CalibratedModel.from_pretrained().pixels_of(datasets.k_giant())
        >>> pixels.flux.shape, pixels.degrees
        ((7167,), (4, 4, 4))
        """
        if normalise is None:
            flux = getattr(spectrum, "flux", None)
            normalise = self.normalises or (flux is not None and not flux.unit.is_equivalent(u.dimensionless_unscaled))
        recipe = self.recipe if normalise else None
        if recipe is not None and velocity:
            recipe = recipe.moved(velocity)
        pixels = to_pixels(spectrum, self.grid, recipe=recipe, ignore=ignore)
        level = np.median(pixels.flux[pixels.ivar > 0])
        if not (normalise or NORMALISED[0] < level < NORMALISED[1]):
            raise SpectrumError(
                f"flux is to be taken as normalised, about 1 in the continuum, but its median is {level:.3g}; "
                "let the model normalise it (normalise=True), or divide it by its continuum"
            )
        return pixels

    @property
    def translation(self) -> str:
        """Form of the translation between the domains: ``"paper"``, or ``"residual"``."""
        return self.translator.translation

    @property
    def prior(self) -> GaussianPrior:
        """Gaussian of the labels of the synthetic spectra in training."""
        return self.population.prior
