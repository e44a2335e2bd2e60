"""Files that are written at once or not at all, locks between processes, and plain data for files."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import astropy.units as u
import h5py
import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["as_json", "check_no_folder", "locked", "try_lock", "write_atomically", "write_hdf5"]


# -- at once or not at all ---------------------------------------------------------------
def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    A crash or a full disk leaves the old file as it was. Folders that are
    missing are made. A file that is replaced keeps its permissions; if
    ``path`` is a symbolic link, the file that it points to is replaced.

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
        If the file cannot be written, or ``path`` is a folder. The error names ``path``.

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
    check_no_folder(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _take_permissions(temporary, target)
        temporary.replace(target)
    except OSError as error:
        if error.errno and (name is None or error.filename in (None, name)):  # Python names no file if a write fails
            error.filename = os.fspath(path)
        raise
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def _take_permissions(temporary: Path, target: Path) -> None:
    """Give a file the permissions and the owner of the one that it replaces, or else those of any new file."""
    try:
        old = target.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        return
    with suppress(OSError, AttributeError):  # only root can give files away, and Windows knows no owners
        os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


def check_no_folder(path: str | os.PathLike[str]) -> None:
    """Raise if a file is to be written where a folder is.

    Parameters
    ----------
    path : path-like
        Of the file.

    Raises
    ------
    IsADirectoryError
        If it is a folder.

    Examples
    --------
    >>> from cyclestarnet.files import check_no_folder
    >>> check_no_folder("labels.ecsv")
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "a file is to be written, but this is a folder", os.fspath(path))


def write_hdf5(path: str | os.PathLike[str], fill: Callable[[h5py.File], object]) -> None:
    """Write an HDF5 file at once or not at all; a full disk is an `OSError` like any other.

    The HDF5 library ends Python with a segmentation fault if it cannot write out what it
    still holds when a file is closed. Here it is told that all is well, and the error is
    raised afterwards, or at the next ``flush`` of the file.

    Parameters
    ----------
    path : path-like
        The file that is to be there in the end. An old one is replaced.
    fill : callable
        Takes the empty `h5py.File`, and fills it. If that takes long, it should call the
        file's ``flush`` from time to time, to hear of a full disk early.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is as it was. The error names ``path``.

    Examples
    --------
    >>> import tempfile, h5py
    >>> from cyclestarnet.files import write_hdf5
    >>> path = tempfile.mkdtemp() + "/numbers.h5"
    >>> write_hdf5(path, lambda file: file.create_dataset("numbers", data=[1, 2]))
    >>> with h5py.File(path) as file:
    ...     file["numbers"][()]
    array([1, 2])
    """

    def write(temporary: Path) -> None:
        with temporary.open("rb+", buffering=0) as raw:
            patient = _PatientFile(raw)
            try:
                with _FlushedFile(patient, "w") as file:
                    fill(file)
            finally:
                patient.check()

    write_atomically(path, write)


class _PatientFile(io.RawIOBase):
    """A file that keeps its first error for later, and takes what comes after it without writing it."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.error = raw, None

    def check(self):
        if self.error is not None:
            raise self.error

    def _try(self, call, otherwise):
        if self.error is not None:
            return otherwise
        try:
            return call()
        except OSError as error:
            self.error = error
            return otherwise

    def seek(self, offset, whence=os.SEEK_SET):
        return self.raw.seek(offset, whence)

    def tell(self):
        return self.raw.tell()

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")
        n = self._try(lambda: self.raw.readinto(view), 0) or 0
        view[n:] = bytes(len(view) - n)
        return len(view)

    def write(self, data):
        rest = memoryview(data).cast("B")
        n = len(rest)
        while rest:  # a full disk takes a part, and raises the next time
            rest = rest[self._try(lambda rest=rest: self.raw.write(rest), len(rest)) :]
        return n

    def truncate(self, size=None):
        return self._try(lambda: self.raw.truncate(size), size)

    def flush(self):
        pass  # raw files keep nothing back

    def readable(self):
        return True

    def writable(self):
        return True

    def seekable(self):
        return True


class _FlushedFile(h5py.File):
    """An HDF5 file in a patient one, whose ``flush`` raises what went wrong so far."""

    def __init__(self, patient: _PatientFile, mode: str):
        super().__init__(patient, mode)
        self._patient = patient

    def flush(self) -> None:
        """Write what is held back to the file, and raise if it, or anything before, could not be written."""
        super().flush()
        self._patient.check()


# -- one process at a time ---------------------------------------------------------------
def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file against other processes, until it is closed or its process ends.

    Parameters
    ----------
    file : file
        Open for writing.

    Returns
    -------
    bool
        False if another process has locked it. True also where files cannot be locked.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet.files import try_lock
    >>> with tempfile.TemporaryFile() as file:
    ...     try_lock(file)
    True
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


_held: set[tuple[str, int]] = set()


@contextmanager
def locked(folder: str | os.PathLike[str] | None, what: str = "writes into") -> Iterator[None]:
    """Keep other processes, and other threads, from working in a folder.

    The lock is a file ``.lock`` in the folder, which goes with the lock, and means nothing if its
    process was killed. Who has the lock may take it again.

    Parameters
    ----------
    folder : path-like or None
        Made if it is not there. None: there is nothing to lock.
    what : str, optional
        For the message: what the other process does with the folder.

    Raises
    ------
    FileExistsError
        If another process has the lock.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet.files import locked
    >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
    ...     pass
    """
    owner = (os.path.realpath(folder), threading.get_ident()) if folder is not None else None
    if owner is None or owner in _held:
        yield
        return
    place = Path(owner[0])
    made = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    path = place / ".lock"
    while True:
        file = path.open("ab")
        if not try_lock(file):
            file.close()
            raise FileExistsError(f"another process {what} {os.fspath(folder)}; wait, or choose another folder")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # of a process that was just done, and has removed it
    _held.add(owner)
    try:
        yield
    finally:
        _held.discard(owner)
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        file.close()
        if made:
            with suppress(OSError):  # there is something in it now
                place.rmdir()


# -- plain data --------------------------------------------------------------------------
def as_json(options: object, *, longest: int | None = None) -> str:
    """Write options of a fit as text that is the same in every process, to tell whether two runs are of the same.

    Parameters
    ----------
    options : object
        Plain values, mappings and sequences of them, quantities, arrays,
        functions (known by name), or objects of those.
    longest : int, optional
        Of arrays with more numbers than that, give shape and digest only. Default: all are given.

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

    def plain(value: Any) -> object:
        """Stand-in of an option that JSON does not know, the same in every process."""
        if hasattr(value, "colnames"):  # a table, or a row of one
            return {name: value[name] for name in value.colnames}
        if longest is not None and isinstance(value, np.ndarray) and value.size > longest:
            digest = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()[:16]
            return f"array {value.shape} {getattr(value, 'unit', None) or ''} {digest}"
        if isinstance(value, u.Quantity):
            return [value.value.tolist(), str(value.unit)]
        if hasattr(value, "tolist"):
            return value.tolist()
        if isinstance(value, Mapping):
            return dict(value)
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        return {name: dict(vars(value))} if hasattr(value, "__dict__") else f"{name} {value}"

    return json.dumps(options, default=plain)
