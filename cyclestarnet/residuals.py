"""What is left over of many spectra, pixel by pixel: how far off it is, and by how much it scatters.

S1 is O'Briain et al. (2021). `ResidualMap` keeps the residuals of some spectra, `ResidualDensity` counts those of any
number: both tell the same figures, and are drawn alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.results import FitResult

__all__ = ["ResidualDensity", "ResidualMap", "ResidualStatistics"]

LEAST_VALUES = 3  # fewer have no scatter to speak of
QUANTILES = (0.15865, 0.5, 0.84135)
# Cells of a density, in σ or in hundredths of the continuum: as wide as KNEE · STEP = 0.02 near 0, and as STEP = 4 % of
# the residual where that is larger, up to 2000 on either side.
KNEE, STEP, CELLS = 0.5, 0.04, 225
CONTINUUM_SCALE = 0.01


@dataclass(frozen=True)
class ResidualStatistics:
    """Figures of a sample of residuals, in units of the errors or of the continuum.

    Parameters
    ----------
    mean : float
        Mean residual.
    mean_abs : float
        Mean of the absolute values; 0.80 σ of a Gaussian.
    bias : float
        Median: the offset that single bad pixels do not move.
    half_width : float
        Half the 16-84 % range; σ of a Gaussian.
    beyond_3 : float
        Fraction of the values beyond ± 3; 0.0027 if residuals in σ are those of right errors.
    n_values : int
        How many values these are.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.residuals import ResidualStatistics
    >>> ResidualStatistics.of(np.array([-1.0, 0.0, 4.0, np.nan]))
    ResidualStatistics(mean=1.0, mean_abs=1.66..., bias=0.0, half_width=1.70..., beyond_3=0.33..., n_values=3)
    """

    mean: float
    mean_abs: float
    bias: float
    half_width: float
    beyond_3: float
    n_values: int

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Sum up residuals.

        Parameters
        ----------
        values : array, any shape
            Residuals. Those that are not finite do not count.

        Returns
        -------
        `ResidualStatistics`
            NaN if fewer than 3 count.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.residuals import ResidualStatistics
        >>> ResidualStatistics.of(np.zeros(2)).bias
        nan
        """
        values = np.asarray(values)
        values = values[np.isfinite(values)]
        if len(values) < LEAST_VALUES:
            return cls(*[np.nan] * 5, len(values))
        low, middle, high = np.quantile(values, QUANTILES)
        size = np.abs(values)
        figures = values.mean(dtype=float), size.mean(dtype=float), middle, (high - low) / 2, (size > 3).mean()
        return cls(*map(float, figures), len(values))


