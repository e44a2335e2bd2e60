"""Stellar labels: their names, units, ranges and scaling.

Labels are known by name, never by position. Names follow the APOGEE survey:
``teff``, ``logg``, ``vmicro``, ``vbroad``, ``m_h``, ``alpha_m`` and ``fe_h``,
``mg_h``, ... for abundances.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import astropy.units as u
import numpy as np
from astropy.table import Column

from cyclestarnet.exceptions import LabelError

__all__ = ["LabelSet", "difference_unit", "kelvin_scale", "unit_of_label"]

_UNITS = {
    "teff": u.K,
    "logg": u.dex(u.cm / u.s**2),
    "vmicro": u.km / u.s,
    "vmacro": u.km / u.s,
    "vbroad": u.km / u.s,
    "velocity": u.km / u.s,
    "broadening": u.km / u.s,
    "c12_c13": u.dimensionless_unscaled,
}


def unit_of_label(name):
    """Return the unit that a label of this name has: K, km/s, dex(cm/s2), or dex for ratios.

    >>> from cyclestarnet.labels import unit_of_label
    >>> unit_of_label("mg_h")
    Unit("dex")
    """
    return _UNITS.get(name, u.dex)


def difference_unit(name):
    """Return the unit of differences of a label, such as its uncertainty: that of the label, but dex for ``logg``.

    >>> from cyclestarnet.labels import difference_unit
    >>> difference_unit("logg")
    Unit("dex")
    """
    unit = unit_of_label(name)
    return u.dex if isinstance(unit, u.LogUnit) else unit


def kelvin_scale(names, values):
    """Return factors that turn a ``teff`` in units of 1000 K, as The Payne has it, into one in K.

    Parameters
    ----------
    names : sequence of str
    values : array_like, shape (..., n_labels)
        A ``teff`` that stays below 100 is taken for one in units of 1000 K. NaN has no say.

    Returns
    -------
    array, shape (n_labels,)
        1 for all other labels.

    Examples
    --------
    >>> from cyclestarnet.labels import kelvin_scale
    >>> kelvin_scale(["logg", "teff"], [[2.0, 4.1], [1.0, 5.2]])
    array([   1., 1000.])
    """
    scale = np.ones(len(names))
    if "teff" in names:
        k = list(names).index("teff")
        if np.fmax.reduce(np.asarray(values)[..., k], axis=None) < 100:
            scale[k] = 1000
    return scale


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Names, units and valid range of the labels of a model.

    Parameters
    ----------
    names : sequence of str
        One name per label, in the order of the model's inputs.
    lower, upper : array_like, shape (n_labels,)
        Range of the training grid, in the labels' units.
    combinations : dict of dict, optional
        Labels that are reported besides: linear combinations of the others,
        for example ``{"alpha_m": {"mg_h": 0.5, "si_h": 0.5, "fe_h": -1}}``.

    Raises
    ------
    LabelError
        If names repeat, a range is empty, or a combination uses an unknown name.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import LabelSet
    >>> labels = LabelSet(["teff", "logg"], [3500, 0], [6000, 4])
    >>> labels.to_array({"teff": 5000 * u.K, "logg": 2.5})
    array([5.0e+03, 2.5e+00])
    >>> labels.to_array({"teff": 5000, "logg": 2.5})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.LabelError: Label 'teff' must be a Quantity in K, but got the bare number 5000; ...
    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    combinations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self):
        names = tuple(str(name) for name in self.names)
        lower, upper = (np.array(a, dtype=float) for a in (self.lower, self.upper))
        if len(set(names)) != len(names) or not names:
            raise LabelError(f"Label names must be unique and at least one, but are {names}")
        if lower.shape != (len(names),) or upper.shape != lower.shape:
            raise LabelError(
                f"lower and upper must have shape ({len(names)},), but have {lower.shape} and {upper.shape}"
            )
        if not np.all(lower < upper):
            bad = [n for n, a, b in zip(names, lower, upper, strict=True) if not a < b]
            raise LabelError(f"The range of {bad} is empty: lower must be below upper")
        for array in (lower, upper):
            array.flags.writeable = False
        for attribute, value in {"names": names, "lower": lower, "upper": upper}.items():
            object.__setattr__(self, attribute, value)
        for name, terms in self.combinations.items():
            if name in names:
                raise LabelError(f"Combination '{name}' has the name of a label")
            for term in terms:
                self.index(term)

    # -- names -------------------------------------------------------------
    def __len__(self):
        return len(self.names)

    def __iter__(self):
        return iter(self.names)

    def __contains__(self, name):
        return name in self.names

    def __eq__(self, other):
        if not isinstance(other, LabelSet):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None

    @property
    def units(self):
        """Dictionary of the unit of each label and combination."""
        return {name: unit_of_label(name) for name in (*self.names, *self.combinations)}

    def index(self, name):
        """Position of a label; an unknown name raises and suggests the nearest one."""
        try:
            return self.names.index(name)
        except ValueError:
            known = (*self.names, *self.combinations)
            near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
            if name in self.combinations:
                hint = f"it is a combination of {sorted(self.combinations[name])}: name one of those"
            else:
                hint = f"did you mean '{near[0]}'?" if near else f"known labels: {', '.join(known)}"
            raise LabelError(f"Unknown label '{name}'; {hint}") from None

    # -- values ------------------------------------------------------------
    def value(self, name, quantity):
        """Return one label as a float in its own unit; see `to_array`."""
        self.index(name)
        unit, in_dex = unit_of_label(name), difference_unit(name) == u.dex
        if np.any(getattr(quantity, "mask", False)):
            raise LabelError(f"Label '{name}' is masked")
        given = getattr(quantity, "unit", None)
        if in_dex and given in (None, u.dimensionless_unscaled, u.dex):
            value = getattr(quantity, "value", quantity)
        elif given is None:
            raise LabelError(
                f"Label '{name}' must be a Quantity in {unit}, but got the bare number {quantity}; "
                f"write {quantity} * u.Unit('{unit}')"
            )
        else:
            try:
                # A Column of a plain Table has a unit too, but cannot convert itself.
                quantity = np.asarray(quantity) * given if isinstance(quantity, Column) else quantity
                value = quantity.to_value(unit)
            except u.UnitConversionError:
                raise LabelError(f"Label '{name}' must have the unit {unit}, but got '{given}'") from None
        value = np.asarray(value, dtype=float)
        if not np.all(np.isfinite(value)):
            raise LabelError(f"Label '{name}' is not finite")
        return value

    def to_array(self, labels, *, check_range=False):
        """Turn labels by name into an array.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`, `~astropy.table.Row` or `~astropy.table.QTable`
            Every label of the set. Dex-valued labels (``logg``, abundances)
            may be plain numbers. Combinations are ignored.
        check_range : bool, optional
            Raise if a value lies outside ``lower ... upper``.

        Returns
        -------
        array, shape (..., n_labels), float64
            In the units and order of the set.

        Raises
        ------
        LabelError
            If a label is missing, misspelt, out of range or has a wrong unit.
        """
        given = self.known(labels)
        missing = [name for name in self.names if name not in given]
        if missing:
            raise LabelError(f"Labels {missing} are missing; this model needs {', '.join(self.names)}")
        columns = [self.value(name, given[name]) for name in self.names]
        try:
            values = np.stack(np.broadcast_arrays(*columns), axis=-1)
        except ValueError:
            shapes = {name: column.shape for name, column in zip(self.names, columns, strict=True) if column.ndim}
            raise LabelError(f"Arrays of labels must be of one shape, or scalars, but have {shapes}") from None
        if check_range:
            self.check_range(values)
        return values

    def known(self, labels):
        """Labels of the set among given ones, by name.

        Combinations are left out, and so are the other columns of a table
        (errors, flags); an unknown name in a mapping raises a `LabelError`.
        """
        if hasattr(labels, "colnames"):
            return {name: labels[name] for name in self.names if name in labels.colnames}
        if not isinstance(labels, Mapping):
            raise LabelError(
                "labels must be a mapping of name to value or a table, such as {'logg': 2.5} or the .labels of a "
                f"result, but are of class {type(labels).__name__}"
            )
        for name in labels:
            if name not in self.combinations:
                self.index(name)
        return {name: labels[name] for name in labels if name not in self.combinations}

    def check_range(self, values):
        """Raise a `LabelError` that names the first label outside the training range."""
        for k, name in enumerate(self.names):
            column, unit = np.asarray(values)[..., k], unit_of_label(name)
            bad = ~((column >= self.lower[k]) & (column <= self.upper[k]))  # NaN is outside, too
            if np.any(bad):
                raise LabelError(
                    f"Label '{name}' = {np.ravel(column)[np.ravel(bad)][0]:g} {unit} is outside the "
                    f"training range {self.lower[k]:g} to {self.upper[k]:g} {unit}"
                )

    def to_quantities(self, values):
        """Return a dictionary of `~astropy.units.Quantity`, combinations included, of values (..., n_labels)."""
        values = np.asarray(values, dtype=float)
        out = {name: values[..., k] * unit_of_label(name) for k, name in enumerate(self.names)}
        for name, weights in zip(self.combinations, self.combination_matrix, strict=True):
            out[name] = (values @ weights) * unit_of_label(name)
        return out

    @property
    def combination_matrix(self):
        """Weights of the labels in each combination, shape (n_combinations, n_labels)."""
        matrix = np.zeros((len(self.combinations), len(self)))
        for row, terms in zip(matrix, self.combinations.values(), strict=True):
            for name, weight in terms.items():
                row[self.index(name)] = weight
        return matrix

    @property
    def scale(self):
        """Width of the range of each label, shape (n_labels,)."""
        return self.upper - self.lower

    # -- showing and storing -------------------------------------------------
    def to_dict(self):
        """Plain-data form, for files."""
        return {
            "names": list(self.names),
            "lower": self.lower.tolist(),
            "upper": self.upper.tolist(),
            "combinations": {name: dict(terms) for name, terms in self.combinations.items()},
        }

    def to_table(self):
        """Table of names, units and ranges, one row per label."""
        from astropy.table import Table

        units = [str(unit_of_label(name)) for name in self.names]
        return Table([list(self.names), units, self.lower, self.upper], names=["label", "unit", "lower", "upper"])

    def __repr__(self):
        return f"<LabelSet {', '.join(self.names)}>"

    def _repr_html_(self):
        return self.to_table()._repr_html_()
