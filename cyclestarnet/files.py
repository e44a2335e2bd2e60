"""Files that are written at once or not at all, and plain data for them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import astropy.units as u

__all__ = ["as_json", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    A crash or a full disk leaves the old file as it was. Folders that are
    missing are made.

    Parameters
    ----------
    path : path-like
        The file that is to be there in the end. An old one is replaced.
    write : callable
        Takes the `~pathlib.Path` of the temporary file, and writes it. What
        it returns is ignored; what it raises is passed on.

    Raises
    ------
    OSError
        If the file cannot be written. The error names ``path``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.files import write_atomically
    >>> path = Path(tempfile.mkdtemp()) / "labels.txt"
    >>> write_atomically(path, lambda temporary: temporary.write_text("teff logg"))
    >>> path.read_text()
    'teff logg'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, name):  # Python names no file if a write fails
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def as_json(options: object) -> str:
    """Write options of a fit as text that is the same in every process, to tell whether two runs are of the same.

    Parameters
    ----------
    options : object
        Plain values, mappings and sequences of them, quantities, arrays,
        functions (known by name), or objects of those.

    Returns
    -------
    str
        JSON. It is made to be compared, not to be read back.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.files import as_json
    >>> as_json({"fixed": {"teff": 4500 * u.K}})
    '{"fixed": {"teff": [4500.0, "K"]}}'
    """
    return json.dumps(options, default=_jsonable)


def _jsonable(value: Any) -> object:
    """Stand-in of an option that JSON does not know, the same in every process."""
    if isinstance(value, u.Quantity):
        return [value.value.tolist(), str(value.unit)]
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return {name: dict(vars(value))} if hasattr(value, "__dict__") else f"{name} {value}"
