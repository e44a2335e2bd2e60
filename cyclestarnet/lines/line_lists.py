"""Line lists, and what in them the missing lines of a catalogue may be.

A line list here is a `~astropy.table.QTable` with the columns ``wavelength``
(Angstrom, vacuum), ``species`` (``"Fe I"``, ``"CN"``), ``elements`` (``"Fe"``,
``"C N"``), ``log_gf`` and ``ep`` (eV, of the lower level), sorted by wavelength.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import MaskedColumn, QTable
from astropy.utils.masked import Masked

from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError
from cyclestarnet.grid import air_to_vacuum

__all__ = ["as_line_list", "match_lines", "read_line_list"]

ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es"
).split()
# Formulae name metals first, then these in turn (TiO, SiH, CN, HCl) - but for three that everybody writes otherwise.
NONMETALS = "B Si C P N H S Cl O F".split()
USUAL_FORMULAE = {"HO": "OH", "HS": "SH", "CNH": "HCN"}
# Below, "air" wavelengths are given in vacuum, by VALD and NIST alike.
VACUUM_BELOW = 2000 * u.AA
MEDIA = ("vacuum", "air")


# -- species -----------------------------------------------------------------------
def _roman(number):
    tens, ones = divmod(number, 10)
    return "X" * tens + ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"][ones]


def _species_of_code(code):
    """Name of a MOOG code: atomic numbers in pairs of digits, the charge, isotopes (26.1 Fe II, 608.01216 CO)."""
    numbers, decimals = f"{float(code):.5f}".split(".")
    numbers = numbers.zfill(len(numbers) + len(numbers) % 2)
    atoms = [int(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    if not all(1 <= atom <= len(ELEMENTS) for atom in atoms):
        raise ValueError(f"{code} is no species code: atomic numbers in pairs of digits, a point and the charge")
    symbols = sorted((ELEMENTS[atom - 1] for atom in atoms), key=lambda s: NONMETALS.index(s) if s in NONMETALS else -1)
    name = "".join(s + (str(symbols.count(s)) if symbols.count(s) > 1 else "") for s in dict.fromkeys(symbols))
    return _spectrum(USUAL_FORMULAE.get(name, name), charge=int(decimals[0]), molecule=len(atoms) > 1)


def _spectrum(name, charge, molecule):
    """``"Fe I"``, but ``"CN"``: the neutral molecule needs no number."""
    return name if molecule and charge == 0 else f"{name} {_roman(charge + 1)}"


def _atoms_of(name):
    """Symbols of the elements of a formula, each once; None if it is no formula."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", name)
    symbols = [symbol for symbol, _ in parts]
    if not parts or "".join(s + n for s, n in parts) != name or not set(symbols) <= set(ELEMENTS):
        return None
    return list(dict.fromkeys(symbols))


def _species_of_text(text):
    """Our spelling of ``"Fe 1"``, ``"Fe I"``, ``"Fe"``, ``"CN 1"``, ``"(46)Ti 1"`` or a MOOG code."""
    text = str(text).strip()
    if re.fullmatch(r"\d+\.\d*", text):
        return _species_of_code(text)
    match = re.fullmatch(r"(?:\(\d+\))?([A-Z]\w*)(?:\s+(\d{1,2}|[IVX]+))?", text)
    atoms = _atoms_of(match[1]) if match else None
    # Iodine is in no molecule of a star: it is "FeI", glued together.
    if atoms is None or (len(atoms) > 1 and "I" in atoms):
        raise ValueError(f"species must be written as 'Fe I', 'Fe 1', 'CN' or 26.0, but one is {text!r}")
    name, stage = match[1], match[2]
    molecule = name != atoms[0]
    if stage is None:
        return name
    if stage.isdigit():
        return _spectrum(name, int(stage) - 1, molecule)
    return name if molecule and stage == "I" else f"{name} {stage}"


