"""Optimum of an objective by L-BFGS (SciPy's, float64), preconditioned by the Gauss-Newton Hessian.

Bounded labels are mapped to unbounded ones by a logistic function and whitened
by the Hessian at the start, so that the first step of L-BFGS is close to a
Newton step; the whitening is renewed until it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from cyclestarnet.fitting.objective import Objective

__all__ = ["Optimum", "minimise"]

EDGE = 2e-3  # an optimum closer than this fraction of the range is at the bound
OFF_BOUND = logit(0.95)  # where labels restart that got stuck at a bound
ROUND = 40  # iterations before the whitening is renewed


@dataclass(frozen=True, eq=False)
class Optimum:
    """Result of `minimise`.

    ``covariance`` is that of all labels, zero for fixed ones; ``at_bound`` is
    True for labels that ended at a bound, whose covariance means little.
    """

    labels: np.ndarray
    covariance: np.ndarray
    success: bool
    message: str
    n_evaluations: int
    at_bound: np.ndarray


def minimise(objective: Objective, start: np.ndarray, *, tolerance: float = 1e-2, max_rounds: int = 8) -> Optimum:
    """Find the labels that maximise the posterior.

    Parameters
    ----------
    objective : `Objective`
    start : array, shape (n_labels,)
        Moved inside the bounds if need be; fixed labels keep their value.
    tolerance : float, optional
        Converged when a round of L-BFGS gains less than this in log posterior
        (a fit 0.01 below its maximum is within 0.15 σ of it).
    max_rounds : int, optional

    Returns
    -------
    `Optimum`
    """
    free, low = objective.free, objective.lower[objective.free]
    width = objective.upper[free] - low
    labels = np.array(start, dtype=float)

    def to_labels(v: np.ndarray) -> np.ndarray:
        full = labels.copy()
        full[free] = low + width * expit(v)
        return full

    v = logit(np.clip((labels[free] - low) / width, 0.01, 0.99))
    n_evaluations, converged, message, value = 0, False, "", np.inf
    for _ in range(max_rounds):
        slope = width * expit(v) * expit(-v)  # d labels / d v
        hessian = objective.gauss_newton(to_labels(v))[np.ix_(free, free)] * np.outer(slope, slope)
        # A direction that the data do not see gets unit length in v instead of an endless one.
        whiten = np.linalg.cholesky(np.linalg.inv(hessian + np.eye(len(v)) * 1e-2))

        def function(w: np.ndarray, centre=v, whiten=whiten) -> tuple[float, np.ndarray]:
            at = centre + whiten @ w
            value, gradient = objective.value_and_gradient(to_labels(at))
            return value, whiten.T @ (gradient[free] * width * expit(at) * expit(-at))

        options = {"maxiter": ROUND, "ftol": 1e-8, "gtol": 2e-2}
        found = minimize(function, np.zeros_like(v), jac=True, method="L-BFGS-B", options=options)
        n_evaluations += found.nfev
        gain, value = value - found.fun, min(value, found.fun)
        if not np.isfinite(found.fun):
            message = "the objective is not finite"
            break
        v = v + whiten @ found.x
        message = str(found.message)
        if gain < tolerance:
            position, (_, gradient) = expit(v), objective.value_and_gradient(to_labels(v))
            n_evaluations += 1
            # At a bound the logistic function is flat, so a label may get stuck there though the slope leads inside.
            inward = gradient[free] * width * np.where(position > 0.5, EDGE, -EDGE)
            stuck = (np.minimum(position, 1 - position) < EDGE) & (inward > tolerance)
            if not stuck.any():
                converged, message = True, "converged"
                break
            v[stuck] = np.where(position > 0.5, OFF_BOUND, -OFF_BOUND)[stuck]
            value = np.inf
    best = to_labels(v)
    position = (best[free] - low) / width
    at_bound = np.zeros(len(labels), dtype=bool)
    at_bound[free] = (position < EDGE) | (position > 1 - EDGE)
    return Optimum(best, laplace_covariance(objective, best), converged, message, n_evaluations, at_bound)


def laplace_covariance(objective: Objective, labels: np.ndarray) -> np.ndarray:
    """Inverse of the Gauss-Newton Hessian over the free labels, zero elsewhere, (n_labels, n_labels).

    No direction has a larger variance than a flat distribution over the range of the labels.
    """
    free, width = objective.free, (objective.upper - objective.lower)[objective.free]
    hessian = objective.gauss_newton(labels)[np.ix_(free, free)] * np.outer(width, width)
    covariance = np.zeros((len(labels), len(labels)))
    eigenvalues, directions = np.linalg.eigh(hessian)
    # What the data do not constrain is as uncertain as its range: 1/12 of the width squared, not infinite or zero.
    inverse = (directions / eigenvalues.clip(12.0)) @ directions.T
    covariance[np.ix_(free, free)] = inverse * np.outer(width, width)
    return covariance
