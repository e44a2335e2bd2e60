"""Continuum normalisation: the recipe of Ting et al. (2019), as data a model carries.

Synthetic, observed and real spectra must all pass through the same recipe with
the same pixels; only then does a difference between them mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import astropy.units as u
import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of, mask_of
from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import SPEED_OF_LIGHT, WavelengthGrid

__all__ = ["ContinuumRecipe"]

# The variance of a polynomial at a pixel, in units of that of a typical continuum pixel, beyond which the continuum is
# not known there. Spectra of real giants reach 0.8, and 1.3 with a sky line at an edge; where a polynomial runs away it
# is hundreds.
LARGEST_VARIANCE = 3.0
FEWEST_PIXELS = 3  # that tell the level of a chip
COUNTS = 1e-2  # of nearly the largest weight: pixels with less are as good as bad, and some files mark bad ones so


@dataclass(frozen=True, eq=False)
class ContinuumRecipe:
    """Chebyshev polynomial per chip through listed continuum pixels, weighted by the errors.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels and chips. Each chip has a polynomial of its own, in ln(wavelength).
    pixels : array_like of bool, shape (n_pixels,)
        True for the continuum pixels.
    degree : int, optional
        Degree of the polynomial. Default: 4, as published.

    Raises
    ------
    GridError
        If a chip has too few continuum pixels for the polynomial.

    References
    ----------
    Ting et al. 2019, ApJ 879, 69, Section 4.1.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
    >>> grid = WavelengthGrid(np.linspace(1500, 1510, 100) * u.nm)
    >>> recipe = ContinuumRecipe(grid, np.arange(100) % 5 == 0)
    >>> recipe(3.0 * np.ones(100), np.ones(100))[:2]
    array([3., 3.])
    """

    grid: WavelengthGrid
    pixels: np.ndarray
    degree: int = 4

    def __post_init__(self) -> None:
        unknown = mask_of(self.pixels)
        pixels = np.array(np.ma.getdata(self.pixels), dtype=bool)
        if unknown is not None:
            pixels &= ~unknown  # not known to be continuum
        if pixels.shape != (self.grid.n_pixels,):
            raise GridError(f"pixels must have shape ({self.grid.n_pixels},), but has {pixels.shape}")
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)
        for number, (start, stop) in enumerate(self.grid.chips):
            if pixels[start:stop].sum() <= self.degree:
                raise GridError(
                    f"Chip {number} has {pixels[start:stop].sum()} continuum pixels; "
                    f"a polynomial of degree {self.degree} needs {self.degree + 1} or more"
                )

    @classmethod
    def from_wavelengths(
        cls, grid: WavelengthGrid, wavelengths: u.Quantity | ArrayLike, degree: int = 4
    ) -> ContinuumRecipe:
        """Make the recipe whose continuum pixels lie at listed wavelengths.

        Parameters
        ----------
        grid : `~cyclestarnet.WavelengthGrid`
            Pixels and chips.
        wavelengths : `~astropy.units.Quantity` or array_like, shape (n,)
            In vacuum; numbers are in Angstrom. Those within no pixel of the
            grid, in the gap between two chips for instance, are ignored.
        degree : int, optional
            Degree of the polynomial. Default: 4, as published.

        Returns
        -------
        `ContinuumRecipe`

        Raises
        ------
        GridError
            If a chip has too few continuum pixels for the polynomial.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
        >>> grid = WavelengthGrid(np.linspace(1500, 1510, 11) * u.nm)
        >>> recipe = ContinuumRecipe.from_wavelengths(grid, [1502.1, 1505, 1507.8, 1999] * u.nm, degree=2)
        >>> np.flatnonzero(recipe.pixels)
        array([2, 5, 8])
        """
        unit = getattr(wavelengths, "unit", None) or u.AA
        wanted = (floats_of(wavelengths) * unit).to_value(u.AA)
        wanted = wanted[np.isfinite(wanted)]
        pixels = np.zeros(grid.n_pixels, dtype=bool)
        for chip in grid.chips:
            _mark(pixels, grid, chip, wanted)
        return cls(grid, pixels, degree)

    def moved(self, velocity: float) -> ContinuumRecipe:
        """Make the recipe for a star that moves: its continuum pixels are elsewhere.

        Parameters
        ----------
        velocity : float
            Radial velocity in km/s, positive = receding.

        Returns
        -------
        `ContinuumRecipe`
            With the continuum pixels that are still on their chip.

        Raises
        ------
        GridError
            If a chip has too few of them for the polynomial.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
        >>> grid = WavelengthGrid(np.linspace(1500, 1510, 101) * u.nm)
        >>> recipe = ContinuumRecipe.from_wavelengths(grid, [1502.1, 1505, 1507.8] * u.nm, degree=1)
        >>> np.flatnonzero(recipe.moved(100.0).pixels)  # 5 of 15,000 Angstrom
        array([26, 55, 83])
        """
        shifted = self.grid.wavelength.value * (1 + velocity / SPEED_OF_LIGHT)
        pixels = np.zeros(self.grid.n_pixels, dtype=bool)
        for start, stop in self.grid.chips:
            _mark(pixels, self.grid, (start, stop), shifted[start:stop][self.pixels[start:stop]])
        return ContinuumRecipe(self.grid, pixels, self.degree)

    @cached_property
    def _bases(self) -> list[np.ndarray]:
        """Chebyshev polynomials of each chip, shape (n_chip, degree + 1)."""
        # The polynomial runs in ln(wavelength), which is the pixel number on an apStar grid.
        axis = np.log(self.grid.wavelength.value)
        bases = []
        for start, stop in self.grid.chips:
            low, high = axis[start], axis[stop - 1]
            position = (2 * axis[start:stop] - low - high) / (high - low)
            bases.append(np.polynomial.chebyshev.chebvander(position, self.degree))
        return bases

    def __call__(self, flux: ArrayLike, ivar: ArrayLike) -> np.ndarray:
        """Return the continuum of one or many spectra.

        Parameters
        ----------
        flux : array_like, shape (..., n_pixels)
            Flux in any unit. It may be NaN where ``ivar`` is 0.
        ivar : array_like, shape (..., n_pixels)
            Inverse variance; pixels with 0 or NaN take no part.

        Returns
        -------
        array, shape (..., n_pixels), float64
            In the unit of the flux; NaN where it is not known, as `fit` says, and 1 on a chip without any good pixel.
        """
        return self.fit(flux, ivar)[0]

    def fit(self, flux: ArrayLike, ivar: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the continuum of one or many spectra, and the degree of each chip's polynomial.

        Where bad pixels leave a part of a chip without continuum pixels, a
        polynomial runs away. The continuum is not known where its variance,

        .. math:: \sum_{kl} T_k(\lambda) \, (N^{-1})_{kl} \, T_l(\lambda), \quad
            N_{kl} = \sum_p w_p \, T_k(\lambda_p) \, T_l(\lambda_p),

        with Chebyshev polynomials :math:`T`, continuum pixels :math:`p` and
        weights in units of a typical one's, exceeds 3. If it were not known in
        more than half of the good pixels of a chip, the degree is lowered. A
        chip with fewer than three good continuum pixels has no continuum.

        Parameters
        ----------
        flux : array_like, shape (..., n_pixels)
            Flux in any unit. It may be NaN where ``ivar`` is 0.
        ivar : array_like, shape (..., n_pixels)
            Inverse variance; pixels with 0 or NaN take no part.

        Returns
        -------
        continuum : array, shape (..., n_pixels), float64
            In the unit of the flux; NaN where it is not known, and 1 on a chip without any good pixel.
        degrees : array of int, shape (..., n_chips)
            ``degree`` or lower; -1 for a chip that has no good pixel, or no continuum.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
        >>> grid = WavelengthGrid(np.linspace(1500, 1510, 100) * u.nm)
        >>> recipe = ContinuumRecipe(grid, np.arange(100) % 5 == 0)
        >>> ivar = np.ones(100)
        >>> ivar[55:100:5] = 0  # continuum pixels, but not their neighbours
        >>> continuum, degrees = recipe.fit(np.full(100, 3.0), ivar)
        >>> degrees, np.isfinite(continuum)[[0, 50, 99]]
        (array([4]), array([ True,  True, False]))
        """
        flux, ivar = np.broadcast_arrays(floats_of(flux), floats_of(ivar))
        shape = flux.shape
        flux, ivar = flux.reshape(-1, shape[-1]), ivar.reshape(-1, shape[-1])
        continuum, degrees = np.ones(flux.shape), np.full((len(flux), len(self.grid.chips)), -1)
        for number, ((start, stop), basis) in enumerate(zip(self.grid.chips, self._bases, strict=True)):
            listed, part = np.flatnonzero(self.pixels[start:stop]), slice(start, stop)
            alive = np.flatnonzero((ivar[:, part] > 0).any(1))  # a chip without data keeps a continuum of 1
            weight = ivar[np.ix_(alive, start + listed)]
            # A weight this small has no say, but would hide that the others do not determine the polynomial.
            weight = np.where(weight > 0, weight, 0.0)
            good = weight > 1e-12 * weight.max(axis=1, keepdims=True, initial=0.0)
            weight = np.where(good, weight, 0.0)
            values = np.where(good, flux[np.ix_(alive, start + listed)], 0.0)
            continuum[alive, part], degrees[alive, number] = _polynomials(
                basis, listed, values, weight, ivar[alive, part]
            )
        return continuum.reshape(shape), degrees.reshape(*shape[:-1], len(self.grid.chips))


