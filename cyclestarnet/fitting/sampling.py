"""Posterior samples with emcee: one star, arrays in and out, no network in sight."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.results import autocorrelation_time

__all__ = ["sample_posterior"]

log = logging.getLogger(__name__)

LONG_ENOUGH = 50  # autocorrelation times, beyond which their estimate can be trusted (emcee's rule, after Sokal)
STABLE = 0.05  # relative change of that estimate since the check before


def sample_posterior(
    log_posterior: Callable[[np.ndarray], np.ndarray],
    lower: np.ndarray,
    upper: np.ndarray,
    centre: np.ndarray,
    covariance: np.ndarray,
    *,
    rng: np.random.Generator,
    n_walkers: int | None = None,
    max_steps: int = 10_000,
    check_every: int = 100,
    backend=None,
    identity: str = "",
    progress: bool = True,
) -> dict:
    """Sample a posterior within bounds until the chain is 50 autocorrelation times long.

    Walkers start at draws of the Laplace approximation, and move by
    differential evolution, one step in five by stretches.

    Parameters
    ----------
    log_posterior : callable
        Takes positions (m, k), gives their log density (m,) up to a constant.
        It is asked only inside the bounds, half of the walkers at once.
        NaN and +inf count as −inf.
    lower, upper : array, shape (k,)
        Finite bounds.
    centre, covariance : array, shape (k,), (k, k)
        Optimum and Laplace covariance. Draws beyond a bound are reflected.
    rng : `numpy.random.Generator`
        Not used if a chain is continued: its file has the random state.
    n_walkers : int, optional
        At least 2 (k + 1), the default: the differences of half of the walkers must span the space.
    max_steps : int, optional
        Length of the chain, with what ``backend`` holds already, at which
        sampling ends in any case. 20 labels take about 5000 steps.
    check_every : int, optional
        Steps between checks of convergence, and between writes of ``backend``.
    backend : path-like, optional
        HDF5 file that keeps the chain. An existing one is continued, and ends
        as the same chain as one that was never interrupted, bit by bit. It is
        replaced in one step, so that a process that is killed leaves the chain
        of the last check. ``emcee.backends.HDFBackend`` can read it.
    identity : str, optional
        Of star, model and options. A file of another one is not continued.
    progress : bool, optional

    Returns
    -------
    dict
        ``samples`` (n_draws · n_walkers, k) and ``log_posterior``, a row of
        all walkers after the other, burn-in left out and thinned;
        ``n_walkers``; ``thin``, steps from draw to draw; ``n_steps``;
        ``acceptance_fraction``, the mean over walkers, and
        ``lowest_acceptance``; ``autocorrelation_time`` (k,) in steps, NaN if
        the chain is too short to tell; ``converged``: the chain is longer than
        50 of these, they changed by less than 5 % since the check before, and
        every walker has moved; ``n_nan``, the number of positions at which
        ``log_posterior`` was NaN or +inf.

    Raises
    ------
    ValueError
        If arguments do not fit each other, the file is of another problem,
        or no start with a finite density is found.
    FileFormatError
        If the file is damaged or not one of ours.

    References
    ----------
    .. [1] Foreman-Mackey et al. 2013, PASP 125, 306 (emcee).
    .. [2] Nelson et al. 2014, ApJS 210, 11 (differential evolution).

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting.sampling import sample_posterior
    >>> chain = sample_posterior(
    ...     lambda x: -0.5 * (x[:, 0] - 3) ** 2, [-10], [10], [3], [[1.0]],
    ...     rng=np.random.default_rng(1), max_steps=2000, progress=False,
    ... )
    >>> chain["converged"]
    True
    >>> print(f"{chain['samples'].mean():.1f} ± {chain['samples'].std():.1f}")
    3.0 ± 1.0
    """
    try:
        import emcee
    except ImportError as error:
        raise ImportError("sampling needs emcee: pip install cyclestarnet[sampling]") from error

    lower, upper, centre, covariance = (np.asarray(a, dtype=float) for a in (lower, upper, centre, covariance))
    k = centre.size
    _check(lower, upper, centre, covariance)
    least = 2 * (k + 1)
    n_walkers = least if n_walkers is None else n_walkers
    if n_walkers < least:
        raise ValueError(f"n_walkers must be at least {least} for {k} free parameters, but is {n_walkers}")
    if max_steps < 1 or check_every < 1:
        raise ValueError(f"max_steps and check_every must be positive, but are {max_steps} and {check_every}")

    # Autocorrelation times (= densities per independent sample) with 2 (k + 1) walkers on Gaussians of correlations
    # 0.9^|i - j|, k = 8 and 20: stretch 97 and 317 steps, differential evolution 28 and 70, this mixture 30 and 77. The
    # mixture brings walkers home that start too far out: 150 steps instead of 1800 for Student's t, k = 20. Snooker
    # moves are left out because those of emcee up to 3.1.6 do not keep the distribution: the sigma of a Gaussian in two
    # dimensions came out 37 % too small to 12 % too large, dependent on its unit.
    density = _BoundedDensity(log_posterior, lower, upper)
    store = emcee.backends.Backend()
    resumed = backend is not None and Path(backend).exists()
    if resumed:
        density.n_nan = _read(backend, store, n_walkers, k, identity)
    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.StretchMove(), 0.2)]
    sampler = emcee.EnsembleSampler(n_walkers, k, density, vectorize=True, moves=moves, backend=store)
    sampler.log_prob_fn = density  # emcee wraps it in a function that prints positions at any exception
    if resumed:
        begin = sampler.get_last_sample()  # with the state of the random numbers
    else:
        sampler.random_state = np.random.RandomState(rng.integers(2**32)).get_state()
        begin = _start(density, centre, covariance, n_walkers, rng)

    done = store.iteration
    # Of the last complete step: an interrupt may come in the middle of the next.
    snapshot = done, store.random_state, store.accepted.copy(), density.n_nan
    tau, converged = _last_check(store.chain[:done], check_every)
    try:
        for state in sampler.sample(
            begin,
            iterations=0 if converged else max(max_steps - done, 0),
            progress=progress,
            progress_kwargs={"desc": "sampling"},
            skip_initial_state_check=True,  # of correlations, which these moves do not feel
        ):
            snapshot = store.iteration, state.random_state, store.accepted.copy(), density.n_nan
            if store.iteration % check_every == 0:
                chain = store.get_chain()
                previous, tau = tau, autocorrelation_time(chain)
                converged = _is_converged(chain, tau, previous)
                if converged:
                    break
                if backend is not None:
                    _write(backend, store, snapshot, identity)
    finally:
        if backend is not None and snapshot[0] > done:
            _write(backend, store, snapshot, identity)
    return _result(store, converged) | {"n_nan": density.n_nan}


class _BoundedDensity:
    """A log density that is −inf outside the bounds and where it is no number; counts the latter."""

    def __init__(self, log_posterior, lower: np.ndarray, upper: np.ndarray):
        self.log_posterior, self.lower, self.upper, self.n_nan = log_posterior, lower, upper, 0

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        inside = ((positions >= self.lower) & (positions <= self.upper)).all(axis=1)
        value = np.full(len(positions), -np.inf)
        if inside.any():
            found = np.asarray(self.log_posterior(positions[inside]), dtype=float)
            if found.shape != (inside.sum(),):
                raise ValueError(f"log_posterior must give shape ({inside.sum()},), but gave {found.shape}")
            bad = np.isnan(found) | (found == np.inf)
            self.n_nan += int(bad.sum())
            value[inside] = np.where(bad, -np.inf, found)
        return value


def _check(lower, upper, centre, covariance) -> None:
    """Raise if the arrays of a problem do not fit each other."""
    k = centre.size
    shapes = tuple(a.shape for a in (lower, upper, centre, covariance))
    if shapes != ((k,), (k,), (k,), (k, k)) or k == 0:
        raise ValueError(f"lower, upper, centre, covariance must have shapes (k,), (k,), (k,), (k, k), not {shapes}")
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
        raise ValueError(f"lower must be below upper, and both finite, but they are {lower} and {upper}")
    if not (np.isfinite(centre).all() and np.isfinite(covariance).all()):
        raise ValueError("centre and covariance must be finite; start from a fit that succeeded")


def _start(density: _BoundedDensity, centre, covariance, n_walkers: int, rng):
    """State of the walkers at draws of the Laplace approximation, where the density is positive."""
    from emcee import State

    lower, width = density.lower, density.upper - density.lower
    block = covariance + np.diag((1e-5 * width) ** 2)  # walkers that share a value would never leave it
    scale = np.sqrt(np.diag(block))
    variance, axes = np.linalg.eigh(block / np.outer(scale, scale))
    root = scale[:, None] * axes * np.sqrt(variance.clip(1e-10))
    positions, value = np.empty((n_walkers, centre.size)), np.full(n_walkers, -np.inf)
    for shrink in 0.7 ** np.arange(20):
        missing = np.isneginf(value)
        offset = centre - lower + shrink * rng.standard_normal((missing.sum(), centre.size)) @ root.T
        reflected = lower + width - np.abs(width - offset % (2 * width))
        positions[missing] = reflected.clip(lower, density.upper)  # rounding
        value[missing] = density(positions[missing])
        if np.isfinite(value).all():
            return State(positions, log_prob=value)
    raise ValueError(
        f"log_posterior is −inf or NaN at the starts of {np.isneginf(value).sum()} of {n_walkers} walkers, "
        "even close to centre; give another centre"
    )


# -- convergence ---------------------------------------------------------------------------
def _is_converged(chain: np.ndarray, tau: np.ndarray, previous: np.ndarray) -> bool:
    all_moved = (chain != chain[0]).any(axis=(0, 2)).all()
    return bool(all_moved and (len(chain) > LONG_ENOUGH * tau).all() and (np.abs(tau - previous) < STABLE * tau).all())


def _last_check(chain: np.ndarray, check_every: int) -> tuple[np.ndarray, bool]:
    """What the last check found of a chain (n_steps, n_walkers, k) that is continued."""
    n = len(chain) - len(chain) % check_every
    previous, tau = (autocorrelation_time(chain[: max(m, 0)]) for m in (n - check_every, n))
    return tau, n > 0 and _is_converged(chain[:n], tau, previous)


def _result(store, converged: bool) -> dict:
    chain, n_steps = store.get_chain(), store.iteration
    tau, acceptance = autocorrelation_time(chain), store.accepted / n_steps
    n_stuck = int((acceptance == 0).sum())
    if n_stuck:
        log.warning("%d of %d walkers never moved", n_stuck, len(acceptance))
    known = np.isfinite(tau).all()
    discard = min(int(2 * tau.max()), n_steps // 2) if known else n_steps // 2
    thin = max(1, int(0.5 * tau.min())) if known else 1
    return {
        "samples": store.get_chain(discard=discard, thin=thin, flat=True),
        "log_posterior": store.get_log_prob(discard=discard, thin=thin, flat=True),
        "n_walkers": len(acceptance),
        "thin": thin,
        "n_steps": n_steps,
        "acceptance_fraction": float(acceptance.mean()),
        "lowest_acceptance": float(acceptance.min()),
        "autocorrelation_time": tau,
        "converged": converged,
    }


# -- the file --------------------------------------------------------------------------------
def _write(path, store, snapshot: tuple, identity: str) -> None:
    """Write the chain as emcee's own backend lays it out, but in one step.

    emcee writes into the file that it has, at every step: of 40 processes
    that were killed, 5 left chain and counts that did not fit each other.
    """
    from cyclestarnet.files import write_atomically

    n_steps, random_state, accepted, n_nan = snapshot

    def fill(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            group = file.create_group("mcmc")
            group.attrs.update(
                nwalkers=store.nwalkers, ndim=store.ndim, has_blobs=False, iteration=n_steps, identity=identity,
                n_nan=n_nan, **{f"random_state_{i}": value for i, value in enumerate(random_state)},
            )  # fmt: skip
            group["accepted"] = accepted
            for name in ("chain", "log_prob"):
                group.create_dataset(name, data=getattr(store, name)[:n_steps], fletcher32=True)

    write_atomically(path, fill)


def _read(path, store, n_walkers: int, k: int, identity: str) -> int:
    """Fill ``store`` with the chain of a file; return its count of NaN."""
    try:
        with h5py.File(path, "r") as file:
            group = file["mcmc"]
            attributes = dict(group.attrs)
            accepted, chain, log_prob = (group[name][...] for name in ("accepted", "chain", "log_prob"))
        shape = attributes["iteration"], attributes["nwalkers"], attributes["ndim"]
        if chain.shape != shape or log_prob.shape != shape[:2] or accepted.shape != shape[1:2]:
            raise ValueError(f"arrays of shapes {chain.shape}, {log_prob.shape}, {accepted.shape}, expected {shape}")
        random_state = tuple(attributes[f"random_state_{i}"] for i in range(5))
        np.random.RandomState().set_state(random_state)  # emcee would pass over a damaged one in silence
        found, n_nan = attributes["identity"], int(attributes["n_nan"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(
            f"{path} is damaged or holds no chain of cyclestarnet ({error}); remove it, or name another backend"
        ) from error
    if found != identity or shape[1:] != (n_walkers, k):
        raise ValueError(
            f"{path} holds a chain of {shape[1]} walkers in {shape[2]} dimensions of {found!r}, but this one has "
            f"{n_walkers} in {k} of {identity!r}; name another backend"
        )
    store.reset(n_walkers, k)
    store.chain, store.log_prob, store.accepted, store.random_state = chain, log_prob, accepted, random_state
    store.iteration = int(shape[0])
    return n_nan
