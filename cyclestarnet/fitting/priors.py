"""Priors on labels: what is believed of a star before its spectrum is seen.

Densities are up to a constant factor, over all labels of a model, in the
labels' own units; bounds are no concern of theirs. They do arithmetic on
float64 tensors, on the device where the labels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol, TypeAlias

import numpy as np
import torch
from astropy.units import Quantity
from torch import Tensor

from cyclestarnet.exceptions import LabelError
from cyclestarnet.fitting.conversion import sigma_of, values_of, weights_of
from cyclestarnet.fitting.tensors import tensor_like
from cyclestarnet.labels import LabelSet

Belief: TypeAlias = tuple[Quantity | float, Quantity | float]  # mean and standard deviation

__all__ = ["GaussianConstraints", "GaussianPrior", "LeadingLabels", "Prior", "ProductPrior"]


class Prior(Protocol):
    """A density of labels, known with its derivatives.

    Whatever has these members will do as the prior of a fit. Stars are
    independent of each other, and one whose labels are not finite must not
    stop the others.

    Examples
    --------
    A label that falls off exponentially from 0, on a scale of 2; it curves
    nowhere, so that zero is a curvature that no step of a fit regrets:

    >>> import torch
    >>> class Exponential:
    ...     n_labels = 1
    ...     def log_density(self, labels):
    ...         return -labels[:, 0] / 2
    ...     def derivatives(self, labels):
    ...         zeros = torch.zeros(len(labels), 1, 1, dtype=labels.dtype, device=labels.device)
    ...         return self.log_density(labels), zeros[:, 0] - 0.5, zeros
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
    >>> number = Parameters.of_labels([0], [9], [5])
    >>> objective = Objective(LinearPredictor([0.0], [[1.0]]), [4.0], [1.0], number, prior=Exponential())
    >>> levenberg_marquardt(objective, [[5]]).inputs.round(2)
    array([[3.5]])
    """

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        ...

    def log_density(self, labels: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior
        >>> prior = GaussianPrior([4.0, 2.0], [[1.0, 0.0], [0.0, 0.25]])
        >>> prior.log_density(torch.tensor([[5.0, 2.0]]))
        tensor([-0.5000])
        """
        ...

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value.
        curvature : Tensor, shape (n, n_labels, n_labels)
            Minus the Hessian, or a positive semi-definite stand-in.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior
        >>> prior = GaussianPrior([4.0, 2.0], [[1.0, 0.0], [0.0, 0.25]])
        >>> value, gradient, curvature = prior.derivatives(torch.tensor([[5.0, 2.0]]))
        >>> gradient, curvature
        (tensor([[-1., -0.]]), tensor([[[1., 0.],
         [0., 4.]]]))
        """
        ...


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """Gaussian prior on all labels.

    Parameters
    ----------
    mean : array_like, shape (n_labels,)
        In the labels' units. Finite.
    covariance : array_like, shape (n_labels, n_labels)
        In products of the labels' units; symmetric and positive definite.
    precision : array, shape (n_labels, n_labels)
        The inverse of the covariance, which is computed here and cannot be given.

    Raises
    ------
    ValueError
        If shapes do not agree, or this is no Gaussian.

    See Also
    --------
    GaussianConstraints : Gaussians on some of the labels.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import GaussianPrior
    >>> prior = GaussianPrior([4500.0, 2.0], [[2500.0, 4.0], [4.0, 0.04]])  # teff in K and logg, correlated
    >>> float(prior.distance2(np.array([4550.0, 2.0])).round(2))
    1.19
    """

    mean: np.ndarray
    covariance: np.ndarray
    precision: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
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
        """Return the squared Mahalanobis distance of labels from the mean.

        Parameters
        ----------
        labels : array, shape (..., n_labels)
            In the labels' units.

        Returns
        -------
        array, shape (...)
            ``n_labels`` on the average over stars of the prior.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import GaussianPrior
        >>> GaussianPrior([4.0, 2.0], [[1.0, 0.0], [0.0, 0.25]]).distance2(np.array([[5.0, 2.0], [5.0, 3.0]]))
        array([1., 5.])
        """
        offset = labels - self.mean
        return np.einsum("...i,ij,...j->...", offset, self.precision, offset)

    def log_density(self, labels: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior
        >>> prior = GaussianPrior([4.0, 2.0], [[1.0, 0.0], [0.0, 0.25]])
        >>> prior.log_density(torch.tensor([[5.0, 2.0]]))
        tensor([-0.5000])
        """
        offset = labels - tensor_like(self.mean, labels)
        return -0.5 * ((offset @ tensor_like(self.precision, labels)) * offset).sum(-1)

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value.
        curvature : Tensor, shape (n, n_labels, n_labels)
            The precision matrix, for every star.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior
        >>> prior = GaussianPrior([4.0, 2.0], [[1.0, 0.0], [0.0, 0.25]])
        >>> value, gradient, curvature = prior.derivatives(torch.tensor([[5.0, 2.0]]))
        >>> gradient, curvature
        (tensor([[-1., -0.]]), tensor([[[1., 0.],
                 [0., 4.]]]))
        """
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
    matrix : array_like, shape (n_constraints, n_labels)
        Weights of the labels in each combination.
    mean : array_like, shape (n_constraints,)
        Most likely values of the combinations, in the labels' units.
    sigma : array_like, shape (n_constraints,)
        Widths of the Gaussians, positive, in the same units.

    Raises
    ------
    ValueError
        If shapes do not agree, or a number is not finite or a sigma not positive.

    See Also
    --------
    GaussianConstraints.of : the same from names and quantities.

    Examples
    --------
    Two labels that are equal to each other within 0.1:

    >>> import torch
    >>> from cyclestarnet.fitting import GaussianConstraints
    >>> equal = GaussianConstraints([[1.0, -1.0]], [0.0], [0.1])
    >>> equal.log_density(torch.tensor([[7.0, 7.0], [7.0, 7.1]], dtype=torch.float64)).round(decimals=3)
    tensor([-0.0000, -0.5000], dtype=torch.float64)
    """

    matrix: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray

    def __post_init__(self) -> None:
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
    def of(cls, beliefs: Mapping[str, Belief], labels: LabelSet) -> GaussianConstraints:
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
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from cyclestarnet.fitting import GaussianConstraints
        >>> prior = GaussianConstraints(np.array([[1.0, -1.0]]), np.array([0.0]), np.array([0.5]))
        >>> prior.log_density(torch.tensor([[5.0, 4.5]]))
        tensor([-0.5000])
        """
        return -0.5 * (self._residual(labels) ** 2).sum(-1)

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value.
        curvature : Tensor, shape (n, n_labels, n_labels)
            Exact, and the same for every star; zero along what is not constrained.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from cyclestarnet.fitting import GaussianConstraints
        >>> prior = GaussianConstraints(np.array([[1.0, -1.0]]), np.array([0.0]), np.array([0.5]))
        >>> value, gradient, curvature = prior.derivatives(torch.tensor([[5.0, 4.5]]))
        >>> gradient, curvature
        (tensor([[-2.,  2.]]), tensor([[[ 4., -4.],
                 [-4.,  4.]]]))
        """
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
        The factors: at least one, all of the same labels.

    Raises
    ------
    ValueError
        If there is none, or they are of different numbers of labels.

    Examples
    --------
    Two beliefs of the same width meet in the middle:

    >>> import torch
    >>> from cyclestarnet.fitting import GaussianPrior, ProductPrior
    >>> both = ProductPrior([GaussianPrior([0.0], [[1.0]]), GaussianPrior([2.0], [[1.0]])])
    >>> both.log_density(torch.tensor([[0.0], [1.0], [2.0]]))
    tensor([-2., -1., -2.])
    """

    priors: Sequence[Prior]

    def __post_init__(self) -> None:
        object.__setattr__(self, "priors", tuple(self.priors))
        sizes = [prior.n_labels for prior in self.priors]
        if len(set(sizes)) != 1:
            raise ValueError(f"a product needs one or more priors of the same labels, but theirs are {sizes}")

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.priors[0].n_labels

    def log_density(self, labels: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior, ProductPrior
        >>> prior = ProductPrior([GaussianPrior([0.0], [[1.0]]), GaussianPrior([2.0], [[1.0]])])
        >>> prior.log_density(torch.tensor([[1.0]]))
        tensor([-1.])
        """
        return reduce(torch.add, (prior.log_density(labels) for prior in self.priors))

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value.
        curvature : Tensor, shape (n, n_labels, n_labels)
            Positive semi-definite if that of each factor is.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior, ProductPrior
        >>> prior = ProductPrior([GaussianPrior([0.0], [[1.0]]), GaussianPrior([2.0], [[1.0]])])
        >>> value, gradient, curvature = prior.derivatives(torch.tensor([[1.0]]))
        >>> gradient, curvature
        (tensor([[0.]]), tensor([[[2.]]]))
        """
        value, gradient, curvature = zip(*(prior.derivatives(labels) for prior in self.priors), strict=True)
        return reduce(torch.add, value), reduce(torch.add, gradient), reduce(torch.add, curvature)


@dataclass(frozen=True, eq=False)
class LeadingLabels:
    """A prior on the first labels; flat in those that follow, such as a velocity.

    Parameters
    ----------
    prior : `Prior`
        Of the first ``prior.n_labels`` labels.
    n_labels : int
        Number of all labels, those that follow included.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.fitting import GaussianPrior, LeadingLabels
    >>> prior = LeadingLabels(GaussianPrior([0.0], [[1.0]]), n_labels=2)
    >>> prior.log_density(torch.tensor([[1.0, 0.0], [1.0, 99.0]]))
    tensor([-0.5000, -0.5000])
    """

    prior: Prior
    n_labels: int

    def log_density(self, labels: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        Tensor, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior, LeadingLabels
        >>> prior = LeadingLabels(GaussianPrior([0.0], [[1.0]]), n_labels=2)
        >>> prior.log_density(torch.tensor([[1.0, 99.0]]))
        tensor([-0.5000])
        """
        return self.prior.log_density(labels[..., : self.prior.n_labels])

    def derivatives(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithm of the density with its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            A row per star, float64, in the labels' units.

        Returns
        -------
        value : Tensor, shape (n,)
            As of `log_density`.
        gradient : Tensor, shape (n, n_labels)
            Of the value.
        curvature : Tensor, shape (n, n_labels, n_labels)
            That of the prior, and zero for the labels that follow.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import GaussianPrior, LeadingLabels
        >>> prior = LeadingLabels(GaussianPrior([0.0], [[1.0]]), n_labels=2)
        >>> value, gradient, curvature = prior.derivatives(torch.tensor([[1.0, 99.0]]))
        >>> gradient, curvature
        (tensor([[-1., 0.]]), tensor([[[1., 0.],
                 [0., 0.]]]))
        """
        n = self.prior.n_labels
        value, gradient, curvature = self.prior.derivatives(labels[..., :n])
        all_gradient, all_curvature = torch.zeros_like(labels), labels.new_zeros(*labels.shape, self.n_labels)
        all_gradient[..., :n], all_curvature[..., :n, :n] = gradient, curvature
        return value, all_gradient, all_curvature
