"""L-BFGS for many stars side by side."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import EDGE, NOISE, Optimum, make_optimum

__all__ = ["lbfgs"]

Request: TypeAlias = tuple[str, np.ndarray]  # "gradient" or "hessian", and the parameters where it is wanted
Answer: TypeAlias = tuple[np.ndarray, ...]  # loss and gradient, or the Hessian alone
Ask: TypeAlias = Callable[[np.ndarray], Generator[Request, Answer, tuple[float, np.ndarray]]]
Pair: TypeAlias = tuple[np.ndarray, np.ndarray]  # a step, and how the gradient changed by it
Point: TypeAlias = tuple[float, float, float, np.ndarray]  # of a line: length, value, slope, gradient

MEMORY, ROUND = 10, 40  # pairs that are kept; iterations before the whitening is renewed
KINK = 100.0  # tolerances that the gradient may promise where steps find nothing: half an error by default


def lbfgs(objective: Objective, start: ArrayLike, *, tolerance: float = 1e-3, max_rounds: int = 8) -> Optimum:
    """Find the labels that maximise the posterior of each star, by L-BFGS with a strong-Wolfe line search.

    Bounded parameters are mapped to unbounded ones by a logistic function and
    whitened by the Gauss-Newton Hessian, so that the first step is close to a
    Newton step. Each star is a routine of its own that asks for values and
    gradients; what all of them ask for is computed together.

    Parameters
    ----------
    objective : `~cyclestarnet.fitting.objective.Objective`
        Posterior of n stars.
    start : array_like, shape (n, n_labels)
        Labels at which the search begins, moved inside the bounds if need be. Finite.
    tolerance : float, optional
        Converged when the next step promises less than this in log posterior:
        half the squared gradient, in whitened coordinates.
    max_rounds : int, optional
        How often the whitening may be renewed, each time after 40 iterations at most.

    Returns
    -------
    `~cyclestarnet.fitting.optimum.Optimum`
        Of all stars; ``success`` and ``message`` tell of each how its search ended.

    See Also
    --------
    cyclestarnet.fitting.solvers.levenberg_marquardt : steps by Jacobians.

    References
    ----------
    .. [1] O'Briain et al. 2021, ApJ 906, 130, Sections 4.1.3 to 4.1.5.
    .. [2] Nocedal & Wright 2006, Numerical Optimization, Algorithms 3.5, 3.6 and 7.5.

    Examples
    --------
    Two stars side by side; their flux is 1 + a and 1 + 2 a.

    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
    >>> from cyclestarnet.fitting.lbfgs import lbfgs
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> flux, ivar = [[1.25, 1.5], [1.5, 2.0]], [[1e4, 1e4]] * 2
    >>> objective = Objective(slope, flux, ivar, Parameters.of_labels([0], [1], [0.9]))
    >>> optimum = lbfgs(objective, [[0.9], [0.9]])
    >>> optimum.inputs.round(2).tolist(), optimum.success.tolist()
    ([[0.25], [0.5]], [True, True])
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
            found: tuple[torch.Tensor, ...] = objective.loss_and_gradient(at, stars)
        else:
            found = objective.normal_equations(at, *objective.linearise(at, stars), stars)[2:]
        for star, *answer in zip(asking, *(tensor.cpu().numpy() for tensor in found), strict=True):
            try:
                wishes[star] = runs[star].send(tuple(answer))
            except StopIteration as stop:
                values[star], success[star], message[star] = stop.value
                del wishes[star]
    x = torch.as_tensor(values, device=device)
    flux, slopes = objective.linearise(x, torch.arange(len(x), device=device))
    return make_optimum(objective, x, flux, slopes, success, message, count["gradient"], count["hessian"] + 1)


def _minimise(
    start: np.ndarray, lower: np.ndarray, upper: np.ndarray, tolerance: float, max_rounds: int
) -> Generator[Request, Answer, tuple[np.ndarray, bool, str]]:
    """Optimum of one star; yields what it wants to know, and returns parameters, success and message."""
    width = upper - lower
    v = logit(np.clip((start - lower) / width, 0.01, 0.99))

    def parameters(v: np.ndarray) -> np.ndarray:
        return lower + width * expit(v)

    for _ in range(max_rounds):
        slope = width * expit(v) * expit(-v)  # d parameters / d v
        (hessian,) = yield "hessian", parameters(v)
        hessian = hessian * np.outer(slope, slope)
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


def _round(
    v: np.ndarray,
    whiten: np.ndarray,
    parameters: Callable[[np.ndarray], np.ndarray],
    width: np.ndarray,
    tolerance: float,
) -> Generator[Request, Answer, tuple[np.ndarray, str, float, float]]:
    """L-BFGS from v in whitened coordinates: the move, how it ended, what it gained and what the gradient promises."""

    def ask(w: np.ndarray) -> Generator[Request, Answer, tuple[float, np.ndarray]]:
        at = v + whiten @ w
        value, gradient = yield "gradient", parameters(at)
        return float(value), whiten.T @ (gradient * width * expit(at) * expit(-at))

    w, state = np.zeros_like(v), "stopped"
    value, gradient = yield from ask(w)
    first, gain = value, np.inf
    pairs: list[Pair] = []
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


def _inverse_hessian_times(gradient: np.ndarray, pairs: list[Pair]) -> np.ndarray:
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


def _strong_wolfe(
    ask: Ask,
    w: np.ndarray,
    direction: np.ndarray,
    value: float,
    gradient: np.ndarray,
    *,
    armijo: float = 1e-4,
    curvature: float = 0.9,
    max_evaluations: int = 20,
) -> Generator[Request, Answer, tuple[np.ndarray, float, np.ndarray] | None]:
    """Step along a direction with enough decrease and a small enough slope, or None.

    Brackets a minimum by longer steps, then bisects the bracket by cubic interpolation.
    """
    slope0 = float(gradient @ direction)
    if not slope0 < 0:
        return None
    noise = NOISE * abs(value)
    low: Point = (0.0, value, slope0, gradient)
    high: Point | None = None
    length = 1.0
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


def _cubic_minimum(low: Point, high: Point) -> float:
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


def _release(
    v: np.ndarray, parameters: Callable[[np.ndarray], np.ndarray], width: np.ndarray, tolerance: float
) -> Generator[Request, Answer, tuple[bool, np.ndarray]]:
    """Free parameters that got stuck at a bound, where the logistic function is flat, though the slope leads inside."""
    position = expit(v)
    _, gradient = yield "gradient", parameters(v)
    inward = gradient * width * np.where(position > 0.5, EDGE, -EDGE)
    stuck = (np.minimum(position, 1 - position) < EDGE) & (inward > tolerance)
    return bool(stuck.any()), np.where(stuck, np.where(position > 0.5, logit(0.95), -logit(0.95)), v)
