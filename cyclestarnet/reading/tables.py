"""Tables in ECSV, FITS, Parquet and CSV: their metadata are checked before astropy builds what these name.

Astropy keeps units and the like as YAML, of which some tags build arrays of
any type of any bytes, which ends the process if these are taken for objects.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import yaml
from astropy.io import fits
from astropy.table import QTable, Table

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.reading.fits import damage_in, open_fits

__all__ = ["check_metadata", "read_table"]

LARGEST_METADATA = 2**20  # characters
DEEPEST = 20
LONGEST_UNIT = 120
MOST_COLUMNS = 10_000
_FORMATS = {".ecsv": "ascii.ecsv", ".fits": "fits", ".parquet": "parquet", ".csv": "ascii.csv"}
_TAGS = {
    "!", "!astropy.units.Unit", "!astropy.table.SerializedColumn",
    *(f"tag:yaml.org,2002:{kind}" for kind in ("omap", "map", "seq", "str", "int", "float", "bool", "null")),
}  # fmt: skip
# A long whole number is no unit, and as an exponent it is computed digit by digit.
_NO_UNIT = re.compile(r"\d{6,}")
_SERIALIZED = "--BEGIN-ASTROPY-SERIALIZED-COLUMNS--"
_FITS_COLUMN = re.compile(r"(\d{0,5})([LBIJKAED]|A\d{1,5})\s*")  # the other kinds are no plain values, or lie elsewhere


def read_table(path: str | os.PathLike[str], *, cls: type[Table] = QTable, **options: Any) -> Table:
    """Read a table of others.

    Parameters
    ----------
    path : path-like
        ``.ecsv``, ``.fits``, ``.parquet`` or ``.csv``. Files of other names are text, in a form that astropy finds out.
    cls : type, optional
        `~astropy.table.QTable` (default) or `~astropy.table.Table`.
    **options
        Of astropy's reader.

    Returns
    -------
    `~astropy.table.QTable`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, or no such table.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.reading.tables import read_table
    >>> path = Path(tempfile.mkdtemp()) / "evil.ecsv"
    >>> array = "!numpy.ndarray {buffer: !!binary AAAAAAAAAAA=, dtype: object, shape: [1]}"
    >>> header = "%ECSV 1.0\\n---\\ndatatype: [{name: a, datatype: int64}]\\nmeta: {b: " + array + "}\\n"
    >>> _ = path.write_text("".join(f"# {line}\\n" for line in header.splitlines()) + "a\\n1\\n")
    >>> read_table(path)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.FileFormatError: ...evil.ecsv is damaged or no table: its metadata have ...
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix in _FORMATS]  # a FITS file may be compressed
    kind = _FORMATS[suffixes[-1]] if suffixes else "ascii"
    try:
        if kind == "fits":
            return _read_fits(path, cls, options)
        if kind == "parquet":
            _check_parquet(path)
        else:
            _check_comments(path)
        return _checked(cls.read(path, format=kind, **options))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # astropy raises a different class for each kind of damage
        said = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(f"{path} is damaged or no table: {said:.500}") from error


def check_metadata(text: str) -> None:
    """Raise if the metadata of a table name anything but plain values, units and columns.

    Parameters
    ----------
    text : str
        YAML, as astropy writes it.

    Raises
    ------
    ValueError
        If a tag is unknown, a unit impossible, or values are nested too deep, or named again and again.
    yaml.YAMLError
        If it is no YAML.

    Examples
    --------
    >>> from cyclestarnet.reading.tables import check_metadata
    >>> check_metadata("{name: teff, unit: K}")
    >>> check_metadata("!!python/tuple [1, 2]")
    Traceback (most recent call last):
        ...
    ValueError: its metadata have the tag 'tag:yaml.org,2002:python/tuple', which builds what a table does not need
    """
    if len(text) > LARGEST_METADATA:
        raise ValueError(f"its metadata have {len(text)} characters; {LARGEST_METADATA} are the most that are read")
    sizes: dict[str, int] = {}  # values within each that has a name
    open_: list[tuple[str | None, int]] = [(None, 0)]
    before = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _TAGS:
            raise ValueError(f"its metadata have the tag {tag!r:.80}, which builds what a table does not need")
        size, anchor = 1, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 0))
            size = 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise ValueError("its metadata have a value within itself")
            size, anchor = sizes[anchor], None
        if anchor is not None and not isinstance(event, yaml.CollectionStartEvent):
            sizes[anchor] = size
        open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if len(open_) > DEEPEST or open_[-1][1] > LARGEST_METADATA:
            raise ValueError(f"its metadata are nested more than {DEEPEST} times, or name values too often")
        value = event.value if isinstance(event, yaml.ScalarEvent) else None
        if before == "unit" and value is not None:
            _check_unit(value)
        before = value


def _check_unit(text: str) -> None:
    if len(text) > LONGEST_UNIT or _NO_UNIT.search(text):
        raise ValueError(f"{text!r:.80} is no unit")


def _check_comments(path: Path) -> None:
    """Check what an ECSV file says before its columns."""
    lines, size = [], 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            size += len(line)
            if size > LARGEST_METADATA:
                raise ValueError(f"it begins with more than {LARGEST_METADATA} characters of comments")
            lines.append(line[1:].removeprefix(" ").rstrip("\n"))
    if lines and lines[0].startswith("%ECSV"):
        check_metadata("\n".join(lines[1:]))


def _check_parquet(path: Path) -> None:
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(path)
    if len(schema.names) > MOST_COLUMNS:
        raise ValueError(f"it has more than {MOST_COLUMNS} columns")
    if nested := [field.name for field in schema if field.type.num_fields > 0 and not hasattr(field.type, "list_size")]:
        raise ValueError(f"the columns {nested[:5]} are no plain values")
    check_metadata((schema.metadata or {}).get(b"table_meta_yaml", b"").decode())
    parquet.read_table(path, page_checksum_verification=True)  # astropy does not ask for it


def _read_fits(path: Path, cls: type[Table], options: dict[str, Any]) -> Table:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_fits(path, checksum=True) as hdus:
            len(hdus)  # reads to the end of the file, which is how a cut is noticed
            for hdu in hdus:
                _check_header(hdu.header)
            table = _checked(cls.read(hdus, format="fits", **options))
    if damage := damage_in(caught):
        raise ValueError(damage)
    return table


def _check_header(header: fits.Header) -> None:
    """Check the columns of a table, and what astropy notes of them as comments."""
    for number in range(1, header.get("TFIELDS", 0) + 1):
        form = header.get(f"TFORM{number}")
        if not isinstance(form, str) or not _FITS_COLUMN.fullmatch(form):
            raise ValueError(f"TFORM{number} = {form!r:.40} is no plain column")
        _check_unit(str(header.get(f"TUNIT{number}", "")))
    comments = [str(line) for line in header.get("COMMENT", ())]
    if _SERIALIZED in comments:
        lines = comments[comments.index(_SERIALIZED) + 1 :]
        # A line of 71 characters goes on in the next one.
        check_metadata("".join(line[:70] if len(line) == 71 else f"{line}\n" for line in lines if line[:2] != "--"))


def _checked(table: Table) -> Table:
    for name, column in table.items():
        if column.dtype.kind not in "fiubUS":
            raise ValueError(f"the column {name!r:.80} must hold numbers or texts, but is of {column.dtype}")
    return table
