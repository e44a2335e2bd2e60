"""Posterior samples with emcee: one star, arrays in and out, no network in sight."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.fitting.chains import Chain, ChainState, ChainStore, autocorrelation_time

__all__ = ["sample_posterior"]

log = logging.getLogger(__name__)

LONG_ENOUGH = 50  # autocorrelation times, beyond which their estimate can be trusted (emcee's rule, after Sokal)
STABLE = 0.05  # relative change of that estimate since the check before


def sample_posterior(
    log_posterior: Callable[[np.ndarray], np.ndarray],
    lower: ArrayLike,
    upper: ArrayLike,
    centre: ArrayLike,
    covariance: ArrayLike,
    *,
    rng: np.random.Generator,
    n_walkers: int | None = None,
    max_steps: int = 10_000,
    check_every: int = 100,
    store: ChainStore | None = None,
    progress: bool = True,
) -> Chain:
    """Sample a posterior within bounds until the chain is 50 autocorrelation times long.

    Walkers start at draws of the Laplace approximation, and move by
    differential evolution, one step in five by stretches.

    Parameters
    ----------
    log_posterior : callable
        Takes positions (m, k), gives their log density (m,) up to a constant.
        It is asked only inside the bounds, half of the walkers at once.
        NaN and +inf count as −inf.
    lower, upper : array_like, shape (k,)
        Finite bounds.
    centre, covariance : array_like, shape (k,), (k, k)
        Optimum and Laplace covariance. Draws beyond a bound are reflected.
    rng : `numpy.random.Generator`
        Decides where walkers start and how they move. Not used if a chain is
        continued: its store has the random state.
    n_walkers : int, optional
        At least 2 (k + 1), the default: the differences of half of the walkers must span the space.
    max_steps : int, optional
        Length of the chain, with what ``store`` holds already, at which
        sampling ends in any case. 20 labels take about 5000 steps.
    check_every : int, optional
        Steps between checks of convergence, each of which is followed by a visit to ``store``.
    store : `~cyclestarnet.fitting.chains.ChainStore`, optional
        Keeps the chain at every check and at the end, also if that is an
        interrupt. What it holds at the beginning is continued, and ends as
        the same chain as one that was never interrupted, bit by bit.
    progress : bool, optional
        Whether to show a bar.

    Returns
    -------
    `~cyclestarnet.fitting.chains.Chain`

    Raises
    ------
    ImportError
        If emcee is not installed.
    ValueError
        If arguments do not fit each other, the store has the chain of another
        problem, or no start with a finite density is found.

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
    >>> chain.converged
    True
    >>> print(f"{chain.samples.mean():.1f} ± {chain.samples.std():.1f}")
    3.0 ± 1.0
    """
    low, high, middle, spread = (np.asarray(a, dtype=float) for a in (lower, upper, centre, covariance))
    _check(low, high, middle, spread)
    least = 2 * (middle.size + 1)
    n_walkers = least if n_walkers is None else n_walkers
    if n_walkers < least:
        raise ValueError(f"n_walkers must be at least {least} for {middle.size} free parameters, but is {n_walkers}")
    if max_steps < 1 or check_every < 1:
        raise ValueError(f"max_steps and check_every must be positive, but are {max_steps} and {check_every}")

    density = _BoundedDensity(log_posterior, low, high)
    sampler = _sampler(density, n_walkers, middle.size)
    backend = sampler.backend
    kept = None if store is None else store.load()
    if kept is None:
        sampler.random_state = np.random.RandomState(rng.integers(2**32)).get_state()
        begin = _start(density, middle, spread, n_walkers, rng)
    else:
        _continue(backend, kept, store)
        density.n_nan = kept.n_nan
        begin = backend.get_last_sample()  # with the state of the random numbers

    done = backend.iteration
    tau, converged = _last_check(backend.chain[:done], check_every)
    latest: ChainState | None = None  # after the last complete step: an interrupt may come in the middle of the next
    try:
        for state in sampler.sample(
            begin,
            iterations=0 if converged else max(max_steps - done, 0),
            progress=progress,
            progress_kwargs={"desc": "sampling"},
            skip_initial_state_check=True,  # of correlations, which these moves do not feel
        ):
            chain, log_prob = backend.get_chain(), backend.get_log_prob()
            latest = ChainState(chain, log_prob, backend.accepted.copy(), state.random_state, density.n_nan)
            if len(chain) % check_every == 0:
                previous, tau = tau, autocorrelation_time(chain)
                converged = _is_converged(chain, tau, previous)
                if converged:
                    break
                if store is not None:
                    store.save(latest)
    finally:
        if store is not None and latest is not None:
            store.save(latest)
    return _result(backend, converged, density.n_nan)


class _BoundedDensity:
    """A log density that is −inf outside the bounds and where it is no number; counts the latter."""

    def __init__(self, log_posterior: Callable[[np.ndarray], np.ndarray], lower: np.ndarray, upper: np.ndarray):
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


def _check(lower: np.ndarray, upper: np.ndarray, centre: np.ndarray, covariance: np.ndarray) -> None:
    """Raise if the arrays of a problem do not fit each other."""
    k = centre.size
    shapes = tuple(a.shape for a in (lower, upper, centre, covariance))
    if shapes != ((k,), (k,), (k,), (k, k)) or k == 0:
        raise ValueError(f"lower, upper, centre, covariance must have shapes (k,), (k,), (k,), (k, k), not {shapes}")
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
        raise ValueError(f"lower must be below upper, and both finite, but they are {lower} and {upper}")
    if not (np.isfinite(centre).all() and np.isfinite(covariance).all()):
        raise ValueError("centre and covariance must be finite; start from a fit that succeeded")


# -- emcee, which has no types: its objects are Any here --------------------------------------
def _sampler(density: _BoundedDensity, n_walkers: int, k: int) -> Any:
    """An `emcee.EnsembleSampler` that keeps its chain in memory."""
    try:
        import emcee
    except ImportError as error:
        raise ImportError('sampling needs emcee: pip install "cyclestarnet[sampling]"') from error

    # Autocorrelation times (= densities per independent sample) with 2 (k + 1) walkers on Gaussians of correlations
    # 0.9^|i - j|, k = 8 and 20: stretch 97 and 317 steps, differential evolution 28 and 70, this mixture 30 and 77. The
    # mixture brings walkers home that start too far out: 150 steps instead of 1800 for Student's t, k = 20. Snooker
    # moves are left out because those of emcee up to 3.1.6 do not keep the distribution: the sigma of a Gaussian in two
    # dimensions came out 37 % too small to 12 % too large, dependent on its unit.
    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.StretchMove(), 0.2)]
    sampler = emcee.EnsembleSampler(n_walkers, k, density, vectorize=True, moves=moves)
    sampler.log_prob_fn = density  # emcee wraps it in a function that prints positions at any exception
    return sampler


def _continue(backend: Any, kept: ChainState, store: ChainStore | None) -> None:
    """Fill emcee's memory with a chain, if it is one of as many walkers and parameters."""
    shape = kept.positions.shape[1:]
    if shape != backend.shape:
        raise ValueError(
            f"{store} holds a chain of {shape[0]} walkers in {shape[1]} dimensions, but this one has "
            f"{backend.shape[0]} in {backend.shape[1]}; keep this one in another place"
        )
    backend.chain, backend.log_prob, backend.accepted = kept.positions, kept.log_posterior, kept.accepted.copy()
    backend.random_state, backend.iteration = kept.random_state, kept.n_steps


def _start(
    density: _BoundedDensity, centre: np.ndarray, covariance: np.ndarray, n_walkers: int, rng: np.random.Generator
) -> Any:
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


def _result(backend: Any, converged: bool, n_nan: int) -> Chain:
    chain, n_steps = backend.get_chain(), backend.iteration
    tau, acceptance = autocorrelation_time(chain), backend.accepted / n_steps
    n_stuck = int((acceptance == 0).sum())
    if n_stuck:
        log.warning("%d of %d walkers never moved", n_stuck, len(acceptance))
    known = np.isfinite(tau).all()
    discard = min(int(2 * tau.max()), n_steps // 2) if known else n_steps // 2
    thin = max(1, int(0.5 * tau.min())) if known else 1
    return Chain(
        samples=backend.get_chain(discard=discard, thin=thin, flat=True),
        log_posterior=backend.get_log_prob(discard=discard, thin=thin, flat=True),
        acceptance_fraction=float(acceptance.mean()),
        autocorrelation_time=tau,
        converged=converged,
        n_steps=n_steps,
        thin=thin,
        n_walkers=len(acceptance),
        lowest_acceptance=float(acceptance.min()),
        n_nan=n_nan,
    )
