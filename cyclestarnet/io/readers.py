"""The reader of a spectrum file, chosen by the file's name."""

from __future__ import annotations

from pathlib import Path

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.io.apogee import read_apstar, read_apvisit, read_aspcapstar

__all__ = ["read"]

# SDSS names its files; "asStar" and "asVisit" are those of the southern telescope.
_READERS = {
    "apstar": read_apstar,
    "asstar": read_apstar,
    "aspcapstar": read_aspcapstar,
    "apvisit": read_apvisit,
    "asvisit": read_apvisit,
}


def read(path, **options):
    """Read a spectrum file whose kind its name tells.

    Parameters
    ----------
    path : path-like
        Named as SDSS does: ``apStar-…``, ``aspcapStar-…``, ``apVisit-…`` (or ``as…`` for the south).
    **options
        Of the reader.

    Returns
    -------
    `~specutils.Spectrum`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the name tells nothing, or the file is not what its name says.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {path}")
    kind = Path(path).name.split("-")[0].lower()
    if kind not in _READERS:
        raise FileFormatError(
            f"{path}: the name does not tell the kind of file; expected apStar-…, aspcapStar-… or apVisit-…. "
            "Read it with read_apstar, read_aspcapstar or read_apvisit"
        )
    return _READERS[kind](path, **options)
