"""What is left over of many spectra, pixel by pixel: how far off it is, and by how much it scatters.

S1 is O'Briain et al. (2021).
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

__all__ = ["ResidualMap", "ResidualStatistics"]

LEAST_VALUES = 3  # fewer have no scatter to speak of


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
        low, middle, high = np.percentile(values, [15.865, 50, 84.135])
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
        if width < 1:
            raise ValueError(f"width must be 1 or more pixels, but is {width}")
        wavelength = self.grid.wavelength.to_value(u.AA)
        parts = [
            slice(first, min(first + width, stop))
            for begin, stop in self.grid.chips
            for first in range(begin, stop, width)
        ]
        rows = [vars(ResidualStatistics.of(self.values[:, part])) for part in parts]
        table = QTable({"wavelength": [wavelength[part].mean() for part in parts] * u.AA})
        for name in rows[0]:
            table[name] = [row[name] for row in rows]
        return table
