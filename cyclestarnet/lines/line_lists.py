"""Line lists: one table for those of MOOG, VALD, NIST and the Atomic Line List.

A line list here is a `~astropy.table.QTable` with the columns ``wavelength``
(Angstrom, vacuum), ``species`` (``"Fe I"``, ``"CN"``), ``elements`` (``"Fe"``,
``"C N"``), ``log_gf`` and ``ep`` (eV, of the lower level), sorted by wavelength.
"""

from __future__ import annotations

import re

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from cyclestarnet.blanks import mask_of, place_of
from cyclestarnet.grid import air_to_vacuum
from cyclestarnet.lines.species import atoms_of, species_of_text

__all__ = ["as_line_list", "check_medium", "in_vacuum", "make_line_list"]

# Below, "air" wavelengths are given in vacuum, by VALD and NIST alike.
VACUUM_BELOW = 2000 * u.AA
MEDIA = ("vacuum", "air")
# Names of columns without units, media and punctuation, in order of preference.
SYNONYMS = {
    "wavelength": ("wavelength", "wave", "wl", "lambda", "ritz", "ritz wl", "ritz wavelength", "observed", "obs wl"),
    "species": ("species", "spectrum", "elm ion", "spec ion"),
    "log_gf": ("log gf", "loggf", "gflog"),
    "ep": ("ep", "excit", "excitation potential", "e low", "elow", "ei", "ei ek", "level energy", "chi"),
}
UNIT_WORDS = {"a": u.AA, "aa": u.AA, "ang": u.AA, "angstrom": u.AA, "nm": u.nm, "um": u.um, "ev": u.eV, "cm": 1 / u.cm}
MEDIUM_WORDS = {"air": "air", "vac": "vacuum", "vacuum": "vacuum"}


def as_line_list(table: Table, *, medium: str | None = None, species: str | None = None) -> QTable:
    """Bring a table of lines to the columns, units and medium of a line list.

    Columns are found by their names, of which blanks, capitals, media and
    units do not matter: such as ``wavelength``, ``WL_air(A)``, ``LAMBDA VAC
    ANG``, ``Ritz``, ``Observed``; ``species``, ``SPECTRUM``; ``log_gf``,
    ``loggf``; ``ep``, ``E_low(eV)``, ``Ei           Ek``, ``LEVEL ENERGY  CM
    1`` (of which the first number counts, that of the lower level). Numbers may
    be text with marks, as NIST gives them. Where NIST has no Ritz wavelength,
    the observed one is taken; rows with neither are left out.

    Parameters
    ----------
    table : `~astropy.table.Table`
        As of ``astroquery.nist`` or ``astroquery.atomic``, or your own.
        Wavelengths and energies need units: of the column
        (``table["Ritz"].unit = "Angstrom"``), or in its name.
    medium : {"vacuum", "air"}, optional
        Of wavelengths whose column does not tell by its name; what you asked
        the archive for. Below 2000 Angstrom, "air" means vacuum. Ask NIST for
        "vacuum": its "vac+air" is vacuum again above 20000 Angstrom.
    species : str, optional
        Of all lines, if there is no column (NIST gives none for one spectrum).

    Returns
    -------
    `~astropy.table.QTable`
        As of `read_line_list`. ``log_gf`` and ``ep`` are NaN where the table
        has none: neither NIST's nor the Atomic Line List's tables have log gf.

    Raises
    ------
    ValueError
        If there are no wavelengths or species, or their unit or medium is unknown, or a row with a wavelength has no
        species.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from cyclestarnet.lines import as_line_list
    >>> table = Table({"LAMBDA AIR ANG": [15163.067], "SPECTRUM": ["K I"]})
    >>> print(f"{as_line_list(table)['wavelength'][0]:.3f}")
    15167.211 Angstrom
    """
    check_medium(medium)
    found = {name: _columns_called(table, synonyms) for name, synonyms in SYNONYMS.items()}
    if not found["wavelength"]:
        raise ValueError(f"the table has no column of wavelengths: call one 'wavelength' (it has {table.colnames})")
    if not found["species"] and species is None:
        raise ValueError(
            "the table has no column of species: call one 'species', or give species='Fe I' for all lines (it has "
            f"{table.colnames})"
        )

    wavelength = np.full(len(table), np.nan) * u.AA
    for column in found["wavelength"]:  # what the first does not have, the next may
        holes = np.isnan(wavelength)
        if np.any(holes):
            own = _with_unit(table, column, u.AA, default=getattr(table[found["wavelength"][0]], "unit", None))
            wavelength[holes] = in_vacuum(own, _medium_of(table, column, medium))[holes]
    keep = np.isfinite(wavelength)
    if found["species"]:
        texts = _texts(table, found["species"][0], keep)[keep]
        spellings = {text: species_of_text(text) for text in np.unique(texts)}
        names = [spellings[text] for text in texts]
    else:
        names = [species_of_text(species)] * np.count_nonzero(keep)
    unknown = np.full(len(table), np.nan)
    log_gf = _numbers(table[found["log_gf"][0]]) if found["log_gf"] else unknown
    ep = unknown * u.eV
    if found["ep"]:
        ep = _with_unit(table, found["ep"][0], u.eV)
    return make_line_list(wavelength[keep], names, log_gf[keep], ep[keep], "vacuum")


def _words(name):
    return [word for word in re.split(r"[\W_]+", str(name).lower()) if word]


