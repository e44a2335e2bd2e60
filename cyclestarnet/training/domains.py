"""Both domains of a training, wherever they come from: files of a configuration, or arrays in memory.

`cyclestarnet.training.inputs` makes `Domains` of files and `cyclestarnet.training.arrays` of
arrays; from there on, `cyclestarnet.training.runs` does the same with both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import astropy.units as u
import numpy as np

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.spectra import Spectrum, to_spectrum
from cyclestarnet.training.datasets import ObservedSource, SyntheticSource
from cyclestarnet.training.tables import SpectrumTable, split_into_blocks
from cyclestarnet.training.trainer import Anchors

__all__ = ["Domains", "KnownStars", "Stars", "grid_with_chips"]

GAP = 3.0  # usual steps in ln(wavelength): neighbours that are further apart lie on different chips


@dataclass(frozen=True, eq=False)
class Stars:
    """Rows of a table of observed spectra.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        Where the spectra are, for example a `~cyclestarnet.io.TrainingSet`.
    rows : array of int, shape (n_stars,)
        Their row numbers, rising.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.tables import ArrayTable
    >>> from cyclestarnet.training.domains import Stars
    >>> flux = np.ones((100, 7))
    >>> stars = Stars(ArrayTable(flux, 0.01 * flux, flux == 0), np.arange(50, 100))
    >>> stars.spread(3)
    array([50, 74, 99])
    """

    table: SpectrumTable
    rows: np.ndarray

    def spread(self, number: int) -> np.ndarray:
        """Choose some of the rows, evenly over all of them, because files may be sorted.

        Parameters
        ----------
        number : int
            So many at most.

        Returns
        -------
        array of int
            Row numbers, rising.

        Examples
        --------
        ::

            rows = stars.spread(100)
        """
        places = np.linspace(0, len(self.rows) - 1, min(number, len(self.rows))).astype(int)
        return self.rows[np.unique(places)]

    def spectra(self, number: int, grid: WavelengthGrid) -> Spectrum:
        """Read some of the spectra, chosen as in `spread`.

        Parameters
        ----------
        number : int
            So many at most.
        grid : `~cyclestarnet.WavelengthGrid`
            Pixels of the table.

        Returns
        -------
        `~specutils.Spectrum`
            A row per star. Pixels that are masked, or whose flux or error is
            not finite, or whose error is not positive, are masked. A flux
            that is not finite turns into 1.

        Examples
        --------
        ::

            validation = domains.held_out.spectra(100, domains.grid)
        """
        parts = []
        for block in split_into_blocks(self.spread(number), self.table):
            arrays = self.table.read(int(block[0]), int(block[-1]) + 1)
            parts.append([array[block - block[0]] for array in arrays if array is not None])
        flux, sigma, mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        good = ~mask & np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
        ivar = np.where(good, np.where(good, sigma, 1.0).astype(float) ** -2, 0.0)
        return to_spectrum(np.where(np.isfinite(flux), flux, 1.0), grid, ivar=ivar)


@dataclass(frozen=True, eq=False)
class KnownStars:
    """Observed spectra of stars whose labels are known from elsewhere.

    Parameters
    ----------
    stars : `Stars`
        The spectra.
    truth : dict of `~astropy.units.Quantity`, each of shape (n_stars,)
        Their labels or combinations of labels, by name; NaN where one is not known.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from cyclestarnet.training.domains import KnownStars, Stars
    >>> from cyclestarnet.training.tables import ArrayTable
    >>> flux = np.ones((2, 7))
    >>> stars = Stars(ArrayTable(flux, 0.01 * flux, flux == 0), np.arange(2))
    >>> list(KnownStars(stars, {"teff": [4500, 4600] * u.K}).truth)
    ['teff']
    """

    stars: Stars
    truth: Mapping[str, u.Quantity]

    def spectra(self, grid: WavelengthGrid) -> Spectrum:
        """Read the spectra.

        Parameters
        ----------
        grid : `~cyclestarnet.WavelengthGrid`
            Pixels of the table.

        Returns
        -------
        `~specutils.Spectrum`
            A row per star; see `Stars.spectra`.

        Examples
        --------
        ::

            offsets = compare_labels(model, known.spectra(model.grid), known.truth)
        """
        return self.stars.spectra(len(self.stars.rows), grid)


@dataclass(frozen=True, eq=False)
class Domains:
    """What a training learns from, and what its model must know besides the networks.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of all spectra.
    labels : `~cyclestarnet.LabelSet`
        Names and valid range of the model's labels.
    emulator : `~cyclestarnet.networks.Emulator`
        Labels to synthetic spectra, for the model.
    label_pool : array, shape (n_pool, n_labels), float64
        Labels of the synthetic training spectra, in the order and units of
        ``labels``: the label prior of the model.
    synthetic : `~cyclestarnet.training.datasets.SyntheticSource`
        The synthetic spectra that are trained on, standardised.
    observed : `~cyclestarnet.training.datasets.ObservedSource`
        The observed spectra that are trained on, standardised.
    stars : `Stars`
        The observed spectra of ``observed``, as they were before that.
    held_out : `Stars`
        Observed spectra that training does not see: they tell the errors of
        the model, and score a watched run.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        The one that normalised the spectra. None (default): one is made of
        quiet pixels of the synthetic spectra.
    anchors : `~cyclestarnet.training.trainer.Anchors`, optional
        Observed spectra of known labels. None (default): there are none.
    provenance : dict of str, optional
        What the model card says of the data. Default: nothing.
    known : `KnownStars`, optional
        Stars that the errors of labels are learnt from. None (default): they are not.
    test : `KnownStars`, optional
        Other stars, by which the model is judged in the end. None (default): it is not.

    Examples
    --------
    ::

        domains = read_domains(read_config("mine.toml"))
        print(f"{len(domains.observed)} observed and {len(domains.synthetic)} synthetic spectra on {domains.grid}")
    """

    grid: WavelengthGrid
    labels: LabelSet
    emulator: Emulator
    label_pool: np.ndarray
    synthetic: SyntheticSource
    observed: ObservedSource
    stars: Stars
    held_out: Stars
    recipe: ContinuumRecipe | None = None
    anchors: Anchors | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    known: KnownStars | None = None
    test: KnownStars | None = None


def grid_with_chips(wavelength: u.Quantity) -> WavelengthGrid:
    """Make a grid whose chips end where the wavelengths leap.

    Parameters
    ----------
    wavelength : `~astropy.units.Quantity`, shape (n_pixels,)
        Vacuum wavelengths of the pixel centres, rising. A step in their
        logarithm of more than three times the median step is a leap.

    Returns
    -------
    `~cyclestarnet.WavelengthGrid`

    Raises
    ------
    GridError
        If they do not rise or have no unit of length, or a pixel stands alone between two leaps.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet.training.domains import grid_with_chips
    >>> grid_with_chips(np.r_[500:510:0.1, 600:605:0.1] * u.nm).chips
    ((0, 100), (100, 150))
    """
    grid = WavelengthGrid(wavelength)
    steps = np.diff(np.log(grid.wavelength.value))
    ends = [0, *(np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist(), grid.n_pixels]
    return WavelengthGrid(grid.wavelength, tuple(pairwise(ends)))
