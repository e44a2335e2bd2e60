"""Posterior samples with emcee: one star, arrays in and out, no network in sight."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.fitting.approximation import Approximation
from cyclestarnet.fitting.chains import LONG_ENOUGH, Chain, ChainState, ChainStore, Course, Progress

__all__ = ["sample_posterior"]

SHARES = (0.3, 0.75)  # least and largest part of the steps that propose anew from the approximation


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
    check_every: int = 20,
    length: float = LONG_ENOUGH,
    store: ChainStore | None = None,
    watch: Callable[[Progress], object] | None = None,
) -> Chain:
    """Sample a posterior within bounds until the chain is long enough.

    Walkers start at draws of the Laplace approximation. A step moves all of
    them in one of three ways, chosen by chance with probabilities that never
    change: to new draws of the approximation, which forget where they come from
    where it is good; by differential evolution; or by stretches, which need no
    approximation. How often the first is tried, in 0.3 to 0.75 of the steps, is
    the acceptance that is to be expected from the densities at the start. Of
    the others, one in five is a stretch.

    Parameters
    ----------
    log_posterior : callable
        Takes positions (m, k), gives their log density (m,) up to a constant.
        It is asked only inside the bounds, all walkers at once or half of them.
        NaN and +inf count as −inf.
    lower, upper : array_like, shape (k,)
        Finite bounds.
    centre, covariance : array_like, shape (k,), (k, k)
        Optimum and Laplace covariance, as `~cyclestarnet.fitting.approximation.approximate` finds them. They decide
        how long it takes, not what is found: whatever they are, samples are those of the posterior.
    rng : `numpy.random.Generator`
        Decides where walkers start and how they move. Not used if a chain is
        continued: its store has the random state, and centre and covariance, too.
    n_walkers : int, optional
        At least 2 (k + 1), the default: the differences of half of the walkers must span the space.
    max_steps : int, optional
        Length of the chain, with what ``store`` holds already, at which
        sampling ends in any case. Of posteriors that are close to Gaussian, 100 to 300 steps are enough;
        others take thousands.
    check_every : int, optional
        Steps between checks of convergence, each of which is followed by a visit to ``store``. In
        chains longer than ten times that, checks come after every tenth of the length.
    length : float, optional
        Autocorrelation times after which the chain is long enough, 10 or more. Default: 50, as intervals need it. Where
        some hundred independent draws will do, 10 have them.
    store : `~cyclestarnet.fitting.chains.ChainStore`, optional
        Keeps the chain at every check and at the end, also if that is an
        interrupt. What it holds at the beginning is continued, and ends as
        the same chain as one that was never interrupted, bit by bit.
    watch : callable, optional
        Told the `Progress` before the first step, if the chain is a new one, and after each.

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
    .. [3] Tierney 1994, Annals of Statistics 22, 1701, Section 2.3 (independence chains, and mixtures of moves).

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting.sampling import sample_posterior
    >>> chain = sample_posterior(
    ...     lambda x: -0.5 * (x[:, 0] - 3) ** 2, [-10], [10], [3], [[1.0]],
    ...     rng=np.random.default_rng(1), n_walkers=20,
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
    course = Course(check_every=check_every, max_steps=max_steps, length=length)
    density = _BoundedDensity(log_posterior, low, high)
    kept = None if store is None else store.load()
    if kept is None:
        near = Approximation(middle, spread, low, high)
        begin, share, seconds = _start(density, near, n_walkers, rng)
        sampler = _sampler(density, near, share, n_walkers)
        sampler.random_state = np.random.RandomState(rng.integers(2**32)).get_state()
    else:
        middle, spread, share, seconds = kept.centre, kept.covariance, kept.share, np.nan
        sampler = _sampler(density, Approximation(middle, spread, low, high), share, n_walkers)
        _continue(sampler.backend, kept, store)
        density.n_nan = kept.n_nan
        begin = sampler.backend.get_last_sample()  # with the state of the random numbers

    backend = sampler.backend
    done, watch = backend.iteration, watch or (lambda progress: None)
    course.begin(backend.chain[:done], guess=2 / share**2 - 1)  # if that share of as many proposals is accepted
    if kept is None:
        watch(course.progress(0, seconds))
    latest: ChainState | None = None  # after the last complete step: an interrupt may come in the middle of the next
    try:
        clock = time.perf_counter()
        for state in sampler.sample(
            begin,
            iterations=0 if course.converged else max(max_steps - done, 0),
            skip_initial_state_check=True,  # of correlations, which these moves do not feel
        ):
            chain, log_prob = backend.get_chain(), backend.get_log_prob()
            latest = ChainState(
                chain, log_prob, backend.accepted.copy(), state.random_state, density.n_nan, middle, spread, share
            )
            checked = course.check(chain)
            watch(course.progress(len(chain), (time.perf_counter() - clock) / (len(chain) - done)))
            if course.converged:
                break
            if checked and store is not None:
                store.save(latest)
    finally:
        if store is not None and latest is not None:
            store.save(latest)
    return Chain.of_walkers(
        backend.get_chain(),
        backend.get_log_prob(),
        backend.accepted / backend.iteration,
        converged=course.converged,
        n_nan=density.n_nan,
    )


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
def _emcee() -> Any:
    try:
        import emcee
    except ImportError as error:
        raise ImportError('sampling needs emcee: pip install "cyclestarnet[sampling]"') from error
    return emcee


def _sampler(density: _BoundedDensity, near: Approximation, share: float, n_walkers: int) -> Any:
    """An `emcee.EnsembleSampler` that keeps its chain in memory."""
    emcee = _emcee()

    def anew(positions: np.ndarray, random: Any) -> tuple[np.ndarray, np.ndarray]:
        """Draws that know nothing of the positions, and the log ratio of the densities by which either is proposed."""
        drawn = near.draw(len(positions), random)
        return drawn, near.log_density(positions) - near.log_density(drawn)

    # Snooker moves are left out because those of emcee up to 3.1.6 do not keep the distribution: the sigma of a
    # Gaussian in two dimensions came out 37 % too small to 12 % too large, dependent on its unit.
    moves = [
        (emcee.moves.MHMove(anew), share),
        (emcee.moves.DEMove(), 0.8 * (1 - share)),
        (emcee.moves.StretchMove(), 0.2 * (1 - share)),
    ]
    sampler = emcee.EnsembleSampler(n_walkers, len(near.centre), density, vectorize=True, moves=moves)
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
    density: _BoundedDensity, near: Approximation, n_walkers: int, rng: np.random.Generator
) -> tuple[Any, float, float]:
    """State of the walkers where the density is positive, the share of new draws, and seconds per step."""
    emcee = _emcee()
    drawn = near.draw(n_walkers, rng)
    positions = near.reflected(drawn)
    clock = time.perf_counter()
    value = density(positions)
    seconds = time.perf_counter() - clock
    inside = (positions == drawn).all(axis=1)
    share = float(np.clip(_acceptance(np.where(inside, value, -np.inf) - near.log_density(drawn)), *SHARES))
    for shrink in 0.7 ** np.arange(1, 21):
        missing = np.isneginf(value)
        if not missing.any():
            return emcee.State(positions, log_prob=value), share, seconds
        closer = near.centre + shrink * (near.draw(missing.sum(), rng) - near.centre)
        positions[missing] = near.reflected(closer)
        value[missing] = density(positions[missing])
    raise ValueError(
        f"log_posterior is −inf or NaN at the starts of {np.isneginf(value).sum()} of {n_walkers} walkers, "
        "even close to centre; give another centre"
    )


def _acceptance(log_ratio: np.ndarray) -> float:
    """Expected acceptance of new draws, of the log ratio of posterior and proposal at independent draws."""
    if not np.isfinite(log_ratio).any():
        return 0.0
    ratio = np.exp(log_ratio - log_ratio.max())
    return float(np.minimum.outer(ratio, ratio).mean() / ratio.mean())
