"""Polynomials by which the continuum of the data may be off in a fit, per chip or per window of wavelength."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from numpy.polynomial.legendre import legvander

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import WavelengthGrid, ranges_of

__all__ = ["ContinuumTerms", "check_degree"]

HIGHEST_DEGREE = 10  # of polynomials in a window; higher ones begin to eat lines
CONTINUUM_ERROR = 0.02  # of flux: width of the coefficients


@dataclass(frozen=True)
class ContinuumTerms:
    """Polynomials by which a fit lets the continuum be off, one in each chip or window: ``continuum_degree`` of a fit.

    In a window the flux may be that of the model times 1 + a polynomial: a sum of Legendre polynomials from -1 at its
    first pixel to 1 at its last, whose coefficients have a Gaussian prior with a width of 2 %. Windows know nothing of
    each other, and outside of them the continuum is trusted. Where a star has few good pixels in a window, the prior
    holds the coefficients; where it has none, they are 0.

    Parameters
    ----------
    degree : int
        Of the polynomials, 0 to 10.
    windows : int, range of wavelengths, or sequence of them, optional
        So many windows of equal numbers of pixels in each chip; or vacuum wavelengths (low, high), in Angstrom if they
        have no unit, or a `~specutils.SpectralRegion`. Windows may touch, but not overlap, and the part of one that is
        outside of the pixels of the model counts for nothing. Default: each chip is one window.

    Raises
    ------
    ValueError
        If ``degree`` is no whole number from 0 to 10, or ``windows`` a number that is not positive.
    GridError
        If a window is no range of wavelengths, or two overlap.

    See Also
    --------
    FitOptions : with ``continuum_degree``.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import CalibratedModel, ContinuumTerms
    >>> ContinuumTerms(1, windows=[(15800, 15900), (16000, 16200)] * u.AA)
    ContinuumTerms(degree=1, windows=((15800.0, 15900.0), (16000.0, 16200.0)))
    >>> ContinuumTerms(1, windows=2).pixels(CalibratedModel.from_pretrained().grid)
    ((0, 1460), (1460, 2920), (2920, 4120), (4120, 5320), (5320, 6243), (6243, 7167))
    """

    degree: int
    windows: Any = None

    def __post_init__(self) -> None:
        check_degree("degree", self.degree)
        object.__setattr__(self, "degree", int(self.degree))
        windows = self.windows
        if isinstance(windows, Integral):
            if isinstance(windows, bool) or windows < 1:
                raise ValueError(f"windows must be a number of windows in each chip, 1 or more, but is {windows!r}")
            windows = int(windows)
        elif windows is not None:
            windows = tuple(sorted(ranges_of(windows, "windows")))
            if not windows:
                raise GridError("windows is empty; give ranges of wavelength, or None for a window of each chip")
            for (low, high), (other, last) in pairwise(windows):
                if other < high:
                    raise GridError(
                        f"windows must not overlap, but {low:g} to {high:g} and {other:g} to {last:g} Angstrom do"
                    )
        object.__setattr__(self, "windows", windows)

    def pixels(self, grid: WavelengthGrid) -> tuple[tuple[int, int], ...]:
        """Find the pixels of each window.

        Parameters
        ----------
        grid : `~cyclestarnet.WavelengthGrid`
            Of the model.

        Returns
        -------
        tuple of (int, int)
            Half-open ranges of pixels, in rising order.

        Raises
        ------
        GridError
            If a window holds pixels of two chips, or no more than its polynomial has coefficients.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import ContinuumTerms, WavelengthGrid
        >>> grid = WavelengthGrid(np.arange(5000, 5100) * u.AA, chips=[(0, 60), (60, 100)])
        >>> ContinuumTerms(2).pixels(grid)
        ((0, 60), (60, 100))
        >>> ContinuumTerms(1, windows=(5070, 5080)).pixels(grid)
        ((70, 81),)
        """
        if isinstance(self.windows, tuple):
            found = self._in_ranges(grid)
            names = [f"the window {low:g} to {high:g} Angstrom" for low, high in self.windows]
        else:
            found = self._in_chips(grid)
            names = ["a window"] * len(found)
        for name, (start, stop) in zip(names, found, strict=True):
            n = max(stop - start, 0)
            if n <= self.degree + 1:
                raise GridError(
                    f"{name} holds {n} pixels of {grid!r}, but a polynomial of degree {self.degree} needs "
                    f"{self.degree + 2} or more"
                )
        return tuple(found)

    def _in_chips(self, grid):
        edges = [np.linspace(start, stop, (self.windows or 1) + 1).astype(int).tolist() for start, stop in grid.chips]
        return [pair for own in edges for pair in pairwise(own)]

    def _in_ranges(self, grid):
        wavelength, found = grid.wavelength.value, []
        for low, high in reversed(self.windows):
            start, stop = int(np.searchsorted(wavelength, low)), int(np.searchsorted(wavelength, high, side="right"))
            if found:
                stop = min(stop, found[0][0])  # a pixel at the edge of two windows belongs to the second
            chips = [(a, b) for a, b in grid.chips if start < b and a < stop]
            if len(chips) > 1:
                parts = [(max(low, wavelength[a]), min(high, wavelength[b - 1])) for a, b in chips]
                raise GridError(
                    f"the window {low:g} to {high:g} Angstrom holds pixels of {len(chips)} chips, whose continua have "
                    f"nothing to do with each other; give {', '.join(f'({a:.7g}, {b:.7g})' for a, b in parts)} instead"
                )
            found.insert(0, (start, stop))
        return found

    def polynomials(self, grid: WavelengthGrid) -> np.ndarray:
        """Make the polynomials of all windows, as large as a continuum may be off.

        Parameters
        ----------
        grid : `~cyclestarnet.WavelengthGrid`
            Of the model.

        Returns
        -------
        array, shape (degree + 1, n_pixels)
            0 outside of the windows. In each window the rows have coefficients of their own, whose prior is a
            Gaussian of unit width.

        Raises
        ------
        GridError
            As of `pixels`.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import ContinuumTerms, WavelengthGrid
        >>> grid = WavelengthGrid(np.arange(5000, 5008) * u.AA)
        >>> ContinuumTerms(1, windows=(5000, 5004)).polynomials(grid).round(3)
        array([[ 0.02,  0.02,  0.02,  0.02,  0.02,  0.  ,  0.  ,  0.  ],
               [-0.02, -0.01,  0.  ,  0.01,  0.02,  0.  ,  0.  ,  0.  ]])
        """
        rows = np.zeros((self.degree + 1, grid.n_pixels))
        for start, stop in self.pixels(grid):
            rows[:, start:stop] = legvander(np.linspace(-1, 1, stop - start), self.degree).T
        return CONTINUUM_ERROR * rows


def check_degree(argument: str, degree: Any, *, or_else: str = "") -> None:
    """Raise if a degree is none that a continuum may have.

    Parameters
    ----------
    argument : str
        What it is called in the message.
    degree : object
        What was given.
    or_else : str, optional
        What else would be right, for the message.

    Raises
    ------
    ValueError
        If it is no whole number from 0 to 10.

    Examples
    --------
    >>> from cyclestarnet.pipeline.continuum_terms import check_degree
    >>> check_degree("degree", 11)
    Traceback (most recent call last):
        ...
    ValueError: degree must be a whole number from 0 to 10, but is 11
    """
    if isinstance(degree, bool) or not isinstance(degree, Integral) or not 0 <= degree <= HIGHEST_DEGREE:
        raise ValueError(f"{argument} must be a whole number from 0 to {HIGHEST_DEGREE}{or_else}, but is {degree!r}")
