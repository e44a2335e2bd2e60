"""The table of a finished survey: formats that keep units and every bit."""

from __future__ import annotations

import io
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.io.ascii import convert_numpy
from astropy.table import QTable, Table
from astropy.utils.exceptions import AstropyUserWarning

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.files import write_atomically
from cyclestarnet.labels import difference_unit, unit_of_label
from cyclestarnet.reading.tables import read_table

__all__ = ["check_suffix", "read_results", "write_results"]

_FORMATS = {".ecsv": "ascii.ecsv", ".fits": "fits", ".parquet": "parquet", ".csv": "ascii.csv"}
_TEXTS, _TRUTHS = ("object", "flag_names", "prior_dominated", "upper_limits", "message"), ("success", "converged")


def write_results(table: QTable, path: str | os.PathLike) -> None:
    """Write a table of fits, units and all, in one step.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        A row per star, as `~cyclestarnet.CalibratedModel.fit_many` returns it.
    path : path-like
        ``.ecsv``, ``.fits``, ``.parquet`` or ``.csv``. FITS knows ASCII only: other
        letters are written as ``\\u03c3``. CSV has neither units nor ``meta``, and texts in one line.
        An existing file is replaced.

    Raises
    ------
    ValueError
        If the suffix is another one.
    ImportError
        If parquet is wanted and pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> from cyclestarnet.pipeline.journal import read_results, write_results
    >>> path = tempfile.mkdtemp() + "/labels.fits"
    >>> write_results(QTable({"object": ["", "b"], "logg": [2.5, 1.0] * u.dex(u.cm / u.s**2)}), path)
    >>> read_results(path)["logg"].unit
    Unit("dex(cm / s2)")
    """
    file_format = check_suffix(path)
    if file_format == "fits":
        table = table.copy()
        table.meta = {key: _ascii(value) if isinstance(value, str) else value for key, value in table.meta.items()}
        for name, column in table.items():
            if column.dtype.kind == "U":
                table[name] = np.char.encode(column, "ascii", "backslashreplace").astype(str)
    if file_format == "ascii.csv":
        table = Table({name: _plain(column) for name, column in table.items()})
    with warnings.catch_warnings():
        # Of dex: it does come back, in astropy.
        warnings.filterwarnings("ignore", "The unit .* could not be saved in native FITS format", AstropyUserWarning)
        write_atomically(path, lambda temporary: _write_table(table, temporary, file_format))


def _write_table(table: QTable, path: Path, file_format: str) -> None:
    """Write a table with checksums, where its format has any; astropy's own writers have none."""
    table.write(path, format=file_format, overwrite=True)
    if file_format == "fits":
        with fits.open(path, memmap=False) as hdus:
            for hdu in hdus:
                hdu.add_checksum(when="of this HDU")  # not the time: the same table makes the same file
            content = io.BytesIO()
            hdus.writeto(content)
        path.write_bytes(content.getbuffer())
    elif file_format == "parquet":
        import pyarrow.parquet as parquet

        parquet.write_table(parquet.read_table(path), path, write_page_checksum=True)


def _plain(column):
    """A column without its unit, and texts in one line."""
    if column.dtype.kind == "U":
        return [" ".join(text.splitlines()) for text in column]
    return getattr(column, "value", column)


def _ascii(text):
    return text.encode("ascii", "backslashreplace").decode()


def read_results(path: str | os.PathLike) -> QTable:
    """Read a table of fits as it was written.

    `~astropy.table.QTable.read` reads the same files, but masks empty texts of
    ECSV and FITS, and NaN of FITS.

    Parameters
    ----------
    path : path-like
        ``.ecsv``, ``.fits``, ``.parquet`` or ``.csv``.

    Returns
    -------
    `~astropy.table.QTable`
        A row per star, with units, without masks. Units of a CSV are those of labels of these names.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, or no table of numbers and texts. FITS and Parquet have
        checksums, which are verified; a digit that is changed in ECSV goes unseen.
    ValueError
        If the suffix is another one.

    Examples
    --------
    ::

        read_results("labels.ecsv")["teff"]
    """
    file_format = check_suffix(path)
    table = read_table(path, **_reading(file_format))
    _check_results(table, path)
    if file_format == "ascii.csv":
        for name in (name for name in table.colnames if f"{name}_err" in table.colnames):
            table[name] = np.asarray(table[name], dtype=float) * unit_of_label(name)
            table[f"{name}_err"] = np.asarray(table[f"{name}_err"], dtype=float) * difference_unit(name)
            for end in (f"{name}_low", f"{name}_high"):
                if end in table.colnames:
                    table[end] = np.asarray(table[end], dtype=float) * unit_of_label(name)
    table.convert_bytestring_to_unicode()
    meta = {key.lower() if file_format == "fits" else key: value for key, value in table.meta.items()}
    table.meta = {key: value for key, value in meta.items() if key not in ("checksum", "datasum")}  # the file's own
    for name, column in table.items():
        if column.dtype.kind == "U" and hasattr(column, "mask"):
            table[name] = np.asarray(column.filled(""))
    return table


def _reading(file_format):
    """Options of astropy's readers with which a table comes back as it was."""
    if file_format == "ascii.csv":
        kinds = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_TRUTHS, bool)
        return {"fill_values": [], "converters": {name: [convert_numpy(kind)] for name, kind in kinds.items()}}
    return {"mask_invalid": False} if file_format == "fits" else {}


def _check_results(table: QTable, path: str | os.PathLike) -> None:
    """Raise if a label has a unit of something else; those in dex may be anything of that name."""
    for name, column in table.items():
        label = name.removesuffix("_err")
        wanted, unit = unit_of_label(label), getattr(column, "unit", None)
        if wanted != u.dex and unit is not None:
            wanted = difference_unit(label) if name != label else wanted
            if not unit.is_equivalent(wanted):
                raise FileFormatError(f"the column {name!r} of {path} must have the unit '{wanted}', but has '{unit}'")


def check_suffix(path: str | os.PathLike) -> str:
    """Tell the format of a table by the name of its file.

    Parameters
    ----------
    path : path-like
        Of a table that is to be written or read.

    Returns
    -------
    str
        As `~astropy.table.Table.write` calls it.

    Raises
    ------
    ValueError
        If the suffix is none of ``.ecsv``, ``.fits``, ``.parquet`` and ``.csv``.
    ImportError
        If it is ``.parquet`` and pyarrow is not installed.

    Examples
    --------
    >>> from cyclestarnet.pipeline.journal import check_suffix
    >>> check_suffix("labels.ecsv")
    'ascii.ecsv'
    """
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        raise ValueError(f"the suffix of {os.fspath(path)!r} must be one of {', '.join(_FORMATS)}")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError('parquet needs pyarrow: pip install "cyclestarnet[survey]", or write .fits or .ecsv')
    return _FORMATS[suffix]
