"""What a fit varies of the labels: all of them, some, or groups that move together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.fitting.tensors import tensor_like

__all__ = ["Parameters"]

Rows = TypeVar("Rows", np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a fit varies: labels = origin + matrix @ parameters, within bounds.

    Parameters
    ----------
    origin : array, shape (n_labels,)
        Values of fixed labels, and those from which tied labels move; 0 for free ones.
    matrix : array, shape (n_labels, n_parameters)
        Each label depends on at most one parameter.
    lower, upper : array, shape (n_parameters,)
        Finite bounds of the parameters, lower below upper; they belong to the inside.

    Examples
    --------
    The first label is free, the second one fixed at 2:

    >>> import numpy as np
    >>> from cyclestarnet.fitting import Parameters
    >>> one = Parameters(np.array([0, 2.0]), np.array([[1.0], [0.0]]), np.array([-1.0]), np.array([1.0]))
    >>> one.labels(np.array([0.5])), len(one)
    (array([0.5, 2. ]), 1)
    """

    origin: np.ndarray
    matrix: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of_labels(
        cls,
        lower: ArrayLike,
        upper: ArrayLike,
        start: ArrayLike,
        *,
        free: ArrayLike | None = None,
        tied: Sequence[Sequence[int]] = (),
    ) -> Parameters:
        """Make a parameter of each free label, and one of each group of tied ones.

        Parameters
        ----------
        lower, upper : array_like, shape (n_labels,)
            Bounds of the labels.
        start : array_like, shape (n_labels,)
            Where fixed labels stay, and from where tied ones move together.
        free : array_like of bool, shape (n_labels,), optional
            Labels that are not fixed. Default: all.
        tied : sequence of sequences of int, optional
            Groups of labels, disjoint, that keep their differences. Fixed
            members stay where they are. Default: none.

        Returns
        -------
        `Parameters`
            First those of single labels, in their order, then those of groups.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting import Parameters
        >>> three = Parameters.of_labels(np.zeros(3), np.ones(3), np.array([0.2, 0.5, 0.3]), tied=[(1, 2)])
        >>> three.lower, three.upper  # of the first label, and of the shift of the other two
        (array([ 0. , -0.3]), array([1. , 0.5]))
        """
        low, high, begin = (np.array(a, dtype=float) for a in (lower, upper, start))
        varies = np.ones(len(begin), dtype=bool) if free is None else np.asarray(free)
        member = {k for group in tied for k in group}
        origin, groups, bounds = begin.copy(), [], []
        for k in np.flatnonzero(varies).tolist():
            if k not in member:
                groups.append([k])
                bounds.append((low[k], high[k]))
                origin[k] = 0.0
        for group in tied:
            moving = [k for k in group if varies[k]]
            if moving:
                groups.append(moving)
                bounds.append(((low - begin)[moving].max(), (high - begin)[moving].min()))
        matrix = np.zeros((len(begin), len(groups)))
        for column, members in enumerate(groups):
            matrix[members, column] = 1.0
        edges = np.array(bounds, dtype=float).reshape(-1, 2)
        return cls(origin, matrix, edges[:, 0].copy(), edges[:, 1].copy())

    def __len__(self) -> int:
        return self.matrix.shape[1]

    def labels(self, values: Rows) -> Rows:
        """Return the labels of parameters.

        Parameters
        ----------
        values : array or Tensor, shape (..., n_parameters)
            Of the parameters.

        Returns
        -------
        array or Tensor, shape (..., n_labels)
            As ``values`` came.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting import Parameters
        >>> tied = Parameters.of_labels(np.zeros(2), np.ones(2), np.array([0.2, 0.4]), tied=[(0, 1)])
        >>> tied.labels(np.array([[0.0], [0.1]]))
        array([[0.2, 0.4],
               [0.3, 0.5]])
        """
        if isinstance(values, Tensor):
            return values @ tensor_like(self.matrix, values).T + tensor_like(self.origin, values)
        return values @ self.matrix.T + self.origin

    def values(self, labels: ArrayLike) -> np.ndarray:
        """Return the parameters within bounds that are nearest to labels.

        Parameters
        ----------
        labels : array_like, shape (..., n_labels)
            They may be out of bounds, or not keep the differences of tied labels.

        Returns
        -------
        array, shape (..., n_parameters)
            NaN where a label that counts is NaN.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting import Parameters
        >>> Parameters.of_labels(np.zeros(2), np.ones(2), np.zeros(2)).values([0.5, 7.0])
        array([0.5, 1. ])
        """
        moved = np.asarray(labels) - self.origin
        # row by row: the last bits of a sum over a group must not depend on the other stars
        sums = np.array([row @ self.matrix for row in moved.reshape(-1, moved.shape[-1])])
        values = sums.reshape(*moved.shape[:-1], len(self)) / (self.matrix**2).sum(0)
        return np.clip(values, self.lower, self.upper)
