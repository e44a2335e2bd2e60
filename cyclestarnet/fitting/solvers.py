"""Optima of many stars side by side, each with its own state, test of convergence and stop.

`levenberg_marquardt` steps by the Jacobian and is the quick one. `lbfgs` is
the paper's choice: it steps by exact gradients and uses the Jacobian only to
scale the labels. Both stop at the same optimum.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from cyclestarnet.fitting.objective import Objective, star_by_star

__all__ = ["Optimum", "lbfgs", "levenberg_marquardt"]

EDGE = 2e-3  # an optimum closer than this fraction of the range is at the bound
STALE = 8  # Broyden updates after which a Jacobian is computed anew
ENOUGH = 50.0  # tolerances, promised by an exact gradient: its step leaves about a twentieth of it
SOON = 100.0  # tolerances: after a step that promises less, the exact gradient will be wanted
SURPRISE = 0.5  # part of the squared change of flux; what a Jacobian without any truth does not foresee is 1
NOISE = 1e-6  # relative to the loss: what single precision in the networks makes of it


@dataclass(frozen=True, eq=False)
class Optimum:
    """Optima of n stars.

    Attributes
    ----------
    labels : array, shape (n, n_labels)
    covariance : array, shape (n, n_labels, n_labels)
        Laplace approximation; zero for fixed labels.
    flux : array, shape (n, n_pixels)
        At the optimum.
    error_scale : array, shape (n,)
        Factor on the errors, see `Objective`.
    success : array of bool, shape (n,)
    message : list of str
    n_evaluations, n_jacobians : array of int, shape (n,)
        Flux (with gradients, in `lbfgs`), and flux with all its derivatives.
    at_bound : array of bool, shape (n, n_labels)
        Labels that ended at a bound, whose covariance means little.
    loss : array, shape (n,)
        Negative log posterior.
    condition : array, shape (n,)
        Condition number of the correlation matrix of the parameters.
    hessian : array, shape (n, n_parameters, n_parameters)
        Of the parameters, Gauss-Newton; it knows no bounds, other than the covariance.
    """

    labels: np.ndarray
    covariance: np.ndarray
    flux: np.ndarray
    error_scale: np.ndarray
    success: np.ndarray
    message: list[str]
    n_evaluations: np.ndarray
    n_jacobians: np.ndarray
    at_bound: np.ndarray
    loss: np.ndarray
    condition: np.ndarray
    hessian: np.ndarray

    def improved(self, rows, other: Optimum) -> Optimum:
        """These optima, with those of other fits of the stars ``rows`` where they are better."""
        better = np.isfinite(other.loss) & ~(other.loss >= self.loss[rows])
        out = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if name in ("n_evaluations", "n_jacobians"):  # both were spent
                out[name] = mine.copy()
                out[name][rows] += theirs
            elif isinstance(mine, list):
                out[name] = list(mine)
                for k in np.flatnonzero(better):
                    out[name][rows[k]] = theirs[k]
            else:
                out[name] = mine.copy()
                out[name][rows[better]] = theirs[better]
        return type(self)(**out)


# -- Levenberg-Marquardt -----------------------------------------------------
def levenberg_marquardt(
    objective: Objective,
    start: np.ndarray,
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
    objective : `Objective`
    start : array, shape (n, n_labels)
        Moved inside the bounds if need be.
    tolerance : float, optional
        Converged when the next step promises less than this in log posterior
        (0.02 below its maximum is within 0.2 σ of it).
    max_iterations : int, optional
    exact : bool, optional
        True Jacobians in full precision at every step: for comparison.

    Returns
    -------
    `Optimum`
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
    return _finish(objective, fit.x, fit.flux, fit.slopes, fit.success, fit.message, fit.evaluations, fit.jacobians)


class _Descent:
    """State of `levenberg_marquardt`: arrays with a row per star, of which only the active ones are touched."""

    def __init__(self, objective: Objective, start: np.ndarray, tolerance: float, exact: bool):
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

    def _step(self, stars, gradient, hessian, damping):
        return star_by_star(
            lambda *rows: _bounded_step(*rows, self.lower, self.upper), self.x[stars], gradient, hessian, damping
        )

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


# -- L-BFGS --------------------------------------------------------------------
Request = tuple[str, np.ndarray]
MEMORY, ROUND = 10, 40  # pairs that are kept; iterations before the whitening is renewed
KINK = 100.0  # tolerances that the gradient may promise where steps find nothing: half an error by default


def lbfgs(objective: Objective, start: np.ndarray, *, tolerance: float = 1e-3, max_rounds: int = 8) -> Optimum:
    """Find the labels that maximise the posterior of each star, by L-BFGS with a strong-Wolfe line search.

    Bounded parameters are mapped to unbounded ones by a logistic function and
    whitened by the Gauss-Newton Hessian, so that the first step is close to a
    Newton step. Each star is a routine of its own that asks for values and
    gradients; what all of them ask for is computed together.

    Parameters
    ----------
    objective : `Objective`
    start : array, shape (n, n_labels)
    tolerance : float, optional
        As in `levenberg_marquardt`: half the squared gradient, in whitened coordinates.
    max_rounds : int, optional
        How often the whitening may be renewed.

    Returns
    -------
    `Optimum`

    References
    ----------
    O'Briain et al. 2021, ApJ 906, 130, Section 3.2.6; Nocedal & Wright 2006, Algorithms 3.5, 3.6 and 7.5.
    """
    device = objective.predictor.device
    values = objective.parameters.values(start)
    lower, upper = objective.parameters.lower, objective.parameters.upper
    runs = {k: _minimise(v, lower, upper, tolerance, max_rounds) for k, v in enumerate(values)}
    wishes: dict[int, Request] = {star: next(run) for star, run in runs.items()}
    success, message = np.zeros(len(values), dtype=bool), [""] * len(values)
    count = {"gradient": np.zeros(len(values), dtype=int), "hessian": np.zeros(len(values), dtype=int)}
    while wishes:
        kind = next(iter(wishes.values()))[0]
        asking = [star for star, wish in wishes.items() if wish[0] == kind]
        at = torch.as_tensor(np.stack([wishes[star][1] for star in asking]), device=device)
        stars = torch.tensor(asking, device=device)
        count[kind][asking] += 1
        if kind == "gradient":
            answers = zip(*(t.cpu().numpy() for t in objective.loss_and_gradient(at, stars)), strict=True)
        else:
            answers = objective.normal_equations(at, *objective.linearise(at, stars), stars)[2].cpu().numpy()
        for star, answer in zip(asking, answers, strict=True):
            try:
                wishes[star] = runs[star].send(answer)
            except StopIteration as stop:
                values[star], success[star], message[star] = stop.value
                del wishes[star]
    x = torch.as_tensor(values, device=device)
    flux, slopes = objective.linearise(x, torch.arange(len(x), device=device))
    return _finish(objective, x, flux, slopes, success, message, count["gradient"], count["hessian"] + 1)


def _minimise(
    start: np.ndarray, lower: np.ndarray, upper: np.ndarray, tolerance: float, max_rounds: int
) -> Generator[Request, object, tuple[np.ndarray, bool, str]]:
    """Optimum of one star; yields what it wants to know, and returns parameters, success and message."""
    width = upper - lower
    v = logit(np.clip((start - lower) / width, 0.01, 0.99))

    def parameters(v: np.ndarray) -> np.ndarray:
        return lower + width * expit(v)

    for _ in range(max_rounds):
        slope = width * expit(v) * expit(-v)  # d parameters / d v
        hessian = (yield "hessian", parameters(v)) * np.outer(slope, slope)
        if not np.isfinite(hessian).all():
            return parameters(v), False, "the objective is not finite"
        # A direction that the data do not see gets unit length in v instead of an endless one.
        whiten = np.linalg.cholesky(np.linalg.inv(hessian + 1e-2 * np.eye(len(v))))
        moved, state, gained, promised = yield from _round(v, whiten, parameters, width, tolerance)
        v = v + whiten @ moved
        # At a kink of the activations the gradient jumps and never gets small, but nothing near is better.
        if state == "stopped" and gained < tolerance and promised < KINK * tolerance:
            state = "converged"
        if state == "not finite":
            return parameters(v), False, "the objective is not finite"
        if state == "converged":
            stuck, v = yield from _release(v, parameters, width, tolerance)
            if not stuck:
                return parameters(v), True, "converged"
    return parameters(v), False, f"not converged after {max_rounds} rounds of {ROUND} iterations"


def _round(v, whiten, parameters, width, tolerance):
    """L-BFGS from v in whitened coordinates: the move, how it ended, what it gained and what the gradient promises."""

    def ask(w: np.ndarray):
        at = v + whiten @ w
        value, gradient = yield "gradient", parameters(at)
        return float(value), whiten.T @ (gradient * width * expit(at) * expit(-at))

    w, state = np.zeros_like(v), "stopped"
    value, gradient = yield from ask(w)
    first, gain = value, np.inf
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(ROUND):
        if not np.isfinite(value):
            state = "not finite"
        elif 0.5 * gradient @ gradient < tolerance:
            state = "converged"
        # steps that gain so little will not gain the tolerance together
        if state != "stopped" or gain < tolerance / ROUND:
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        found = yield from _strong_wolfe(ask, w, direction, value, gradient)
        if found is None:  # no better point: rounding, or coordinates that are badly scaled
            break
        step, after, new = found
        w, pairs, gain = w + step, [*pairs, (step, new - gradient)][-MEMORY:], value - after
        value, gradient = after, new
    return w, state, first - value, 0.5 * gradient @ gradient


def _inverse_hessian_times(gradient: np.ndarray, pairs) -> np.ndarray:
    """Two-loop recursion."""
    q, factors = gradient.copy(), []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (y @ s)
        factors.append(alpha)
        q -= alpha * y
    if pairs:
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(factors), strict=True):
        q += s * (alpha - (y @ q) / (y @ s))
    return q


def _strong_wolfe(ask, w, direction, value, gradient, *, armijo=1e-4, curvature=0.9, max_evaluations=20):
    """Step along a direction with enough decrease and a small enough slope, or None.

    Brackets a minimum by longer steps, then bisects the bracket by cubic interpolation.
    """
    slope0 = float(gradient @ direction)
    if not slope0 < 0:
        return None
    noise = NOISE * abs(value)
    low = (0.0, value, slope0, gradient)
    high, length = None, 1.0
    for _ in range(max_evaluations):
        here, new = yield from ask(w + length * direction)
        slope = float(new @ direction)
        point = (length, here, slope, new)
        enough = here <= value + armijo * length * slope0 + noise
        if not (enough and np.isfinite(slope)) or (here >= low[1] + noise and low[0] > 0):
            high = point
        elif abs(slope) <= -curvature * slope0:
            return (length * direction, here, new) if here < value + noise else None
        else:
            if slope * ((high[0] if high else np.inf) - low[0]) >= 0:
                high = low
            low = point
        if high is None:
            length *= 2.5
        elif abs(high[0] - low[0]) < 1e-8:
            break
        else:
            length = _cubic_minimum(low, high)
    return (low[0] * direction, low[1], low[3]) if low[0] > 0 else None


def _cubic_minimum(low, high) -> float:
    """Minimum of the cubic through two points with slopes, kept within the middle 80 % of the bracket."""
    (a, fa, ga, _), (b, fb, gb, _) = low, high
    length = 0.5 * (a + b)
    if np.isfinite(fb) and np.isfinite(gb):
        d1 = ga + gb - 3 * (fa - fb) / (a - b)
        under = d1**2 - ga * gb
        if under >= 0:
            d2 = np.sign(b - a) * np.sqrt(under)
            bottom = gb - ga + 2 * d2
            if bottom != 0:
                length = b - (b - a) * (gb + d2 - d1) / bottom
    edge = 0.1 * abs(b - a)
    return float(np.clip(length, min(a, b) + edge, max(a, b) - edge))


def _release(v, parameters, width, tolerance):
    """Free parameters that got stuck at a bound, where the logistic function is flat, though the slope leads inside."""
    position = expit(v)
    _, gradient = yield "gradient", parameters(v)
    inward = gradient * width * np.where(position > 0.5, EDGE, -EDGE)
    stuck = (np.minimum(position, 1 - position) < EDGE) & (inward > tolerance)
    return stuck.any(), np.where(stuck, np.where(position > 0.5, logit(0.95), -logit(0.95)), v)


# -- common ----------------------------------------------------------------------
def _finish(objective, x, flux, slopes, success, message, evaluations, jacobians) -> Optimum:
    parameters = objective.parameters
    stars = torch.arange(len(x), device=x.device)
    loss, _, hessian = objective.normal_equations(x, flux, slopes, stars)
    scale2 = objective.error_scale2(objective.chi2(flux, stars), stars)
    values, hessian = x.cpu().numpy(), hessian.cpu().numpy()
    width = parameters.upper - parameters.lower
    covariance, condition = zip(*(_laplace(h, width) for h in hessian), strict=True)
    position = (values - parameters.lower) / width
    at_bound = ((position < EDGE) | (position > 1 - EDGE)) @ parameters.matrix.T > 0
    return Optimum(
        labels=parameters.labels(values),
        covariance=parameters.matrix @ np.array(covariance) @ parameters.matrix.T,
        flux=flux.cpu().numpy(),
        error_scale=np.sqrt(scale2.cpu().numpy()),
        success=np.asarray(success.cpu() if isinstance(success, Tensor) else success, dtype=bool),
        message=message,
        n_evaluations=np.asarray(evaluations.cpu() if isinstance(evaluations, Tensor) else evaluations),
        n_jacobians=np.asarray(jacobians.cpu() if isinstance(jacobians, Tensor) else jacobians),
        at_bound=at_bound,
        loss=loss.cpu().numpy(),
        condition=np.array(condition),
        hessian=hessian,
    )


def _laplace(hessian: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse of a Hessian, and the condition number of the correlations.

    What the data do not constrain is as uncertain as its range: 1/12 of the
    width squared, not infinite or zero.
    """
    if not np.isfinite(hessian).all():
        return np.diag(width**2 / 12), np.inf
    eigenvalues, directions = np.linalg.eigh(hessian * np.outer(width, width))
    covariance = (directions / eigenvalues.clip(12.0)) @ directions.T * np.outer(width, width)
    size = np.sqrt(np.diag(covariance))
    return covariance, float(np.linalg.cond(covariance / np.outer(size, size)))
