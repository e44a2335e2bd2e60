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
from cyclestarnet.exceptions import GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid

__all__ = ["ContinuumRecipe"]


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
        for start, stop in grid.chips:
            edges = grid.edges((start, stop))
            within = np.searchsorted(edges, wanted, side="right") - 1
            pixels[start + within[(within >= 0) & (within < stop - start)]] = True
        return cls(grid, pixels, degree)

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
            In the unit of the flux; 1 on a chip without any good pixel.

        Raises
        ------
        SpectrumError
            If a chip that has good pixels at all has too few good continuum pixels.
        """
        flux, ivar = np.broadcast_arrays(floats_of(flux), floats_of(ivar))
        shape = flux.shape
        flux, ivar = flux.reshape(-1, shape[-1]), ivar.reshape(-1, shape[-1])
        continuum = np.ones(flux.shape)
        for (start, stop), basis in zip(self.grid.chips, self._bases, strict=True):
            listed = np.flatnonzero(self.pixels[start:stop])
            weight = ivar[:, start:stop][:, listed]
            # A weight this small has no say, but would hide that the others do not determine the polynomial.
            weight = np.where(weight > 0, weight, 0.0)
            good = weight > 1e-12 * weight.max(axis=1, keepdims=True, initial=0.0)
            weight = np.where(good, weight, 0.0)
            alive = (ivar[:, start:stop] > 0).any(1)  # a chip without data keeps a continuum of 1
            few = alive & (good.sum(1) <= self.degree)
            if few.any():
                raise SpectrumError(
                    f"Only {good[few][0].sum()} good continuum pixels between "
                    f"{self.grid.wavelength[start]:.1f} and {self.grid.wavelength[stop - 1]:.1f}; "
                    f"the recipe needs {self.degree + 1} or more"
                )
            values = np.where(good, flux[:, start:stop][:, listed], 0.0)[alive]
            weight = weight[alive] / weight[alive].max(axis=1, keepdims=True, initial=1e-300)
            design = basis[listed]
            normal = np.einsum("ip,pk,pl->ikl", weight, design, design, optimize=True)
            right = np.einsum("ip,pk->ik", weight * values, design)
            continuum[alive, start:stop] = np.linalg.solve(normal, right[..., None])[..., 0] @ basis.T
        return continuum.reshape(shape)
