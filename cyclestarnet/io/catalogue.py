"""Catalogues of a survey: what they know of the stars whose spectra are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.reading.fits import open_fits
from cyclestarnet.reading.tables import read_table

__all__ = ["BAD_FLAGS", "Catalogue", "CatalogueRow"]

# Names of columns, in lower case, in the order in which they are looked for: of APOGEE until DR17, and of SDSS-V.
_NAMES = {
    "file": ("file",),
    "apogee_id": ("apogee_id", "obj", "sdss4_apogee_id"),  # the last one is empty for stars that are new in SDSS-V
    "sdss_id": ("sdss_id",),
    "telescope": ("telescope",),
    "snr": ("snr",),
    "chi2": ("aspcap_chi2", "param_chi2", "rchi2", "chi2"),
    "vsini": ("vsini", "v_sini"),
    "vmacro": ("vmacro", "v_macro"),
}
# BAD_PIXELS, VERY_BRIGHT_NEIGHBOR, LOW_SNR, BAD_RV_COMBINATION and RV_FAIL; STAR_BAD and NO_ASPCAP_RESULT; of
# spectrum_flags those that have the same number in all versions.
#: Bits that tell of a bad star, spectrum or fit: name of the column -> numbers; 0 of one that is true or false.
BAD_FLAGS = {"starflag": (0, 3, 4, 18, 22), "aspcapflag": (23, 31), "spectrum_flags": (0, 3), "flag_bad": (0,)}
_KEYS = ("file", "apogee_id", "sdss_id")
_ABSENT = -9000.0  # catalogues of APOGEE write -9999 or less where they know nothing


@dataclass(frozen=True)
class CatalogueRow:
    """What a catalogue knows of a star; NaN where it knows nothing.

    Parameters
    ----------
    snr, chi2 : float
        Signal-to-noise ratio per pixel, and reduced χ² of the catalogue's fit.
    broadening : float
        Total broadening in km/s: VSINI and VMACRO, added in squares; one of
        them if the other is not known.
    flags : tuple of str
        Of those in `BAD_FLAGS` that are set, as ``"STARFLAG 3"``.

    Examples
    --------
    >>> from cyclestarnet.io.catalogue import CatalogueRow
    >>> CatalogueRow(snr=120.0, chi2=1.5, broadening=4.0, flags=()).flags
    ()
    """

    snr: float
    chi2: float
    broadening: float
    flags: tuple[str, ...]


class Catalogue:
    """A table with a row per star or spectrum, such as allStar of APOGEE or astraAllStarASPCAP of SDSS-V.

    Memory holds a few columns only.

    Parameters
    ----------
    path : path-like
        FITS, of which the first table is taken that has rows and identifies stars, or
        whatever `astropy.table.Table.read` reads. Columns have the names of APOGEE
        (APOGEE_ID, TELESCOPE, ASPCAP_CHI2, ...) or of SDSS-V (sdss_id, rchi2, ...), in
        upper or lower case.

    Attributes
    ----------
    path : `~pathlib.Path`
        The file.
    columns : tuple of str
        Which of ``file``, ``apogee_id``, ``sdss_id``, ``telescope``, ``snr``, ``chi2``,
        ``vsini``, ``vmacro`` and the flags it has.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it cannot be read, or identifies no stars.

    Examples
    --------
    >>> import tempfile
    >>> from astropy.table import Table
    >>> from cyclestarnet.io.catalogue import Catalogue
    >>> path = tempfile.mkdtemp() + "/allStar.fits"
    >>> Table({"APOGEE_ID": ["2M1", "2M2"], "VSINI": [3.0, 9.0], "VMACRO": [4.0, -9999.0]}).write(path)
    >>> catalogue = Catalogue(path)
    >>> catalogue.find(apogee_id="2M1").broadening
    5.0
    >>> catalogue.find(apogee_id="2M3") is None
    True
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no catalogue {self.path}")
        try:
            columns = _fits_columns(self.path) if ".fit" in self.path.name.lower() else _table_columns(self.path)
        except Exception as error:  # each reader raises a class of its own
            raise FileFormatError(f"{self.path} cannot be read as a catalogue: {error}") from error
        if not set(_KEYS) & set(columns):
            wanted = ", ".join(name.upper() for key in _KEYS for name in _NAMES[key])
            raise FileFormatError(f"{self.path} has no table that identifies stars, by one of the columns {wanted}")
        self.columns = tuple(columns)
        self._columns = columns
        self._sorted = {}
        for key in _KEYS:
            if key in columns:
                order = np.argsort(columns[key], kind="stable")
                self._sorted[key] = columns[key][order], order

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def find(
        self,
        *,
        file: str | None = None,
        apogee_id: str | None = None,
        sdss_id: int | None = None,
        telescope: str | None = None,
    ) -> CatalogueRow | None:
        """Look a star up.

        Parameters
        ----------
        file : str, optional
            Name of its file, without the folder: the surest key, if the catalogue has it.
        apogee_id : str, optional
            Its name in 2MASS style, ...
        sdss_id : int, optional
            ... or its SDSS number, if it is not found by the others.
        telescope : str, optional
            Chooses among several rows. Otherwise it is the one of the highest signal-to-noise ratio.

        Returns
        -------
        `CatalogueRow` or None
            None: the catalogue does not have it.

        Examples
        --------
        ::

            catalogue.find(apogee_id="2M00242666+5341178", telescope="apo25m").chi2
        """
        for key, value in (("file", file), ("apogee_id", apogee_id), ("sdss_id", sdss_id)):
            rows = self._rows(key, value)
            if len(rows):
                return self._row(self._best(rows, telescope))
        return None

    def _rows(self, key, value):
        if not value or key not in self._sorted:
            return ()
        values, order = self._sorted[key]
        wanted = np.int64(value) if key == "sdss_id" else np.bytes_(str(value).strip().encode("utf-8", "replace"))
        return order[np.searchsorted(values, wanted, "left") : np.searchsorted(values, wanted, "right")]

    def _best(self, rows, telescope):
        if telescope and "telescope" in self._columns:
            same = [row for row in rows if self._columns["telescope"][row].decode() == telescope.strip()]
            rows = same or rows
        if "snr" in self._columns:
            rows = sorted(rows, key=lambda row: -np.nan_to_num(self._columns["snr"][row]))
        return int(rows[0])

    def _row(self, row):
        numbers = {key: float(self._columns[key][row]) if key in self._columns else np.nan for key in _NUMBERS}
        known = [v for v in (numbers["vsini"], numbers["vmacro"]) if v >= 0]
        flags = [
            name.upper() if bits == (0,) else f"{name.upper()} {bit}"
            for name, bits in BAD_FLAGS.items()
            if name in self._columns
            for bit in bits
            if self._columns[name][row] >> bit & 1
        ]
        broadening = float(np.hypot.reduce(known)) if known else np.nan
        return CatalogueRow(numbers["snr"], numbers["chi2"], broadening, tuple(flags))


