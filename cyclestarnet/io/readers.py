"""The reader of a spectrum file, chosen by the file's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.io.apogee import read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.io.sdss_v import read_astrastar, read_mwmstar
from cyclestarnet.spectra import Spectrum

__all__ = ["read"]

# SDSS names its files; "asStar" and "asVisit" are those of the southern telescope.
_READERS = {
    "apstar": read_apstar,
    "asstar": read_apstar,
    "aspcapstar": read_aspcapstar,
    "apvisit": read_apvisit,
    "asvisit": read_apvisit,
    "mwmstar": read_mwmstar,
}


def read(path: str | os.PathLike[str], **options: Any) -> Spectrum:
    """Read a spectrum file whose kind its name tells.

    Parameters
    ----------
    path : path-like
        Named as SDSS does: ``apStar-…``, ``aspcapStar-…``, ``apVisit-…`` (or ``as…`` for the south),
        ``mwmStar-…``, or ``astraStar…`` with the name of a pipeline.
    **options
        Of the reader, such as ``mask_bits``: `read_apstar`, `read_aspcapstar`, `read_apvisit`,
        `read_mwmstar` and `read_astrastar` say which.

    Returns
    -------
    `~specutils.Spectrum`
        Vacuum wavelengths at rest, with uncertainty and mask.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the name tells nothing, or the file is not what its name says.

    Examples
    --------
    >>> from astropy.utils.data import get_pkg_data_filename
    >>> from cyclestarnet.io import read
    >>> path = get_pkg_data_filename("data/apVisit-r13-9518-57729-104.fits", package="cyclestarnet")
    >>> read(path).meta["object"]
    '2M00242666+5341178'
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {path}")
    kind = Path(path).name.split("-")[0].lower()
    reader = read_astrastar if kind.startswith("astrastar") else _READERS.get(kind)
    if reader is None:
        raise FileFormatError(
            f"{path}: the name does not tell the kind of file; expected apStar-…, asStar-…, aspcapStar-…, apVisit-…, "
            "asVisit-…, mwmStar-… or astraStarPIPELINE-…. If it is one of them, read it with read_apstar, "
            "read_aspcapstar, read_apvisit, read_mwmstar or read_astrastar"
        )
    return reader(path, **options)