@dataclass(frozen=True, eq=False)
class ResidualMap:
    """Residuals of many spectra on one grid (S1, Figures 5, 6 and 8).

    Parameters
    ----------
    values : array, shape (n_stars, n_pixels)
        Data − model; NaN at pixels that do not count.
    grid : `~cyclestarnet.WavelengthGrid`
        The pixels.
    in_sigma : bool, optional
        Whether residuals are in units of the quoted errors (default), or of the continuum.

    Raises
    ------
    GridError
        If ``values`` is no array of spectra on the grid.
    SpectrumError
        If no value is finite.

    See Also
    --------
    cyclestarnet.plotting.plot_residuals : the figure.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.residuals import ResidualMap
    >>> values = np.random.default_rng(0).normal(2.0, 1.0, (20_000, 3))
    >>> residuals = ResidualMap(values, WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm))
    >>> print(round(residuals.statistics.bias, 1), round(residuals.statistics.half_width, 1))
    2.0 1.0
    >>> residuals.to_table()["half_width"].round(1)
    array([1., 1., 1.])
    """

    values: np.ndarray
    grid: WavelengthGrid
    in_sigma: bool = True

    def __post_init__(self) -> None:
        shape = np.shape(self.values)
        if len(shape) != 2 or shape[1] != self.grid.n_pixels:
            raise GridError(f"values must have the shape (n_stars, {self.grid.n_pixels}), but has {shape}")
        if not np.isfinite(self.values).any():
            raise SpectrumError(f"none of the residuals of {shape[0]} spectra is a finite number")

    @classmethod
    def of(cls, results: Iterable[FitResult], grid: WavelengthGrid, *, in_sigma: bool = True) -> Self:
        """Collect the residuals of fits.

        Parameters
        ----------
        results : iterable of `~cyclestarnet.FitResult`
            Of fits with one model. A generator is read star by star, so that no result is kept.
        grid : `~cyclestarnet.WavelengthGrid`
            Pixels of the model.
        in_sigma : bool, optional
            In units of the quoted errors (default), or of the continuum.

        Returns
        -------
        `ResidualMap`
            Of float32.

        Raises
        ------
        SpectrumError
            If there is no result.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> from cyclestarnet.residuals import ResidualMap
        >>> model = CalibratedModel.from_pretrained()
        >>> result = model.fit(datasets.k_giant(), space="emulator")
        >>> ResidualMap.of([result], model.grid).values.shape
        (1, 7167)
        """
        rows = []
        for result in results:
            residual = result.residual.value
            rows.append((residual / result.spectrum.uncertainty.array if in_sigma else residual).astype(np.float32))
        if not rows:
            raise SpectrumError("there are no results to take residuals of")
        return cls(np.array(rows), grid, in_sigma)

    @property
    def statistics(self) -> ResidualStatistics:
        """Figures of all stars and pixels together."""
        return ResidualStatistics.of(self.values)

    @property
    def seen(self) -> np.ndarray:
        """Pixels that some star has a residual of, (n_pixels,)."""
        return np.isfinite(self.values).any(axis=0)

    def within(self, pixels: np.ndarray) -> Self:
        """Keep the residuals of some pixels only.

        Parameters
        ----------
        pixels : array of bool, shape (n_pixels,)
            Those to keep.

        Returns
        -------
        `ResidualMap`

        Raises
        ------
        SpectrumError
            If nothing is left.

        Examples
        --------
        ::

            residuals.within(~mask.pixels(model.grid)).statistics
        """
        return type(self)(np.where(pixels, self.values, np.nan), self.grid, self.in_sigma)

    def shares(self, part: slice, levels: np.ndarray) -> np.ndarray:
        """Tell which fraction of the residuals of some pixels lies between neighbouring levels.

        Parameters
        ----------
        part : slice
            The pixels.
        levels : array, shape (n + 1,)
            Rising.

        Returns
        -------
        array, shape (n,)
            0 of pixels that no star has. Those beyond the levels are left out.

        Examples
        --------
        ::

            residuals.shares(slice(0, 10), np.linspace(-3, 3, 61))
        """
        values = self.values[:, part]
        values = values[np.isfinite(values)]
        return np.histogram(values, levels)[0] / max(len(values), 1)

    def to_table(self, *, width: int = 1) -> QTable:
        """Make a table of the residuals along the spectrum.

        Parameters
        ----------
        width : int, optional
            Neighbouring pixels of a chip that are taken together. Default: 1, a row per pixel.

        Returns
        -------
        `~astropy.table.QTable`
            ``wavelength``, the mean of the pixels, and the fields of `ResidualStatistics`.

        Raises
        ------
        ValueError
            If ``width`` is less than 1.

        Examples
        --------
        ::

            residuals.to_table(width=10).write("residuals.ecsv")
        """
        parts = _neighbours(self.grid, width)
        rows = [vars(ResidualStatistics.of(self.values[:, part])) for part in parts]
        return _table(self.grid, parts, {name: [row[name] for row in rows] for name in rows[0]})


