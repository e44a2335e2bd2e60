"""Posterior samples with emcee, all walkers in one call of the network."""

from __future__ import annotations

import logging

import numpy as np

from cyclestarnet.fitting.objective import Objective

__all__ = ["sample_posterior"]

log = logging.getLogger(__name__)


def sample_posterior(
    objective: Objective,
    centre: np.ndarray,
    covariance: np.ndarray,
    *,
    rng: np.random.Generator,
    n_walkers: int | None = None,
    max_steps: int = 5000,
    check_every: int = 100,
    backend=None,
    progress: bool = True,
) -> dict:
    """Sample the free labels until the chain is 50 autocorrelation times long.

    Parameters
    ----------
    objective : `Objective`
    centre, covariance : array, shape (n_labels,), (n_labels, n_labels)
        Optimum and Laplace covariance; walkers start there.
    rng : `numpy.random.Generator`
    n_walkers : int, optional
        Default: 2 (n_free + 1).
    max_steps, check_every : int
    backend : path-like, optional
        HDF5 file that keeps the chain; an existing one is continued.
    progress : bool

    Returns
    -------
    dict
        ``samples`` (n, n_labels), ``log_posterior``, ``acceptance_fraction``,
        ``autocorrelation_time``, ``converged``, ``n_steps``.
    """
    try:
        import emcee
    except ImportError as error:
        raise ImportError("sampling needs emcee: pip install cyclestarnet[sampling]") from error

    free = np.flatnonzero(objective.free)
    n_free = len(free)
    n_walkers = n_walkers or 2 * (n_free + 1)
    if n_walkers < 2 * n_free:
        raise ValueError(f"n_walkers must be at least {2 * n_free} for {n_free} free labels, but is {n_walkers}")

    def full(positions: np.ndarray) -> np.ndarray:
        labels = np.repeat(centre[None], len(positions), axis=0)
        labels[:, free] = positions
        return labels

    store = emcee.backends.HDFBackend(str(backend)) if backend is not None else None
    sampler = emcee.EnsembleSampler(
        n_walkers, n_free, lambda p: objective.log_posterior(full(p)), vectorize=True, backend=store
    )
    done = store.iteration if store is not None and store.initialized else 0
    tau, converged = np.full(n_free, np.nan), False
    if done:
        state = sampler.get_last_sample()  # with the state of the random numbers
        if done >= check_every:
            tau = sampler.get_autocorr_time(tol=0)
            converged = bool(done >= max_steps and np.all(done > 50 * tau))
    else:
        sampler.random_state = np.random.RandomState(rng.integers(2**32)).get_state()
        state = _start(objective, centre, covariance, free, n_walkers, rng)
    for _ in sampler.sample(state, iterations=max(max_steps - done, 0), progress=progress):
        if sampler.iteration % check_every:
            continue
        previous, tau = tau, sampler.get_autocorr_time(tol=0)
        if np.all(sampler.iteration > 50 * tau) and np.all(np.abs(previous - tau) < 0.05 * tau):
            converged = True
            break
    n_steps = sampler.iteration
    if np.all(np.isfinite(tau)):
        discard, thin = int(2 * tau.max()), max(1, int(0.5 * tau.min()))
    else:
        discard, thin = n_steps // 2, 1
    discard = min(discard, n_steps // 2)
    return {
        "samples": full(sampler.get_chain(discard=discard, thin=thin, flat=True)),
        "log_posterior": sampler.get_log_prob(discard=discard, thin=thin, flat=True),
        "acceptance_fraction": float(sampler.acceptance_fraction.mean()),
        "autocorrelation_time": tau,
        "converged": converged,
        "n_steps": n_steps,
    }


def _start(objective, centre, covariance, free, n_walkers, rng) -> np.ndarray:
    """Positions of the walkers: draws of the Laplace approximation that lie inside the bounds."""
    width = (objective.upper - objective.lower)[free]
    block = covariance[np.ix_(free, free)] + np.diag((1e-5 * width) ** 2)
    draws = rng.multivariate_normal(centre[free], block, size=n_walkers)
    margin = 1e-4 * width
    return np.clip(draws, objective.lower[free] + margin * rng.random(draws.shape),
                   objective.upper[free] - margin * rng.random(draws.shape))  # fmt: skip
