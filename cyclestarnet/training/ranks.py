"""Ranks of true labels among draws of their posteriors, which are uniform if the posteriors are right.

Ranks that pile up at both ends tell of errors that are too small, ranks in the
middle of errors that are too large, ranks at one end of an offset (Cook, Gelman &
Rubin 2006; Talts et al. 2018). Ranks of distances from random points tell of all labels together what those of one
label after the other cannot (Lemos et al. 2023). Where ranks come from, `cyclestarnet.training.calibration`
knows; statistics and figures need the ranks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike
from scipy.special import chdtrc, ndtr, ndtri

__all__ = [
    "JOINT",
    "Ranks",
    "coverage",
    "ecdf_band",
    "ecdf_difference",
    "expected_coverage",
    "pull_width",
    "rank_in_gaussian",
    "rank_in_samples",
    "rank_of_distance",
    "rank_table",
    "uniformity",
]

JOINT = "joint"  # in the place of a label: ranks of distances in the space of all of them
N_RANKS = 200  # of one truth among 199 samples; 68 % and 95 % of them are whole numbers
BINS = (20, 10, 5, 4)  # of histograms: the most that leave 5 ranks or more in each
N_SIMULATED = 4000  # sets of uniform ranks that tell how wide a band must be


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of true labels, star by star, and which stars have none.

    Parameters
    ----------
    by_label : mapping of str to array of int, shape (n,)
        0 ... 199, of the stars whose posterior is known; by name of label or combination. ``"joint"`` has those of
        `rank_of_distance`, if the posteriors are samples.
    n_stars : int
        How many stars there were, with those that failed.
    failed : tuple of int, optional
        Numbers of the stars whose fit or chain did not converge: they are left out.

    Raises
    ------
    ValueError
        If ranks are no whole numbers from 0 to 199, there are none or too many of a label, or a
        star that failed is none of the stars.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training import Ranks
    >>> ranks = Ranks({"teff": [17, 120, 199]}, n_stars=4, failed=(2,))
    >>> ranks.by_label["teff"]
    array([ 17, 120, 199])
    >>> Ranks({"teff": [200]}, n_stars=1)
    Traceback (most recent call last):
    ...
    ValueError: ranks of teff must be whole numbers from 0 to 199, but are [200]
    """

    by_label: Mapping[str, np.ndarray]
    n_stars: int
    failed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        failed = tuple(int(star) for star in self.failed)
        if len(set(failed)) < len(failed) or not set(failed) <= set(range(self.n_stars)):
            raise ValueError(f"failed must be some of the stars 0 to {self.n_stars - 1}, but is {failed}")
        by_label = {name: _checked(name, ranks) for name, ranks in self.by_label.items()}
        for name, ranks in by_label.items():
            if not 0 < len(ranks) <= self.n_stars - len(failed):
                raise ValueError(
                    f"{name} has {len(ranks)} ranks, but there must be one to {self.n_stars - len(failed)}: "
                    f"{len(failed)} of {self.n_stars} stars failed"
                )
        object.__setattr__(self, "failed", failed)
        object.__setattr__(self, "by_label", by_label)


def _checked(name: str, given: ArrayLike) -> np.ndarray:
    """Ranks (n,) of a label, as a copy that nobody changes."""
    ranks = np.array(given)
    whole = ranks.ndim == 1 and (ranks.dtype.kind in "iu" or not ranks.size)
    if not whole or ((ranks < 0) | (ranks >= N_RANKS)).any():
        raise ValueError(f"ranks of {name} must be whole numbers from 0 to {N_RANKS - 1}, but are {given!r}")
    ranks.flags.writeable = False
    return ranks


