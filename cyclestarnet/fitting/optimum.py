"""The optima that solvers return, with their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Optimum"]

NOISE = 1e-6  # relative to the loss: what single precision in the networks makes of it
EDGE = 2e-3  # an optimum closer than this fraction of the range is at the bound


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


def make_optimum(objective, x, flux, slopes, success, message, evaluations, jacobians) -> Optimum:
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