def _line_list(wavelength, species, log_gf, ep, medium):
    """Table of one line list; ``species`` in our spelling, wavelengths in ``medium``, unknown numbers as NaN."""
    species = np.array(species, dtype=str)
    elements = {name: " ".join(_atoms_of(name.split()[0])) for name in np.unique(species)}
    columns = {
        "wavelength": _in_vacuum(u.Quantity(wavelength, dtype=float).to(u.AA, u.spectral()), medium),
        "species": species,
        "elements": np.array([elements[name] for name in species], dtype=str),
        "log_gf": np.asarray(log_gf, dtype=float),
        "ep": u.Quantity(ep, dtype=float).to(u.eV, u.spectral()),
    }
    table = QTable(columns, meta={"medium": "vacuum"})
    return table[np.argsort(table["wavelength"], kind="stable")]


def _in_vacuum(wavelength, medium):
    in_air = (wavelength > VACUUM_BELOW) & (medium == "air")
    return np.where(in_air, air_to_vacuum(wavelength), wavelength)


def _check_medium(medium):
    if medium is not None and medium not in MEDIA:
        raise ValueError(f"medium must be 'vacuum' or 'air', but is {medium!r}")


# -- files -------------------------------------------------------------------------
def read_line_list(path, format=None, *, medium=None):
    """Read a line list of MOOG or VALD.

    Parameters
    ----------
    path : path-like
        Text, or text compressed by gzip.
    format : {"moog", "vald"}, optional
        ``"moog"``: a title, then wavelength in Angstrom, species code (26.0 is
        Fe I, 26.1 Fe II, 607.01214 CN), excitation potential in eV and log gf,
        in columns of ten characters or between blanks; what follows is
        ignored. The number is log gf whatever its sign, as for MOOG's
        ``gfstyle 0``. Energies are taken for 1/cm if one exceeds 50, and
        negative wavelengths (parts of a blend) for positive ones, as by MOOG.
        ``"vald"``: what VALD-3 sends for "extract all", "element" or "stellar"
        in short or long format; the header tells units and medium.
        Default: ``"vald"`` if there is a header such as ``WL_air(A)``.
    medium : {"vacuum", "air"}, optional
        Of the wavelengths in the file. MOOG's lists do not tell, so it must be
        given for them; most are in air (those below 2000 Angstrom never are).

    Returns
    -------
    `~astropy.table.QTable`
        Sorted by wavelength, with the columns ``wavelength`` [Angstrom,
        vacuum], ``species``, ``elements``, ``log_gf`` and ``ep`` [eV]. Isotopes
        are not told apart. Whether VALD's log gf are scaled by isotopic
        fractions, the end of its file says; those of MOOG's lists are not.

    Raises
    ------
    FileFormatError
        If a line is not what the format says, with its number.
    ValueError
        If ``medium`` is missing, or is not what the file says.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from cyclestarnet.lines.line_lists import read_line_list
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "potassium.moog")
    ...     _ = path.write_text("two lines\\n 15163.067 19.0 2.670 0.630\\n 15168.376 19.0 2.670 0.480\\n")
    ...     lines = read_line_list(path, medium="air")
    >>> lines["wavelength"].info.format = ".3f"
    >>> print(lines)
    wavelength species elements log_gf  ep
     Angstrom                           eV
    ---------- ------- -------- ------ ----
     15167.211     K I        K   0.63 2.67
     15172.521     K I        K   0.48 2.67
    """
    path = Path(path)
    if format not in (None, "moog", "vald"):
        raise ValueError(f"format must be 'moog' or 'vald', but is {format!r}")
    _check_medium(medium)
    lines = _text_of(path).splitlines()
    header = next((n for n, line in enumerate(lines) if VALD_WAVELENGTH.search(line)), None)
    if format is None:
        format = "moog" if header is None else "vald"
    if format == "vald":
        return _read_vald(path, lines, header, medium)
    if medium is None:
        raise ValueError(
            f"{path} does not tell whether its wavelengths are in air: give medium='air' (as most lists of MOOG are) "
            "or medium='vacuum'"
        )
    return _read_moog(path, lines, medium)


def _text_of(path):
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise FileFormatError(f"{path} is truncated or damaged ({error}); get the file again") from error
    return content.decode(errors="replace")


