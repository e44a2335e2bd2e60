"""Whether lines are where a velocity of a header says: pipelines fail, and then write any number."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from astropy.constants import c
from astropy.io import fits
from scipy.ndimage import median_filter

__all__ = ["measured_velocity"]

# The grid of apStar files, 4.1 km/s a pixel.
START, STEP, N_PIXELS = 4.179, 6e-6, 8575
LIMIT = 600.0  # km/s: faster stars are unbound
SMOOTH = 501  # pixels of the running median that stands for the continuum
TEMPLATE = "apVisit-r13-9518-57729-104.fits"


def measured_velocity(
    wavelength: np.ndarray, flux: np.ndarray, bad: np.ndarray, claimed: float
) -> tuple[float, float, float]:
    """Measure the velocity of a star against the K giant that ships with the package.

    Parameters
    ----------
    wavelength : array, shape (n_pixels,)
        As seen at the telescope, in Angstrom, vacuum, rising.
    flux : array, shape (n_pixels,)
        Not normalised.
    bad : array of bool, shape (n_pixels,)
        Pixels to leave out.
    claimed : float
        Velocity to compare with, in km/s.

    Returns
    -------
    velocity : float
        Where the correlation is largest between -600 and 600 km/s, to about 2 km/s.
    correlation : float
        Correlation coefficient there.
    at_claimed : float
        The largest correlation coefficient within 15 km/s of ``claimed``; 0 beyond what was searched.

    Examples
    --------
    >>> from cyclestarnet import datasets
    >>> from cyclestarnet.io.velocities import measured_velocity
    >>> star = datasets.k_giant()  # at rest, so the claim of 300 km/s is wrong
    >>> velocity, there, claimed = measured_velocity(star.spectral_axis.value, star.flux.value, star.mask, 300.0)
    >>> abs(velocity) < 5, there > 0.9, claimed < 0.3
    (True, True, True)
    """
    template, known = _template()
    star, seen = _lines(wavelength, flux, bad)
    speed = c.to_value("km/s")
    reach = int(np.ceil(np.log10(1 + LIMIT / speed) / STEP))
    lags = np.arange(-reach, reach + 1)
    velocities = speed * (10 ** (STEP * lags) - 1)
    correlation = np.zeros(len(lags))
    for k, lag in enumerate(lags):  # a line at pixel i of the template is at i + lag of the star
        to, of = slice(max(lag, 0), N_PIXELS + min(lag, 0)), slice(max(-lag, 0), N_PIXELS - max(lag, 0))
        good = seen[to] & known[of]
        a, b = star[to][good], template[of][good]
        size = np.sqrt(np.dot(a, a) * np.dot(b, b))
        correlation[k] = np.dot(a, b) / size if size > 0 else 0.0
    best = int(correlation.argmax())
    near = np.abs(velocities - claimed) < 15
    at_claimed = float(correlation[near].max()) if near.any() else 0.0
    return float(velocities[best]), float(correlation[best]), at_claimed


def _lines(wavelength, flux, bad):
    """Depths of lines on the logarithmic grid, and where they are known."""
    flux = np.asarray(flux, dtype=float)  # files have another order of bytes, which the median does not know
    good = np.isfinite(flux) & ~bad
    depth, known = np.zeros(N_PIXELS), np.zeros(N_PIXELS, dtype=bool)
    if np.count_nonzero(good) < SMOOTH:
        return depth, known
    own, values = wavelength[good], flux[good]
    continuum = median_filter(values, size=SMOOTH, mode="nearest")
    relative = np.where(continuum > 0, values / np.where(continuum > 0, continuum, 1) - 1, 0).clip(-0.5, 0.3)
    grid = 10 ** (START + STEP * np.arange(N_PIXELS))
    depth = np.interp(grid, own, relative, left=0, right=0)
    # Between pixels that are far apart nothing is known.
    after = np.clip(np.searchsorted(own, grid), 1, len(own) - 1)
    known = (own[after] - own[after - 1] < 1) & (grid > own[0]) & (grid < own[-1])
    return np.where(known, depth, 0.0), known


@cache
def _template():
    """Lines of the K giant, at rest."""
    with resources.as_file(resources.files("cyclestarnet.data") / TEMPLATE) as path, fits.open(path) as file:
        flux, error, wavelength = (np.array(file[k].data, dtype=float).ravel() for k in (1, 2, 4))
        rest = 1 + file[0].header["VRAD"] / c.to_value("km/s")
    order = np.argsort(wavelength)
    bad = error > 1e5 * np.median(error)
    return _lines(wavelength[order] / rest, flux[order], bad[order])