# -- one star ------------------------------------------------------------------
def rank_in_samples(truth: float, samples: ArrayLike, rng: np.random.Generator) -> int:
    """Rank a true value among 199 of the samples of its posterior.

    Parameters
    ----------
    truth : float
        In the unit of the samples.
    samples : array_like, shape (n,)
        Of the posterior, 199 or more, in any order.
    rng : `numpy.random.Generator`
        Chooses among the samples, and is advanced.

    Returns
    -------
    int
        How many of the 199 are smaller: 0 ... 199.

    Raises
    ------
    ValueError
        If there are fewer samples.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import rank_in_samples
    >>> rank_in_samples(99.5, np.arange(199), np.random.default_rng(0))
    100
    """
    samples = np.asarray(samples)
    if len(samples) < N_RANKS - 1:
        raise ValueError(f"{N_RANKS - 1} samples are needed to rank a truth among, but there are {len(samples)}")
    return int((rng.choice(samples, N_RANKS - 1, replace=False) < truth).sum())


def rank_of_distance(truth: ArrayLike, samples: ArrayLike, rng: np.random.Generator) -> int:
    """Rank the distance of true values from a random point among those of 199 samples of their posterior.

    The point is drawn from a Gaussian about as wide as the posterior, and distances are in units of its widths, label
    by label. Whatever the posterior's shape, the truth is as far from the point as a sample, if the posterior is
    right: as often near as far. Errors of all labels that are too small by little, or
    correlations that are wrong, show here at first.

    Parameters
    ----------
    truth : array_like, shape (k,)
        In the units of the samples.
    samples : array_like, shape (n, k)
        Of the posterior, 199 or more, in any order.
    rng : `numpy.random.Generator`
        Chooses the point, and among the samples, and is advanced.

    Returns
    -------
    int
        How many of the 199 are closer to the point: 0 ... 199.

    Raises
    ------
    ValueError
        If there are fewer samples, or the shapes do not fit.

    References
    ----------
    .. [1] Lemos et al. 2023, Proceedings of Machine Learning Research 202, 19256 (TARP).

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import rank_of_distance
    >>> rng = np.random.default_rng(0)
    >>> samples = rng.normal(size=(1000, 5))
    >>> rank_of_distance([9, 9, 9, 9, 9], samples, rng)  # farther from everywhere than any sample
    199
    """
    samples, values = np.asarray(samples), np.asarray(truth)
    if samples.ndim != 2 or values.shape != samples.shape[1:]:
        raise ValueError(f"truth and samples must have shapes (k,) and (n, k), not {values.shape} and {samples.shape}")
    if len(samples) < N_RANKS - 1:
        raise ValueError(f"{N_RANKS - 1} samples are needed to rank a truth among, but there are {len(samples)}")
    width = samples.std(axis=0)
    point = rng.normal(samples.mean(axis=0), width)
    chosen = rng.choice(samples, N_RANKS - 1, replace=False)
    distance2 = [(((positions - point) / width) ** 2).sum(axis=-1) for positions in (chosen, values)]
    return int((distance2[0] < distance2[1]).sum())


def rank_in_gaussian(truth: float, value: float, error: float) -> int:
    """Tell the rank that is expected of a true value among draws of a Gaussian.

    Parameters
    ----------
    truth : float
        The true value.
    value, error : float
        Mean and σ of the Gaussian, in the same unit.

    Returns
    -------
    int
        0 ... 199, as that of `rank_in_samples`.

    Raises
    ------
    ValueError
        If the error is not positive, or a number is not finite.

    Examples
    --------
    >>> from cyclestarnet.training.ranks import rank_in_gaussian
    >>> [rank_in_gaussian(truth, 4500, 40) for truth in (4000, 4460, 4501, 5000)]
    [0, 31, 101, 199]
    """
    if not (np.isfinite([truth, value, error]).all() and error > 0):
        raise ValueError(f"a rank needs finite numbers and a positive error, but got {truth} in {value} ± {error}")
    return min(int(N_RANKS * ndtr((truth - value) / error)), N_RANKS - 1)


