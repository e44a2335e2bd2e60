"""Wavelength grids: the pixels that a model knows, in vacuum and at rest.

A grid is data, never a constant: it travels inside every saved model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, TypeAlias

import astropy.units as u
import numpy as np
from specutils import SpectralRegion

from cyclestarnet.blanks import mask_of
from cyclestarnet.exceptions import GridError

__all__ = [
    "SPEED_OF_LIGHT",
    "WavelengthGrid",
    "Window",
    "air_to_vacuum",
    "apogee_grid",
    "pixel_edges",
    "range_of",
    "ranges_of",
]

Edge: TypeAlias = u.Quantity | float
Window: TypeAlias = tuple[Edge, Edge] | u.Quantity | SpectralRegion

SPEED_OF_LIGHT = 299792.458
"""In km/s, for arrays without units."""

# apStar files: vacuum, rest frame, log10(wavelength / Angstrom) = 4.179 + 6e-6 i.
APSTAR_LOG10_START, APSTAR_LOG10_STEP = 4.179, 6e-6
# Pixel ranges of the three detectors kept by ASPCAP (DR12).
APSTAR_CHIPS = ((322, 3242), (3648, 6048), (6412, 8306))


@dataclass(frozen=True, eq=False)
class WavelengthGrid:
    """Vacuum rest-frame wavelengths of a model's pixels.

    Parameters
    ----------
    wavelength : `~astropy.units.Quantity`, shape (n_pixels,)
        Vacuum wavelengths of the pixel centres in any unit of length, strictly
        increasing. They are kept in Angstrom, in float64.
    chips : sequence of (int, int), optional
        Half-open pixel ranges that lie on one detector each. The continuum is
        normalised chip by chip and no pixel reaches across their edges.
        Default: one chip.

    Raises
    ------
    GridError
        If the wavelengths are not positive and increasing, or the chips do not
        tile the pixels or have fewer than 2.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet import WavelengthGrid
    >>> grid = WavelengthGrid(np.linspace(500, 510, 101) * u.nm)
    >>> grid.n_pixels
    101
    """

    wavelength: u.Quantity
    chips: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        try:
            if mask_of(self.wavelength) is not None:
                raise GridError("wavelength is masked: a pixel without a wavelength is none; leave it out")
            wavelength = u.Quantity(self.wavelength, dtype=float).to(u.AA)
        except (u.UnitConversionError, TypeError) as error:
            raise GridError(
                f"wavelength must have a unit of length, for example u.AA, but got {self.wavelength!r:.60}"
            ) from error
        values = wavelength.value
        if values.ndim != 1 or len(values) < 2:
            raise GridError(f"wavelength must be one-dimensional with 2 or more pixels, but has shape {values.shape}")
        if not np.all(np.isfinite(values)) or not np.all(np.diff(values) > 0) or values[0] <= 0:
            raise GridError("wavelength must be finite, positive and strictly increasing")
        wavelength.flags.writeable = False  # of the array itself: .value is a new view each time
        chips = tuple((int(a), int(b)) for a, b in self.chips) or ((0, len(values)),)
        edges = [0] + [b for _, b in chips]
        if edges[-1] != len(values) or any(a != e or b <= a for (a, b), e in zip(chips, edges, strict=False)):
            raise GridError(f"chips must tile the pixels 0 ... {len(values)} without gaps, but are {chips}")
        if any(b - a < 2 for a, b in chips):
            raise GridError(f"every chip must have 2 or more pixels, but chips are {chips}")
        object.__setattr__(self, "wavelength", wavelength)
        object.__setattr__(self, "chips", chips)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return len(self.wavelength)

    def __len__(self) -> int:
        return self.n_pixels

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WavelengthGrid):
            return NotImplemented
        return self.chips == other.chips and np.array_equal(self.wavelength.value, other.wavelength.value)

    __hash__ = None

    def __repr__(self) -> str:
        low, high = self.wavelength[[0, -1]].value
        return (
            f"<WavelengthGrid {low:.1f}-{high:.1f} Angstrom (vacuum), {self.n_pixels} pixels, {len(self.chips)} chips>"
        )

    def edges(self, chip: tuple[int, int]) -> np.ndarray:
        """Edges of the pixels of one chip, halfway between their centres.

        Parameters
        ----------
        chip : (int, int)
            Half-open range of pixels, such as one of ``chips``.

        Returns
        -------
        array, shape (n + 1,)
            In Angstrom.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet import WavelengthGrid
        >>> grid = WavelengthGrid([1500, 1501, 1502, 1510, 1511] * u.nm, chips=[(0, 3), (3, 5)])
        >>> grid.edges(grid.chips[1])
        array([15095., 15105., 15115.])
        """
        start, stop = chip
        return pixel_edges(self.wavelength.value[start:stop])


def pixel_edges(centres: np.ndarray) -> np.ndarray:
    """Edges of pixels, halfway between their centres; the outer pixels are symmetric.

    Parameters
    ----------
    centres : array, shape (n,)
        Two or more, rising.

    Returns
    -------
    array, shape (n + 1,)
        In the unit of the centres.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.grid import pixel_edges
    >>> pixel_edges(np.array([1.0, 2.0, 4.0]))
    array([0.5, 1.5, 3. , 5. ])
    """
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def apogee_grid(n_pixels: int = 7167, *, cut: Literal["red", "blue"] = "red") -> WavelengthGrid:
    """Return the APOGEE grid of Cycle-StarNet: ASPCAP's DR12 pixels, cut at one end.

    Parameters
    ----------
    n_pixels : int, optional
        So many of the 7214 pixels are kept. Default: 7167, the length that
        the paper's network takes.
    cut : {"red", "blue"}, optional
        The end at which pixels are dropped: the red one as in the paper (its
        Appendix A drops 47 pixels of the red chip), or the blue one as in its
        authors' repository, with which the published weights were trained.

    Returns
    -------
    `WavelengthGrid`

    Raises
    ------
    GridError
        If there are not that many pixels, or a chip is left with fewer than 2.
    ValueError
        If ``cut`` is neither end.

    Examples
    --------
    >>> from cyclestarnet.grid import apogee_grid
    >>> apogee_grid()
    <WavelengthGrid 15168.1-16925.8 Angstrom (vacuum), 7167 pixels, 3 chips>
    >>> apogee_grid(cut="blue")
    <WavelengthGrid 15178.0-16936.7 Angstrom (vacuum), 7167 pixels, 3 chips>
    """
    index = np.concatenate([np.arange(a, b) for a, b in APSTAR_CHIPS])
    if not 2 <= n_pixels <= len(index):
        raise GridError(f"n_pixels must be between 2 and {len(index)}, but is {n_pixels}")
    if cut not in ("red", "blue"):
        raise ValueError(f"cut must be 'red' or 'blue', but is {cut!r}")
    first = 0 if cut == "red" else len(index) - n_pixels
    index = index[first : first + n_pixels]
    edges = np.cumsum([0] + [b - a for a, b in APSTAR_CHIPS]) - first
    chips = [(a, b) for a, b in pairwise(edges.clip(0, n_pixels).tolist()) if a < b]
    return WavelengthGrid(10 ** (APSTAR_LOG10_START + APSTAR_LOG10_STEP * index) * u.AA, tuple(chips))


def air_to_vacuum(wavelength: u.Quantity) -> u.Quantity:
    """Convert air wavelengths to vacuum (Ciddor 1996, standard air, as used by the IAU and VALD).

    Parameters
    ----------
    wavelength : `~astropy.units.Quantity`
        Wavelengths in standard air, longward of 200 nm, of any shape; a
        spectral axis in air as well. NaN stays.

    Returns
    -------
    `~astropy.units.Quantity`
        Vacuum wavelengths in the unit that came in.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import air_to_vacuum
    >>> print(f"{air_to_vacuum(15163.067 * u.AA):.3f}")
    15167.211 Angstrom
    """
    air = u.Quantity(wavelength)
    vacuum = air
    for _ in range(3):  # the index is a function of the vacuum wavelength: iterate
        wavenumber2 = (1 / vacuum.to_value(u.um)) ** 2
        index = 1 + 0.05792105 / (238.0185 - wavenumber2) + 0.00167917 / (57.362 - wavenumber2)
        vacuum = air * index
    return vacuum


def range_of(window: Window, argument: str = "window") -> tuple[float, float]:
    """Turn a range of wavelengths into two numbers.

    Parameters
    ----------
    window : (low, high), `~astropy.units.Quantity` of shape (2,) or `~specutils.SpectralRegion`
        Vacuum wavelengths, or what can be converted to them. Plain numbers are in Angstrom.
    argument : str, optional
        What the range is called in messages.

    Returns
    -------
    low, high : float
        In Angstrom.

    Raises
    ------
    GridError
        If this is no such range, or it does not begin before it ends.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.grid import range_of
    >>> range_of((15700, 15800)), range_of((15700, 15800) * u.AA)
    ((15700.0, 15800.0), (15700.0, 15800.0))
    """
    try:
        if isinstance(window, SpectralRegion):
            ((low, high),) = window.subregions
        else:
            low, high = window
        edges = [_angstrom(edge) for edge in (low, high)]
    except (u.UnitConversionError, TypeError, ValueError) as error:
        raise GridError(
            f"{argument} must be two wavelengths (low, high) such as (15700, 15800), in Angstrom if they have no unit, "
            f"but is {window!r:.80}"
        ) from error
    if isinstance(window, SpectralRegion) or getattr(low, "unit", u.AA).physical_type != "length":
        edges.sort()  # high frequencies are short wavelengths
    if not edges[0] < edges[1]:
        raise GridError(f"{argument} must begin before it ends, but is {edges[0]:g} to {edges[1]:g} Angstrom")
    return edges[0], edges[1]


def ranges_of(windows: Any, argument: str) -> list[tuple[float, float]]:
    """Turn ranges of wavelengths into pairs of numbers.

    Parameters
    ----------
    windows : range or iterable of ranges
        As `range_of` takes them, or a `~specutils.SpectralRegion` of several.
    argument : str
        What they are called in messages.

    Returns
    -------
    list of (float, float)
        In Angstrom.

    Raises
    ------
    GridError
        If one of them is none.

    Examples
    --------
    >>> import astropy.units as u
    >>> from specutils import SpectralRegion
    >>> from cyclestarnet.grid import ranges_of
    >>> ranges_of([(15700, 15800), SpectralRegion(16000 * u.AA, 16100 * u.AA)], "ignore")
    [(15700.0, 15800.0), (16000.0, 16100.0)]
    """
    if isinstance(windows, SpectralRegion):
        return [range_of(SpectralRegion(*edges), argument) for edges in windows.subregions]
    if isinstance(windows, str):
        return [range_of(windows, argument)]  # which says what is wrong
    try:
        items = list(windows)
    except TypeError:
        return [range_of(windows, argument)]  # likewise
    if len(items) == 2 and all(isinstance(item, Real) or getattr(item, "isscalar", False) for item in items):
        return [range_of((items[0], items[1]), argument)]
    return [edges for item in items for edges in _ranges_in(item, argument)]


def _ranges_in(item, argument):
    """Ranges of one item of a list."""
    return ranges_of(item, argument) if isinstance(item, SpectralRegion) else [range_of(item, argument)]


def _angstrom(edge: Edge) -> float:
    unit = getattr(edge, "unit", None)
    return float(edge) if unit is None else float(edge.to_value(u.AA, u.spectral()))
