"""What is known of a posterior before the first step: a Gaussian around its optimum, cut at the bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import gammaln

from cyclestarnet.fitting.objective import Objective

__all__ = ["Approximation", "approximate"]

TINY = 1e-5  # of the width of the bounds: parameters that share a value would never leave it
DEGREES = 8  # of freedom of Student's t, whose tails hold what a Gaussian would never propose
HEAVY = 0.2  # part of the draws that come from it
TRIES = 1000  # draws per position, until one is within the bounds


class Approximation:
    """A distribution that is close to a posterior and easy to draw from, for starts and proposals.

    A Gaussian, of which a fifth of the draws has the tails of Student's t with
    8 degrees of freedom, cut at the bounds. Along parameters of which little is
    known it is no wider than the bounds make sense of: half their width.

    Parameters
    ----------
    centre, covariance : array_like, shape (k,), (k, k)
        Optimum and Laplace covariance of the posterior.
    lower, upper : array_like, shape (k,)
        Finite bounds.

    Attributes
    ----------
    centre, lower, upper : array, shape (k,)
        Of the Gaussian, and the bounds.
    root : array, shape (k, k)
        Its product with its own transpose is the covariance of the Gaussian.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.fitting.approximation import Approximation
    >>> near = Approximation([0.0], [[1.0]], [-9.0], [9.0])
    >>> draws = near.draw(10_000, np.random.RandomState(1))
    >>> print(f"{draws.mean():.1f} ± {draws.std():.1f}")
    0.0 ± 1.0
    >>> bool((near.log_density([[0.0]]) > near.log_density([[1.0]]))[0])
    True
    """

    def __init__(self, centre: ArrayLike, covariance: ArrayLike, lower: ArrayLike, upper: ArrayLike):
        self.lower, self.upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
        width, middle = self.upper - self.lower, 0.5 * (self.upper + self.lower)
        centre = np.asarray(centre, dtype=float)
        spread = np.asarray(covariance, dtype=float) + np.diag((TINY * width) ** 2)
        # The product with a Gaussian that is as wide as the bounds where they are all that is known, and much wider
        # where they are not: else it would pull at what the data know.
        half2 = (0.5 * width) ** 2
        gain = np.linalg.solve(spread + np.diag(half2 * (1 + half2 / np.diag(spread))), spread).T
        self.centre = (centre + gain @ (middle - centre)).clip(self.lower, self.upper)
        spread = spread - gain @ spread
        scale = np.sqrt(np.diag(spread))
        variance, axes = np.linalg.eigh(0.5 * (spread + spread.T) / np.outer(scale, scale))
        deviation = np.sqrt(variance.clip(1e-10))  # rounding
        self.root = scale[:, None] * axes * deviation
        self._inverse = (axes / deviation).T / scale  # to independent coordinates of unit variance

    def draw(self, n: int, random: Any) -> np.ndarray:
        """Draw positions.

        Parameters
        ----------
        n : int
            How many.
        random : `numpy.random.RandomState`
            The source.

        Returns
        -------
        array, shape (n, k)
            A position for which no draw was within the bounds lies outside of them. That this happens
            does not depend on anything but chance: among those inside, densities compare as `log_density`.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.approximation import Approximation
        >>> draws = Approximation([0.0], [[1.0]], [0.0], [9.0]).draw(1000, np.random.RandomState(1))
        >>> print(f"{draws.min():.0f}, {draws.mean():.1f}")
        0, 0.8
        """
        out, missing, tries = np.empty((n, len(self.centre))), np.arange(n), 0
        while len(missing) and tries < TRIES:
            many = min(2 ** tries.bit_length(), TRIES - tries)  # 1, 2, 4, ... draws of each
            drawn = self._free(len(missing) * many, random).reshape(len(missing), many, -1)
            inside: np.ndarray = np.all((drawn >= self.lower) & (drawn <= self.upper), axis=2)
            out[missing] = drawn[np.arange(len(missing)), inside.argmax(1)]
            missing, tries = missing[~inside.any(1)], tries + many
        return out

    def reflected(self, positions: np.ndarray) -> np.ndarray:
        """Bring positions within the bounds by reflection.

        Parameters
        ----------
        positions : array, shape (n, k)
            Anywhere.

        Returns
        -------
        array, shape (n, k)
            Those within the bounds are the same to the last bit.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.approximation import Approximation
        >>> Approximation([0.0], [[1.0]], [-1.0], [1.0]).reflected(np.array([[0.5], [1.25]]))
        array([[0.5 ],
               [0.75]])
        """
        width = self.upper - self.lower
        folded = self.lower + width - np.abs(width - (positions - self.lower) % (2 * width))
        outside = (positions < self.lower) | (positions > self.upper)
        return np.where(outside, folded, positions).clip(self.lower, self.upper)  # rounding

    def _free(self, n: int, random: Any) -> np.ndarray:
        """Draws (n, k) that know no bounds."""
        z = random.standard_normal((n, len(self.centre)))
        heavy = random.uniform(size=n) < HEAVY
        stretch = np.sqrt(DEGREES / random.chisquare(DEGREES, size=n))
        return self.centre + np.where(heavy, stretch, 1.0)[:, None] * z @ self.root.T

    def log_density(self, positions: ArrayLike) -> np.ndarray:
        """Logarithm of the density at positions.

        Parameters
        ----------
        positions : array_like, shape (n, k)
            Within the bounds; outside, what the density would be without them.

        Returns
        -------
        array, shape (n,)
            Up to a constant.

        Examples
        --------
        >>> from cyclestarnet.fitting.approximation import Approximation
        >>> near = Approximation([0.0], [[1.0]], [-9.0], [9.0])
        >>> (near.log_density([[0.0]]) - near.log_density([[1.0]])).round(1)  # of a Gaussian, 0.5
        array([0.5])
        """
        k = len(self.centre)
        distance2 = (((np.asarray(positions) - self.centre) @ self._inverse.T) ** 2).sum(1)
        gaussian = -0.5 * distance2 - 0.5 * k * np.log(2 * np.pi)
        student = gammaln(0.5 * (DEGREES + k)) - gammaln(0.5 * DEGREES) - 0.5 * k * np.log(DEGREES * np.pi)
        student = student - 0.5 * (DEGREES + k) * np.log1p(distance2 / DEGREES)
        return np.logaddexp(np.log1p(-HEAVY) + gaussian, np.log(HEAVY) + student)


def approximate(objective: Objective, values: ArrayLike, star: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centre and covariance of the Gaussian that is closest to a posterior around its optimum.

    Parameters
    ----------
    objective : `~cyclestarnet.fitting.objective.Objective`
        The posterior.
    values : array_like, shape (k,)
        Parameters at the optimum, within the bounds.
    star : int, optional
        Which star. Default: the first.

    Returns
    -------
    centre : array, shape (k,)
        The values. Where a bound holds them back, the density falls off along a slope, not around a
        maximum; the width there is its length.
    covariance : array, shape (k, k)
        Inverse of the Hessian of Gauss and Newton, with the prior's, from derivatives in full precision.
        Along directions that neither data nor prior constrain it is wide, but finite.

    Examples
    --------
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
    >>> from cyclestarnet.fitting.approximation import approximate
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([-99], [99], [0]))
    >>> centre, covariance = approximate(objective, [0.5])
    >>> centre, covariance.round(4)
    (array([0.5]), array([[0.0125]]))
    """
    parameters, device = objective.parameters, objective.predictor.device
    rows = torch.as_tensor(np.asarray(values, dtype=float)[None], device=device)
    stars = torch.tensor([star], device=device)
    flux, slopes = objective.linearise(rows, stars, coarse=False)
    _, gradient, hessian = (part[0].cpu().numpy() for part in objective.normal_equations(rows, flux, slopes, stars))
    centre, width = rows[0].cpu().numpy(), parameters.upper - parameters.lower
    position = (centre - parameters.lower) / width
    held = ((position < TINY) & (gradient > 0)) | ((position > 1 - TINY) & (gradient < 0))
    curvature = hessian + np.diag(np.where(held, gradient, 0.0) ** 2)
    eigenvalues, directions = np.linalg.eigh(curvature * np.outer(width, width))
    return centre, (directions / eigenvalues.clip(0.01)) @ directions.T * np.outer(width, width)