# -- many stars ------------------------------------------------------------------
def uniformity(ranks: ArrayLike) -> tuple[float, int, float]:
    """Test whether ranks are uniform, by χ² of a histogram of up to 20 bins.

    Parameters
    ----------
    ranks : array_like of int, shape (n,)
        0 ... 199; 8 or more.

    Returns
    -------
    value : float
        χ².
    dof : int
        Its degrees of freedom, one less than the bins.
    p : float
        Probability that uniform ranks have a larger χ².

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import uniformity
    >>> uniformity(np.arange(200))
    (0.0, 19, 1.0)
    >>> value, dof, p = uniformity(np.r_[np.zeros(10, int), np.full(10, 199)])  # at both ends
    >>> value, dof, p < 1e-3
    (20.0, 3, True)
    """
    ranks = np.asarray(ranks)
    n_bins = next((bins for bins in BINS if len(ranks) >= 5 * bins), 2)
    counts = np.bincount(ranks * n_bins // N_RANKS, minlength=n_bins)
    expected = len(ranks) / n_bins
    value = float(((counts - expected) ** 2 / expected).sum())
    return value, n_bins - 1, float(chdtrc(n_bins - 1, value))


def coverage(ranks: ArrayLike, level: float) -> float:
    """Tell how many truths lie within the central interval of a probability.

    Parameters
    ----------
    ranks : array_like of int, shape (n,)
        0 ... 199.
    level : float
        The probability, such as 0.68.

    Returns
    -------
    float
        Their fraction, which is ``level`` if ranks are uniform.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import coverage
    >>> coverage(np.arange(200), 0.68)
    0.68
    """
    return float((np.abs((np.asarray(ranks) + 0.5) / N_RANKS - 0.5) < level / 2).mean())


def pull_width(ranks: ArrayLike) -> float:
    """Tell by how much truths scatter, in units of the errors that posteriors have.

    Parameters
    ----------
    ranks : array_like of int, shape (n,)
        0 ... 199. Those at the very ends count as 2.8 σ.

    Returns
    -------
    float
        Half the 16-84 % range: above 1, errors are too small.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import pull_width, rank_in_gaussian
    >>> truth = np.random.default_rng(0).normal(0, 1, 2000)
    >>> round(pull_width([rank_in_gaussian(value, 0.0, 0.5) for value in truth]), 1)  # σ is 1, not 0.5
    2.0
    """
    low, high = np.percentile(ndtri((np.asarray(ranks) + 0.5) / N_RANKS), [16, 84])
    return float(high - low) / 2


def expected_coverage(ranks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Tell how many truths lie within regions of each probability, in the order in which the regions grow.

    Of ranks of distances these are the balls around the random points: the expected coverage of TARP.

    Parameters
    ----------
    ranks : array_like of int, shape (n,)
        0 ... 199, as `rank_of_distance` gives them.

    Returns
    -------
    credibility, coverage : array, shape (199,)
        Probability of a region, and the fraction of truths in it. They are equal if posteriors are right, but for
        chance (`ecdf_band`); coverage is less if posteriors are too narrow.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import expected_coverage
    >>> credibility, coverage = expected_coverage(np.arange(200))
    >>> bool(np.allclose(credibility, coverage))
    True
    """
    credibility = np.arange(1, N_RANKS) / N_RANKS
    return credibility, credibility + ecdf_difference(ranks)


def ecdf_difference(ranks: ArrayLike) -> np.ndarray:
    """Compare the cumulative distribution of ranks with a uniform one.

    Parameters
    ----------
    ranks : array_like of int, shape (n,)
        0 ... 199.

    Returns
    -------
    array, shape (199,)
        Fraction of ranks below 1, 2, ... 199, less its expectation.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.ranks import ecdf_difference
    >>> float(ecdf_difference(np.zeros(10, int)).max())  # all are below 1, of which one in 200 was expected
    0.995
    """
    ranks = np.asarray(ranks)
    counts = np.cumsum(np.bincount(ranks, minlength=N_RANKS))[:-1]
    return counts / len(ranks) - np.arange(1, N_RANKS) / N_RANKS


def ecdf_band(n: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Tell where the whole of `ecdf_difference` of uniform ranks stays, most of the time.

    Parameters
    ----------
    n : int
        Number of ranks.
    level : float, optional
        Probability that the difference leaves the band nowhere. Default: 0.95.

    Returns
    -------
    low, high : array, shape (199,)
        Edges of the band, which belong to it.

    Notes
    -----
    Binomial quantiles, widened until that fraction ``level`` of simulated
    ranks stays inside everywhere (Säilynoja, Bürkner & Vehtari 2022).

    Examples
    --------
    >>> from cyclestarnet.training.ranks import ecdf_band
    >>> low, high = ecdf_band(100)
    >>> low.min().round(2), high.max().round(2)
    (np.float64(-0.15), np.float64(0.15))
    """
    low, high = _band(n, level)
    return low.copy(), high.copy()


@cache
def _band(n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import binom  # late: it takes as long to load as a tenth of the package

    probability = np.arange(1, N_RANKS) / N_RANKS
    draws = np.random.default_rng(0).multinomial(n, np.full(N_RANKS, 1 / N_RANKS), size=N_SIMULATED)
    counts = np.cumsum(draws, axis=1)[:, :-1]
    every = np.arange(n + 1)[:, None]
    tails = np.minimum(binom.cdf(every, n, probability), binom.sf(every - 1, n, probability))
    tail = np.quantile(tails[counts, np.arange(N_RANKS - 1)].min(axis=1), 1 - level)
    low, high = binom.ppf(tail, n, probability), binom.isf(tail, n, probability)
    return low / n - probability, high / n - probability


def rank_table(ranks: Ranks) -> QTable:
    """Sum up ranks, a row per label.

    Parameters
    ----------
    ranks : `Ranks`
        Of `~cyclestarnet.training.calibration.calibration_ranks`.

    Returns
    -------
    `~astropy.table.QTable`
        Columns ``label``; ``n``, the number of ranks; ``chi2``, ``dof`` and ``p`` of `uniformity`;
        ``in_band``, whether `ecdf_difference` stays within `ecdf_band` everywhere; ``mean_rank``,
        0 ... 1, which is 0.5 ± 0.29 / √n if all is well, and lower if labels are too high;
        ``cover_68`` and ``cover_95``, the `coverage`; ``pull_width``. ``meta`` has the
        number of ``stars``, and of those that ``failed``.

    Examples
    --------
    Errors of half the size that they should have:

    >>> import numpy as np
    >>> from cyclestarnet.training import Ranks, rank_table
    >>> from cyclestarnet.training.ranks import rank_in_gaussian
    >>> truth = np.random.default_rng(0).normal(size=500)
    >>> ranks = Ranks({"fe_h": [rank_in_gaussian(value, 0.0, 0.5) for value in truth]}, n_stars=500)
    >>> print(rank_table(ranks)["label", "n", "in_band", "cover_68", "cover_95", "pull_width"])
    label  n  in_band cover_68 cover_95 pull_width
    ----- --- ------- -------- -------- ----------
     fe_h 500   False    0.370    0.656       2.11
    """
    names = ("label", "n", "chi2", "dof", "p", "in_band", "mean_rank", "cover_68", "cover_95", "pull_width")
    kinds = (str, int, float, int, float, bool, float, float, float, float)
    rows = [_row(name, found) for name, found in ranks.by_label.items()]
    table = QTable(rows=rows or None, names=names, dtype=kinds)
    formats = {"chi2": ".1f", "p": ".2g", "mean_rank": ".3f", "cover_68": ".3f", "cover_95": ".3f", "pull_width": ".2f"}
    for name, shown in formats.items():
        table[name].info.format = shown
    table.meta = {"stars": ranks.n_stars, "failed": len(ranks.failed)}
    return table


def _row(name: str, ranks: np.ndarray) -> tuple[object, ...]:
    """Statistics of one label, as `rank_table` has them."""
    low, high = _band(len(ranks), 0.95)
    difference = ecdf_difference(ranks)
    inside = bool(((difference >= low) & (difference <= high)).all())
    mean = float(ranks.mean()) / (N_RANKS - 1)
    covered = [coverage(ranks, level) for level in (0.68, 0.95)]
    return name, len(ranks), *uniformity(ranks), inside, mean, *covered, pull_width(ranks)
