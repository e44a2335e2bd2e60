"""Line-spread functions: what an instrument makes of a line, as a sparse matrix on pixels; spectra of lower resolution.

The weights of a pixel are the line-spread function at its neighbours, times a parabola that is next to 1 and makes up
for what sampling changes: their sum, mean and variance are those of the function, however few pixels it has. (The
kernels of `astropy.convolution` are for even pixels, and the same for all of them.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import astropy.units as u
import numpy as np
from astropy.constants import c as LIGHT
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.stats import gaussian_fwhm_to_sigma
from numpy.polynomial import hermite_e
from numpy.typing import ArrayLike
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse import csr_array
from scipy.special import ndtr

from cyclestarnet.blanks import bools_of, floats_of, mask_behind
from cyclestarnet.exceptions import GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid, pixel_edges
from cyclestarnet.spectra import Spectrum, usual_steps

__all__ = ["LineSpreadFunction", "TabulatedLineSpreadFunction", "degrade_resolution"]

Width: TypeAlias = "u.Quantity | ArrayLike"
Axis: TypeAlias = u.Quantity | WavelengthGrid

GAP_FACTOR = 3.0  # a step so many times the usual one is a gap, which nothing is spread across
N_SIGMA = 7.0  # where a Gaussian is cut off; polynomials of Hermite lift its wings
FINE = 2.0  # pixels: a function that ends within is not sampled
WHOLE = 0.999  # of a function that is on the pixels; one that is cut off cannot have its moments
LARGEST_LOSS = 0.05  # of the weight of a pixel, from bad pixels or from beyond the ends
LEAST_GROWTH = 0.5  # of the width: polynomials of Hermite in less would amplify noise


class _OnPixels(ABC):
    """A line-spread function as a matrix; what it is, subclasses say."""

    @abstractmethod
    def _moments(self, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the function of pixels at wavelengths, in Angstrom."""

    @abstractmethod
    def _density(self, offset: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """The function at distances from lines that are seen at wavelengths, both of one shape; of any area."""

    @abstractmethod
    def _reach(self, wavelength: np.ndarray) -> np.ndarray:
        """How far from a line the function is not 0."""

    def _weights(self, wavelength: Axis, at: Axis | None = None) -> tuple[csr_array, np.ndarray]:
        """Weights (m, n) with sums of 1, and the part of each function that is on the pixels, (m,)."""
        source, parts = _pixels_of(wavelength)
        target = source if at is None else _pixels_of(at)[0]
        mean, variance = self._moments(target)
        if not (variance >= 0).all():
            raise ValueError("the variance of the line-spread function is negative: is h2 in hermite right?")
        spread, nearest = np.sqrt(variance), _nearest(source, parts, target)
        step = np.concatenate([np.diff(pixel_edges(source[a:b])) if b - a > 1 else np.ones(1) for a, b in parts])
        lengths = [b - a for a, b in parts]
        first, last = (np.repeat(ends, lengths)[nearest] for ends in ([a for a, _ in parts], [b - 1 for _, b in parts]))
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = [(source[end] - target + mean) / spread for end in (first, last)]
        whole = np.where(spread > 0, ndtr(beyond[1]) - ndtr(beyond[0]), 1.0)

        reach = self._reach(target)
        sampled = reach > FINE * step[nearest]  # of a narrower one, three pixels have the moments
        place = np.where(last - first > 1, np.clip(nearest, first + 1, last - 1), nearest)
        low, high = np.searchsorted(source, target - reach), np.searchsorted(source, target + reach, side="right") - 1
        low = np.maximum(np.where(sampled, low, place - 1), first)
        high = np.minimum(np.where(sampled, high, place + 1), last)
        count = high - low + 1
        rows = np.repeat(np.arange(len(target)), count)
        columns = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        offset, some = target[rows] - source[columns], sampled[rows]
        weight = ((columns == nearest[rows]) | (whole > WHOLE)[rows]).astype(float)
        weight[some] = self._density(offset[some], target[rows][some]) * step[columns[some]]
        total = np.bincount(rows, weight, len(target))[rows]  # 0 if it is all beyond an end
        weight = np.where(total > 0, weight / np.where(total > 0, total, 1.0), columns == nearest[rows])
        # What is cut off at an end cannot have its moments.
        fits = (whole > WHOLE) & (count > 2)
        scale = step[nearest][rows]
        weight *= _corrected(rows, weight, offset / scale, fits, mean / step[nearest], variance / step[nearest] ** 2)
        return csr_array((weight, (rows, columns)), shape=(len(target), len(source))), whole


@dataclass(frozen=True, eq=False)
class LineSpreadFunction(_OnPixels):
    r"""What an instrument makes of a line: a Gaussian, or a series of Gauss and Hermite.

    .. math:: L(x) = \frac{e^{-y^2/2}}{\sqrt{2\pi}\,\sigma} \Big(1 + \sum_n h_n \, \mathrm{He}_n(y)\Big),
        \quad y = x / \sigma,

    of the distance x = (wavelength where it is seen) - (wavelength of the line), with the probabilists' Hermite
    polynomials and the convention of APOGEE's pipeline. The area is 1, the mean h₁ σ, the variance
    (1 + 2 h₂ - h₁²) σ².

    Parameters
    ----------
    width : float, `~astropy.units.Quantity`, or array of shape (n,)
        Resolution R = wavelength / FWHM, if it has no unit; or the FWHM, as a length or a velocity. Of the Gaussian:
        2.3548 σ. An infinite R, or a FWHM of 0, is that of a spectrum no instrument has seen.
    at : `~astropy.units.Quantity`, shape (n,), optional
        Vacuum wavelengths of these values, rising. In between they change linearly, beyond the ends they stay.
        Default: one value, everywhere.
    hermite : array_like, shape (k,) or (n, k), optional
        Coefficients h₁, h₂, … h_k. Default: none, a Gaussian.

    Raises
    ------
    ValueError
        If a width is negative or NaN, ``at`` does not rise, or the shapes do not fit.
    UnitConversionError
        If the unit is none of a length or a velocity.

    References
    ----------
    Nidever et al. 2015, AJ 150, 173, for APOGEE's.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.resolution import LineSpreadFunction
    >>> print(LineSpreadFunction(22500).fwhm(16000 * u.AA).round(3))
    0.711 Angstrom
    >>> skew = LineSpreadFunction([11.5, 13.5] * u.km / u.s, at=[15200, 16900] * u.AA, hermite=[0, 0, 0.02])
    >>> print(skew.fwhm(16050 * u.AA).round(3))
    0.669 Angstrom
    """

    width: Width
    at: u.Quantity | None = None
    hermite: ArrayLike = ()

    def __post_init__(self) -> None:
        unit = getattr(self.width, "unit", None) or u.one
        values = floats_of(self.width)
        if unit.is_equivalent(u.one):
            kind, values = "resolution", values * unit.to(u.one)
        elif unit.is_equivalent(u.AA):
            kind, values = "length", values * unit.to(u.AA)
        elif unit.is_equivalent(u.km / u.s):
            kind, values = "velocity", values * (1 * unit / LIGHT).to_value(u.one)
        else:
            raise u.UnitConversionError(
                f"width must be a resolution without unit, or a FWHM as a length or a velocity, but has unit '{unit}'"
            )
        if not (values > 0).all() if kind == "resolution" else not ((values >= 0) & (values < np.inf)).all():
            raise ValueError(f"width must be positive, but is {self.width!r:.80}")
        at = _places(self.at, values, "width")
        hermite = np.asarray(self.hermite, dtype=float)
        n = 1 if at is None else len(at)
        if hermite.ndim not in (1, 2) or (hermite.ndim == 2 and len(hermite) != n) or not np.isfinite(hermite).all():
            raise ValueError(
                f"hermite must be numbers h1, h2, …, or a row of them for each of {n} wavelengths, but has the shape "
                f"{hermite.shape}, or is not finite"
            )
        hermite = np.broadcast_to(hermite, (n, hermite.shape[-1]))
        own = {"_kind": kind, "_values": np.atleast_1d(values), "_at": at, "_hermite": hermite}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def fwhm(self, wavelength: u.Quantity) -> u.Quantity:
        """Return the full width at half maximum of the Gaussian.

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity`
            In vacuum, of any shape.

        Returns
        -------
        `~astropy.units.Quantity`
            In Angstrom, of the shape of ``wavelength``.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet.resolution import LineSpreadFunction
        >>> print(LineSpreadFunction(20000).fwhm([5000, 6000] * u.AA))
        [0.25 0.3 ] Angstrom
        """
        return self._sigma(u.Quantity(wavelength).to_value(u.AA)) / gaussian_fwhm_to_sigma * u.AA

    def operator(self, wavelength: Axis, at: Axis | None = None) -> csr_array:
        """Make the matrix that turns spectra without an instrument into those that it takes.

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity` of shape (n,), or `~cyclestarnet.WavelengthGrid`
            Vacuum wavelengths of the pixels of a spectrum, rising. Nothing is spread across gaps, or from chip to chip.
        at : `~astropy.units.Quantity` of shape (m,), or `~cyclestarnet.WavelengthGrid`, optional
            Where the instrument has its pixels. Their own width is not added: it is part of a measured line-spread
            function. Default: at ``wavelength``.

        Returns
        -------
        `~scipy.sparse.csr_array`, shape (m, n)
            A row has a sum of 1, and the line-spread function at the wavelength of its pixel. ``flux @ matrix.T``
            is of spectra in rows; ``matrix @ diag(variance) @ matrix.T`` is the covariance of the result. Rows of
            pixels near an end or a gap know one side only.

        Raises
        ------
        GridError
            If wavelengths do not rise, or a pixel of ``at`` is beyond them, or in a gap.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet import WavelengthGrid
        >>> from cyclestarnet.resolution import LineSpreadFunction
        >>> fine = np.arange(5000, 5050, 0.02) * u.AA
        >>> grid = WavelengthGrid(np.arange(5010, 5040, 0.1) * u.AA)
        >>> matrix = LineSpreadFunction(20000).operator(fine, grid)
        >>> matrix.shape, bool(np.allclose(matrix @ np.ones(2500), 1))
        ((300, 2500), True)
        """
        return self._weights(wavelength, at)[0]

    # -- in Angstrom -----------------------------------------------------------------------
    def _sigma(self, wavelength):
        value = self._values[0] if self._at is None else np.interp(wavelength, self._at, self._values)
        with np.errstate(divide="ignore"):
            factor = {"resolution": wavelength / value, "length": value, "velocity": wavelength * value}[self._kind]
        return gaussian_fwhm_to_sigma * np.broadcast_to(factor, np.shape(wavelength))

    def _coefficients(self, wavelength):
        """h1, h2, …, (k, n)."""
        if self._at is None:
            return np.repeat(self._hermite.T, len(wavelength), axis=1)
        out = np.empty((self._hermite.shape[1], len(wavelength)))
        for row, column in zip(out, self._hermite.T, strict=True):
            row[:] = np.interp(wavelength, self._at, column)
        return out

    def _moments(self, wavelength):
        """Mean and variance at wavelengths."""
        sigma, (first, second) = self._sigma(wavelength), np.zeros((2, len(wavelength)))
        h = self._coefficients(wavelength)
        first = h[0] if len(h) > 0 else first
        second = h[1] if len(h) > 1 else second
        return first * sigma, (1 + 2 * second - first**2) * sigma**2

    def _density(self, offset, wavelength):
        """At offsets from lines that are seen at wavelengths; both of one shape."""
        sigma = self._sigma(wavelength)
        y, h = offset / sigma, self._coefficients(wavelength)
        series = np.ones(len(y))
        for n, coefficient in enumerate(h, 1):
            series += coefficient * hermite_e.hermeval(y, [0] * n + [1])
        return series * np.exp(-0.5 * y**2) / sigma

    def _reach(self, wavelength):
        return N_SIGMA * self._sigma(wavelength)


@dataclass(frozen=True, eq=False)
class TabulatedLineSpreadFunction(_OnPixels):
    """A line-spread function as it was measured, in numbers.

    Parameters
    ----------
    offset : `~astropy.units.Quantity`, shape (k,)
        (Wavelength where it is seen) - (wavelength of the line), as a length or a velocity, rising. The function is
        linear between these, and 0 beyond.
    kernel : array_like, shape (k,) or (n, k)
        Its values, in any unit: they are scaled to an area of 1.
    at : `~astropy.units.Quantity`, shape (n,), optional
        Vacuum wavelengths of the rows of ``kernel``, rising. In between the function changes linearly, beyond the ends
        it stays. Default: one function, everywhere.

    Raises
    ------
    ValueError
        If the shapes do not fit, offsets or wavelengths do not rise, or an area is not positive.
    UnitConversionError
        If the unit of ``offset`` is none of a length or a velocity.

    Examples
    --------
    A triangle, as a slit makes it:

    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet.resolution import TabulatedLineSpreadFunction
    >>> slit = TabulatedLineSpreadFunction([-0.3, 0, 0.3] * u.AA, [0, 1, 0])
    >>> seen = slit.operator(np.arange(5000, 5002, 0.1) * u.AA) @ (np.arange(20) == 10)
    >>> seen[7:14].round(3)
    array([0.   , 0.133, 0.217, 0.3  , 0.217, 0.133, 0.   ])
    """

    offset: u.Quantity
    kernel: ArrayLike
    at: u.Quantity | None = None

    def __post_init__(self) -> None:
        unit, offset = getattr(self.offset, "unit", u.one), floats_of(self.offset)
        if unit.is_equivalent(u.km / u.s):
            per_wavelength, offset = True, offset * (1 * unit / LIGHT).to_value(u.one)
        elif unit.is_equivalent(u.AA):
            per_wavelength, offset = False, offset * unit.to(u.AA)
        else:
            raise u.UnitConversionError(f"offset must be a length or a velocity, but has the unit '{unit}'")
        kernel = np.atleast_2d(floats_of(self.kernel))
        if offset.ndim != 1 or len(offset) < 2 or not (np.diff(offset) > 0).all():
            raise ValueError(f"offset must have two values or more that rise, but is {self.offset!r:.80}")
        if kernel.ndim != 2 or kernel.shape[1] != len(offset) or not np.isfinite(kernel).all():
            raise ValueError(
                f"kernel must have a finite value for each of {len(offset)} offsets, but has the shape "
                f"{np.shape(self.kernel)}, or is not finite"
            )
        at = _places(self.at, kernel if len(kernel) > 1 else kernel[0, :1], "kernel")
        # Simpson's rule is exact for squares of distance times what is linear.
        middle, width = 0.5 * (offset[1:] + offset[:-1]), np.diff(offset)
        between = 0.5 * (kernel[:, 1:] + kernel[:, :-1])

        def moment(n):
            ends = kernel * offset**n
            return ((ends[:, :-1] + 4 * between * middle**n + ends[:, 1:]) * width / 6).sum(1)

        area = moment(0)
        if not (area > 0).all():
            raise ValueError(f"the area of kernel must be positive, but is {area.min():g}")
        table = {"_per_wavelength": per_wavelength, "_offset": offset, "_kernel": kernel / area[:, None], "_at": at}
        for name, value in (table | {"_raw": np.array([moment(1), moment(2)]) / area}).items():
            object.__setattr__(self, name, value)

    def operator(self, wavelength: Axis, at: Axis | None = None) -> csr_array:
        """Make the matrix that turns spectra without an instrument into those that it takes.

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity` of shape (n,), or `~cyclestarnet.WavelengthGrid`
            As of `LineSpreadFunction.operator`.
        at : `~astropy.units.Quantity` of shape (m,), or `~cyclestarnet.WavelengthGrid`, optional
            Likewise.

        Returns
        -------
        `~scipy.sparse.csr_array`, shape (m, n)
            Likewise.

        Raises
        ------
        GridError
            If wavelengths do not rise, or a pixel of ``at`` is beyond them, or in a gap.

        Examples
        --------
        >>> import numpy as np, astropy.units as u
        >>> from cyclestarnet.resolution import TabulatedLineSpreadFunction
        >>> slit = TabulatedLineSpreadFunction([-12, 0, 12] * u.km / u.s, [0, 1, 0])
        >>> slit.operator(np.arange(5000, 5002, 0.05) * u.AA, [5000.5, 5001] * u.AA).shape
        (2, 40)
        """
        return self._weights(wavelength, at)[0]

    def _scale(self, wavelength):
        return wavelength if self._per_wavelength else np.ones_like(wavelength)

    def _moments(self, wavelength):
        at = wavelength[:1] if self._at is None else self._at
        first, second = (np.interp(wavelength, at, values) for values in self._raw)
        return first * self._scale(wavelength), (second - first**2) * self._scale(wavelength) ** 2

    def _density(self, offset, wavelength):
        x = offset / self._scale(wavelength)
        if self._at is None:
            return np.interp(x, self._offset, self._kernel[0], left=0.0, right=0.0)
        table = RegularGridInterpolator((self._at, self._offset), self._kernel, bounds_error=False, fill_value=0.0)
        return table(np.stack([np.clip(wavelength, self._at[0], self._at[-1]), x], axis=1))

    def _reach(self, wavelength):
        return np.abs(self._offset).max() * self._scale(wavelength)


def degrade_resolution(
    spectrum: Spectrum,
    from_resolution: Width | LineSpreadFunction,
    to_resolution: Width | LineSpreadFunction | TabulatedLineSpreadFunction,
) -> Spectrum:
    r"""Make a spectrum of lower resolution, as another instrument would have taken it.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Flux of shape (n_pixels,), or (n, n_pixels), in any unit, with or without an uncertainty, on vacuum wavelengths
        that rise or fall. The object is not changed.
    from_resolution : float, `~astropy.units.Quantity` or `LineSpreadFunction`
        Which it has: R = wavelength / FWHM, a FWHM as a length or a velocity, or a Gaussian `LineSpreadFunction` that
        changes with wavelength. ``np.inf`` is that of a synthetic spectrum that no instrument has seen.
    to_resolution : float, `~astropy.units.Quantity`, `LineSpreadFunction` or `TabulatedLineSpreadFunction`
        Which it shall have. One that is tabulated needs ``from_resolution=np.inf``.

    Returns
    -------
    `~specutils.Spectrum`
        On the same pixels, with the same kind of uncertainty. Its ``meta["resolution"]`` says from what to what.

    Raises
    ------
    TypeError
        If ``spectrum`` is not a `~specutils.Spectrum`.
    SpectrumError
        If the spectrum would have to get sharper anywhere, or one line-spread function cannot be made of the other.
    GridError
        If the spectral axis is no wavelength, or neither rises nor falls.

    See Also
    --------
    LineSpreadFunction.operator : the same as a matrix, for many spectra, or onto other pixels.

    Notes
    -----
    Two Gaussians differ by a Gaussian of :math:`\sigma^2 = \sigma_\mathrm{to}^2 - \sigma_\mathrm{from}^2`, with which
    each pixel is convolved, at its own wavelength. The area of a line stays. A pixel of which more than 5 % of the
    weight is that of bad pixels, or beyond an end or a gap, is masked, so that masks spread; where it is less, the
    others are scaled up.

    Convolution correlates the noise of neighbours, which an uncertainty per pixel cannot tell. The scatter of a single
    pixel becomes smaller, :math:`\sum_j W_{ij}^2 \sigma_j^2`; but a fit that took pixels with that error for
    independent would count the same noise several times. The variance that comes out is therefore
    :math:`\sum_j W_{ij} \sigma_j^2`, with which features that are wider than the convolution, and labels, have the
    errors that they had. The price is that χ² per pixel comes out below 1. It is the choice of
    `~cyclestarnet.spectra.to_pixels`, too. The whole covariance is that of `LineSpreadFunction.operator`.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from cyclestarnet.resolution import degrade_resolution
    >>> from cyclestarnet.spectra import Spectrum
    >>> wavelength, mask = np.arange(5000, 5010, 0.02), np.arange(500) == 250
    >>> sharp = Spectrum(
    ...     flux=np.ones(500) * u.one,
    ...     spectral_axis=wavelength * u.AA,
    ...     uncertainty=StdDevUncertainty(np.full(500, 0.01)),
    ...     mask=mask,
    ... )
    >>> blunt = degrade_resolution(sharp, 60_000, 22_500)
    >>> int(blunt.mask[200:300].sum()), round(float(blunt.uncertainty.array[100]), 6)
    (9, 0.01)
    >>> degrade_resolution(sharp, 22_500, 60_000)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.SpectrumError: the spectrum has a FWHM of 0.2222 Angstrom at 5000 Angstrom, and cannot ...
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a specutils.Spectrum, but is a {type(spectrum).__name__}")
    last = spectrum.flux.ndim - 1
    if last > 1 or getattr(spectrum, "spectral_axis_index", last) != last:
        raise SpectrumError(
            f"flux must have the shape (n_pixels,) or (n, n_pixels), wavelengths last, but has {spectrum.flux.shape}"
        )
    has, wanted = (_function(given) for given in (from_resolution, to_resolution))
    wavelength = _wavelength(spectrum.spectral_axis)
    way = slice(None) if wavelength[0] < wavelength[-1] else slice(None, None, -1)
    rising = wavelength[way]
    matrix, whole = _difference(has, wanted, rising)._weights(rising * u.AA)
    flux, variance, good = _arrays(spectrum)
    size = abs(matrix)
    size = csr_array(size / size.sum(1)[:, None])  # of series of Hermite weights may be negative

    def spread(rows, by):
        return (by @ rows[..., way].reshape(-1, len(rising)).T).T[:, way].reshape(rows.shape)

    missing = 1 - whole[way] * spread(good.astype(float), size)
    known = missing <= LARGEST_LOSS
    weight, share = (np.where(known, spread(good.astype(float), by), 1.0) for by in (matrix, size))
    blunt = np.where(known, spread(np.where(good, flux, 0.0), matrix) / weight, np.nan)
    uncertainty, given = None, spectrum.uncertainty
    if given is not None:
        variance = np.where(known, spread(np.where(good, variance, 0.0), size) / share, np.nan)
        if isinstance(given, InverseVariance):
            uncertainty = InverseVariance(np.where(known, 1 / variance, 0.0), unit=given.unit)
        else:
            array = np.sqrt(variance) if isinstance(given, StdDevUncertainty) else variance
            uncertainty = type(given)(array, unit=given.unit)
    return Spectrum(
        flux=blunt * spectrum.flux.unit,
        spectral_axis=spectrum.spectral_axis,
        spectral_axis_index=last,
        uncertainty=uncertainty,
        mask=~known,
        meta=dict(spectrum.meta) | {"resolution": f"from {_words(from_resolution)} to {_words(to_resolution)}"},
    )


def _words(given):
    if isinstance(given, _OnPixels):
        return "a line-spread function"
    unit = getattr(given, "unit", None)
    return f"R = {given:g}" if unit is None and np.ndim(given) == 0 else f"FWHM = {given}"


def _function(given):
    """A line-spread function, or the one that a resolution or FWHM stands for."""
    if isinstance(given, _OnPixels):
        return given
    if np.ndim(given):
        raise ValueError(
            "a resolution must be one value; one that changes is LineSpreadFunction(values, at=wavelengths)"
        )
    return LineSpreadFunction(given)


def _difference(has, wanted, wavelength):
    """What makes a spectrum of the second line-spread function of one of the first."""
    if not isinstance(has, LineSpreadFunction) or np.any(has.hermite):
        raise SpectrumError("from_resolution must be that of a Gaussian: nothing else can be taken away in closed form")
    if not has.fwhm(wavelength * u.AA).value.any():
        return wanted
    if not isinstance(wanted, LineSpreadFunction):
        raise SpectrumError(
            "a tabulated line-spread function can be reached from from_resolution=np.inf only, from spectra that no "
            "instrument has seen: what lies between it and another one is not known"
        )
    own, before = wanted._sigma(wavelength), has._sigma(wavelength)
    _check_growth(own, before, wavelength)
    sigma, h = np.sqrt((own**2 - before**2).clip(0)), wanted._coefficients(wavelength)
    if np.any((h != 0) & (sigma < LEAST_GROWTH * own)):
        raise SpectrumError(
            "the line-spread function that is to be reached is no Gaussian, and hardly wider than that which the "
            "spectrum has: its shape cannot be made out of so small a difference"
        )
    # He_n(x/σ) times a Gaussian of σ is its nth derivative times (-σ)^n, and derivatives pass through a convolution.
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.where(h == 0, 0.0, h * (own / sigma) ** np.arange(1, len(h) + 1)[:, None])
    return LineSpreadFunction(sigma / gaussian_fwhm_to_sigma * u.AA, at=wavelength * u.AA, hermite=h.T)


def _check_growth(own, has, wavelength):
    """Raise if a line-spread function is narrower than that which a spectrum has."""
    narrower = own < has * (1 - 1e-9)
    if narrower.any():
        k = np.argmax(narrower)
        before, after = (sigma[k] / gaussian_fwhm_to_sigma for sigma in (has, own))
        raise SpectrumError(
            f"the spectrum has a FWHM of {before:.4g} Angstrom at {wavelength[k]:.0f} Angstrom, and cannot get one of "
            f"{after:.4g}: resolution can only be lowered. Were from_resolution and to_resolution interchanged?"
        )


def _arrays(spectrum):
    """Flux, variance and which pixels are good, (..., n_pixels)."""
    flux = floats_of(spectrum.flux.value)
    good = np.isfinite(flux)
    if spectrum.mask is not None:
        good &= ~np.broadcast_to(bools_of(spectrum.mask), flux.shape)
    given = spectrum.uncertainty
    if given is None:
        return flux, None, good
    if not isinstance(given, StdDevUncertainty | VarianceUncertainty | InverseVariance):
        raise SpectrumError(
            "uncertainty must be a StdDevUncertainty, VarianceUncertainty or InverseVariance, "
            f"but is {type(given).__name__}"
        )
    hidden, array = mask_behind(given.array), floats_of(given.array)
    with np.errstate(all="ignore"):  # what comes of 0 and NaN is sorted out below
        variance = type(given)(array).represent_as(VarianceUncertainty).array
    good &= (variance > 0) & (variance < np.inf) & ~(array < 0)
    return flux, variance, good if hidden is None else good & ~hidden


# -- pixels --------------------------------------------------------------------------------
def _wavelength(axis):
    """Wavelengths in Angstrom of a spectral axis, in its own direction."""
    try:
        return u.Quantity(axis.value, axis.unit, dtype=float).to_value(u.AA, u.spectral())
    except u.UnitConversionError:
        raise GridError(
            f"the spectral axis has the unit '{axis.unit}', but must be a wavelength, frequency, energy or wavenumber"
        ) from None


def _places(at, values, name):
    """Wavelengths of values in Angstrom; None for a single one."""
    if at is None:
        if np.ndim(values):
            if len(values) == 1 and np.ndim(values) == 1:
                return None
            raise ValueError(f"{name} has the shape {np.shape(values)}; say at which wavelengths, by at=")
        return None
    places = u.Quantity(at).to_value(u.AA)
    if places.ndim != 1 or len(places) < 2 or not (np.diff(places) > 0).all() or len(places) != np.shape(values)[:1][0]:
        raise ValueError(
            f"at must be two wavelengths or more that rise, one for each value of {name}, but is {at!r:.80}"
        )
    return places


def _pixels_of(axis: Axis) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Wavelengths in Angstrom, and ranges of pixels without a gap."""
    if isinstance(axis, WavelengthGrid):
        return axis.wavelength.value, list(axis.chips)
    wavelength = u.Quantity(axis, dtype=float).to_value(u.AA)
    if wavelength.ndim != 1 or len(wavelength) < 2 or not (np.diff(wavelength) > 0).all():
        raise GridError("wavelength must be one-dimensional, with 2 pixels or more, and rise")
    step = np.diff(wavelength)
    cuts = [0, *(np.flatnonzero(step > GAP_FACTOR * usual_steps(step)) + 1).tolist(), len(wavelength)]
    return wavelength, list(pairwise(cuts))


def _nearest(source: np.ndarray, parts: list[tuple[int, int]], target: np.ndarray) -> np.ndarray:
    """Pixels of a spectrum that are nearest to wavelengths; raises if one is beyond them, or in a gap."""
    nearest = np.full(len(target), -1)
    for start, stop in parts:
        edges = pixel_edges(source[start:stop]) if stop - start > 1 else source[[start, start]]
        inside = (target >= edges[0]) & (target <= edges[-1])
        nearest[inside] = start + np.clip(np.searchsorted(edges, target[inside]) - 1, 0, stop - start - 1)
    if (nearest < 0).any():
        first = target[np.argmax(nearest < 0)]
        raise GridError(
            f"{(nearest < 0).sum()} of {len(target)} pixels, first at {first:.2f} Angstrom, are beyond the wavelengths "
            f"of the spectrum, {source[0]:.2f} to {source[-1]:.2f} Angstrom, or in a gap of them"
        )
    return nearest


def _corrected(
    rows: np.ndarray, weight: np.ndarray, offset: np.ndarray, fits: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Factors on weights, a parabola of the offset in each row that ``fits``, that bring about mean and variance."""
    n = len(fits)
    sums = [np.bincount(rows, weight * offset**k, n)[fits] for k in range(5)]
    matrix = np.array([[sums[i + k] for k in range(3)] for i in range(3)]).transpose(2, 0, 1)
    wanted = np.stack([np.ones(n), mean, variance + mean**2], axis=1)[fits]
    parabola = np.zeros((n, 3))
    parabola[:, 0] = 1.0
    parabola[fits] = (np.linalg.pinv(matrix, rcond=1e-12, hermitian=True) @ wanted[..., None])[..., 0]
    return (parabola[rows] * offset[:, None] ** np.arange(3)).sum(1)
