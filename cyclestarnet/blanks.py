"""Cells without a value: masked, blank or null ones, of whatever kind of array.

``numpy.asarray`` of a masked array gives what lies behind its mask: a fill value, or
a number that somebody threw away. Whatever a user brings is turned into plain arrays here.
"""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np

__all__ = ["bools_of", "floats_of", "mask_behind", "mask_of", "place_of"]


def mask_of(values: Any) -> np.ndarray | None:
    """Which cells of an array have no value.

    Parameters
    ----------
    values : array_like
        Masked arrays, columns and quantities of NumPy and astropy; lists of them.

    Returns
    -------
    array of bool, or None
        True = no value, of the shape of ``values``. None: it is not masked.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.blanks import mask_of
    >>> mask_of(np.ma.array([1.0, 2.0], mask=[False, True]))
    array([False,  True])
    """
    if isinstance(values, list | tuple):
        masks = [mask_of(item) for item in values]
        if all(mask is None for mask in masks):
            return None
        shapes = [np.shape(item) for item in values]
        return np.stack([np.zeros(s, bool) if m is None else m for m, s in zip(masks, shapes, strict=True)])
    mask = getattr(values, "mask", None)
    if mask is None or callable(mask):  # pandas has a method of this name
        return None
    return np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(values))


def floats_of(values: Any) -> np.ndarray:
    """Plain floats of an array, NaN where it has no value.

    Parameters
    ----------
    values : array_like
        Numbers, perhaps masked; of a quantity the numbers in its own unit.
        None in a list is a cell without a value, and so is ``NA`` of pandas.

    Returns
    -------
    array, float64
        Of the shape of ``values``. A copy if anything was masked.

    Raises
    ------
    ValueError, TypeError
        If there is something else than numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.blanks import floats_of
    >>> floats_of(np.ma.array([3, 999999], mask=[False, True]))
    array([ 3., nan])
    """
    mask = mask_of(values)
    if hasattr(values, "to_numpy"):
        return values.to_numpy(dtype=float, na_value=np.nan)
    if isinstance(values, list | tuple) and mask is not None:
        return np.stack([floats_of(item) for item in values])
    values = getattr(values, "unmasked", values)
    values = values.value if isinstance(values, u.Quantity) else values
    plain = np.asarray(np.ma.getdata(values))
    if mask is None:
        return plain.astype(float, copy=False)
    if plain.dtype.kind in "OSU":  # text, of which nothing behind the mask need be a number
        plain = np.where(mask, "nan", plain.astype(str))
    return np.where(mask, np.nan, plain.astype(float))


def bools_of(mask: Any) -> np.ndarray:
    """Plain booleans of a mask of bad pixels; a cell of the mask that has no value is bad.

    Parameters
    ----------
    mask : array_like
        True, or any bit of an integer, where a pixel is bad.

    Returns
    -------
    array of bool
        Of the shape of ``mask``.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.blanks import bools_of
    >>> bools_of(np.ma.array([False, False, True], mask=[False, True, False]))
    array([False,  True,  True])
    """
    unknown = mask_of(mask)
    plain = np.asarray(np.ma.getdata(getattr(mask, "unmasked", mask)))
    if plain.dtype.kind == "f":
        plain = (plain != 0) | np.isnan(plain)
    plain = plain.astype(bool, copy=False)
    return plain if unknown is None else plain | unknown


def mask_behind(array: np.ndarray) -> np.ndarray | None:
    """Mask of the array that a plain one is a view of, such as what an uncertainty of astropy keeps of a masked array.

    Parameters
    ----------
    array : array
        Perhaps a view, or a contiguous part, of a masked array.

    Returns
    -------
    array of bool, or None
        True = no value, of the shape of ``array``. None: nothing masked is behind it.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import StdDevUncertainty
    >>> from cyclestarnet.blanks import mask_behind
    >>> uncertainty = StdDevUncertainty(np.ma.array([0.1, 9.0], mask=[False, True]))
    >>> uncertainty.array  # the mask is gone
    array([0.1, 9. ])
    >>> mask_behind(uncertainty.array)
    array([False,  True])
    """
    own = mask_of(array)
    if own is not None or not isinstance(array, np.ndarray):
        return own
    behind = array.base
    while isinstance(behind, np.ndarray):
        mask = mask_of(behind)
        if mask is not None:
            where = array.__array_interface__["data"][0] - behind.__array_interface__["data"][0]
            start = where // max(array.itemsize, 1)
            if array.flags.c_contiguous and behind.flags.c_contiguous and 0 <= start <= mask.size - array.size:
                return mask.ravel()[start : start + array.size].reshape(array.shape)
            return mask if mask.shape == array.shape else None
        behind = behind.base
    return None


def place_of(bad: np.ndarray) -> str:
    """Words for where the first of some cells is.

    Parameters
    ----------
    bad : array of bool
        The cells, of any shape, one or more of them True.

    Returns
    -------
    str
        Such as ``" in row 3 (2 rows in all)"``; empty for a single value.

    Examples
    --------
    >>> from cyclestarnet.blanks import place_of
    >>> place_of([False, True, True])
    ' in row 1 (2 rows in all)'
    """
    bad = np.asarray(bad)
    if bad.ndim == 0:
        return ""
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
    return f" in row {rows[0]}" + (f" ({len(rows)} rows in all)" if len(rows) > 1 else "")
