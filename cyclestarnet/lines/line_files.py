"""Readers of line lists in the formats of MOOG and VALD."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from os import PathLike
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError
from cyclestarnet.lines.line_lists import MEDIUM_WORDS, check_medium, make_line_list
from cyclestarnet.lines.species import species_of_code, species_of_text

__all__ = ["read_line_list"]

MOOG_WANTED = "wavelength in Angstrom, species code, excitation potential and log gf"
LARGEST_LIST = 2**31  # bytes of text: some 20 million lines
LARGEST_LOG_GF = 100  # no transition is stronger or weaker by so many orders of magnitude
LONGEST_WAVELENGTH = 1e9  # Angstrom; beyond are radio waves
HIGHEST_ENERGY = 1e5  # eV
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


def read_line_list(path: str | PathLike, format: str | None = None, *, medium: str | None = None) -> QTable:
    """Read a line list of MOOG or VALD.

    Parameters
    ----------
    path : path-like
        Text, or text compressed by gzip.
    format : {"moog", "vald"}, optional
        ``"moog"``: a title (may be absent), then wavelength in Angstrom, species code (26.0 is
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
        If a line is not what the format says, with its number, or no transition has such numbers.
    ValueError
        If ``medium`` is missing, or is not what the file says.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from cyclestarnet.lines import read_line_list
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
    check_medium(medium)
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
    if path.is_dir():
        raise FileFormatError(f"{path} is a directory, but a line list was expected")
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            with gzip.open(file) if compressed else file as plain:
                content = plain.read(LARGEST_LIST + 1)  # a few kB can be blown up to any size
        except (EOFError, OSError, zlib.error) as error:
            raise FileFormatError(f"{path} is truncated or damaged ({error}); get the file again") from error
    if len(content) > LARGEST_LIST:
        raise FileFormatError(f"{path} has more than {LARGEST_LIST} bytes of text; split it")
    return content.decode(errors="replace")


def _read_moog(path, lines, medium):
    numbers, species, names = [], [], {}
    first = 0 if lines and _moog_fields(lines[0]) is not None else 1  # without a title, the first line is one, too
    for n, line in enumerate(lines[first:], start=first + 1):
        if not line.strip():
            continue
        found = _moog_fields(line)
        if found is None:
            raise FileFormatError(f"{path}, line {n}: expected {MOOG_WANTED}, but got {line.rstrip()!r:.80}")
        fields, values = found
        code = fields[1].strip()
        if code not in names:
            try:
                names[code] = species_of_code(code)
            except ValueError as error:
                raise FileFormatError(f"{path}, line {n}: {error}") from error
        numbers.append(values)
        species.append(names[code])
    if not numbers:
        raise FileFormatError(f"{path} holds no lines; expected a title, then {MOOG_WANTED}, one line each")
    wavelength, _, ep, log_gf = np.array(numbers).T
    unit = 1 / u.cm if np.any(ep > 50) else u.eV
    return make_line_list(np.abs(wavelength) * u.AA, species, log_gf, ep * unit, medium)


def _moog_fields(line):
    """Fields and numbers of a line of a list, or None if it is none."""
    # Columns of ten may touch, or stand apart by blanks only.
    for fields in (line.split()[:4], [line[i : i + 10] for i in range(0, 40, 10)]):
        try:
            values = [float(field) for field in fields]
        except ValueError:
            continue
        if len(values) == 4 and np.all(np.isfinite(values)) and _possible(abs(values[0]), values[3], values[2]):
            return fields, values
    return None


def _possible(wavelength, log_gf, energy):
    """Whether numbers can be those of a line, in whatever unit a list has them."""
    return 0 < wavelength < LONGEST_WAVELENGTH and abs(log_gf) < LARGEST_LOG_GF and abs(energy) < HIGHEST_ENERGY * 8066


def _read_vald(path, lines, header, medium):
    if header is None:
        raise FileFormatError(f"{path} has no header of VALD with WL_air(...) or WL_vac(...); is it complete?")
    found = _vald_columns(path, lines, header)
    own_medium = MEDIUM_WORDS[found["wavelength"][1]]
    if medium not in (None, own_medium):
        raise ValueError(f"medium is {medium!r}, but the header of {path} says {found['wavelength'][0]}; leave it out")
    records = _vald_records(path, lines, header, found)
    _check_count(path, lines[:header], len(records))
    column = {name: [record[name] for record in records] for name in ("wavelength", "species", "ep", "log_gf")}
    return make_line_list(
        column["wavelength"] * VALD_UNITS[found["wavelength"][2]],
        column["species"],
        column["log_gf"],
        column["ep"] * VALD_UNITS[found["ep"][1]],
        own_medium,
    )


def _vald_columns(path, lines, header):
    """Where the header names which column, as matches by our names in the order of the file."""
    found = {name: pattern.search(lines[header]) for name, pattern in VALD_COLUMNS.items()}
    if found["ep"] is None or found["log_gf"] is None:
        raise FileFormatError(
            f"{path}, line {header + 1}: expected Excit(...) or E_low(...), and log gf, but got {lines[header]!r:.120}"
        )
    # Wavenumbers are in vacuum; what they would be in air, VALD does not say.
    usual = ("A", "nm") if found["wavelength"][1] == "air" else ("A", "nm", "cm^-1")
    if found["wavelength"][2] not in usual or found["ep"][1] not in ("eV", "cm^-1"):
        raise FileFormatError(
            f"{path}, line {header + 1}: expected wavelengths in A, nm or (in vacuum) cm^-1, and energies in eV or "
            f"cm^-1, but got {found['wavelength'][0]} and {found['ep'][0]}"
        )
    return dict(sorted(((name, at) for name, at in found.items() if at), key=lambda item: item[1].start()))


def _vald_records(path, lines, header, found):
    """Numbers and species of each line, by the names of the columns that were found."""
    wanted = "a species in quotes, " + ", ".join(match[0] for match in found.values())
    step = 4 if "E_low" in lines[header] else 1  # long format: two levels and references follow
    records, n = [], header + 1
    while n < len(lines):
        line, record = lines[n], VALD_RECORD.match(lines[n])
        if record is None and VALD_FOOTER.match(line):
            break
        if record is not None:
            try:
                values = [float(field) for field in record[2].split(",")[: len(found)]]
                values = dict(zip(found, values, strict=True)) | {"species": species_of_text(record[1])}
                if not _possible(values["wavelength"], values["log_gf"], values["ep"]):
                    raise ValueError("no line has such numbers")
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
    if records and n >= len(lines):
        warnings.warn(
            f"{path} ends after {len(records)} lines without the notes that VALD puts there; it may be truncated: "
            "compare it with what you were sent",
            CycleStarNetWarning,
            stacklevel=4,
        )
    if not records:
        raise FileFormatError(f"{path} holds no lines; expected {wanted}, after line {header + 1}")
    return records


def _check_count(path, head, n_records):
    """Compare with the number of lines that "extract stellar" announces."""
    for line in head:
        fields = line.split(",")
        if "lines selected" in line and len(fields) > 2 and re.fullmatch(r"[0-9]{1,18}", fields[2].strip()):
            if int(fields[2]) != n_records:
                raise FileFormatError(
                    f"{path} announces {int(fields[2])} lines but holds {n_records}; it is truncated: get it again"
                )
