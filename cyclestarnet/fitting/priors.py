"""Priors on labels: what is believed of a star before its spectrum is seen.

Densities are up to a constant factor, over all labels of a model, in the
labels' own units; bounds are no concern of theirs. They do arithmetic on
float64 tensors, on the device where the labels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.exceptions import LabelError
from cyclestarnet.fitting.conversion import sigma_of, tensor_like, values_of, weights_of
from cyclestarnet.labels import LabelSet

__all__ = ["GaussianConstraints", "GaussianPrior", "LeadingLabels", "Prior", "ProductPrior"]


class Prior(Protocol):
    """A density of labels (n, n_labels), known with its derivatives."""

    n_labels: int

    def log_density(self, labels: Tensor) -> Tensor:
        """Natural logarithm of the density up to a constant, (n,)."""
        ...

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log density (n,), its gradient (n, d), and its curvature (n, d, d).

        The curvature is minus the Hessian, or a positive semi-definite stand-in.
        """
        ...


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

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return len(self.mean)

    def distance2(self, labels: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance of labels (..., n_labels)."""
        offset = labels - self.mean
        return np.einsum("...i,ij,...j->...", offset, self.precision, offset)

    def log_density(self, labels: Tensor) -> Tensor:
        """See `Prior`."""
        offset = labels - tensor_like(self.mean, labels)
        return -0.5 * ((offset @ tensor_like(self.precision, labels)) * offset).sum(-1)

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Prior`; the curvature is exact."""
        offset, precision = labels - tensor_like(self.mean, labels), tensor_like(self.precision, labels)
        slope = offset @ precision
        return -0.5 * (slope * offset).sum(-1), -slope, precision.expand(len(labels), -1, -1)


def _correlation(covariance: np.ndarray) -> np.ndarray:
    size = np.sqrt(np.diag(covariance))
    return covariance / np.outer(size, size)


@dataclass(frozen=True, eq=False)
class GaussianConstraints:
    """Independent Gaussians on some labels, or on linear combinations of labels; flat in all else.

    Parameters
    ----------
    matrix : array, shape (n_constraints, n_labels)
        Weights of the labels in each combination.
    mean, sigma : array, shape (n_constraints,)
        Of the combinations.

    Raises
    ------
    ValueError
        If shapes do not agree, or a number is not finite or a sigma not positive.

    See Also
    --------
    GaussianConstraints.of : the same from names and quantities.
    """

    matrix: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray

    def __post_init__(self):
        for name in ("matrix", "mean", "sigma"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=float))
        if self.matrix.ndim != 2 or not self.mean.shape == self.sigma.shape == self.matrix.shape[:1]:
            raise ValueError(
                "constraints need a matrix (m, n_labels), a mean (m,) and a sigma (m,), but have shapes "
                f"{self.matrix.shape}, {self.mean.shape}, {self.sigma.shape}"
            )
        if not all(np.isfinite(a).all() for a in (self.matrix, self.mean, self.sigma)):
            raise ValueError("matrix, mean and sigma of constraints must be finite; leave out what is not known")
        if not (self.sigma > 0).all():
            raise ValueError(f"sigma must be positive, but is {self.sigma}; to fix a label use `fixed` of a fit")

    @classmethod
    def of(cls, beliefs: Mapping, labels: LabelSet) -> GaussianConstraints:
        """Make constraints from pairs of mean and σ by name.

        Parameters
        ----------
        beliefs : mapping of str to pair of `~astropy.units.Quantity`
            Mean and standard deviation of labels, or of combinations that
            ``labels`` defines. Plain numbers will do for what is in dex.
        labels : `~cyclestarnet.LabelSet`
            Of the model.

        Returns
        -------
        `GaussianConstraints`

        Raises
        ------
        LabelError
            If a name is unknown, a unit wrong, or a value no pair of finite
            numbers with a positive second one.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet import LabelSet
        >>> from cyclestarnet.fitting.priors import GaussianConstraints
        >>> labels = LabelSet(["teff", "logg", "m_h"], [3500, 0, -2], [6000, 4, 0.5])
        >>> prior = GaussianConstraints.of({"teff": (4500 * u.K, 50 * u.K), "m_h": (-0.1, 0.05)}, labels)
        >>> prior.mean
        array([ 4.5e+03, -1.0e-01])
        """
        if not beliefs:
            raise LabelError("a prior needs at least one label, for example {'m_h': (-0.1, 0.05)}; or use prior=None")
        rows, means, sigmas = [], [], []
        for name, pair in beliefs.items():
            rows.append(weights_of(labels, name))
            try:
                mean, sigma = pair
            except (TypeError, ValueError):
                raise LabelError(f"the prior of '{name}' must be a pair (mean, sigma), but is {pair!r}") from None
            means.append(values_of(name, mean, ndim=0))
            sigmas.append(sigma_of(name, sigma))
        return cls(np.stack(rows), np.stack(means), np.stack(sigmas))

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.matrix.shape[1]

    def log_density(self, labels: Tensor) -> Tensor:
        """See `Prior`."""
        return -0.5 * (self._residual(labels) ** 2).sum(-1)

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Prior`; the curvature is exact."""
        residual, whitening = self._residual(labels), tensor_like(self.matrix / self.sigma[:, None], labels)
        curvature = (whitening.T @ whitening).expand(len(labels), -1, -1)
        return -0.5 * (residual**2).sum(-1), -residual @ whitening, curvature

    def _residual(self, labels: Tensor) -> Tensor:
        combined = labels @ tensor_like(self.matrix, labels).T
        return (combined - tensor_like(self.mean, labels)) / tensor_like(self.sigma, labels)


@dataclass(frozen=True, eq=False)
class ProductPrior:
    """Several priors that are all believed, independent of each other: their product.

    Parameters
    ----------
    priors : sequence of `Prior`
        At least one, all of the same labels.

    Raises
    ------
    ValueError
        If there is none, or they are of different numbers of labels.
    """

    priors: Sequence[Prior]

    def __post_init__(self):
        object.__setattr__(self, "priors", tuple(self.priors))
        sizes = [prior.n_labels for prior in self.priors]
        if len(set(sizes)) != 1:
            raise ValueError(f"a product needs one or more priors of the same labels, but theirs are {sizes}")

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.priors[0].n_labels

    def log_density(self, labels: Tensor) -> Tensor:
        """See `Prior`."""
        return sum(prior.log_density(labels) for prior in self.priors)

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Prior`; positive semi-definite if the curvature of each factor is."""
        value, gradient, curvature = zip(*(prior.derivatives(labels) for prior in self.priors), strict=True)
        return sum(value), sum(gradient), sum(curvature)


@dataclass(frozen=True, eq=False)
class LeadingLabels:
    """A prior on the first labels; flat in those that follow, such as a velocity.

    Parameters
    ----------
    prior : `Prior`
    n_labels : int
        Of all.
    """

    prior: Prior
    n_labels: int

    def log_density(self, labels: Tensor) -> Tensor:
        """See `Prior`."""
        return self.prior.log_density(labels[..., : self.prior.n_labels])

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Prior`."""
        n = self.prior.n_labels
        value, gradient, curvature = self.prior.derivatives(labels[..., :n])
        all_gradient, all_curvature = torch.zeros_like(labels), labels.new_zeros(*labels.shape, self.n_labels)
        all_gradient[..., :n], all_curvature[..., :n, :n] = gradient, curvature
        return value, all_gradient, all_curvature
