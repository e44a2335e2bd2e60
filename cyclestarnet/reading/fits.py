"""FITS files: their headers are checked as plain cards, before astropy makes arrays of what they say."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from astropy.io import fits

__all__ = ["damage_in", "open_fits"]

BLOCK, CARD = 2880, 80
LARGEST_HEADER = 1000  # blocks; 36 000 cards
MOST_AXES = 8
MOST_COLUMNS = 999  # of the standard
MOST_HDUS = 1000
LARGEST_PLAIN = 2**31  # bytes that a compressed file may come to
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


@contextmanager
def open_fits(path: str | os.PathLike[str] | BinaryIO, **options: Any) -> Iterator[fits.HDUList]:
    """Open a FITS file whose headers ask for no more than the file has.

    Parameters
    ----------
    path : path-like or file-like
        The file, perhaps compressed by gzip, bzip2 or xz, or in a zip archive.
    **options
        Of `astropy.io.fits.open`. Images that are compressed within the file stay tables.

    Yields
    ------
    `~astropy.io.fits.HDUList`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    Exception
        Of many classes, if the file is damaged.

    Examples
    --------
    >>> import io
    >>> from astropy.io import fits
    >>> from cyclestarnet.reading.fits import open_fits
    >>> content = io.BytesIO()
    >>> fits.HDUList([fits.PrimaryHDU()]).writeto(content)
    >>> huge = content.getvalue().replace(b"NAXIS   =                    0", b"NAXIS   =           2000000000")
    >>> with open_fits(io.BytesIO(huge)) as hdus:
    ...     pass
    Traceback (most recent call last):
        ...
    ValueError: NAXIS = 2000000000 in the header of HDU 0 must be 0 to 8
    """
    source: Any = path
    if isinstance(path, str | os.PathLike):
        with Path(path).open("rb") as file:
            plain = _plain(file)
            _check_headers(file if plain is None else plain)
        source = path if plain is None else plain
    else:
        begin = path.tell()
        plain = _plain(path)
        _check_headers(path if plain is None else plain)
        path.seek(begin)
        source = path if plain is None else plain
    if plain is not None:
        plain.seek(0)
    with fits.open(source, **({"memmap": False, "disable_image_compression": True} | options)) as hdus:
        yield hdus


def damage_in(caught: list[warnings.WarningMessage]) -> str:
    """Look for damage among warnings of astropy, which goes on after it with what it has seen until then.

    Parameters
    ----------
    caught : list of `warnings.WarningMessage`
        Of `warnings.catch_warnings`. Those that tell of something else are warned of again.

    Returns
    -------
    str
        What the first one says; nothing if there is none.

    Examples
    --------
    >>> import warnings
    >>> from cyclestarnet.reading.fits import damage_in
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warnings.warn("File may have been truncated")
    >>> damage_in(caught)
    'File may have been truncated'
    """
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if "truncated" in text or "Error validating header" in text or "verification failed" in text:
            return text
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return ""


def _plain(file: BinaryIO) -> io.BytesIO | None:
    """Content of a file that is compressed; None if it is not."""
    begin = file.tell()
    magic = file.read(2)
    file.seek(begin)
    if magic == b"PK":
        with zipfile.ZipFile(file) as archive:
            if len(archive.namelist()) != 1:
                raise ValueError(f"the archive holds {len(archive.namelist())} files, but must hold one")
            with archive.open(archive.namelist()[0]) as member:
                content = member.read(LARGEST_PLAIN + 1)
    elif magic in _OPENERS:
        with _OPENERS[magic](file, "rb") as member:
            content = member.read(LARGEST_PLAIN + 1)
    else:
        return None
    if len(content) > LARGEST_PLAIN:
        raise ValueError(f"its content is larger than {LARGEST_PLAIN} bytes")
    return io.BytesIO(content)


def _check_headers(file: BinaryIO) -> None:
    """Go from header to header, as far as there are any."""
    begin = file.tell()
    size = file.seek(0, os.SEEK_END)
    place = begin
    for number in range(MOST_HDUS + 1):
        file.seek(place)
        cards = _cards(file, number)
        if cards is None:
            return
        place = file.tell() + _data_size(cards, number, size)
        if place > size + BLOCK:  # astropy says of one block less, that the file may have been truncated
            raise ValueError(f"the file is truncated: HDU {number} shall end at byte {place}, but the file at {size}")
    raise ValueError(f"it has more than {MOST_HDUS} HDUs")


def _cards(file: BinaryIO, number: int) -> dict[str, str] | None:
    """Values of the cards that tell sizes, as text; None at the end of the file."""
    cards: dict[str, str] = {}
    for _ in range(LARGEST_HEADER):
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            return None  # nothing, or what is no header: astropy says so
        for start in range(0, BLOCK, CARD):
            card = block[start : start + CARD].decode("latin-1")
            if card[:8].rstrip() == "END" and not card[8:].strip():
                return cards
            if card[8:10] == "= ":
                cards.setdefault(card[:8].rstrip(), card[10:].split("/")[0].strip())
    raise ValueError(f"the header of HDU {number} is longer than {LARGEST_HEADER * BLOCK} bytes")


def _data_size(cards: dict[str, str], number: int, file_size: int) -> int:
    """Bytes that the data of a HDU take, in whole blocks."""

    def whole(name: str, default: int, least: int, most: int) -> int:
        text = cards.get(name, str(default))
        try:
            value = int(text) if len(text) < 25 else most + 1
        except ValueError:
            value = most + 1
        if not least <= value <= most:
            raise ValueError(f"{name} = {text:.40} in the header of HDU {number} must be {least} to {most}")
        return value

    n_axes = whole("NAXIS", 0, 0, MOST_AXES)
    whole("TFIELDS", 0, 0, MOST_COLUMNS)
    whole("ZNAXIS", 0, 0, MOST_AXES)
    lengths = [whole(f"NAXIS{axis + 1}", 0, 0, 2**50) for axis in range(n_axes)]
    bits = abs(whole("BITPIX", 8, -64, 64))
    # Of random groups, the first axis is none. Nothing that is read here has any.
    shape = lengths[1:] if lengths and lengths[0] == 0 and cards.get("GROUPS") == "T" else lengths
    rest, groups = whole("PCOUNT", 0, 0, 2**50), whole("GCOUNT", 1, 0, 2**31)
    n_bytes = bits // 8 * groups * (rest + math.prod(shape)) if n_axes else 0
    if n_bytes > file_size:
        raise ValueError(
            f"the file is truncated: the data of HDU {number} shall have {n_bytes} bytes, but the file has {file_size}"
        )
    return -(-n_bytes // BLOCK) * BLOCK