_NUMBERS = ("snr", "chi2", "vsini", "vmacro")


def _fits_columns(path):
    with open_fits(path, memmap=True) as hdus:
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU) and hdu.header["NAXIS2"] > 0:
                columns = _chosen(hdu.columns.names, lambda name, hdu=hdu: hdu.data[name])
                if set(_KEYS) & set(columns):
                    return columns
    return {}


def _table_columns(path):
    table = read_table(path, cls=Table)
    return _chosen(table.colnames, lambda name: np.ma.filled(table[name], _fill(table[name])))


def _fill(column: Any):
    return "" if column.dtype.kind in "OSU" else np.nan if column.dtype.kind == "f" else 0


def _chosen(names: Iterable[str], column):
    """Plain copies of the columns that are known, by our names."""
    by_name = {name.lower(): name for name in reversed(list(names))}
    found = {}
    for key, candidates in (_NAMES | {name: (name,) for name in BAD_FLAGS}).items():
        name = next((by_name[candidate] for candidate in candidates if candidate in by_name), None)
        if name is None:
            continue
        values = np.asarray(column(name))
        if key in ("file", "apogee_id", "telescope"):
            found[key] = np.char.strip(
                values if values.dtype.kind == "S" else np.char.encode(values.astype(str), "utf-8")
            )
        elif key in _NUMBERS:
            values = values.astype(float)
            found[key] = np.where(values > _ABSENT, values, np.nan)
        else:
            found[key] = values.astype(np.int64)
    return found
