"""Optima of many stars side by side, each with its own state, test of convergence and stop.

`levenberg_marquardt` steps by the Jacobian and is the quick one. `lbfgs` is
the paper's choice: it steps by exact gradients and uses the Jacobian only to
scale the labels. Both stop at the same optimum.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import NOISE, Optimum, make_optimum
from cyclestarnet.fitting.tensors import star_by_star

__all__ = ["levenberg_marquardt"]

STALE = 8  # Broyden updates after which a Jacobian is computed anew
ENOUGH = 50.0  # tolerances, promised by an exact gradient: its step leaves about a twentieth of it
SOON = 100.0  # tolerances: after a step that promises less, the exact gradient will be wanted
SURPRISE = 0.5  # part of the squared change of flux; what a Jacobian without any truth does not foresee is 1


def levenberg_marquardt(
    objective: Objective,
    start: ArrayLike,
    *,
    tolerance: float = 0.02,
    max_iterations: int = 60,
    exact: bool = False,
) -> Optimum:
    """Find the labels that maximise the posterior of each star.

    Gauss-Newton steps within the bounds, damped where one fails. Jacobians
    are the cost: a fit begins with the one that the predictor expects, if it
    has expectations, and Broyden's rank-1 updates improve it. Once such steps
    promise no more, the exact gradient says whether that is true. Where steps
    do not bring what they promise, the true Jacobian is computed.

    Parameters
    ----------
    objective : `~cyclestarnet.fitting.objective.Objective`
        Posterior of n stars.
    start : array_like, shape (n, n_labels)
        Labels at which the search begins, moved inside the bounds if need be. Finite.
    tolerance : float, optional
        Converged when the next step promises less than this in log posterior
        (0.02 below its maximum is within 0.2 σ of it).
    max_iterations : int, optional
        Steps after which the search ends without success; most fits take five to ten.
    exact : bool, optional
        True Jacobians in full precision at every step: for comparison.

    Returns
    -------
    `~cyclestarnet.fitting.optimum.Optimum`
        Of all stars; ``success`` and ``message`` tell of each how its search
        ended. A star whose objective is not finite stops no other.

    See Also
    --------
    cyclestarnet.fitting.lbfgs.lbfgs : steps by gradients.

    Examples
    --------
    Two stars side by side; their flux is 1 + a and 1 + 2 a.

    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> flux, ivar = [[1.25, 1.5], [1.5, 2.0]], [[1e4, 1e4]] * 2
    >>> objective = Objective(slope, flux, ivar, Parameters.of_labels([0], [1], [0.9]))
    >>> optimum = levenberg_marquardt(objective, [[0.9], [0.9]])
    >>> optimum.inputs.round(2).tolist(), optimum.success.tolist()
    ([[0.25], [0.5]], [True, True])
    """
    fit = _Descent(objective, start, tolerance, exact)
    for _ in range(max_iterations):
        if not len(fit.active):
            break
        fit.iterate()
    for star in fit.active.tolist():
        fit.message[star] = f"stopped after {max_iterations} iterations"
    if not fit.expects:  # Broyden's updates of the Jacobian at the start are too coarse for a covariance
        fit.renew(torch.nonzero(fit.success & (fit.age > 0))[:, 0])
    return make_optimum(
        objective, fit.x, fit.flux, fit.slopes, fit.success, fit.message, fit.evaluations, fit.jacobians
    )


class _Descent:
    """State of `levenberg_marquardt`: arrays with a row per star, of which only the active ones are touched."""

    def __init__(self, objective: Objective, start: ArrayLike, tolerance: float, exact: bool):
        device = objective.predictor.device
        self.objective, self.tolerance, self.exact = objective, tolerance, exact
        self.lower, self.upper = (
            torch.as_tensor(getattr(objective.parameters, s), device=device) for s in ("lower", "upper")
        )
        self.x = x = torch.as_tensor(objective.parameters.values(start), dtype=torch.float64, device=device)
        n, everyone = len(x), torch.arange(len(x), device=device)
        self.active, self.message = everyone, ["converged"] * n
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.evaluations, self.jacobians = torch.zeros_like(everyone), torch.zeros_like(everyone)
        self.damping, self.age = x.new_zeros(n), torch.zeros_like(everyone)
        self.gradient = torch.zeros_like(x)
        self.known = torch.zeros_like(self.success)  # whether that is the exact gradient at x
        self.last_gain = x.new_full((n,), np.inf)  # promised by the exact gradient of the last step
        expected = None if exact else objective.expected_slopes(x)
        self.expects = expected is not None
        if expected is None:
            self.flux, self.slopes = objective.linearise(x, everyone, coarse=not exact)
            self.jacobians += 1
        else:
            self.flux, self.slopes = objective.predict(x, everyone), expected
            self.evaluations += 1
            self.age += 1

    def iterate(self) -> None:
        """One step of all active stars; those that are done leave."""
        objective, now = self.objective, self.active
        loss, gradient, hessian = objective.normal_equations(self.x[now], self.flux[now], self.slopes[now], now)
        gradient = torch.where(self.known[now, None], self.gradient[now], gradient)
        none = torch.zeros_like(loss)
        step, gain = self._step(now, gradient, hessian, none)
        # an old Jacobian has no more to promise: ask the exact gradient whether that is true
        unsure = (gain < self.tolerance) & (self.age[now] > 0) & ~self.known[now]
        if unsure.any():
            asked = now[unsure]
            _, gradient[unsure] = objective.flux_and_gradient(self.x[asked], asked)
            self.evaluations[asked] += 1
            self.known[asked] = True
            step[unsure], gain[unsure] = self._step(asked, gradient[unsure], hessian[unsure], none[unsure])
        self.last_gain[now] = torch.where(self.known[now], gain, np.inf)
        broken = ~(torch.isfinite(loss) & torch.isfinite(gain))
        self._leave(now[broken], "the objective is not finite")
        done = (gain < self.tolerance) & ~broken
        self._leave(now[done], "converged", success=True)
        going = ~(done | broken)
        if not going.any():
            return
        now, loss, gradient, hessian = now[going], loss[going], gradient[going], hessian[going]
        step, gain = step[going], gain[going]
        if self.damping[now].any():
            step, gain = self._step(now, gradient, hessian, self.damping[now])
        self._try(now, step, gain, loss, hessian)

    def _step(self, stars: Tensor, gradient: Tensor, hessian: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        step, gain = star_by_star(
            lambda x, g, h, d: _bounded_step(x, g, h, d, self.lower, self.upper),
            self.x[stars], gradient, hessian, damping,
        )  # fmt: skip
        return step, gain

    def _try(self, now: Tensor, step: Tensor, gain: Tensor, loss: Tensor, hessian: Tensor) -> None:
        objective = self.objective
        trial = self.x[now] + step
        soon = (gain < SOON * self.tolerance) & (self.last_gain[now] >= ENOUGH * self.tolerance) & (not self.exact)
        flux, gradient = self._evaluate(trial, now, soon)
        ratio = (loss - objective.loss(flux, trial, now) + NOISE * loss.abs()) / gain
        accepted = ratio > 0  # False for NaN
        taken, refused, ratio = now[accepted], now[~accepted], ratio[accepted]
        surprised = torch.zeros_like(taken, dtype=torch.bool)
        for k, (row, star) in enumerate(zip(torch.nonzero(accepted)[:, 0].tolist(), taken.tolist(), strict=True)):
            change, weight = flux[row] - self.flux[star], objective.ivar[star]
            missing = _broyden(self.slopes[star], hessian[row], step[row], change)
            surprised[k] = (missing**2 @ weight) > SURPRISE * (change**2 @ weight)
        self.x[taken], self.flux[taken] = trial[accepted], flux[accepted]
        self.gradient[taken], self.known[taken] = gradient[accepted], soon[accepted]
        self.age[taken] += 1
        damping = torch.where(ratio > 0.25, self.damping[taken] / 10, self.damping[taken])
        self.damping[taken] = torch.where(damping < 1e-3, 0.0, damping)
        # The step of an exact gradient leaves a small part of what it promised.
        self._leave(taken[(self.last_gain[taken] < ENOUGH * self.tolerance) & ~surprised], "converged", success=True)
        old = self.age[refused] > 0
        new = refused[~old]
        self.damping[new] = (10 * self.damping[new]).clamp(min=1e-2)
        self._leave(new[self.damping[new] > 1e8], "no step lowers the objective")
        stale = taken[(self.age[taken] > STALE) | (ratio < 0.25) | surprised] if not self.exact else taken
        self.renew(torch.cat([refused[old], stale[torch.isin(stale, self.active)]]))

    def _evaluate(self, x: Tensor, stars: Tensor, soon: Tensor) -> tuple[Tensor, Tensor]:
        """Flux, and for some stars the gradient with it, which costs half as much as asking for it later."""
        flux, gradient = x.new_empty((len(x), self.flux.shape[1])), torch.zeros_like(x)
        if soon.any():
            flux[soon], gradient[soon] = self.objective.flux_and_gradient(x[soon], stars[soon])
        if not soon.all():
            flux[~soon] = self.objective.predict(x[~soon], stars[~soon])
        self.evaluations[stars] += 1
        return flux, gradient

    def renew(self, stars: Tensor) -> None:
        """True Jacobians."""
        if len(stars):
            self.flux[stars], self.slopes[stars] = self.objective.linearise(self.x[stars], stars, coarse=not self.exact)
            self.age[stars], self.known[stars] = 0, False
            self.jacobians[stars] += 1

    def _leave(self, stars: Tensor, why: str, *, success: bool = False) -> None:
        for star in stars.tolist():
            self.message[star] = why
        self.success[stars] = success
        self.active = self.active[~torch.isin(self.active, stars)]


def _bounded_step(
    x: Tensor, gradient: Tensor, hessian: Tensor, damping: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimum of the damped quadratic model within the bounds, and the decrease that the undamped one promises.

    Primal active-set method: go towards the minimum, hold what meets its bound
    on the way, and at the minimum of the rest let go what would move inside.

    References
    ----------
    Nocedal & Wright 2006, Algorithm 16.3.
    """
    size = torch.diagonal(hessian, dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scaled = hessian / (size[:, :, None] * size[:, None])
    matrix = scaled + torch.diag_embed(damping[:, None] + 1e-9 * torch.ones_like(size))
    right = -gradient / size
    low, high = (lower - x) * size, (upper - x) * size
    step, held = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    identity, row = torch.eye(x.shape[1], dtype=x.dtype, device=x.device), torch.arange(len(x), device=x.device)
    for _ in range(4 * x.shape[1] + 1):
        free = ~held
        # rows of held parameters say: stay
        system = torch.where(free[:, :, None], torch.where(free[:, None], matrix, 0.0), identity)
        target = torch.where(free, right - (matrix @ (step * held)[..., None])[..., 0], step)
        way = torch.linalg.solve(system, target) - step
        ends = torch.where(way > 0, high, low)
        part, first = torch.where(free & (way != 0), (ends - step) / way, np.inf).min(1)
        blocked = part < 1
        step = torch.where(held, step, step + part.clamp(0, 1)[:, None] * way)
        step[row[blocked], first[blocked]] = ends[row[blocked], first[blocked]]
        held[row[blocked], first[blocked]] = True
        slope = (matrix @ step[..., None])[..., 0] - right
        inward, which = torch.where(held, torch.where(step == low, -slope, slope), 0.0).max(1)
        released = ~blocked & (inward > 1e-6)
        held[row[released], which[released]] = False
        if not (blocked | released).any():
            break
    gain = (right * step).sum(1) - 0.5 * (step * (scaled @ step[..., None])[..., 0]).sum(1)
    move = step / size
    # a rounding error must not carry a parameter across its bound
    return torch.minimum(torch.maximum(x + move, lower), upper) - x, gain


def _broyden(slopes: Tensor, hessian: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Least change of a Jacobian, in the metric of the Hessian, that explains the last step; in place.

    Returns the change of flux that the Jacobian did not foresee.
    """
    missing = change - (step.to(slopes.dtype) @ slopes).to(change.dtype)
    along = hessian @ step
    length = float(step @ along)
    if length > 0:
        slopes.addr_((along / length).to(slopes.dtype), missing.to(slopes.dtype))
    return missing
