"""Where names and units become numbers: the rest of the room knows labels by position, and floats and tensors only."""

from __future__ import annotations

import numpy as np
from astropy.units import Quantity
from numpy.typing import ArrayLike

from cyclestarnet.exceptions import LabelError
from cyclestarnet.labels import LabelSet, difference_unit

__all__ = ["sigma_of", "values_of", "weights_of"]


def weights_of(labels: LabelSet, name: str) -> np.ndarray:
    """Return the weights of the labels in a label or combination.

    Parameters
    ----------
    labels : `~cyclestarnet.LabelSet`
        All labels, and what they are combined to.
    name : str
        Of one of them, or of a combination.

    Returns
    -------
    array, shape (n_labels,)
        A 1 among zeros for a label.

    Raises
    ------
    LabelError
        If there is no label or combination of this name.

    Examples
    --------
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.fitting.conversion import weights_of
    >>> labels = LabelSet(["fe_h", "mg_h"], [-2, -2], [0.5, 0.5], {"mg_fe": {"mg_h": 1, "fe_h": -1}})
    >>> weights_of(labels, "mg_h"), weights_of(labels, "mg_fe")
    (array([0., 1.]), array([-1., 1.]))
    """
    if name in labels.combinations:
        return labels.combination_matrix[list(labels.combinations).index(name)]
    return np.eye(len(labels))[labels.index(name)]


def values_of(name: str, quantity: Quantity | ArrayLike, ndim: int | None = None) -> np.ndarray:
    """Return values of a label or combination in its unit, whose rules a label of that name knows.

    Parameters
    ----------
    name : str
        Of the label or combination, which decides about the unit.
    quantity : `~astropy.units.Quantity` or array_like
        One value or many; plain numbers will do for what is in dex.
    ndim : {0, 1}, optional
        Insist on one number, or on a column of numbers. Default: any shape will do.

    Returns
    -------
    array, float64
        Of the shape of ``quantity``.

    Raises
    ------
    LabelError
        If the unit is wrong, a value is masked or not finite, or the shape is another one.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.fitting.conversion import values_of
    >>> values_of("vmicro", [1200, 900] * u.m / u.s)
    array([1.2, 0.9])
    """
    values = LabelSet((name,), np.zeros(1), np.ones(1)).value(name, quantity)
    if ndim is not None and values.ndim != ndim:
        raise LabelError(f"'{name}' must be {('one number', 'a column')[ndim]} here, but has shape {values.shape}")
    return values


def sigma_of(name: str, quantity: Quantity | float) -> np.ndarray:
    """Return the width of a Gaussian in a label or combination, in the label's unit.

    Parameters
    ----------
    name : str
        Of the label or combination.
    quantity : `~astropy.units.Quantity` or float
        Positive; a plain number will do for what is in dex.

    Returns
    -------
    array, shape (), float64

    Raises
    ------
    LabelError
        If the unit is wrong, or this is not one finite and positive number.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.fitting.conversion import sigma_of
    >>> float(sigma_of("vmicro", 200 * u.m / u.s))
    0.2
    """
    sigma = values_of(name, quantity, ndim=0)
    if not sigma > 0:
        raise LabelError(f"sigma of '{name}' must be positive, but is {sigma:g} {difference_unit(name)}")
    return sigma
