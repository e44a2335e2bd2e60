"""Chains of an ensemble sampler: what a sampling gives back, how long it remembers, and where it may be kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["LONG_ENOUGH", "Chain", "ChainState", "ChainStore", "Course", "Progress", "autocorrelation_time"]

log = logging.getLogger(__name__)

LONG_ENOUGH = 50.0  # autocorrelation times, beyond which their estimate can be trusted (emcee's rule, after Sokal)
SHORTEST = 10  # autocorrelation times of chains of which a few hundred draws are enough
STABLE = 0.05  # relative change of the longest since the check before, in chains of 50; it falls with their root


@dataclass(frozen=True, eq=False)
class Chain:
    """Samples of a posterior, and what tells whether they can be trusted.

    Parameters
    ----------
    samples : array, shape (n_draws · n_walkers, k)
        Positions of all walkers at the first draw, then at the second one, and
        so on. Burn-in is left out, and draws are ``thin`` steps apart.
    log_posterior : array, shape (n_draws · n_walkers,)
        Logarithm of the density at each sample, up to a constant.
    acceptance_fraction : float
        Part of the proposals that were accepted, the mean over all walkers;
        0.2 or more is healthy.
    autocorrelation_time : array, shape (k,)
        In steps, of each parameter; NaN if the chain is too short to tell.
    converged : bool
        Whether the chain is longer than 50 autocorrelation times, or as many as were asked for, the longest of them
        hardly changed since the check before, and every walker moved.
    n_steps : int
        Steps of each walker, burn-in included.
    thin : int
        Steps from draw to draw, about half an autocorrelation time.
    n_walkers : int
        Walkers of the ensemble.
    lowest_acceptance : float
        Acceptance fraction of the walker that moved least; 0 if one never moved.
    n_nan : int
        Positions at which the density was NaN or +inf; they count as impossible.

    See Also
    --------
    cyclestarnet.fitting.sampling.sample_posterior : makes chains.

    Examples
    --------
    Two walkers, of which three draws were kept; a column per walker:

    >>> import numpy as np
    >>> from cyclestarnet.fitting.chains import Chain
    >>> chain = Chain(
    ...     samples=np.array([[0.1], [2.1], [0.2], [2.2], [0.3], [2.3]]), log_posterior=np.zeros(6),
    ...     acceptance_fraction=0.4, autocorrelation_time=np.array([np.nan]), converged=False, n_steps=6, thin=1,
    ...     n_walkers=2, lowest_acceptance=0.3, n_nan=0,
    ... )
    >>> chain.samples[:, 0].reshape(-1, chain.n_walkers)
    array([[0.1, 2.1],
           [0.2, 2.2],
           [0.3, 2.3]])
    """

    samples: np.ndarray
    log_posterior: np.ndarray
    acceptance_fraction: float
    autocorrelation_time: np.ndarray
    converged: bool
    n_steps: int
    thin: int
    n_walkers: int
    lowest_acceptance: float
    n_nan: int

    @classmethod
    def of_walkers(
        cls,
        positions: np.ndarray,
        log_posterior: np.ndarray,
        acceptance: np.ndarray,
        *,
        converged: bool,
        n_nan: int,
    ) -> Chain:
        """Leave out the burn-in, two autocorrelation times of it, and what is too close to its neighbours.

        Parameters
        ----------
        positions : array, shape (n_steps, n_walkers, k)
            Of all walkers at all steps.
        log_posterior : array, shape (n_steps, n_walkers)
            Logarithm of the density there.
        acceptance : array, shape (n_walkers,)
            Acceptance fraction of each walker.
        converged : bool
            Whether the chain was found long enough.
        n_nan : int
            Positions at which the density was NaN or +inf.

        Returns
        -------
        `Chain`

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.chains import Chain
        >>> positions = np.random.default_rng(1).normal(size=(200, 4, 1))
        >>> chain = Chain.of_walkers(positions, np.zeros((200, 4)), np.ones(4), converged=True, n_nan=0)
        >>> chain.samples.shape
        (796, 1)
        """
        n_steps, n_walkers, k = positions.shape
        n_stuck = int((acceptance == 0).sum())
        if n_stuck:
            log.warning("%d of %d walkers never moved", n_stuck, n_walkers)
        tau = autocorrelation_time(positions)
        known = np.isfinite(tau).all()
        discard = min(int(2 * tau.max()), n_steps // 2) if known else n_steps // 2
        thin = max(1, int(0.5 * tau.min())) if known else 1
        kept = slice(discard + thin - 1, None, thin)
        return cls(
            samples=positions[kept].reshape(-1, k),
            log_posterior=log_posterior[kept].reshape(-1),
            acceptance_fraction=float(acceptance.mean()),
            autocorrelation_time=tau,
            converged=converged,
            n_steps=n_steps,
            thin=thin,
            n_walkers=n_walkers,
            lowest_acceptance=float(acceptance.min()),
            n_nan=n_nan,
        )

    def autocorrelation_time_of(self, derived: np.ndarray) -> float:
        """Estimate the autocorrelation time of what was derived from the samples, from the draws that were kept.

        Parameters
        ----------
        derived : array, shape (n_draws · n_walkers,)
            A number per sample, in the order of ``samples``.

        Returns
        -------
        float
            In steps, at least ``thin``; NaN if there are too few draws to tell.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.sampling import sample_posterior
        >>> chain = sample_posterior(
        ...     lambda x: -0.5 * x[:, 0] ** 2, [-9], [9], [0], [[1.0]],
        ...     rng=np.random.default_rng(1), max_steps=1000,
        ... )
        >>> time = chain.autocorrelation_time_of(chain.samples[:, 0] ** 2)
        >>> chain.thin <= time < chain.n_steps / 50
        True
        """
        draws = derived.reshape(-1, self.n_walkers, 1)
        return float(np.maximum(autocorrelation_time(draws)[0], 1)) * self.thin


@dataclass(frozen=True, eq=False)
class ChainState:
    """A chain between two steps: all that is needed to go on as if there had been no break.

    Parameters
    ----------
    positions : array, shape (n_steps, n_walkers, k)
        Of all walkers at all steps.
    log_posterior : array, shape (n_steps, n_walkers)
        Logarithm of the density there.
    accepted : array, shape (n_walkers,)
        Number of proposals of each walker that were accepted.
    random_state : tuple
        Of the `numpy.random.RandomState` that the sampler uses, as its method ``get_state`` gives it.
    n_nan : int
        Positions so far at which the density was NaN or +inf.
    centre, covariance : array, shape (k,), (k, k)
        Gaussian approximation from which new positions are proposed.
    share : float
        Part of the steps that do so.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting.chains import ChainState
    >>> random_state = np.random.RandomState(1).get_state()
    >>> chain = np.zeros((30, 8, 3)), np.zeros((30, 8)), np.zeros(8), random_state, 0
    >>> ChainState(*chain, centre=np.zeros(3), covariance=np.eye(3), share=0.7).n_steps
    30
    """

    positions: np.ndarray
    log_posterior: np.ndarray
    accepted: np.ndarray
    random_state: tuple
    n_nan: int
    centre: np.ndarray
    covariance: np.ndarray
    share: float

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.positions)


class ChainStore(Protocol):
    """Where a chain is kept, so that a sampling that ends early can be continued.

    Its text, ``str(store)``, names the place in messages.

    See Also
    --------
    cyclestarnet.pipeline.chains.ChainFile : keeps a chain in a file.

    Examples
    --------
    A store that lives as long as the process:

    >>> class Memory:
    ...     state = None
    ...     def load(self):
    ...         return self.state
    ...     def save(self, state):
    ...         self.state = state
    >>> import numpy as np
    >>> from cyclestarnet.fitting.sampling import sample_posterior
    >>> store, rng = Memory(), np.random.default_rng(1)
    >>> for max_steps in (20, 50):
    ...     chain = sample_posterior(
    ...         lambda x: -0.5 * x[:, 0] ** 2, [-9], [9], [0], [[1.0]],
    ...         rng=rng, max_steps=max_steps, store=store,
    ...     )
    ...     print(store.load().n_steps)
    20
    50
    """

    def load(self) -> ChainState | None:
        """Give back what was saved last.

        Returns
        -------
        `ChainState` or None
            None if nothing was saved yet.

        Raises
        ------
        ValueError
            If what is kept there cannot be continued: it is damaged or of another problem.

        Examples
        --------
        ::

            state = store.load()
            n_steps = 0 if state is None else state.n_steps
        """
        ...

    def save(self, state: ChainState) -> None:
        """Keep a chain in the place of what was saved before, at once or not at all.

        Parameters
        ----------
        state : `ChainState`
            Its arrays change when the sampling goes on: keep a copy if they are not written at once.

        Examples
        --------
        ::

            store.save(ChainState(positions, log_posterior, accepted, random_state, 0, centre, covariance, 0.7))
        """
        ...


@dataclass(frozen=True)
class Progress:
    """How far a sampling is, and how far it will probably go.

    Parameters
    ----------
    n_steps : int
        Steps done; 0 before the first one.
    expected_steps : int
        Steps at which the chain will probably be long enough; not more than it may have.
    seconds_per_step : float
        As measured, of the clock on the wall.
    autocorrelation_time : float
        In steps, the longest of all parameters; before the first check, a guess from the positions at
        which the walkers start.

    Examples
    --------
    >>> from cyclestarnet.fitting.chains import Progress
    >>> Progress(n_steps=40, expected_steps=150, seconds_per_step=0.2, autocorrelation_time=3.0).seconds_left
    22.0
    """

    n_steps: int
    expected_steps: int
    seconds_per_step: float
    autocorrelation_time: float

    @property
    def seconds_left(self) -> float:
        """Time until the expected end."""
        return max(self.expected_steps - self.n_steps, 0) * self.seconds_per_step


class Course:
    """What checks find of a chain as it grows, and where it will probably end.

    Parameters
    ----------
    check_every : int
        Steps between checks; later, a tenth of the chain.
    max_steps : int
        Where the chain ends in any case.
    length : float
        Autocorrelation times after which the chain is long enough.

    Attributes
    ----------
    converged : bool
        Whether the chain was long enough at the last check.

    Raises
    ------
    ValueError
        If a number is too small.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting.chains import Course
    >>> course = Course(check_every=20, max_steps=1000, length=50.0)
    >>> course.begin(np.random.default_rng(1).normal(size=(200, 8, 2)), guess=2.0)
    >>> course.converged
    True
    """

    def __init__(self, *, check_every: int, max_steps: int, length: float):
        if max_steps < 1 or check_every < 1:
            raise ValueError(f"max_steps and check_every must be positive, but are {max_steps} and {check_every}")
        if not length >= SHORTEST:
            raise ValueError(f"length must be {SHORTEST} autocorrelation times or more, but is {length}")
        self.every, self.max_steps, self.length, self.converged = check_every, max_steps, length, False
        self.longest, self.measured, self.next = np.nan, np.nan, check_every

    def begin(self, chain: np.ndarray, *, guess: float) -> None:
        """Check what there is already, as it was checked before.

        Parameters
        ----------
        chain : array, shape (n_steps, n_walkers, k)
            Empty, or of a run that is continued.
        guess : float
            Of the longest autocorrelation time, before it has been measured.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.chains import Course
        >>> course = Course(check_every=20, max_steps=1000, length=50.0)
        >>> course.begin(np.empty((0, 8, 2)), guess=3.0)
        >>> course.progress(0, 0.1).expected_steps
        151
        """
        self.longest = guess
        while self.next <= len(chain):
            self.check(chain[: self.next])

    def check(self, chain: np.ndarray) -> bool:
        """Look whether the chain is long enough, if it is time.

        Parameters
        ----------
        chain : array, shape (n_steps, n_walkers, k)
            So far.

        Returns
        -------
        bool
            Whether it was time.

        Examples
        --------
        ::

            while not course.converged:
                chain = prolonged(chain)
                course.check(chain)
        """
        if len(chain) < self.next:
            return False
        self.next += max(self.every, len(chain) // 10)
        previous, self.measured = self.measured, float(autocorrelation_time(chain).max())  # NaN of one is NaN of all
        if np.isfinite(self.measured):
            self.longest = self.measured
        all_moved = (chain != chain[0]).any(axis=(0, 2)).all()
        stable = abs(self.measured - previous) < STABLE * (LONG_ENOUGH / self.length) ** 0.5 * self.measured
        self.converged = bool(all_moved and stable and len(chain) > self.length * self.measured)
        return True

    def progress(self, n_steps: int, seconds: float) -> Progress:
        """Tell how far the chain is, and how far it will probably go.

        Parameters
        ----------
        n_steps : int
            Steps so far.
        seconds : float
            Of the clock, that each of them took.

        Returns
        -------
        `Progress`

        Examples
        --------
        ::

            bar.total = course.progress(n_steps, seconds).expected_steps
        """
        expected = n_steps if self.converged else max(int(self.length * self.longest) + 1, self.next)
        return Progress(n_steps, min(expected, self.max_steps), seconds, self.longest)


def autocorrelation_time(chain: np.ndarray) -> np.ndarray:
    """Estimate the integrated autocorrelation time of an ensemble's chain.

    Deviations are from the mean of all walkers, so that walkers that stay
    apart count as correlated.

    Parameters
    ----------
    chain : array, shape (n_steps, n_walkers, k)
        Finite positions.

    Returns
    -------
    array, shape (k,)
        In steps; NaN if the chain is shorter than five of them, or all walkers stand still.

    References
    ----------
    .. [1] Sokal 1997, Monte Carlo methods in statistical mechanics, Section 3.

    Examples
    --------
    Numbers that know nothing of each other, and the same with each repeated five times:

    >>> import numpy as np
    >>> from cyclestarnet.fitting.chains import autocorrelation_time
    >>> chain = np.random.default_rng(1).normal(size=(2000, 8, 1))
    >>> autocorrelation_time(chain).round(1), autocorrelation_time(np.repeat(chain, 5, axis=0)).round()
    (array([1.]), array([5.]))
    """
    n = len(chain)
    tau = np.full(chain.shape[2], np.nan)
    for k in range(chain.shape[2]) if n else ():
        deviation = chain[..., k] - chain[..., k].mean()
        power = np.abs(np.fft.rfft(deviation, 2 * n, axis=0)) ** 2  # padded, so that the ends do not meet
        covariance = np.fft.irfft(power.mean(axis=1), 2 * n)[:n]
        if not covariance[0] > 0:
            continue
        summed = 2 * np.cumsum(covariance) / covariance[0] - 1
        windows = np.flatnonzero(np.arange(n) >= 5 * summed)
        if windows.size:
            tau[k] = summed[windows[0]]
    return tau
