"""What a fit knows of a model: labels in, flux and its derivatives out, for many stars at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["LinearPredictor", "Predictor"]


class Predictor(Protocol):
    """Labels in, flux and derivatives out.

    Labels here are all that a flux depends on: those of the star and, where a
    model has them, its motion and the coordinates of its split latent. They
    come in rows (m, n_labels) of float64, on the predictor's device; ``stars``
    (m,) tells which star each row belongs to, for predictors that know more
    of a star than its labels. Rows are independent of each other.

    See Also
    --------
    LinearPredictor : the simplest one.
    cyclestarnet.networks.predictor : those of neural networks.

    Examples
    --------
    A line whose depth is the only label. The solvers never ask for more than
    these methods:

    >>> import torch
    >>> class Line:
    ...     n_labels, n_pixels, device = 1, 5, torch.device("cpu")
    ...     profile = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0], dtype=torch.float64)
    ...     def flux(self, labels, stars=None):
    ...         return 1 - labels * self.profile
    ...     def pullback(self, labels, stars=None):
    ...         return self.flux(labels), lambda cotangent: -cotangent @ self.profile[:, None]
    ...     def jacobian(self, labels, stars=None, *, coarse=False):
    ...         return self.flux(labels), (-self.profile).expand(len(labels), 1, 5)
    ...     def expected_slopes(self, labels):
    ...         return None
    >>> from cyclestarnet.fitting import Objective, Parameters, levenberg_marquardt
    >>> objective = Objective(Line(), [1, 0.8, 0.6, 0.8, 1], [1e4] * 5, Parameters.of_labels([0], [1], [0.1]))
    >>> levenberg_marquardt(objective, [[0.1]]).inputs.round(3)
    array([[0.4]])
    """

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        ...

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors come from and go to."""
        ...

    def flux(self, labels: Tensor, stars: Tensor | None = None) -> Tensor:
        """Predict the flux.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, shape (m,), optional
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m, n_pixels), float64

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).flux(torch.ones(1, 1, dtype=torch.float64))
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
        """
        ...

    def pullback(self, labels: Tensor, stars: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Predict the flux, and keep what is needed for an exact gradient.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, shape (m,), optional
            Which star each row belongs to.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels), float64
            As of `flux`.
        pull : callable
            Takes the derivatives (m, n_pixels) of a number by the flux and
            gives those by the labels, (m, n_labels).

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> labels = torch.ones(1, 1, dtype=torch.float64)
        >>> flux, pull = LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).pullback(labels)
        >>> pull(2 * flux)  # of the sum of squares of the flux
        tensor([[-0.5000]], dtype=torch.float64)
        """
        ...

    def jacobian(self, labels: Tensor, stars: Tensor | None = None, *, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """Predict the flux and all its derivatives.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, shape (m,), optional
            Which star each row belongs to.
        coarse : bool, optional
            Whether derivatives that are right to about 0.5 % of their largest value will do, if they are quicker.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels), float64
            As of `flux`.
        slopes : Tensor, shape (m, n_labels, n_pixels)
            Derivatives of the flux by the labels, float32 or float64.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> labels = torch.ones(1, 1, dtype=torch.float64)
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).jacobian(labels)[1]
        tensor([[[-0.5000,  0.0000]]], dtype=torch.float64)
        """
        ...

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Tell what derivatives to expect, without computing them.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.

        Returns
        -------
        Tensor, shape (m, n_labels, n_pixels), or None
            None if nothing is known of them. Wrong ones cost a fit time, but
            do not change its end.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).expected_slopes(torch.ones(1, 1)) is None
        True
        """
        ...


@dataclass(frozen=True, eq=False)
class LinearPredictor:
    """Flux = offset + matrix @ labels: the `Predictor` of which all is known, for examples and tests.

    Parameters
    ----------
    offset : array or Tensor, shape (n_pixels,)
        Flux of labels that are all 0.
    matrix : array or Tensor, shape (n_pixels, n_labels)
        Derivatives of the flux by the labels.

    Examples
    --------
    Its optimum is that of linear least squares:

    >>> import numpy as np
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
    >>> matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> both = Parameters.of_labels([0, 0], [9, 9], [5, 5])
    >>> objective = Objective(LinearPredictor(np.zeros(3), matrix), [1.0, 3.1, 4.9], [100.0] * 3, both)
    >>> levenberg_marquardt(objective, [[5, 5]]).inputs.round(3)
    array([[1.05, 1.95]])
    >>> np.linalg.lstsq(matrix, [1.0, 3.1, 4.9], rcond=None)[0].round(3)
    array([1.05, 1.95])
    """

    offset: Tensor
    matrix: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", _float64(self.offset))
        object.__setattr__(self, "matrix", _float64(self.matrix))

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.matrix.shape[1]

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.matrix.shape[0]

    @property
    def device(self) -> torch.device:
        """Where offset and matrix are."""
        return self.offset.device

    def flux(self, labels: Tensor, stars: Tensor | None = None) -> Tensor:
        """Predict the flux; see `Predictor.flux`.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, optional
            Of no concern: all stars are alike.

        Returns
        -------
        Tensor, shape (m, n_pixels)

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).flux(torch.ones(1, 1, dtype=torch.float64))
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
        """
        return self.offset + labels @ self.matrix.T

    def pullback(self, labels: Tensor, stars: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Predict the flux, with its gradient; see `Predictor.pullback`.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, optional
            Of no concern: all stars are alike.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels)
            As of `flux`.
        pull : callable
            From derivatives by the flux to those by the labels.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> _, pull = LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).pullback(torch.ones(1, 1, dtype=torch.float64))
        >>> pull(torch.ones(1, 2, dtype=torch.float64))
        tensor([[-0.5000]], dtype=torch.float64)
        """
        return self.flux(labels), lambda cotangent: cotangent @ self.matrix

    def jacobian(self, labels: Tensor, stars: Tensor | None = None, *, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """Predict the flux and its derivatives; see `Predictor.jacobian`.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum, float64.
        stars : Tensor of int, optional
            Of no concern: all stars are alike.
        coarse : bool, optional
            Of no concern: derivatives are exact anyway.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels)
            As of `flux`.
        slopes : Tensor, shape (m, n_labels, n_pixels)
            The same for all rows.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).jacobian(torch.ones(1, 1, dtype=torch.float64))[1]
        tensor([[[-0.5000,  0.0000]]], dtype=torch.float64)
        """
        return self.flux(labels), self.matrix.T.expand(len(labels), -1, -1)

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Tell nothing of derivatives before they are computed; see `Predictor.expected_slopes`.

        Parameters
        ----------
        labels : Tensor, shape (m, n_labels)
            A row per spectrum.

        Returns
        -------
        None

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor
        >>> LinearPredictor([1.0, 1.0], [[-0.5], [0.0]]).expected_slopes(torch.ones(1, 1)) is None
        True
        """
        return None


def _float64(array: ArrayLike | Tensor) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float64)
