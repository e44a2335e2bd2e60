"""Files that are written at once or not at all, and plain data for them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import astropy.units as u

__all__ = ["as_json", "write_atomically"]


def write_atomically(path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    A crash or a full disk leaves the old file as it was.
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


def as_json(options):
    """Options of a fit as text, the same in every process."""
    return json.dumps(options, default=_jsonable)


def _jsonable(value):
    """Stand-in of an option that JSON does not know, the same in every process."""
    if isinstance(value, u.Quantity):
        return [value.value.tolist(), str(value.unit)]
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return {name: dict(vars(value))} if hasattr(value, "__dict__") else f"{name} {value}"
