"""Priors on labels: what is believed of a star before its spectrum is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["GaussianPrior"]


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """Gaussian prior on all labels.

    Parameters
    ----------
    mean : array, shape (n_labels,)
        In the labels' units.
    covariance : array, shape (n_labels, n_labels)
        Positive definite.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self):
        mean, covariance = (np.array(a, dtype=float) for a in (self.mean, self.covariance))
        if covariance.shape != (mean.size, mean.size) or mean.ndim != 1:
            raise ValueError(
                f"a prior needs a mean (n,) and a covariance (n, n), but has {mean.shape}, {covariance.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("mean and covariance of a prior must be finite; for a flat prior use prior=None")
        if (
            not np.allclose(covariance, covariance.T)
            or np.diag(covariance).min() <= 0
            or np.linalg.eigvalsh(_correlation(covariance)).min() <= 0
        ):
            raise ValueError("the covariance of a prior must be symmetric and positive definite")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "precision", np.linalg.inv(covariance))

    def distance2(self, labels: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance of labels (..., n_labels)."""
        offset = labels - self.mean
        return np.einsum("...i,ij,...j->...", offset, self.precision, offset)


def _correlation(covariance: np.ndarray) -> np.ndarray:
    size = np.sqrt(np.diag(covariance))
    return covariance / np.outer(size, size)
