"""What a fit maximises: the posterior of the labels of one star, for optimiser and sampler alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cyclestarnet.fitting.priors import GaussianPrior

__all__ = ["GaussianPrior", "Objective", "Predictor"]


class Predictor(Protocol):
    """Labels in, flux and derivatives out; see `cyclestarnet.backend.predictor`."""

    n_labels: int
    n_pixels: int

    def flux(self, labels: np.ndarray) -> np.ndarray: ...

    def pullback(self, labels: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]: ...

    def jacobian(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Objective:
    """Posterior of one star's labels.

    Parameters
    ----------
    predictor : `Predictor`
    flux, ivar : array, shape (n_pixels,)
        Data and inverse variance (model scatter included); 0 = not used.
    lower, upper : array, shape (n_labels,)
        Bounds.
    free : array of bool, shape (n_labels,)
        Labels that vary; the others stay where the start has them.
    prior : `GaussianPrior` or None
        None: flat within the bounds.
    """

    predictor: Predictor
    flux: np.ndarray
    ivar: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    free: np.ndarray
    prior: GaussianPrior | None = None

    def __post_init__(self):
        if self.prior is not None and len(self.prior.mean) != self.predictor.n_labels:
            raise ValueError(
                f"a prior of {len(self.prior.mean)} labels, but the predictor has {self.predictor.n_labels}"
            )

    def log_likelihood(self, labels: np.ndarray) -> np.ndarray:
        """−χ²/2 of labels (..., n_labels)."""
        return -0.5 * ((self.flux - self.predictor.flux(labels)) ** 2 * self.ivar).sum(-1)

    def log_prior(self, labels: np.ndarray) -> np.ndarray:
        """Log of the prior up to a constant; −inf outside the bounds."""
        inside = ((labels >= self.lower) & (labels <= self.upper)).all(-1)
        density = np.zeros(inside.shape) if self.prior is None else -0.5 * self.prior.distance2(labels)
        return np.where(inside, density, -np.inf)

    def log_posterior(self, labels: np.ndarray) -> np.ndarray:
        """Sum of both; the networks see only labels inside the bounds."""
        labels = np.atleast_2d(labels)
        value = self.log_prior(labels)
        inside = np.isfinite(value)
        if inside.any():
            value[inside] += self.log_likelihood(labels[inside])
        return value

    def value_and_gradient(self, labels: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior within the bounds and its gradient over all labels (n_labels,)."""
        flux, pull = self.predictor.pullback(labels)
        weighted = (flux - self.flux) * self.ivar
        value, gradient = 0.5 * np.dot(weighted, flux - self.flux), pull(weighted)
        if self.prior is not None:
            slope = self.prior.precision @ (labels - self.prior.mean)
            value, gradient = value + 0.5 * slope @ (labels - self.prior.mean), gradient + slope
        return float(value), gradient

    def gauss_newton(self, labels: np.ndarray) -> np.ndarray:
        """Gauss-Newton Hessian of the negative log posterior, (n_labels, n_labels)."""
        _, slopes = self.predictor.jacobian(labels)
        hessian = slopes.T @ (slopes * self.ivar[:, None])
        return hessian if self.prior is None else hessian + self.prior.precision
