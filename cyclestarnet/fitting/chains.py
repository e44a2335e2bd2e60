"""Chains of an ensemble sampler: what a sampling gives back, how long it remembers, and where it may be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Chain", "ChainState", "ChainStore", "autocorrelation_time"]


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
