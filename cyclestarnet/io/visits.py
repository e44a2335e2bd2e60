"""Combined spectra whose bad pixels are those of their visits, not of any visit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter

from cyclestarnet.io.fits_files import FLUX_UNIT, masked_spectrum

__all__ = ["of_good_visits"]

# Pixels of the running median of ratios of spectra: wide against lines.
SMOOTH = 301
# More than this part of the visits must be good: a rule that is the same for any number of them.
GOOD_FRACTION = 2 / 3
# A combination that has the bits of its visits at so many of their pixels has those of any visit.
LEAST_OR = 0.98


def of_good_visits(
    flux: np.ndarray, error: np.ndarray, bits: np.ndarray, row: int, visits: Sequence[int], numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Make a combination of the good visits at each pixel.

    Where all visits are good, flux and error are those of the combination. Where some
    are bad, they are the weighted mean of the others, each multiplied by its smooth
    ratio to the combination. Where a third of them or more are, the error is infinite: what spoils so many visits,
    such as a sky line, spoils its neighbours in the others.

    Parameters
    ----------
    flux, error : array, shape (n_rows, n_pixels)
        Of all rows of a file.
    bits : array of int, shape (n_rows, n_pixels)
        Bitmasks.
    row : int
        The combination.
    visits : sequence of int
        Rows of visits, two or more.
    numbers : sequence of int
        Bits that make a pixel bad.

    Returns
    -------
    flux, error : array, shape (n_pixels,), float64
        Of the combination.
    n_good : array of int, shape (n_pixels,)
        Visits that are good at each pixel.
        None instead of all three if the bits of the combination are not those of any visit (later releases have a
        rule of their own), or no pixel is good in all visits, which would tell their scales.

    Examples
    --------
    A visit with a wild pixel, which the combination has taken over:

    >>> import numpy as np
    >>> from cyclestarnet.io.visits import of_good_visits
    >>> flux, bits = np.ones((5, 4)), np.zeros((5, 4), dtype=int)
    >>> flux[[0, 4], 3], bits[[0, 4], 3] = [2.5, 7.0], 1
    >>> flux, error, n_good = of_good_visits(flux, 0.1 * np.ones((5, 4)), bits, 0, [1, 2, 3, 4], [0])
    >>> flux, n_good
    (array([1., 1., 1., 1.]), array([4, 4, 4, 3]))
    """
    chosen = sum(1 << bit for bit in numbers)
    own, either = (
        np.asarray(b, dtype=np.int64) & chosen > 0 for b in (bits[row], np.bitwise_or.reduce(bits[list(visits)]))
    )
    if not np.count_nonzero(own & either) > LEAST_OR * np.count_nonzero(either):
        return None
    star, sigma = (np.array(array[row], dtype=float) for array in (flux, error))
    one, one_error = (np.array(array[list(visits)], dtype=float) for array in (flux, error))
    grid = np.arange(1.0, star.size + 1)  # wavelengths do not matter here
    bad = np.array([masked_spectrum(flux[k] * FLUX_UNIT, error[k], grid, bits[k], numbers, {}).mask for k in visits])
    n_good = np.count_nonzero(~bad, axis=0)
    clean = n_good == len(visits)
    places = np.flatnonzero(clean & (star > 0) & (one > 0).all(axis=0))
    if not len(places):
        return None
    scale = np.array(
        [
            np.interp(grid - 1, places, median_filter(star[places] / own[places], size=SMOOTH, mode="nearest"))
            for own in one
        ]
    )
    weight = np.where(bad, 0.0, (np.where(bad, 1.0, one_error) * scale) ** -2.0)
    enough = n_good > GOOD_FRACTION * len(visits)
    some = enough & ~clean
    total = weight.sum(axis=0)[some]
    star[some] = (weight * np.where(bad, 0.0, one * scale)).sum(axis=0)[some] / total
    sigma[some] = total**-0.5
    sigma[~enough] = np.inf
    return star, sigma, n_good
