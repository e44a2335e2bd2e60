"""How much of a label comes from the data, and how much from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Information", "with_other_prior"]


@dataclass(frozen=True, eq=False)
class Information:
    """What the data alone say about each label of a star, by the Laplace approximation.

    Parameters
    ----------
    resolution : array, shape (n_labels,)
        By how much the fitted label moves if the star's own one moves by 1 and its other labels stay:
        1 if the data tell it, 0 if only the prior speaks. NaN for labels that were not free.
    data_error : array, shape (n_labels,)
        Error of the label if there were no prior, at most that of a flat distribution over its range. NaN for
        labels that were not free.

    Examples
    --------
    A measurement with an error of 0.2 of a label that scatters by 0.1:

    >>> import numpy as np
    >>> from cyclestarnet.pipeline.information import Information
    >>> one = np.eye(1)
    >>> found = Information.of(0.2**-2 * one + 0.1**-2 * one, 0.1**-2 * one, one, width=np.array([4.0]))
    >>> found.resolution.round(2), found.data_error.round(2)
    (array([0.2]), array([0.2]))
    """

    resolution: np.ndarray
    data_error: np.ndarray

    @classmethod
    def of(cls, hessian: np.ndarray, precision: np.ndarray, matrix: np.ndarray, width: np.ndarray) -> Information:
        """Tell the parts of data and prior in the curvature of a posterior.

        Parameters
        ----------
        hessian : array, shape (n_parameters, n_parameters)
            Curvature of the negative log posterior by the parameters, at the optimum.
        precision : array, shape (n_labels, n_labels)
            The prior's part of it, by the labels; zeros if there was none.
        matrix : array, shape (n_labels, n_parameters)
            Change of the labels by the parameters: one parameter at most for each label.
        width : array, shape (n_parameters,)
            Ranges of the parameters.

        Returns
        -------
        `Information`

        Examples
        --------
        ::

            information = Information.of(optimum.hessian[0], precision, parameters.matrix, parameters.upper - lower)
        """
        nothing = np.full(len(matrix), np.nan)
        if not np.isfinite(hessian).all():
            return cls(nothing, nothing.copy())
        of_data = hessian - matrix.T @ precision @ matrix
        scaled = np.outer(width, width)
        recovered = np.diag(_inverse(hessian * scaled) @ (of_data * scaled))
        error = np.sqrt(np.diag(_inverse(of_data * scaled))) * width
        free, parameter = (matrix != 0).any(axis=1), np.abs(matrix).argmax(axis=1)
        size = np.abs(matrix).max(axis=1)
        return cls(np.where(free, recovered[parameter], np.nan), np.where(free, size * error[parameter], np.nan))


def _inverse(hessian: np.ndarray) -> np.ndarray:
    """Inverse of a Hessian in units of the ranges: what nothing constrains is as uncertain as its range."""
    eigenvalues, directions = np.linalg.eigh(hessian)
    return (directions / eigenvalues.clip(12.0)) @ directions.T


def with_other_prior(
    values: np.ndarray, covariance: np.ndarray, gradient: np.ndarray, precision: np.ndarray, mean: np.ndarray,
    other_precision: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Labels that a fit would have found with a Gaussian prior in place of its own, by one Newton step.

    Parameters
    ----------
    values : array, shape (n_labels,)
        At the optimum of the fit.
    covariance : array, shape (n_labels, n_labels)
        Of the fit; 0 for labels that were not free, which stay where they are.
    gradient, precision : array, shapes (n_labels,) and (n_labels, n_labels)
        Gradient of the log density of the fit's own prior there, and its precision; zeros if there was none.
    mean, other_precision : array, shapes (n_labels,) and (n_labels, n_labels)
        Of the Gaussian.

    Returns
    -------
    array, shape (n_labels,)

    Examples
    --------
    A label of 0.6 ± 0.1 without a prior, and with one of 0 ± 0.1:

    >>> import numpy as np
    >>> from cyclestarnet.pipeline.information import with_other_prior
    >>> one, zero = np.eye(1), np.zeros((1, 1))
    >>> with_other_prior(np.array([0.6]), 0.01 * one, zero[0], zero, zero[0], 100 * one)
    array([0.3])
    """
    # the fit's optimum balances data and own prior: what is left of the new loss are the two priors' gradients
    pull = gradient + other_precision @ (values - mean)
    more = other_precision - precision
    return values - covariance @ np.linalg.solve(np.eye(len(values)) + more @ covariance, pull)
