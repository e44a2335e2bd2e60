"""Labels that nobody gave, as the prior of a model expects them of a star with those that were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cyclestarnet.fitting.conversion import values_of, weights_of
from cyclestarnet.pipeline.parts import ModelParts

__all__ = ["completed"]

NEEDED = ("teff", "logg")  # what no abundance tells


def completed(parts: ModelParts, labels: Any) -> tuple[Any, tuple[str, ...]]:
    """Complete labels by the conditional mean of the model's prior.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    labels : mapping of str to `~astropy.units.Quantity`, or whatever else `~cyclestarnet.LabelSet.to_array` takes
        To be completed it must be a mapping that has ``teff`` and ``logg``, if these are labels of the model, and an
        abundance or a combination such as ``m_h``, whose members need not be given.

    Returns
    -------
    labels : mapping or as it was
        With all labels, if it could be completed.
    filled : tuple of str
        Labels that were not given. They stay within the training range.

    Raises
    ------
    LabelError
        If a name is unknown, or a value has a wrong unit or is not finite.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.completion import completed
    >>> labels, filled = completed(CalibratedModel.from_pretrained(), {"teff": 4500 * u.K, "logg": 2.2, "m_h": -0.5})
    >>> labels["fe_h"], len(filled)
    (<Quantity -0.5 dex>, 18)
    """
    known = parts.labels
    if not isinstance(labels, Mapping):
        return labels, ()
    given = [name for name in known if name in labels]
    open_ones = [n for n, terms in known.combinations.items() if n in labels and not terms.keys() <= set(given)]
    missing = [name for name in known if name not in labels]
    told = {*given, *open_ones} - set(NEEDED)
    if not missing or set(NEEDED) & set(missing) or not told:
        return labels, ()
    members = known.known({name: value for name, value in labels.items() if name not in open_ones})  # checks the names
    columns = [known.value(name, members[name]) for name in given]
    columns += [values_of(name, labels[name]) for name in open_ones]
    values = np.stack(np.broadcast_arrays(*columns), axis=-1)
    matrix = np.stack([weights_of(known, name) for name in (*given, *open_ones)])
    mean, covariance = parts.prior.mean, parts.prior.covariance
    size = np.sqrt(np.einsum("ki,ij,kj->k", matrix, covariance, matrix))  # of very different units
    inverse = np.linalg.pinv(matrix @ covariance @ matrix.T / np.outer(size, size), hermitian=True)
    gain = covariance @ matrix.T / size @ inverse / size
    expected = (mean + (values - matrix @ mean) @ gain.T).clip(known.lower, known.upper)
    quantities = known.to_quantities(expected)
    filled = tuple(missing)
    return {name: members[name] if name in given else quantities[name] for name in known}, filled
