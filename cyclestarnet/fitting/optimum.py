"""The optima that solvers return, with their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.fitting.objective import Objective

__all__ = ["Optimum", "make_optimum"]

NOISE = 1e-6  # relative to the loss: what single precision in the networks makes of it
EDGE = 2e-3  # an optimum closer than this fraction of the range is at the bound


@dataclass(frozen=True, eq=False)
class Optimum:
    """Optima of n stars.

    Parameters
    ----------
    inputs : array, shape (n, n_labels)
        What the predictor takes: labels and, where a fit has them, motion and
        coordinates of the split latent.
    covariance : array, shape (n, n_labels, n_labels)
        Of the inputs, by the Laplace approximation; zero for fixed ones.
    flux : array, shape (n, n_pixels)
        Of the predictor, at the optimum.
    error_scale : array, shape (n,)
        Factor on all errors of a star, see `~cyclestarnet.fitting.objective.Objective`.
    success : array of bool, shape (n,)
        Whether the solver found an optimum.
    message : list of str
        How the search ended, for people; one per star.
    n_evaluations : array of int, shape (n,)
        How often the flux was computed (in `~cyclestarnet.fitting.lbfgs.lbfgs`, with its gradient).
    n_jacobians : array of int, shape (n,)
        How often all derivatives of the flux were.
    at_bound : array of bool, shape (n, n_labels)
        Inputs that ended at a bound, whose covariance means little.
    loss : array, shape (n,)
        Negative log posterior, up to a constant.
    condition : array, shape (n,)
        Condition number of the correlation matrix of the parameters; inf if the objective is not finite.
    hessian : array, shape (n, n_parameters, n_parameters)
        Of the parameters, Gauss-Newton; it knows no bounds, other than the covariance.

    See Also
    --------
    cyclestarnet.fitting.solvers.levenberg_marquardt, cyclestarnet.fitting.lbfgs.lbfgs : find optima.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
    >>> optimum = levenberg_marquardt(objective, [[0.9]])
    >>> print(f"{optimum.inputs[0, 0]:.2f} ± {np.sqrt(optimum.covariance[0, 0, 0]):.3f}, {optimum.message[0]}")
    0.50 ± 0.112, converged
    """

    inputs: np.ndarray
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

    def improved(self, rows: np.ndarray, other: Optimum) -> Optimum:
        """Return these optima, with those of other fits of some of the stars where they are better.

        Parameters
        ----------
        rows : array of int, shape (m,)
            Stars that were fitted again.
        other : `Optimum`
            Of these m stars. A loss that is not finite is never better, and
            always worse than one that is.

        Returns
        -------
        `Optimum`
            A new one, of all n stars; evaluations of both fits are counted.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> stopped, found = (levenberg_marquardt(objective, [[0.9]], max_iterations=n) for n in (0, 10))
        >>> stopped.improved(np.array([0]), found).inputs.round(2)
        array([[0.5]])
        """
        better = np.isfinite(other.loss) & ~(other.loss >= self.loss[rows])
        out = dict(vars(self))
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


def make_optimum(
    objective: Objective,
    x: Tensor,
    flux: Tensor,
    slopes: Tensor,
    success: Tensor | np.ndarray,
    message: list[str],
    n_evaluations: Tensor | np.ndarray,
    n_jacobians: Tensor | np.ndarray,
) -> Optimum:
    """Make the optima of all stars of an objective from where a solver ended.

    Parameters
    ----------
    objective : `~cyclestarnet.fitting.objective.Objective`
        What was maximised.
    x : Tensor, shape (n, k)
        Parameters at the end.
    flux : Tensor, shape (n, n_pixels)
        Of the predictor, there.
    slopes : Tensor, shape (n, k, n_pixels)
        Derivatives of the flux by the parameters, there.
    success : Tensor or array of bool, shape (n,)
        Whether the search ended at an optimum.
    message : list of str
        How it ended.
    n_evaluations, n_jacobians : Tensor or array of int, shape (n,)
        What the search has cost.

    Returns
    -------
    `Optimum`

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
    >>> from cyclestarnet.fitting.optimum import make_optimum
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
    >>> x, star, one = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0]), torch.tensor([1])
    >>> make_optimum(objective, x, *objective.linearise(x, star), one > 0, ["guessed"], one, one).covariance.round(4)
    array([[[0.0125]]])
    """
    parameters = objective.parameters
    stars = torch.arange(len(x), device=x.device)
    loss, _, hessian = objective.normal_equations(x, flux, slopes, stars)
    scale2 = objective.error_scale2(objective.chi2(flux, stars), stars)
    values, curvature = x.cpu().numpy(), hessian.cpu().numpy()
    width = parameters.upper - parameters.lower
    covariance, condition = zip(*(_laplace(h, width) for h in curvature), strict=True)
    position = (values - parameters.lower) / width
    at_bound = ((position < EDGE) | (position > 1 - EDGE)) @ parameters.matrix.T > 0
    return Optimum(
        inputs=parameters.labels(values),
        covariance=parameters.matrix @ np.array(covariance) @ parameters.matrix.T,
        flux=flux.cpu().numpy(),
        error_scale=np.sqrt(scale2.cpu().numpy()),
        success=_array(success).astype(bool),
        message=message,
        n_evaluations=_array(n_evaluations),
        n_jacobians=_array(n_jacobians),
        at_bound=at_bound,
        loss=loss.cpu().numpy(),
        condition=np.array(condition),
        hessian=curvature,
    )


def _array(numbers: Tensor | np.ndarray) -> np.ndarray:
    return numbers.cpu().numpy() if isinstance(numbers, Tensor) else numbers


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