class ResidualDensity:
    """Residuals of any number of spectra on one grid, counted in cells: memory does not grow with the stars.

    It tells what a `ResidualMap` does. Means, and the fraction beyond 3, are exact; medians and percentiles are
    good to a small part of a cell. Cells are 0.02 σ wide near 0, or 0.0002 of the continuum, and 4 % of the residual
    where that is more. A pixel takes 2 kB.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        The pixels.
    in_sigma : bool, optional
        Whether residuals are in units of the quoted errors (default), or of the continuum.

    Attributes
    ----------
    counts : array of uint32, shape (n_pixels, 450)
        Residuals in each cell.
    sums : array, shape (3, n_pixels)
        Of the residuals, of their absolute values, and how many are beyond 3.

    See Also
    --------
    cyclestarnet.plotting.plot_residuals : the figure.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.residuals import ResidualDensity
    >>> density = ResidualDensity(WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm))
    >>> rng = np.random.default_rng(0)
    >>> for _ in range(20):
    ...     density.add(rng.normal(2.0, 1.0, (1000, 3)))
    >>> print(round(density.statistics.bias, 1), round(density.statistics.half_width, 1))
    2.0 1.0
    >>> density.to_table()["n_values"].tolist()
    [20000, 20000, 20000]
    """

    def __init__(self, grid: WavelengthGrid, *, in_sigma: bool = True):
        self.grid, self.in_sigma = grid, in_sigma
        self.counts = np.zeros((grid.n_pixels, 2 * CELLS), dtype=np.uint32)
        self.sums = np.zeros((3, grid.n_pixels))

    def __repr__(self) -> str:
        unit = "σ" if self.in_sigma else "the continuum"
        return f"<ResidualDensity of {int(self.counts.sum()):,} residuals in units of {unit}>"

    @property
    def _scale(self) -> float:
        return 1.0 if self.in_sigma else CONTINUUM_SCALE

    @property
    def _edges(self) -> np.ndarray:
        """Of the cells, (451,); the outer cells hold all that lies beyond."""
        return self._scale * KNEE * np.sinh(STEP * np.arange(-CELLS, CELLS + 1))

    def add(self, values: np.ndarray) -> None:
        """Count the residuals of some spectra.

        Parameters
        ----------
        values : array, shape (n_stars, n_pixels)
            Data − model. Those that are not finite do not count.

        Raises
        ------
        GridError
            If ``values`` is no array of spectra on the grid.

        Examples
        --------
        ::

            density.add(block)
        """
        values = np.asarray(values, dtype=float)
        if values.ndim != 2 or values.shape[1] != self.grid.n_pixels:
            raise GridError(f"values must have the shape (n_stars, {self.grid.n_pixels}), but has {values.shape}")
        good = np.isfinite(values)
        cells = np.floor(np.arcsinh(values[good] / (self._scale * KNEE)) / STEP).clip(-CELLS, CELLS - 1)
        place = np.nonzero(good)[1] * 2 * CELLS + cells.astype(int) + CELLS
        np.add.at(self.counts.reshape(-1), place, 1)
        values = np.where(good, values, 0.0)
        self.sums += [values.sum(0), np.abs(values).sum(0), (np.abs(values) > 3).sum(0)]

    @property
    def statistics(self) -> ResidualStatistics:
        """Figures of all stars and pixels together."""
        figures = self._figures(self.counts.sum(0, dtype=np.int64)[None], self.sums.sum(1)[:, None])
        return ResidualStatistics(**{name: column[0].item() for name, column in figures.items()})

    @property
    def seen(self) -> np.ndarray:
        """Pixels that some star has a residual of, (n_pixels,)."""
        return self.counts.any(axis=1)

    def within(self, pixels: np.ndarray) -> ResidualDensity:
        """Keep the residuals of some pixels only.

        Parameters
        ----------
        pixels : array of bool, shape (n_pixels,)
            Those to keep.

        Returns
        -------
        `ResidualDensity`

        Examples
        --------
        ::

            density.within(~mask.pixels(model.grid)).statistics
        """
        kept = type(self)(self.grid, in_sigma=self.in_sigma)
        kept.counts[pixels], kept.sums[:, pixels] = self.counts[pixels], self.sums[:, pixels]
        return kept

    def shares(self, part: slice, levels: np.ndarray) -> np.ndarray:
        """Tell which fraction of the residuals of some pixels lies between neighbouring levels.

        Parameters
        ----------
        part : slice
            The pixels.
        levels : array, shape (n + 1,)
            Rising.

        Returns
        -------
        array, shape (n,)
            0 of pixels that no star has. Those beyond the levels are left out.

        Examples
        --------
        ::

            density.shares(slice(0, 10), np.linspace(-3, 3, 61))
        """
        below = np.concatenate([[0], self.counts[part].sum(0, dtype=np.int64).cumsum()])
        return np.diff(np.interp(levels, self._edges, below / max(below[-1], 1)))

    def to_table(self, *, width: int = 1) -> QTable:
        """Make a table of the residuals along the spectrum.

        Parameters
        ----------
        width : int, optional
            Neighbouring pixels of a chip that are taken together. Default: 1, a row per pixel.

        Returns
        -------
        `~astropy.table.QTable`
            ``wavelength``, the mean of the pixels, and the fields of `ResidualStatistics`.

        Raises
        ------
        ValueError
            If ``width`` is less than 1.

        Examples
        --------
        ::

            density.to_table(width=10).write("residuals.ecsv")
        """
        parts = _neighbours(self.grid, width)
        firsts = [part.start for part in parts]
        counts = np.add.reduceat(self.counts, firsts, axis=0, dtype=np.int64)
        return _table(self.grid, parts, self._figures(counts, np.add.reduceat(self.sums, firsts, axis=1)))

    def _figures(self, counts, sums):
        """Fields of `ResidualStatistics`, an array each, of rows of cells."""
        n_values = counts.sum(1)
        low, middle, high = (self._quantile(counts, share) for share in QUANTILES)
        mean, mean_abs, beyond = sums / np.maximum(n_values, 1)
        figures = {
            "mean": mean, "mean_abs": mean_abs, "bias": middle, "half_width": (high - low) / 2, "beyond_3": beyond,
        }  # fmt: skip
        enough = n_values >= LEAST_VALUES
        return {name: np.where(enough, own, np.nan) for name, own in figures.items()} | {"n_values": n_values}

    def _quantile(self, counts, share):
        """Residual (m,) below which a share of each row's lies, those of a cell spread evenly over it."""
        below, edges, row = counts.cumsum(1), self._edges, np.arange(len(counts))
        wanted = share * below[:, -1]
        cell = (below < wanted[:, None]).sum(1)
        own = counts[row, cell]
        inside = (wanted - (below[row, cell] - own)) / np.maximum(own, 1)
        return edges[cell] + inside * (edges[cell + 1] - edges[cell])


def _neighbours(grid, width):
    """Pixels of each chip in groups of neighbours."""
    if width < 1:
        raise ValueError(f"width must be 1 or more pixels, but is {width}")
    return [slice(first, min(first + width, stop)) for begin, stop in grid.chips for first in range(begin, stop, width)]


def _table(grid, parts, figures):
    """Figures of groups of pixels, with their mean wavelengths."""
    wavelength = grid.wavelength.to_value(u.AA)
    return QTable({"wavelength": [wavelength[part].mean() for part in parts] * u.AA} | figures)
