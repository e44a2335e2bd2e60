"""L-BFGS for many stars side by side."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from scipy.special import expit, logit

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import EDGE, NOISE, Optimum, make_optimum

__all__ = ["lbfgs"]

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
    return make_optimum(objective, x, flux, slopes, success, message, count["gradient"], count["hessian"] + 1)


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
