"""Zip archives and the arrays in them: verified before anything is read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

__all__ = ["check_archive", "read_npz"]

LARGEST_CONTENT = 16 * 2**30  # bytes; a few kB of an archive can be blown up to any size


def check_archive(archive: zipfile.ZipFile, *, compressed: bool = True) -> None:
    """Verify the checksums of all that an archive holds.

    Parameters
    ----------
    archive : `zipfile.ZipFile`
        Open for reading.
    compressed : bool, optional
        Whether its members may be compressed. Default: True.

    Raises
    ------
    Exception
        Of many classes, if it is damaged, or larger than it can be.

    Examples
    --------
    >>> import io, zipfile
    >>> from cyclestarnet.reading.archives import check_archive
    >>> content = io.BytesIO()
    >>> with zipfile.ZipFile(content, "w") as archive:
    ...     archive.writestr("star", "bright")
    >>> damaged = content.getvalue().replace(b"bright", b"faint!")
    >>> check_archive(zipfile.ZipFile(io.BytesIO(damaged)))
    Traceback (most recent call last):
        ...
    ValueError: 'star' does not fit its checksum
    """
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise ValueError("two members have the same name")
    if not compressed and any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, which such a file never is")
    size = sum(member.file_size for member in members)
    if size > LARGEST_CONTENT:
        raise ValueError(f"its content of {size} bytes is larger than {LARGEST_CONTENT}")
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged!r} does not fit its checksum")


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of numbers of an ``.npz`` file.

    Parameters
    ----------
    path : path-like
        As `numpy.savez` writes it.

    Returns
    -------
    dict of array
        By name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    Exception
        Of many classes, if the file is damaged, or an array is not of real numbers.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from cyclestarnet.reading.archives import read_npz
    >>> path = tempfile.mkdtemp() + "/labels.npz"
    >>> np.savez(path, teff=[4500.0, 4600.0])
    >>> read_npz(path)
    {'teff': array([4500., 4600.])}
    """
    with Path(path).open("rb") as handle:
        with zipfile.ZipFile(handle) as archive:
            check_archive(archive)
        handle.seek(0)
        with np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            kind = array.dtype if isinstance(array, np.ndarray) else "bytes"
            raise ValueError(f"{name!r} must be an array of real numbers, but is of {kind}")
    return arrays