def _read_moog(path, lines, medium):
    wanted = "wavelength in Angstrom, species code, excitation potential and log gf"
    numbers, species, names = [], [], {}
    for n, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        # Columns of ten may touch, or stand apart by blanks only.
        for fields in (line.split()[:4], [line[i : i + 10] for i in range(0, 40, 10)]):
            try:
                values = [float(field) for field in fields]
            except ValueError:
                continue
            if len(values) == 4 and np.all(np.isfinite(values)) and values[0] != 0:
                break
        else:
            raise FileFormatError(f"{path}, line {n}: expected {wanted}, but got {line.rstrip()!r:.80}")
        code = fields[1].strip()
        if code not in names:
            try:
                names[code] = _species_of_code(code)
            except ValueError as error:
                raise FileFormatError(f"{path}, line {n}: {error}") from error
        numbers.append(values)
        species.append(names[code])
    if not numbers:
        raise FileFormatError(f"{path} holds no lines; expected a title, then {wanted}, one line each")
    wavelength, _, ep, log_gf = np.array(numbers).T
    unit = 1 / u.cm if np.any(ep > 50) else u.eV
    return _line_list(np.abs(wavelength) * u.AA, species, log_gf, ep * unit, medium)


VALD_WAVELENGTH = re.compile(r"WL_(air|vac)\(([^)]*)\)")
VALD_COLUMNS = {
    "wavelength": VALD_WAVELENGTH,
    "ep": re.compile(r"(?:Excit|E_low)\(([^)]*)\)"),
    "vmic": re.compile(r"Vmic"),
    "log_gf": re.compile(r"log\s*\(?gf"),
}
VALD_UNITS = {"A": u.AA, "nm": u.nm, "cm^-1": 1 / u.cm, "eV": u.eV}
# 'Fe 1', 15194.4920, ... ; notes, references and the model atmosphere follow after the last one.
VALD_RECORD = re.compile(r"\s*'([^':]+\s\d+)\s*'\s*,(.*)")
VALD_FOOTER = re.compile(r"\s*(\*|References|'[^']*'\s*,\s*$)")


def _read_vald(path, lines, header, medium):
    if header is None:
        raise FileFormatError(f"{path} has no header of VALD with WL_air(...) or WL_vac(...); is it complete?")
    found = {name: pattern.search(lines[header]) for name, pattern in VALD_COLUMNS.items()}
    if found["ep"] is None or found["log_gf"] is None:
        raise FileFormatError(
            f"{path}, line {header + 1}: expected Excit(...) or E_low(...), and log gf, but got {lines[header]!r:.120}"
        )
    wavelength_unit, energy_unit = found["wavelength"][2], found["ep"][1]
    own_medium = MEDIUM_WORDS[found["wavelength"][1]]
    # Wavenumbers are in vacuum; what they would be in air, VALD does not say.
    usual = ("A", "nm") if own_medium == "air" else ("A", "nm", "cm^-1")
    if wavelength_unit not in usual or energy_unit not in ("eV", "cm^-1"):
        raise FileFormatError(
            f"{path}, line {header + 1}: expected wavelengths in A, nm or (in vacuum) cm^-1, and energies in eV or "
            f"cm^-1, but got {found['wavelength'][0]} and {found['ep'][0]}"
        )
    if medium not in (None, own_medium):
        raise ValueError(f"medium is {medium!r}, but the header of {path} says {found['wavelength'][0]}; leave it out")
    order = sorted((name for name in found if found[name]), key=lambda name: found[name].start())
    wanted = "a species in quotes, " + ", ".join(found[name][0] for name in order)
    step = 4 if "E_low" in lines[header] else 1  # long format: two levels and references follow
    records, n = [], header + 1
    while n < len(lines):
        line, record = lines[n], VALD_RECORD.match(lines[n])
        if record is None and VALD_FOOTER.match(line):
            break
        if record is not None:
            try:
                values = [float(field) for field in record[2].split(",")[: len(order)]]
                values = dict(zip(order, values, strict=True)) | {"species": _species_of_text(record[1])}
            except ValueError as error:
                raise FileFormatError(
                    f"{path}, line {n + 1}: expected {wanted}, but got {line!r:.80} ({error})"
                ) from error
            if n + step > len(lines) or any(map(VALD_RECORD.match, lines[n + 1 : n + step])):
                raise FileFormatError(f"{path}, line {n + 1}: expected {step} lines per record, as its header says")
            records.append(values)
            n += step
        elif not line.strip():
            n += 1
        else:
            raise FileFormatError(f"{path}, line {n + 1}: expected {wanted}, but got {line!r:.80}")
    _check_count(path, lines[:header], len(records))
    if not records:
        raise FileFormatError(f"{path} holds no lines; expected {wanted}, after line {header + 1}")
    column = {name: [record[name] for record in records] for name in ("wavelength", "species", "ep", "log_gf")}
    return _line_list(
        column["wavelength"] * VALD_UNITS[wavelength_unit],
        column["species"],
        column["log_gf"],
        column["ep"] * VALD_UNITS[energy_unit],
        own_medium,
    )