def _columns_called(table, synonyms):
    """Columns of that meaning, in the order of the synonyms."""
    plain = {}
    for name in table.colnames:
        words = _words(name)
        bare = " ".join(word for word in words if word not in UNIT_WORDS | MEDIUM_WORDS and not word.isdigit())
        plain.setdefault(bare, []).append(name)
    return [name for synonym in synonyms for name in plain.get(synonym, [])]


def _numbers(column):
    """Floats of a column: masked ones as NaN, text by the number that it begins with, such as "[10.2] - 12.1"."""
    if hasattr(column, "unmasked"):
        column = np.ma.array(u.Quantity(column.unmasked).value, mask=column.mask)
    values = np.ma.asarray(getattr(column, "value", column))
    if values.dtype.kind in "OSU":
        begin = (re.match(r"[\s\[(]*([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)", str(text)) for text in values.filled(""))
        return np.array([float(match[1]) if match else np.nan for match in begin])
    return values.astype(float).filled(np.nan)


def _texts(table, name, keep):
    """Text of a column; a cell without any, in a row that is kept, is not a species."""
    column = table[name]
    texts, mask = np.array(np.ma.getdata(column), dtype=str), mask_of(column)
    empty = keep & ((np.char.strip(texts) == "") | (False if mask is None else mask))
    if empty.any():
        raise ValueError(f"column {name!r} has no species{place_of(empty)}: fill it in, or leave out the row")
    return texts


def _with_unit(table, name, example, default=None):
    in_name = next((UNIT_WORDS[word] for word in _words(name) if word in UNIT_WORDS), default)
    unit = getattr(table[name], "unit", None) or in_name
    if unit is None:
        raise ValueError(
            f"column {name!r} has no unit: set table[{name!r}].unit = {example.to_string()!r}, or whatever is right"
        )
    try:
        return (_numbers(table[name]) * u.Unit(unit)).to(example, u.spectral())
    except u.UnitConversionError as error:
        raise ValueError(f"column {name!r} must have a unit such as {example.to_string()!r}, but has {unit}") from error


def _medium_of(table, name, given):
    told = next((MEDIUM_WORDS[word] for word in _words(name) if word in MEDIUM_WORDS), table.meta.get("medium", given))
    if told not in MEDIA:
        raise ValueError(f"column {name!r} does not tell whether it is in air: give medium='vacuum' or medium='air'")
    if given not in (None, told):
        raise ValueError(f"medium is {given!r}, but column {name!r} is in {told}: leave it out")
    return told


def make_line_list(wavelength: u.Quantity, species, log_gf, ep: u.Quantity, medium: str | None) -> QTable:
    """Make the table of a line list, sorted by wavelength.

    Parameters
    ----------
    wavelength : `~astropy.units.Quantity`, shape (n,)
        Wavelengths, or frequencies and the like.
    species : array_like of str, shape (n,)
        In our spelling.
    log_gf : array_like, shape (n,)
        Oscillator strengths; NaN where they are not known.
    ep : `~astropy.units.Quantity`, shape (n,)
        Excitation potentials, as energies or wavenumbers; NaN where they are not known.
    medium : {"vacuum", "air"}
        Of the wavelengths; those of air become those of vacuum.

    Returns
    -------
    `~astropy.table.QTable`
        ``wavelength`` (vacuum, Å), ``species``, ``elements``, ``log_gf`` and ``ep`` (eV).

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.lines.line_lists import make_line_list
    >>> make_line_list([15000.0] * u.AA, ["CO"], [-3.0], [0.1] * u.eV, "vacuum")["elements"][0]
    np.str_('C O')
    """
    species = np.array(species, dtype=str)
    elements = {name: " ".join(atoms_of(name.split()[0])) for name in np.unique(species)}
    columns = {
        "wavelength": in_vacuum(u.Quantity(wavelength, dtype=float).to(u.AA, u.spectral()), medium),
        "species": species,
        "elements": np.array([elements[name] for name in species], dtype=str),
        "log_gf": np.asarray(log_gf, dtype=float),
        "ep": u.Quantity(ep, dtype=float).to(u.eV, u.spectral()),
    }
    table = QTable(columns, meta={"medium": "vacuum"})
    return table[np.argsort(table["wavelength"], kind="stable")]


def in_vacuum(wavelength: u.Quantity, medium: str | None) -> u.Quantity:
    """Turn wavelengths of air into those of vacuum; below 2000 Å lists give vacuum anyway.

    Parameters
    ----------
    wavelength : `~astropy.units.Quantity`, shape (n,)
        Wavelengths.
    medium : {"vacuum", "air"}
        What they are in.

    Returns
    -------
    `~astropy.units.Quantity`, shape (n,)

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.lines.line_lists import in_vacuum
    >>> in_vacuum([1500.0, 5000.0] * u.AA, "air").round(1)
    <Quantity [1500. , 5001.4] Angstrom>
    """
    in_air = (wavelength > VACUUM_BELOW) & (medium == "air")
    return np.where(in_air, air_to_vacuum(wavelength), wavelength)


def check_medium(medium: str | None) -> None:
    """Raise if a medium is none.

    Parameters
    ----------
    medium : {"vacuum", "air"} or None
        None: not said.

    Raises
    ------
    ValueError
        If it is anything else.

    Examples
    --------
    >>> from cyclestarnet.lines.line_lists import check_medium
    >>> check_medium("air")
    """
    if medium is not None and medium not in MEDIA:
        raise ValueError(f"medium must be 'vacuum' or 'air', but is {medium!r}")
