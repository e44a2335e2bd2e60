"""A second opinion on posterior samples: Hamiltonian Monte Carlo, which follows exact gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from cyclestarnet.fitting.approximation import Approximation
from cyclestarnet.fitting.chains import LONG_ENOUGH, Chain, Course, Progress
from cyclestarnet.fitting.objective import Objective

__all__ = ["sample_by_gradients"]

N_CHAINS = 4
N_WARM_UP = 60  # draws of a chain in which the size of the steps is found
N_DRAWS = 2000  # of the approximation, from which the scales of the unbounded parameters are taken
INSIDE = 1e-6  # of the width of the bounds: the unbounded parameters of a bound itself are infinite
CHECK_EVERY = 20
LONGEST = 8  # binary logarithm of the gradients of a step, at most


def sample_by_gradients(
    objective: Objective,
    centre: ArrayLike,
    covariance: ArrayLike,
    *,
    rng: np.random.Generator,
    n_walkers: int | None = None,
    max_steps: int = 10_000,
    length: float = LONG_ENOUGH,
    watch: Callable[[Progress], object] | None = None,
) -> Chain:
    """Sample the posterior of one star by the No-U-Turn Sampler, until the chains are long enough.

    Parameters are mapped to the whole real axis by logit functions of where they are between their
    bounds, and scaled by the Laplace approximation there. A step follows the gradient as far as it
    leads away. Nothing is shared with `~cyclestarnet.fitting.sampling.sample_posterior` but the density, the
    approximation, and the rule by which chains are long enough: two ways to the same distribution.

    Parameters
    ----------
    objective : `~cyclestarnet.fitting.objective.Objective`
        Posterior of one star, with exact gradients.
    centre, covariance : array_like, shape (k,), (k, k)
        Optimum and Laplace covariance, as `~cyclestarnet.fitting.approximation.approximate` finds them.
    rng : `numpy.random.Generator`
        Decides where chains start and how they move.
    n_walkers : int, optional
        Chains, 2 or more, which are independent but for the size of their steps. Default: 4.
    max_steps : int, optional
        Length of each chain at which sampling ends in any case.
    length : float, optional
        Autocorrelation times after which the chains are long enough, 10 or more. Default: 50.
    watch : callable, optional
        Told the `~cyclestarnet.fitting.chains.Progress` before the first step, and after each.

    Returns
    -------
    `~cyclestarnet.fitting.chains.Chain`
        ``acceptance_fraction`` is what Hamiltonian Monte Carlo knows as that, the mean over trajectories.

    Raises
    ------
    ImportError
        If mici is not installed.
    ValueError
        If numbers do not fit each other, the objective has more than one star, or the density is not finite
        where the chains start.

    References
    ----------
    .. [1] Hoffman & Gelman 2014, Journal of Machine Learning Research 15, 1593.
    .. [2] Betancourt 2017, arXiv 1701.02434.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
    >>> from cyclestarnet.fitting.nuts import sample_by_gradients
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> objective = Objective(slope, [1.5, 2.0], [80.0, 80.0], Parameters.of_labels([0], [1], [0.9]))
    >>> chain = sample_by_gradients(objective, [0.5], [[1 / 400]], rng=np.random.default_rng(1))
    >>> chain.converged
    True
    >>> print(f"{chain.samples.mean():.1f} ± {chain.samples.std():.2f}")
    0.5 ± 0.05
    """
    if objective.n_stars != 1:
        raise ValueError(f"one star can be sampled, but the objective has {objective.n_stars}")
    n_walkers = N_CHAINS if n_walkers is None else n_walkers
    if n_walkers < 2:
        raise ValueError(f"n_walkers must be at least 2, but is {n_walkers}")
    course = Course(check_every=CHECK_EVERY, max_steps=max_steps, length=length)
    density = _UnboundedDensity(objective, Approximation(
        centre, covariance, objective.parameters.lower, objective.parameters.upper
    ), rng)  # fmt: skip
    chains = _Chains(density, n_walkers, rng)
    course.begin(np.empty((0, n_walkers, len(objective.parameters))), guess=1.0)
    watch = watch or (lambda progress: None)
    watch(course.progress(0, chains.seconds))
    positions, log_posterior, acceptance = [], [], []
    clock = time.perf_counter()
    for draws in chains:
        positions.append([density.parameters(position) for position, _, _ in draws])
        log_posterior.append([density.log_posterior(*draw[:2]) for draw in draws])
        acceptance.append([accepted for _, _, accepted in draws])
        n_steps = len(positions)
        course.check(np.array(positions))
        watch(course.progress(n_steps, (time.perf_counter() - clock) / n_steps))
        if course.converged or n_steps == max_steps:
            break
    return Chain.of_walkers(
        np.array(positions),
        np.array(log_posterior),
        np.mean(acceptance, axis=0),
        converged=course.converged,
        n_nan=density.n_nan,
    )


class _UnboundedDensity:
    """The posterior as a density of unbounded parameters, of about unit width in all directions."""

    def __init__(self, objective: Objective, near: Approximation, rng: np.random.Generator):
        self.objective, self.n_nan = objective, 0
        self.lower, self.width = near.lower, near.upper - near.lower
        drawn = near.reflected(near.draw(N_DRAWS, rng))
        free = logit(((drawn - self.lower) / self.width).clip(INSIDE, 1 - INSIDE))
        self.middle = free.mean(axis=0)
        self.root = np.linalg.cholesky(np.cov(free, rowvar=False).reshape(2 * [free.shape[1]]))
        self.starts = np.linalg.solve(self.root, (free - self.middle).T).T
        self._place: bytes = b""
        self._found: tuple[float, np.ndarray] = (np.nan, np.empty(0))

    def _fraction(self, position: np.ndarray) -> np.ndarray:
        return expit(self.middle + self.root @ position)

    def parameters(self, position: np.ndarray) -> np.ndarray:
        """Where the parameters are between their bounds."""
        return self.lower + self.width * self._fraction(position)

    def log_posterior(self, position: np.ndarray, negative: float) -> float:
        """Log posterior of the parameters, of the negative log density of the unbounded ones."""
        return -negative - self._log_stretch(self._fraction(position))

    def _log_stretch(self, fraction: np.ndarray) -> float:
        """Logarithm of how much of the parameters a piece of the unbounded ones is, up to a constant."""
        with np.errstate(divide="ignore"):
            return float(np.log(self.width * fraction * (1 - fraction)).sum())

    def negative(self, position: np.ndarray) -> float:
        """Negative log density."""
        return self._evaluate(position)[0]

    def gradient(self, position: np.ndarray) -> np.ndarray:
        """Gradient of the negative log density."""
        return self._evaluate(position)[1]

    def _evaluate(self, position: np.ndarray) -> tuple[float, np.ndarray]:
        """Both; those of the last place are remembered, for they are asked for one after the other."""
        if position.tobytes() == self._place:
            return self._found
        fraction = self._fraction(position)
        values = torch.as_tensor(self.parameters(position)[None], device=self.objective.predictor.device)
        loss, slope = self.objective.loss_and_gradient(values, torch.zeros(1, dtype=torch.long, device=values.device))
        negative = float(loss[0]) - self._log_stretch(fraction)
        stretch = self.width * fraction * (1 - fraction)
        gradient = self.root.T @ (slope[0].cpu().numpy() * stretch - (1 - 2 * fraction))
        if not (np.isfinite(negative) and np.isfinite(gradient).all()):
            self.n_nan += 1
            negative, gradient = np.inf, np.zeros_like(gradient)  # the trajectory ends here
        self._place, self._found = position.tobytes(), (negative, gradient)
        return self._found


class _Chains:
    """Chains of mici, which has no types: its objects are Any here."""

    def __init__(self, density: _UnboundedDensity, n_walkers: int, rng: np.random.Generator):
        try:
            import mici
        except ImportError as error:
            raise ImportError('sampler="nuts" needs mici: pip install "cyclestarnet[nuts]"') from error
        system = mici.systems.EuclideanMetricSystem(neg_log_dens=density.negative, grad_neg_log_dens=density.gradient)
        self.rng = rng
        leapfrog = mici.integrators.LeapfrogIntegrator(system)
        self.sampler = mici.samplers.DynamicMultinomialHMC(system, leapfrog, rng, max_tree_depth=LONGEST)
        finite = (start for start in density.starts if np.isfinite(density.negative(start)))
        self.states = [mici.states.ChainState(pos=start, mom=None, dir=1) for start in islice(finite, n_walkers)]
        if len(self.states) < n_walkers:
            raise ValueError("the log posterior is not finite around the centre; give another centre")
        self.seconds = self._warm_up(mici.adapters.DualAveragingStepSizeAdapter())

    def _warm_up(self, adapter: Any) -> float:
        """Find the size of the steps by draws of the first chain; return the seconds of a step of all."""
        transition, state = self.sampler.transitions["integration_transition"], self.states[0]
        state.mom = self.sampler.system.sample_momentum(state, self.rng)
        found = adapter.initialize(state, transition)
        clock = time.perf_counter()
        for _ in range(N_WARM_UP):
            state, told = self._moved(state)
            adapter.update(found, state, told, transition)
        adapter.finalize([found], [state], transition, [self.rng])
        self.states[0] = state
        return len(self.states) * (time.perf_counter() - clock) / N_WARM_UP

    def _moved(self, state: Any) -> tuple[Any, Any]:
        state, _ = self.sampler.transitions["momentum_transition"].sample(state, self.rng)
        return self.sampler.transitions["integration_transition"].sample(state, self.rng)

    def __iter__(self) -> Iterator[list[tuple[np.ndarray, float, float]]]:
        """Each step: position of each chain, negative log density there, and acceptance on the way."""
        system = self.sampler.system
        while True:
            moved = [self._moved(state) for state in self.states]
            self.states = [state for state, _ in moved]
            yield [(state.pos, system.neg_log_dens(state), float(told["accept_stat"])) for state, told in moved]