def _check_count(path, head, n_records):
    """Compare with the number of lines that "extract stellar" announces."""
    for line in head:
        fields = line.split(",")
        if "lines selected" in line and len(fields) > 2 and fields[2].strip().isdigit():
            if int(fields[2]) != n_records:
                raise FileFormatError(
                    f"{path} announces {int(fields[2])} lines but holds {n_records}; it is truncated: get it again"
                )


# -- tables ------------------------------------------------------------------------
# Names of columns without units, media and punctuation, in order of preference.
SYNONYMS = {
    "wavelength": ("wavelength", "wave", "wl", "lambda", "ritz", "ritz wl", "ritz wavelength", "observed", "obs wl"),
    "species": ("species", "spectrum", "elm ion", "spec ion"),
    "log_gf": ("log gf", "loggf", "gflog"),
    "ep": ("ep", "excit", "excitation potential", "e low", "elow", "ei", "ei ek", "level energy", "chi"),
}
UNIT_WORDS = {"a": u.AA, "aa": u.AA, "ang": u.AA, "angstrom": u.AA, "nm": u.nm, "um": u.um, "ev": u.eV, "cm": 1 / u.cm}
MEDIUM_WORDS = {"air": "air", "vac": "vacuum", "vacuum": "vacuum"}


def as_line_list(table, *, medium=None, species=None):
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
        If there are no wavelengths or species, or their unit or medium is unknown.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from cyclestarnet.lines.line_lists import as_line_list
    >>> table = Table({"LAMBDA AIR ANG": [15163.067], "SPECTRUM": ["K I"]})
    >>> print(f"{as_line_list(table)['wavelength'][0]:.3f}")
    15167.211 Angstrom
    """
    _check_medium(medium)
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
            wavelength[holes] = _in_vacuum(own, _medium_of(table, column, medium))[holes]
    keep = np.isfinite(wavelength)
    if found["species"]:
        texts = np.array(table[found["species"][0]], dtype=str)[keep]
        spellings = {text: _species_of_text(text) for text in np.unique(texts)}
        names = [spellings[text] for text in texts]
    else:
        names = [_species_of_text(species)] * np.count_nonzero(keep)
    unknown = np.full(len(table), np.nan)
    log_gf = _numbers(table[found["log_gf"][0]]) if found["log_gf"] else unknown
    ep = unknown * u.eV
    if found["ep"]:
        ep = _with_unit(table, found["ep"][0], u.eV)
    return _line_list(wavelength[keep], names, log_gf[keep], ep[keep], "vacuum")


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


# -- matching ----------------------------------------------------------------------
# Probability of an element that a catalogue excludes, or does not know: its answer may be wrong.
LEAST_PROBABILITY = 0.01
# Lines grow with their strength between linearly (weak ones) and hardly (saturated ones).
GROWTH = 0.5
# σ of a sign test: of 740 catalogues, by chance one matches better in the wrong medium.
WRONG_MEDIUM = 3.0


def match_lines(table, line_list, *, tolerance=None, n_best=3, temperature=4500 * u.K):
    """Find what in a line list the missing lines of a catalogue may be.

    All lines of the list within the tolerance are candidates. Their score is
    the sum of

    * −½ (3 offset / tolerance)², a Gaussian whose 3 σ are the tolerance;
    * ln P: the catalogue's probabilities of the elements of the species, summed
      (C and N for CN), but at least 1 %;
    * ½ ln 10 (s − s_max) with the strength s = log gf − θ ep, θ = 5040 K / temperature, and s_max
      that of the strongest line of the same species in the whole list. So
      species are compared without abundances, and of two lines of one species
      the stronger wins; ½ because lines saturate. Lines of unknown strength
      get the median of the others.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        A row per missing line, with ``wavelength``, ``wavelength_err`` and
        ``width`` (FWHM), in vacuum, and ``probabilities`` of shape (n_lines,
        n_elements), of the elements named in ``table.meta["elements"]``.
    line_list : `~astropy.table.QTable`
        As of `read_line_list` or `as_line_list`.
    tolerance : `~astropy.units.Quantity`, optional
        Largest offset, for all rows or one each. Default: 3 ``wavelength_err``
        plus half the ``width``: what was found may be a blend, the centre of
        which lies elsewhere than that of its strongest part.
    n_best : int, optional
        So many candidates are named.
    temperature : `~astropy.units.Quantity`, optional
        Of excitation.

    Returns
    -------
    `~astropy.table.QTable`
        Copy of ``table`` with the columns ``species``, ``line_wavelength``
        [Angstrom, vacuum], ``line_offset`` (line − catalogue) [Angstrom],
        ``log_gf`` and ``ep`` [eV] of the best candidate, masked where there is
        none, and ``candidates``: species and wavelengths of the best, as text.

    Raises
    ------
    ValueError
        If columns are missing, or ``n_best`` is less than 1.

    Warns
    -----
    CycleStarNetWarning
        If significantly more rows match better with the list shifted by the
        difference of air and vacuum: then one of both is in the wrong medium.
        Fewer than 10 rows cannot tell.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.table import QTable, Table
    >>> from cyclestarnet.lines.line_lists import as_line_list, match_lines
    >>> found = QTable({"wavelength": [15167.20] * u.AA, "wavelength_err": [0.02] * u.AA, "width": [0.7] * u.AA})
    >>> found["probabilities"], found.meta["elements"] = np.array([[0.1, 0.9]]), ["Fe", "K"]
    >>> lines = Table({"wavelength": [15167.05, 15167.211] * u.AA, "species": ["Fe I", "K I"]})
    >>> print(match_lines(found, as_line_list(lines, medium="vacuum"))["species", "candidates"])
    species           candidates
    ------- -----------------------------
        K I K I 15167.211, Fe I 15167.050
    """
    _require(table, "table", ("wavelength", "wavelength_err", "width", "probabilities"))
    _require(line_list, "line_list", ("wavelength", "species", "elements", "log_gf", "ep"))
    if n_best < 1:
        raise ValueError(f"n_best must be 1 or more, but is {n_best}")
    if tolerance is None:
        tolerance = 3 * table["wavelength_err"] + table["width"] / 2
    # Of 0 would divide.
    tolerance = np.maximum(np.broadcast_to(u.Quantity(tolerance).to_value(u.AA), len(table)), 1e-6)
    wavelength = table["wavelength"].to_value(u.AA)
    line_list = line_list[np.argsort(line_list["wavelength"], kind="stable")]
    lines = line_list["wavelength"].to_value(u.AA)
    species, species_of = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    ln_probability = _ln_probability(table, line_list, species_of, len(species))
    strength = _relative_strength(line_list, species_of, len(species), temperature)

    def candidates(lines):
        """Rows and lines within the tolerance, and their scores."""
        first = np.searchsorted(lines, wavelength - tolerance)
        count = np.maximum(np.searchsorted(lines, wavelength + tolerance, side="right") - first, 0)
        row = np.repeat(np.arange(len(table)), count)
        line = np.arange(len(row)) + np.repeat(first - np.cumsum(count) + count, count)
        score = -0.5 * (3 * (lines[line] - wavelength[row]) / tolerance[row]) ** 2
        return row, line, score + ln_probability[row, species_of[line]] + GROWTH * np.log(10) * strength[line]

    def best_scores(lines):
        row, _, score = candidates(lines)
        best = np.full(len(table), -np.inf)
        np.maximum.at(best, row, score)
        return best

    shift = _in_vacuum(line_list["wavelength"], "air").to_value(u.AA) - lines
    _warn_of_medium(best_scores(lines), air=best_scores(lines + shift), twice=best_scores(lines - shift))
    row, line, score = candidates(lines)
    order = np.lexsort((-score, row))
    return _with_candidates(table, line_list, row[order], line[order], n_best)


def _require(table, name, columns):
    missing = [column for column in columns if column not in table.colnames]
    if missing:
        raise ValueError(
            f"{name} must have the columns {', '.join(columns)}, but lacks {', '.join(missing)}"
            + ("; pass it through as_line_list first" if name == "line_list" else "")
        )


def _ln_probability(table, line_list, species_of, n_species):
    """ln P of each species in each row, shape (n_rows, n_species)."""
    names = list(table.meta.get("elements", ()))
    probabilities = np.asarray(table["probabilities"], dtype=float)
    if probabilities.shape != (len(table), len(names)):
        raise ValueError(
            f"probabilities must have a column for each name in table.meta['elements'] ({len(names)}), but has shape "
            f"{probabilities.shape}"
        )
    elements = np.empty(n_species, dtype=object)
    elements[species_of] = np.asarray(line_list["elements"], dtype=str)
    member = np.array([[name in text.split() for name in names] for text in elements], dtype=float)
    return np.log(np.maximum(probabilities @ member.reshape(n_species, len(names)).T, LEAST_PROBABILITY))


def _relative_strength(line_list, species_of, n_species, temperature):
    """log gf - theta ep, relative to the strongest line of the species: 0 or less."""
    theta = 5040 / u.Quantity(temperature).to_value(u.K)
    strength = np.asarray(line_list["log_gf"], dtype=float) - theta * line_list["ep"].to_value(u.eV)
    strongest = np.full(n_species, -np.inf)
    np.fmax.at(strongest, species_of, strength)
    relative = strength - strongest[species_of]
    known = np.isfinite(relative)
    return np.where(known, relative, np.median(relative[known]) if np.any(known) else 0.0)


def _warn_of_medium(best, *, air, twice):
    """Warn if a shifted list matches more rows better than by chance."""
    for shifted, reading in (
        (air, "its wavelengths may be in air: read it with medium='air'"),
        (twice, "either was it in vacuum but read with medium='air', or the catalogue is in air"),
    ):
        better, worse = np.count_nonzero(shifted > best), np.count_nonzero(shifted < best)
        if better - worse > WRONG_MEDIUM * np.sqrt(better + worse):
            warnings.warn(
                f"{better} of {len(best)} rows match the line list better, and {worse} worse, when it is shifted by "
                f"the difference of air and vacuum; {reading}",
                CycleStarNetWarning,
                stacklevel=3,
            )


def _with_candidates(table, line_list, row, line, n_best):
    """Copy of the table with columns of the candidates, which come row by row and best first."""
    first = np.searchsorted(row, np.arange(len(table)))
    last = np.searchsorted(row, np.arange(len(table)), side="right")
    found = first < last
    best = line[first[found]]

    def filled(values, empty):
        values = np.asarray(values)
        column = np.full(len(table), empty, dtype=values.dtype)
        column[found] = values[best]
        return column

    wavelength = filled(line_list["wavelength"].to_value(u.AA), np.nan)
    log_gf, ep = filled(line_list["log_gf"], np.nan), filled(line_list["ep"].to_value(u.eV), np.nan)
    texts = [f"{s} {w:.3f}" for s, w in zip(line_list["species"], line_list["wavelength"].to_value(u.AA), strict=True)]
    names = [", ".join(texts[i] for i in line[a : min(b, a + n_best)]) for a, b in zip(first, last, strict=True)]
    matched = QTable(table, copy=True)
    matched["species"] = MaskedColumn(filled(np.asarray(line_list["species"], dtype=str), ""), mask=~found)
    matched["line_wavelength"] = Masked(wavelength * u.AA, mask=~found)
    matched["line_offset"] = matched["line_wavelength"] - table["wavelength"]
    matched["log_gf"] = MaskedColumn(log_gf, mask=np.isnan(log_gf))
    matched["ep"] = Masked(ep * u.eV, mask=np.isnan(ep))
    matched["candidates"] = np.array(names, dtype=str)
    return matched