def _mark(pixels: np.ndarray, grid: WavelengthGrid, chip: tuple[int, int], wavelengths: np.ndarray) -> None:
    """Set the pixels of a chip that hold some wavelengths to True."""
    start, stop = chip
    within = np.searchsorted(grid.edges(chip), wavelengths, side="right") - 1
    pixels[start + within[(within >= 0) & (within < stop - start)]] = True


def _polynomials(
    basis: np.ndarray, listed: np.ndarray, values: np.ndarray, weight: np.ndarray, ivar: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Polynomials (n, n_chip) through the listed pixels of a chip, each of the highest degree that they determine."""
    continuum, degrees = np.full(ivar.shape, np.nan), np.full(len(ivar), -1)
    high = np.array([np.percentile(row[row > 0], 90) if row.any() else np.inf for row in weight])[:, None]
    sure, counts = weight > COUNTS * high, ivar > COUNTS * high
    typical = np.array([np.median(row[own]) if own.any() else 1.0 for row, own in zip(weight, sure, strict=True)])
    n_sure = sure.sum(1)
    rows = np.flatnonzero(n_sure >= FEWEST_PIXELS)
    for degree in range(basis.shape[1] - 1, -1, -1):
        tried = rows[n_sure[rows] > degree]
        part, scale = basis[:, : degree + 1], weight[tried].max(axis=1, keepdims=True, initial=1e-300)
        design, scaled = part[listed], weight[tried] / scale
        normal = np.einsum("ip,pk,pl->ikl", scaled, design, design, optimize=True)
        right = np.einsum("ip,pk->ik", scaled * values[tried], design)
        variance = np.einsum("pk,ikl,pl->ip", part, np.linalg.inv(normal), part, optimize=True)
        variance *= typical[tried, None] / scale
        known = (variance < LARGEST_VARIANCE) | (degree == 0)
        fine = 2 * (known & counts[tried]).sum(1) >= counts[tried].sum(1)
        chosen = tried[fine]
        polynomial = np.linalg.solve(normal[fine], right[fine, :, None])[..., 0] @ part.T
        continuum[chosen] = np.where(known[fine], polynomial, np.nan)
        degrees[chosen] = degree
        rows = np.setdiff1d(rows, chosen)
    return continuum, degrees
