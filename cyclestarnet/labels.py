"""Stellar labels: their names, units, ranges and scaling.

Labels are known by name, never by position. Names follow the APOGEE survey:
``teff``, ``logg``, ``vmicro``, ``vbroad``, ``m_h``, ``alpha_m`` and ``fe_h``,
``mg_h``, ... for abundances.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Column, Row, Table
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of, mask_of, place_of
from cyclestarnet.exceptions import LabelError, UnknownLabelError

__all__ = ["LabelSet", "LabelValues", "difference_unit", "kelvin_scale", "unit_of_label"]

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


# A combination is what its members give up to so much, in its unit: as numbers are computed, and as tables round them.
ROUNDING, ROUNDED = 1e-4, 2e-3
MOTION = ("velocity", "broadening")  # labels of a fit that are no labels of a star


def unit_of_label(name: str) -> u.UnitBase:
    """Return the unit that a label of this name has.

    Parameters
    ----------
    name : str
        Any name.

    Returns
    -------
    `~astropy.units.Unit`
        K, km/s or dex(cm/s2) for the labels that have it, 1 for the ratio of
        isotopes, and dex for all others: abundances and ratios of them.

    Examples
    --------
    >>> from cyclestarnet.labels import unit_of_label
    >>> unit_of_label("mg_h")
    Unit("dex")
    """
    return _UNITS.get(name, u.dex)


def difference_unit(name: str) -> u.UnitBase:
    """Return the unit of differences of a label, such as its uncertainty.

    Parameters
    ----------
    name : str
        Any name.

    Returns
    -------
    `~astropy.units.Unit`
        That of the label, but dex for ``logg``.

    Examples
    --------
    >>> from cyclestarnet.labels import difference_unit
    >>> difference_unit("logg")
    Unit("dex")
    """
    unit = unit_of_label(name)
    return u.dex if isinstance(unit, u.LogUnit) else unit


def kelvin_scale(names: Sequence[str], values: ArrayLike) -> np.ndarray:
    """Return factors that turn a ``teff`` in units of 1000 K, as The Payne has it, into one in K.

    Parameters
    ----------
    names : sequence of str
        Of the labels, in the order of the columns of ``values``.
    values : array_like, shape (..., n_labels)
        Labels of any number of stars, in whatever units they have. A ``teff``
        that stays below 100 is taken for one in units of 1000 K. NaN has no say.

    Returns
    -------
    array, shape (n_labels,), float64
        1000 for such a ``teff``; 1 for all other labels.

    Examples
    --------
    >>> from cyclestarnet.labels import kelvin_scale
    >>> kelvin_scale(["logg", "teff"], [[2.0, 4.1], [1.0, 5.2]])
    array([   1., 1000.])
    """
    scale = np.ones(len(names))
    if "teff" in names:
        k = list(names).index("teff")
        if np.fmax.reduce(floats_of(values)[..., k], axis=None) < 100:
            scale[k] = 1000
    return scale


def html_of(table: Table) -> str:
    """Return a table of labels as a notebook shows it: all rows, without the types of columns.

    Parameters
    ----------
    table : `~astropy.table.Table`
        Any.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from cyclestarnet.labels import html_of
    >>> "<tr><td>teff</td></tr>" in html_of(Table({"label": ["teff"]}))
    True
    """
    return "".join(table.pformat(html=True, max_lines=-1, max_width=-1, show_unit=False, show_dtype=False))


class LabelValues(dict):
    """Values of labels by name; a name that is none is answered with the one that is meant.

    Examples
    --------
    >>> from cyclestarnet.labels import LabelValues
    >>> LabelValues(teff=4500, logg=2.5)["Teff"]
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.UnknownLabelError: no label 'Teff'; did you mean 'teff'? There are: teff, logg
    """

    def __missing__(self, name: str) -> Any:
        near = _nearest(name, self)
        meant = f"did you mean '{near}'? There" if near else "there"
        raise UnknownLabelError(f"no label '{name}'; {meant} are: {', '.join(self)}")


# How people write labels that have other names here
_SPELLINGS = {
    "temperature": "teff", "t_eff": "teff", "log_g": "logg", "log g": "logg", "gravity": "logg", "feh": "fe_h",
    "metallicity": "m_h", "m/h": "m_h", "alpha": "alpha_m", "vt": "vmicro", "vturb": "vmicro", "vsini": "vbroad",
    "rv": "velocity",
}  # fmt: skip


def _nearest(name: Any, known: Iterable[str]) -> str | None:
    """The known name that is meant by another one, or None."""
    known, name = list(known), str(name).strip("[] ").lower()
    if _SPELLINGS.get(name) in known:
        return _SPELLINGS[name]
    near = difflib.get_close_matches(name.replace("/", "_"), known, n=1, cutoff=0.5)
    return near[0] if near else None


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Names, units and valid range of the labels of a model.

    Parameters
    ----------
    names : sequence of str
        One name per label, in the order of the model's inputs.
    lower : array_like, shape (n_labels,)
        Lower ends of the training range, in the labels' units.
    upper : array_like, shape (n_labels,)
        Upper ends.
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

    def __post_init__(self) -> None:
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
    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSet):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None

    @property
    def units(self) -> dict[str, u.UnitBase]:
        """Dictionary of the unit of each label and combination."""
        return {name: unit_of_label(name) for name in (*self.names, *self.combinations)}

    def index(self, name: str) -> int:
        """Position of a label.

        Parameters
        ----------
        name : str
            One of `names`; not a combination, which has no position.

        Returns
        -------
        int

        Raises
        ------
        LabelError
            If there is no such label. The message suggests the nearest one.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> LabelSet(["teff", "logg"], [3500, 0], [6000, 4]).index("logg")
        1
        """
        try:
            return self.names.index(name)
        except ValueError:
            known = (*self.names, *self.combinations)
            near = _nearest(name, known)
            if name in self.combinations:
                hint = f"it is a combination of {sorted(self.combinations[name])}: name one of those"
            else:
                hint = f"did you mean '{near}'?" if near else f"known labels: {', '.join(known)}"
            raise LabelError(f"Unknown label '{name}'; {hint}") from None

    # -- values ------------------------------------------------------------
    def value(self, name: str, quantity: u.Quantity | ArrayLike) -> np.ndarray:
        """Turn one label into numbers in its own unit.

        Parameters
        ----------
        name : str
            One of `names`.
        quantity : `~astropy.units.Quantity`, or array_like of a label in dex
            Of any shape, in any unit that can be converted. Labels in dex
            (``logg``, abundances) may be plain numbers.

        Returns
        -------
        array, float64
            Of the shape of ``quantity``.

        Raises
        ------
        LabelError
            If there is no such label, the unit is wrong or absent, or a value
            is masked or not finite.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet import LabelSet
        >>> LabelSet(["teff", "logg"], [3500, 0], [6000, 4]).value("teff", [4.5, 5.1] * u.kK)
        array([4500., 5100.])
        """
        self.index(name)
        unit, in_dex = unit_of_label(name), difference_unit(name) == u.dex
        mask = mask_of(quantity)
        if mask is not None and mask.any():
            raise LabelError(f"Label '{name}' is masked{place_of(mask)}")
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
                quantity = floats_of(quantity) * given if isinstance(quantity, Column) else quantity
                value = quantity.to_value(unit)
            except u.UnitConversionError:
                raise LabelError(f"Label '{name}' must have the unit {unit}, but got '{given}'") from None
        try:
            value = floats_of(value)
        except (TypeError, ValueError) as error:
            raise LabelError(f"Label '{name}' must be a number, but is {quantity!r:.60}") from error
        if not np.all(np.isfinite(value)):
            raise LabelError(f"Label '{name}' is not finite{place_of(~np.isfinite(value))}")
        return value

    def to_array(self, labels: Mapping[str, Any] | Row | Table, *, check_range: bool = False) -> np.ndarray:
        """Turn labels by name into an array.

        Parameters
        ----------
        labels : mapping of str to `~astropy.units.Quantity`, `~astropy.table.Row`, `~astropy.table.QTable` or a result
            Every label of the set. Dex-valued labels (``logg``, abundances)
            may be plain numbers; arrays are those of many stars, of one shape
            or scalars. A combination may be there if it is what its members give.
        check_range : bool, optional
            Raise if a value lies outside ``lower ... upper``. Default: False.

        Returns
        -------
        array, shape (..., n_labels), float64
            In the units and order of the set.

        Raises
        ------
        LabelError
            If a label is missing, misspelt, not finite, out of range or has a wrong unit, or a combination is not
            what its members give.

        Examples
        --------
        >>> import astropy.units as u
        >>> from cyclestarnet import LabelSet
        >>> labels = LabelSet(["teff", "logg"], [3500, 0], [6000, 4])
        >>> labels.to_array({"teff": [4500, 5100] * u.K, "logg": 2.5})
        array([[4.5e+03, 2.5e+00],
               [5.1e+03, 2.5e+00]])
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

    def known(self, labels: Mapping[str, Any] | Row | Table) -> dict[str, Any]:
        """Labels of the set among given ones, by name.

        Combinations are left out once they are known to be what their members
        give, and so are the other columns of a table (errors, flags), and the motion of
        the star (``velocity``, ``broadening``) unless it is among the labels of the set.

        Parameters
        ----------
        labels : mapping, `~astropy.table.Row`, `~astropy.table.QTable` or a result
            Some or all labels, as `to_array` takes them.

        Returns
        -------
        dict
            As they were given, not converted.

        Raises
        ------
        LabelError
            If a mapping has an unknown name, or ``labels`` is neither mapping nor table, or a combination is given
            without its members, or is not what they give: it says nothing of each of them.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> labels = LabelSet(["logg", "mg_h", "si_h"], [0, -1, -1], [4, 1, 1], {"alpha_m": {"mg_h": 0.5, "si_h": 0.5}})
        >>> labels.known({"logg": 2.5, "mg_h": 0.1, "si_h": 0.3, "alpha_m": 0.2})
        {'logg': 2.5, 'mg_h': 0.1, 'si_h': 0.3}
        >>> labels.known({"logg": 2.5, "mg_h": 0.1, "si_h": 0.3, "alpha_m": 0.4})
        Traceback (most recent call last):
            ...
        cyclestarnet.exceptions.LabelError: Label 'alpha_m' = 0.4 dex follows from mg_h, si_h, which give 0.2 dex; ...
        """
        if isinstance(getattr(labels, "labels", None), Mapping):  # a result
            labels = labels.labels
        if hasattr(labels, "colnames"):
            given = {name: labels[name] for name in self.names if name in labels.colnames}
            for name, terms in self.combinations.items():
                # Other columns of a table are none of our business, nor is a catalogue's own [M/H] without abundances.
                if name in labels.colnames and terms.keys() <= given.keys():
                    self._check_combination(name, labels[name], given, ROUNDED)
            return given
        if not isinstance(labels, Mapping):
            raise LabelError(
                "labels must be a mapping of name to value or a table, such as {'logg': 2.5} or the .labels of a "
                f"result, but are of class {type(labels).__name__}"
            )
        left_out = {*self.combinations, *(name for name in MOTION if name not in self.names)}
        for name in labels:
            if name not in left_out:
                self.index(name)
        given = {name: labels[name] for name in labels if name not in left_out}
        # A combination that `to_quantities` made along with some of these labels is no wish of anybody: it may stay
        # as it was where others have changed. Arithmetic does not hand the mark on.
        calls = {id(getattr(value, "_made_by", None)) for value in given.values()} - {id(None)}
        for name in labels:
            if name in self.combinations and id(getattr(labels[name], "_made_by", None)) not in calls:
                self._check_combination(name, labels[name], given, ROUNDING)
        return given

    def _check_combination(self, name: str, value: Any, members: Mapping[str, Any], tolerance: float) -> None:
        """Raise if a combination that is given says anything that its members do not."""
        terms = self.combinations[name]
        absent = [member for member in terms if member not in members]
        if absent:
            raise LabelError(
                f"Label '{name}' is a combination of {', '.join(terms)}, and does not tell each of them; "
                f"give {', '.join(absent)} instead of '{name}'"
            )
        expected = self._combination(name, members)
        if tolerance == ROUNDED and np.all(np.isnan(floats_of(value))):
            return  # not known in this table
        found = LabelSet((name,), np.zeros(1), np.ones(1)).value(name, value)
        try:
            differs = np.abs(found - expected) > tolerance
        except ValueError:
            raise LabelError(
                f"Label '{name}' must have the shape of its members, {expected.shape}, but has {found.shape}"
            ) from None
        if np.any(differs):
            found, expected = (np.broadcast_to(a, differs.shape)[differs][0] for a in (found, expected))
            raise LabelError(
                f"Label '{name}' = {found:g} {unit_of_label(name)} follows from {', '.join(terms)}, which give "
                f"{expected:g} {unit_of_label(name)}{place_of(differs)}; leave '{name}' out, or change those"
            )

    def _combination(self, name: str, members: Mapping[str, Any]) -> np.ndarray:
        """A combination of labels, in its own unit."""
        terms = self.combinations[name]
        return sum(weight * self.value(member, members[member]) for member, weight in terms.items())

    def check_range(self, values: ArrayLike) -> None:
        """Raise if a label lies outside the training range.

        Parameters
        ----------
        values : array_like, shape (..., n_labels)
            In the units and order of the set. NaN is outside.

        Raises
        ------
        LabelError
            With the name of the first such label, and its value.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> LabelSet(["teff", "logg"], [3500, 0], [6000, 4]).check_range([4500, 4.5])
        Traceback (most recent call last):
            ...
        cyclestarnet.exceptions.LabelError: Label 'logg' = 4.5 dex(cm / s2) is outside the training range 0 to 4 ...
        """
        for k, name in enumerate(self.names):
            column, unit = floats_of(values)[..., k], unit_of_label(name)
            bad = ~((column >= self.lower[k]) & (column <= self.upper[k]))  # NaN is outside, too
            if np.any(bad):
                raise LabelError(
                    f"Label '{name}' = {np.ravel(column)[np.ravel(bad)][0]:g} {unit} is outside the "
                    f"training range {self.lower[k]:g} to {self.upper[k]:g} {unit}"
                )

    def to_quantities(self, values: ArrayLike) -> dict[str, u.Quantity]:
        """Turn an array into labels by name, the inverse of `to_array`.

        Parameters
        ----------
        values : array_like, shape (..., n_labels)
            In the units and order of the set. NaN stays.

        Returns
        -------
        dict of `~astropy.units.Quantity`, each of shape (...)
            Labels, then combinations. Those are for reading: of ``labels | {"fe_h": 0.1}``, ``m_h`` has no say.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> LabelSet(["teff", "m_h"], [3500, -2], [6000, 0.5]).to_quantities([[4500, 0.1], [5000, -1]])
        {'teff': <Quantity [4500., 5000.] K>, 'm_h': <Quantity [ 0.1, -1. ] dex>}
        """
        values = floats_of(values)
        out = {name: values[..., k] * unit_of_label(name) for k, name in enumerate(self.names)}
        for name, weights in zip(self.combinations, self.combination_matrix, strict=True):
            out[name] = (values @ weights) * unit_of_label(name)
        call = object()
        for quantity in out.values():
            quantity._made_by = call
        return out

    @property
    def combination_matrix(self) -> np.ndarray:
        """Weights of the labels in each combination, shape (n_combinations, n_labels)."""
        matrix = np.zeros((len(self.combinations), len(self)))
        for row, terms in zip(matrix, self.combinations.values(), strict=True):
            for name, weight in terms.items():
                row[self.index(name)] = weight
        return matrix

    @property
    def scale(self) -> np.ndarray:
        """Width of the range of each label, shape (n_labels,)."""
        return self.upper - self.lower

    # -- showing and storing -------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Return the set as plain data, for files.

        Returns
        -------
        dict
            ``LabelSet(**label_set.to_dict())`` equals ``label_set``.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> LabelSet(["teff"], [3500], [6000]).to_dict()
        {'names': ['teff'], 'lower': [3500.0], 'upper': [6000.0], 'combinations': {}}
        """
        return {
            "names": list(self.names),
            "lower": self.lower.tolist(),
            "upper": self.upper.tolist(),
            "combinations": {name: dict(terms) for name, terms in self.combinations.items()},
        }

    def to_table(self) -> Table:
        """Return a table of names, units and ranges.

        Returns
        -------
        `~astropy.table.Table`
            A row per label, without the combinations.

        Examples
        --------
        >>> from cyclestarnet import LabelSet
        >>> print(LabelSet(["teff", "m_h"], [3500, -2], [6000, 0.5]).to_table())
        label unit lower  upper
        ----- ---- ------ ------
         teff    K 3500.0 6000.0
          m_h  dex   -2.0    0.5
        """
        units = [str(unit_of_label(name)) for name in self.names]
        return Table([list(self.names), units, self.lower, self.upper], names=["label", "unit", "lower", "upper"])

    def __repr__(self) -> str:
        return f"<LabelSet {', '.join(self.names)}>"

    def _repr_html_(self) -> str:
        table = self.to_table()
        table["lower"].format = table["upper"].format = ".4g"
        return html_of(table)
