"""A prior of stars that lie on isochrones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import TypeAlias

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from astropy.units import Quantity
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.exceptions import LabelError
from cyclestarnet.fitting.conversion import sigma_of, values_of, weights_of
from cyclestarnet.fitting.tensors import tensor_like
from cyclestarnet.labels import LabelSet, unit_of_label

# Of initial masses (Msun), log10 of ages (yr) and [Fe/H] to columns by name: a `minimint.TheoryInterpolator`
Tracks: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, np.ndarray]]

__all__ = ["IsochronePrior", "mist_isochrones"]

MASSES, N_MASSES = (0.1, 100.0), 600  # Msun; where the sampling of an isochrone begins
ROUNDS = 12  # of halving steps: to 3e-6 of a mass
LONGEST_STEP = (50.0, 0.05)  # K, dex
LAST_PHASE = 5  # of MIST: thermal pulses on the asymptotic giant branch
BLOCK = 2_000_000  # products of stars and isochrone points in memory at once, 16 MB per array


class IsochronePrior:
    """Stars lie on isochrones: a mixture of Gaussians around their points.

    The density is Σ_k w_k N(labels | point_k, diag(σ²)). Points should be
    closer than σ to each other, or the gaps between them are seen. Every point
    has its say on every star, which takes a core about 1 s per 100 000 points
    and 1000 stars, in blocks that bound the memory.

    The curvature is minus the Hessian, without its negative eigenvalues: σ⁻²
    across a sequence of points, and next to none along it, where no point is
    better than the next and a prior of width σ would promise too small errors.

    Parameters
    ----------
    points : `~astropy.table.QTable` or mapping
        A column per label or combination that ``sigma`` names, (n_points,),
        with units; other columns do not matter. A row per point.
    sigma : mapping of str to `~astropy.units.Quantity` or float
        Widths of the Gaussians, for two or more labels or combinations:
        spacing of the isochrones, and what may be wrong with them.
    labels : `~cyclestarnet.LabelSet`
        Of the model that is fitted: what the prior is a density of. Flat in those that ``sigma`` leaves out.
    weights : array_like, shape (n_points,), optional
        Not negative; proportional to how many stars a point stands for: the
        initial-mass function times the step in initial mass. Default: equal.

    Raises
    ------
    LabelError
        If a column is missing or has a wrong unit, a value is not finite, a
        name is unknown, or a sigma not positive.
    ValueError
        If ``weights`` are not one per point, or negative or all zero.

    See Also
    --------
    mist_isochrones : points and weights from the MIST tracks.

    Examples
    --------
    >>> import astropy.units as u, torch
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.fitting.isochrones import IsochronePrior
    >>> labels = LabelSet(["teff", "logg", "m_h"], [3500, 0, -2], [6000, 4, 0.5])
    >>> points = {"teff": [4200, 4600, 4800] * u.K, "logg": [1.5, 2.2, 2.7]}
    >>> prior = IsochronePrior(points, {"teff": 100 * u.K, "logg": 0.2}, labels)
    >>> stars = torch.tensor([[4600, 2.2, 0.0], [4600, 1.2, 0.0]], dtype=torch.float64)
    >>> better, worse = prior.log_density(stars)
    >>> bool(better > worse)
    True
    """

    def __init__(
        self,
        points: QTable | Mapping[str, Quantity | ArrayLike],
        sigma: Mapping[str, Quantity | float],
        labels: LabelSet,
        weights: ArrayLike | None = None,
    ):
        if len(sigma) < 2:
            raise LabelError(f"sigma must name two or more labels of the isochrones, but names {list(sigma)}")
        matrix = np.stack([weights_of(labels, name) for name in sigma])
        columns = getattr(points, "colnames", points)
        missing = [name for name in sigma if name not in columns]
        if missing:
            raise LabelError(f"sigma names {missing}, but points has only the columns {', '.join(columns)}")
        values = [values_of(name, points[name], ndim=1) for name in sigma]
        sizes = {len(column) for column in values}
        if len(sizes) != 1 or sizes == {0}:
            raise LabelError(f"the columns of points must be of one length, at least 1, but have {sorted(sizes)}")
        scale = np.stack([sigma_of(name, width) for name, width in sigma.items()])
        weights = np.ones(len(values[0])) if weights is None else np.asarray(weights, dtype=float)
        if weights.shape != values[0].shape:
            raise ValueError(f"weights must have the shape {values[0].shape} of the points, but has {weights.shape}")
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise ValueError("weights must be finite and not negative, and one of them positive")
        self.n_labels = len(labels)
        # In units of sigma from the mean point, where squares lose no digits, stars are at labels @ matrix - centre.
        white = np.stack(values, axis=-1) / scale
        centre, keep = white.mean(0), weights > 0
        self._matrix, self._centre, self._points = matrix.T / scale, centre, (white - centre)[keep]
        self._log_weights = np.log(weights[keep] / weights.sum())

    def log_density(self, labels: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet import LabelSet
        >>> from cyclestarnet.fitting import IsochronePrior
        >>> labels = LabelSet(["logg", "m_h"], [0, -2], [4, 0.5])
        >>> prior = IsochronePrior({"logg": [1.0, 3.0], "m_h": [0.0, 0.0]}, {"logg": 0.1, "m_h": 0.1}, labels)
        >>> stars = torch.tensor([[1.0, 0.0], [1.1, 0.0], [3.0, 0.1]], dtype=torch.float64)
        >>> (prior.log_density(stars) - prior.log_density(stars[:1])).round(decimals=3)
        tensor([ 0.0000, -0.5000, -0.5000], dtype=torch.float64)
        """
        return torch.cat([peak + density.sum(1).log() for _, peak, density in self._blocks(labels)])

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value, exact.
        curvature : Tensor, shape (n, n_labels, n_labels)
            Minus the Hessian, without its negative eigenvalues.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet import LabelSet
        >>> from cyclestarnet.fitting import IsochronePrior
        >>> labels = LabelSet(["logg", "m_h"], [0, -2], [4, 0.5])
        >>> prior = IsochronePrior({"logg": [1.0, 3.0], "m_h": [0.0, 0.0]}, {"logg": 0.1, "m_h": 0.1}, labels)
        >>> _, gradient, curvature = prior.derivatives(torch.tensor([[1.1, 0.0]], dtype=torch.float64))
        >>> gradient.round(decimals=3), curvature.round(decimals=3)
        (tensor([[-10.,   0.]], dtype=torch.float64), tensor([[[100.,   0.],
                 [  0., 100.]]], dtype=torch.float64))
        """
        points, matrix = tensor_like(self._points, labels), tensor_like(self._matrix, labels)
        m = points.shape[1]
        moments = torch.cat([points, (points[:, :, None] * points[:, None, :]).flatten(1)], dim=1)
        values, slopes, curvatures = [], [], []
        for white, peak, density in self._blocks(labels):
            total = density.sum(1)
            expected = density @ moments / total[:, None]  # by the chances that a star belongs to each point
            mean, square = expected[:, :m], expected[:, m:].unflatten(1, (m, m))
            scatter = square - mean[:, :, None] * mean[:, None, :]
            hessian = torch.eye(m, dtype=scatter.dtype, device=scatter.device) - scatter
            values.append(peak + total.log())
            slopes.append(mean - white)
            curvatures.append(_without_negative(hessian))
        return torch.cat(values), torch.cat(slopes) @ matrix.T, matrix @ torch.cat(curvatures) @ matrix.T

    def _blocks(self, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of blocks of stars: place in units of sigma (b, m), log of the largest of the points' densities (b,), and
        each point's density as a fraction of that (b, n_points)."""
        points, log_weights = tensor_like(self._points, labels), tensor_like(self._log_weights, labels)
        offset = log_weights - 0.5 * (points**2).sum(1)
        stars = labels @ tensor_like(self._matrix, labels) - tensor_like(self._centre, labels)
        for white in stars.split(max(1, BLOCK // len(points))):
            logits = torch.addmm(offset, white, points.T)
            peak = logits.detach().amax(1)
            yield white, peak - 0.5 * (white**2).sum(1), logits.sub_(peak[:, None]).exp_()


def mist_isochrones(ages: Quantity, metallicities: ArrayLike, *, folder: str | PathLike[str] | None = None) -> QTable:
    """Return points of MIST isochrones, with the numbers of stars that they stand for, for an `IsochronePrior`.

    Needs the package minimint (``pip install "cyclestarnet[isochrones]"``) and
    the MIST tracks, which ``minimint.download_and_prepare()`` brings once (more
    than 10 GB). Initial masses are spaced so that points are at most 50 K and
    0.05 dex in log g apart, where the tracks have no jump. Stars run up to the
    end of the asymptotic giant branch; what is left of them is not there.

    Each isochrone counts alike: evenly spaced ages stand for a constant star
    formation rate. Multiply ``weight`` by another history, if there is one.

    Parameters
    ----------
    ages : `~astropy.units.Quantity`, scalar or shape (n_ages,)
        Positive times.
    metallicities : array_like, scalar or shape (n_metallicities,)
        [Fe/H] at birth, in dex. The tracks have the Sun's mixture of metals,
        so that the column says [M/H].
    folder : path-like, optional
        Where the prepared tracks are. Default: where minimint puts them.

    Returns
    -------
    `~astropy.table.QTable`
        Columns ``teff``, ``logg``, ``m_h``, ``weight``, ``age`` and
        ``initial_mass``. The weight is Kroupa's initial-mass function times
        the step in initial mass, the same for all isochrones.

    Raises
    ------
    ImportError
        If minimint is not installed.
    FileNotFoundError
        If the tracks are not there.
    LabelError
        If ``metallicities`` are not finite or have another unit than dex.
    ValueError
        If ``ages`` are not positive times, or the tracks do not cover one of the isochrones.

    References
    ----------
    .. [1] Choi et al. 2016, ApJ 823, 102 (MIST).
    .. [2] Kroupa 2001, MNRAS 322, 231.

    Examples
    --------
    ::

        points = mist_isochrones(np.arange(1, 13) * u.Gyr, np.arange(-2, 0.5, 0.1))
        sigma = {"teff": 100 * u.K, "logg": 0.1, "m_h": 0.1}
        prior = IsochronePrior(points, sigma, model.labels, weights=points["weight"])
    """
    try:
        import minimint
    except ImportError as error:
        raise ImportError('MIST isochrones need minimint: pip install "cyclestarnet[isochrones]"') from error

    unit = getattr(ages, "unit", None)
    if unit is None or not unit.is_equivalent(u.yr):
        raise ValueError(f"ages must have a unit of time, for example [1, 5, 10] * u.Gyr, but are {ages!r}")
    years = np.atleast_1d(ages.to_value(u.yr))
    if not (np.isfinite(years).all() and (years > 0).all()):
        raise ValueError(f"ages must be positive and finite, but are {ages}")
    metallicities = np.atleast_1d(values_of("m_h", metallicities))
    try:
        tracks = minimint.TheoryInterpolator(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the MIST tracks are not there ({error}); get them once with minimint.download_and_prepare()"
        ) from error

    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("teff", "logg", "m_h", "weight", "age", "initial_mass")
    }
    for age in years:
        for metallicity in metallicities:
            mass, teff, logg = _mist_isochrone(tracks, np.log10(age), metallicity)
            there = np.isfinite(teff)
            if not there.any():
                raise ValueError(f"the MIST tracks have no stars of {age / 1e9:g} Gyr and [Fe/H] = {metallicity:g}")
            edges = np.concatenate([mass[:1], 0.5 * (mass[1:] + mass[:-1]), mass[-1:]])
            weight = _kroupa(mass) * np.diff(edges)
            for column, value in zip(columns.values(), (teff, logg, metallicity, weight, age, mass), strict=True):
                column.append(np.broadcast_to(value, mass.shape)[there])
    units = {name: unit_of_label(name) for name in ("teff", "logg", "m_h")} | {"age": u.yr, "initial_mass": u.Msun}
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    return QTable({name: column * units[name] if name in units else column for name, column in joined.items()})


def _mist_isochrone(tracks: Tracks, log_age: float, metallicity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial masses, and effective temperatures and log g; NaN where there is no star any more."""

    def stars(mass: np.ndarray) -> np.ndarray:
        found = tracks(mass, np.full_like(mass, log_age), np.full_like(mass, metallicity))
        alive = found["phase"] <= LAST_PHASE
        return np.where(alive, [10 ** found["logteff"], found["logg"]], np.nan)

    mass = np.geomspace(*MASSES, N_MASSES)
    found = stars(mass)
    # Giants of all luminosities differ by a few per cent in initial mass: halve steps in mass where those are too
    # long in temperature or gravity. There is no end to that where a track jumps, so that it ends after some rounds.
    for _ in range(ROUNDS):
        step = np.abs(np.diff(found, axis=1))
        alive = np.isfinite(found[0])
        too_long = (step > np.array(LONGEST_STEP)[:, None]).any(0) | (alive[1:] != alive[:-1])
        if not too_long.any():
            break
        between = 0.5 * (mass[1:] + mass[:-1])[too_long]
        order = np.argsort(np.concatenate([mass, between]))
        mass = np.concatenate([mass, between])[order]
        found = np.concatenate([found, stars(between)], axis=1)[:, order]
    return mass, *found


def _kroupa(mass: np.ndarray) -> np.ndarray:
    """Kroupa's (2001) number of stars per initial mass in Msun, up to a factor, above 0.08 Msun."""
    return np.where(mass < 0.5, mass**-1.3, 0.5 * mass**-2.3)


def _without_negative(matrices: Tensor) -> Tensor:
    """Nearest positive semi-definite matrices (n, m, m)."""
    # A star whose labels are not finite must not stop the others: its value says enough.
    eigenvalues, vectors = torch.linalg.eigh(matrices.nan_to_num())
    return (vectors * eigenvalues.clamp(min=0)[:, None]) @ vectors.mT
