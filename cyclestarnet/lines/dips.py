"""Narrow dips of a mean difference of spectra: where they are, how deep, and how many arise by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks, peak_widths

from cyclestarnet.grid import WavelengthGrid

__all__ = ["Dips", "dip_centre", "false_discovery", "find_dips", "noise_of", "without_background"]

SMOOTHING = 0.8  # pixels, σ: half of APOGEE's resolution, so that a line stays one dip
BACKGROUND = 301  # pixels, over which the difference of two continua may change
LEAST_NOISE = 1e-6  # single precision knows no better


@dataclass(frozen=True, eq=False)
class Dips:
    """Narrow minima of a mean difference, by pixel.

    Parameters
    ----------
    peak : array of int, shape (n,)
        The deepest pixels.
    start, stop : array of int, shape (n,)
        Half-open; where a dip has a fifth of its depth.
    width : array, shape (n,)
        Full width at half depth in pixels, 1 at least, without the smoothing of the search.
    significance : array, shape (n,)
        Prominence over the noise.

    Examples
    --------
    Of those that `find_dips` finds, the ones that are beyond doubt::

        dips = find_dips(narrow, grid.chips, noise_of(narrow))
        deep = dips[dips.significance > 10]
    """

    peak: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    width: np.ndarray
    significance: np.ndarray

    def __len__(self) -> int:
        return len(self.peak)

    def __getitem__(self, which: np.ndarray) -> Dips:
        return Dips(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def without_background(mean: np.ndarray, chips: Sequence[tuple[int, int]]) -> np.ndarray:
    """Take away from a mean difference what is wider than lines: differences of continua.

    Parameters
    ----------
    mean : array, shape (n_pixels,)
        Mean of observed − synthetic flux, finite.
    chips : sequence of (int, int)
        Half-open ranges of pixels, as those of a `~cyclestarnet.WavelengthGrid`. None knows of another.

    Returns
    -------
    array, shape (n_pixels,)
        Less the running median of 301 pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines.dips import without_background
    >>> mean = np.full(9, 0.02)
    >>> mean[4] = -0.08
    >>> without_background(mean, [(0, 9)]).tolist()
    [0.0, 0.0, 0.0, 0.0, -0.1, 0.0, 0.0, 0.0, 0.0]
    """
    parts = [mean[a:b] - median_filter(mean[a:b], min(BACKGROUND, b - a), mode="nearest") for a, b in chips]
    return np.concatenate(parts)


def noise_of(narrow: np.ndarray) -> float:
    """Noise of a difference, from the median of its size: lines are few.

    Parameters
    ----------
    narrow : array, shape (n_pixels,)
        A mean difference `without_background`.

    Returns
    -------
    float
        1 σ of what is no line, in the unit of the difference; never below 10⁻⁶.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines.dips import noise_of
    >>> narrow = np.random.default_rng(1).normal(0, 0.01, 1000)
    >>> narrow[500] = -0.5
    >>> round(noise_of(narrow), 3)
    0.01
    """
    return max(1.4826 * float(np.median(np.abs(narrow))), LEAST_NOISE)


def find_dips(narrow: np.ndarray, chips: Sequence[tuple[int, int]], noise: float) -> Dips:
    """Find all dips of a difference below zero, however small.

    Parameters
    ----------
    narrow : array, shape (n_pixels,)
        A mean difference `without_background`. Bumps are found as the dips of its negative.
    chips : sequence of (int, int)
        Half-open ranges of pixels. No dip reaches from one into another.
    noise : float
        1 σ of the difference, in which significances are counted.

    Returns
    -------
    `Dips`
        From the first pixel to the last.

    Notes
    -----
    What is above zero is cut off, or the space between two deep dips would
    be a high bump when bumps are looked for as dips of the other sign.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines.dips import find_dips
    >>> narrow = -0.1 * np.exp(-0.5 * ((np.arange(40) - 12) / 1.5) ** 2)
    >>> dips = find_dips(narrow, [(0, 40)], noise=0.01)
    >>> dips.peak, dips.width.round(1)
    (array([12]), array([3.5]))
    """
    parts = []
    for low, high in chips:
        depth = gaussian_filter1d(-narrow[low:high], SMOOTHING, mode="nearest").clip(0)
        peaks, found = find_peaks(depth, prominence=0.0)
        smooth = peak_widths(depth, peaks, rel_height=0.5)[0]
        width = np.sqrt((smooth**2 - 8 * np.log(2) * SMOOTHING**2).clip(1))
        edges = peak_widths(depth, peaks, rel_height=0.8)[2:]
        start, stop = (np.rint(edge).astype(int) for edge in edges)
        parts.append((peaks + low, start + low, stop + low + 1, width, found["prominences"] / noise))
    return Dips(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def false_discovery(significance: np.ndarray, null: np.ndarray, n_null: int) -> np.ndarray:
    """Expected share of false ones among dips of some significance or more, by target and decoy.

    Parameters
    ----------
    significance : array, shape (n,)
        Of the dips.
    null : array, shape (n_chance,)
        Of what arose by chance, such as of bumps.
    n_null : int
        Of how many spectra ``null`` is.

    Returns
    -------
    array, shape (n,)
        Rates from 0 to 1, which never fall as the significance falls, and are never below 1 / n.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.lines.dips import false_discovery
    >>> false_discovery(np.array([9.0, 8.0, 1.0, 7.0]), null=np.array([1.5, 0.5]), n_null=1).round(2).tolist()
    [0.33, 0.33, 0.5, 0.33]
    """
    order = np.argsort(-significance)
    found = np.arange(1, len(order) + 1)
    chance = (len(null) - np.searchsorted(np.sort(null), significance[order]) + 1) / n_null
    rate = np.empty(len(order))
    rate[order] = np.minimum.accumulate((chance / found)[::-1])[::-1].clip(0, 1)
    return rate


def dip_centre(mean: np.ndarray, grid: WavelengthGrid, peak: int, noise: float) -> tuple[float, float]:
    """Measure the wavelength of a dip, by the parabola through its deepest pixels, and its error.

    Parameters
    ----------
    mean : array, shape (n_pixels,)
        Difference of fluxes, in any unit.
    grid : `~cyclestarnet.WavelengthGrid`
        Of these pixels.
    peak : int
        The dip's deepest pixel. At the edge of a chip there is no parabola, and this pixel is the centre.
    noise : float
        1 σ of a pixel of the difference, in its unit.

    Returns
    -------
    wavelength, error : float
        In Angstrom. The error is a pixel at most.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.lines import dip_centre
    >>> grid = WavelengthGrid((16000 + 0.2 * np.arange(9)) * u.AA)
    >>> wavelength, error = dip_centre(-0.1 + 0.01 * (np.arange(9) - 4.3) ** 2, grid, peak=4, noise=0.001)
    >>> print(f"{wavelength:.2f} ± {error:.2f}")
    16000.86 ± 0.01
    """
    wavelength = grid.wavelength.value
    for start, stop in grid.chips:
        if peak in (start, stop - 1):  # a neighbour is missing; what comes next belongs to another chip
            return wavelength[peak], abs(wavelength[peak] - wavelength[peak + 1 if peak == start else peak - 1])
    left, middle, right = (-mean[peak + k] for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    step = (wavelength[peak + 1] - wavelength[peak - 1]) / 2
    if curvature >= 0:  # smoothing has moved the peak to a pixel that is none by itself
        return wavelength[peak], step
    shift = 0.5 * (left - right) / curvature
    slopes = np.array([0.5 - shift, 2 * shift, -0.5 - shift]) / curvature  # of the shift with the three depths
    shift = np.clip(shift, -1, 1)
    return wavelength[peak] + shift * step, min(float(np.linalg.norm(slopes)) * noise, 1.0) * step
